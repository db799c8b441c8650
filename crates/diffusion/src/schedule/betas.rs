//! The training table: betas and the cumulative product of the signal shares, computed as `diffusers` does.
//!
//! `diffusers` builds betas with `torch.linspace(.., dtype=torch.float32)` and accumulates the product on the CPU in
//! double precision before rounding each entry to single. The same order of roundings is kept here, so that the tables
//! agree to the last bits and noise levels are those the checkpoint was trained with.

use super::config::{BetaSchedule, SchedulerConfig};

/// Largest beta of the cosine schedule (`betas_for_alpha_bar(max_beta=0.999)`).
const COSINE_MAX_BETA: f64 = 0.999;

/// Betas of every training step, `config.num_train_timesteps` of them.
pub(super) fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let num_steps = config.num_train_timesteps;
    let betas = match &config.beta_schedule {
        BetaSchedule::Linear => linspace(config.beta_start as f32, config.beta_end as f32, num_steps),
        BetaSchedule::ScaledLinear => {
            let roots = linspace(
                config.beta_start.sqrt() as f32,
                config.beta_end.sqrt() as f32,
                num_steps,
            );
            roots.into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredCosine => squared_cosine(num_steps),
        BetaSchedule::Trained(betas) => betas.iter().map(|&beta| beta as f32).collect(),
    };
    if config.rescale_betas_zero_snr {
        rescale_to_zero_terminal_snr(&betas)
    } else {
        betas
    }
}

/// Running product of `1 - beta`, accumulated in double precision as `torch.cumprod` does on the CPU.
pub(super) fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let alphas: Vec<f32> = betas.iter().map(|&beta| 1.0 - beta).collect();
    cumulative_product(&alphas)
}

/// `torch.linspace` in single precision: computed from both ends, so that it is symmetric and exact at the ends.
fn linspace(start: f32, end: f32, num_steps: usize) -> Vec<f32> {
    if num_steps == 1 {
        return vec![start];
    }
    let step = (end - start) / (num_steps - 1) as f32;
    let half = num_steps / 2;
    (0..num_steps)
        .map(|i| {
            if i < half {
                start + step * i as f32
            } else {
                end - step * (num_steps - i - 1) as f32
            }
        })
        .collect()
}

/// Nichol and Dhariwal's cosine schedule (arXiv:2102.09672, Eq. 17), `squaredcos_cap_v2` of `diffusers`.
fn squared_cosine(num_steps: usize) -> Vec<f32> {
    let alpha_bar = |share: f64| ((share + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    (0..num_steps)
        .map(|i| {
            let (now, next) = (i as f64 / num_steps as f64, (i + 1) as f64 / num_steps as f64);
            (1.0 - alpha_bar(next) / alpha_bar(now)).min(COSINE_MAX_BETA) as f32
        })
        .collect()
}

/// Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891, Algorithm 1).
fn rescale_to_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let scale = first / (first - last);
    let cumprod: Vec<f32> = roots.iter().map(|&root| ((root - last) * scale).powi(2)).collect();
    let ratios = cumprod.windows(2).map(|pair| 1.0 - pair[1] / pair[0]);
    std::iter::once(1.0 - cumprod[0]).chain(ratios).collect()
}

fn cumulative_product(values: &[f32]) -> Vec<f32> {
    let mut product = 1.0_f64;
    values
        .iter()
        .map(|&value| {
            product *= f64::from(value);
            product as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linspace_is_exact_at_both_ends() {
        let values = linspace(0.1, 0.7, 7);
        assert_eq!((values[0], values[6], values.len()), (0.1, 0.7, 7));
        assert_eq!(linspace(0.3, 0.9, 1), [0.3]);
    }

    #[test]
    fn rescaled_table_ends_without_signal() {
        let betas = linspace(0.0001, 0.02, 1000);
        let before = alphas_cumprod(&betas);
        let after = alphas_cumprod(&rescale_to_zero_terminal_snr(&betas));
        assert_eq!(after[999], 0.0);
        assert!((after[0] - before[0]).abs() < 1e-6);
    }
}
