//! The objectives of unpaired responses and of ranked lists, with what their formulas give at the start of training.

use diptych_core::{
    ApoZeroUnpaired, Bco, DsoDro, Kto, LipoLambda, ListMle, Nft, NftPromptWeight, Objective, PairWeights, PlackettLuce,
    Pmpo, Pro, ProTemperature, RankDpo, Ranking, Rrhf, Utility,
};

const LN_2: f64 = std::f64::consts::LN_2;

/// An objective with the scores at which it is usually called.
pub(crate) struct Subject {
    /// The objective.
    pub(crate) objective: Objective,
    /// Scores lie in `[-scale, 0]`.
    pub(crate) scale: f64,
    /// Losses of [`Batch::at_start`](crate::Batch::at_start).
    pub(crate) start_losses: Vec<f64>,
    /// Their gradients with respect to its policy's scores.
    pub(crate) start_grads: Vec<f64>,
    /// Responses of it that have none.
    pub(crate) at_rest: &'static [usize],
}

/// The table.
pub(crate) fn subjects() -> Vec<Subject> {
    let mut subjects = unpaired();
    subjects.extend(lists());
    subjects
}

fn subject(objective: impl Into<Objective>, scale: f64, start_losses: Vec<f64>, start_grads: Vec<f64>) -> Subject {
    Subject {
        objective: objective.into(),
        scale,
        start_losses,
        start_grads,
        at_rest: &[],
    }
}

/// Losses and gradients of a desirable and of an undesirable response; at the start they alternate.
fn alternating(objective: impl Into<Objective>, scale: f64, losses: [f64; 2], grads: [f64; 2]) -> Subject {
    let five = |[desirable, undesirable]: [f64; 2]| vec![desirable, undesirable, desirable, undesirable, desirable];
    subject(objective, scale, five(losses), five(grads))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn unpaired() -> Vec<Subject> {
    // The baseline is 1/4: a desirable response is that much below it, an undesirable one above.
    let kto = |beta: f64, desirable_weight: f64, undesirable_weight: f64, scale| {
        let below = sigmoid(0.25 * beta);
        let slope = beta * below * sigmoid(-0.25 * beta);
        let objective = Kto {
            beta,
            desirable_weight,
            undesirable_weight,
            utility: Utility::KahnemanTversky,
        };
        let losses = [desirable_weight * below, undesirable_weight * sigmoid(-0.25 * beta)];
        alternating(
            objective,
            scale,
            losses,
            [-desirable_weight * slope, undesirable_weight * slope],
        )
    };
    let anchored = ApoZeroUnpaired {
        beta: 0.1,
        desirable_weight: 2.0,
        undesirable_weight: 0.5,
    };
    let bco = |running_shift| Bco {
        beta: 0.1,
        running_shift,
    };
    let shifted = [-sigmoid(-0.25).ln(), -sigmoid(0.25).ln()];
    let pmpo = Pmpo { alpha: 0.5, beta: 0.25 };
    vec![
        kto(0.1, 1.0, 1.0, 60.0),
        kto(1000.0, 1.0, 1.5, 0.25),
        alternating(anchored, 60.0, [1.0, 0.25], [-0.05, 0.0125]),
        alternating(bco(false), 60.0, [LN_2; 2], [-0.05, 0.05]),
        alternating(bco(true), 60.0, shifted, [-0.1 * sigmoid(0.25), 0.1 * sigmoid(-0.25)]),
        alternating(pmpo, 60.0, [0.0; 2], [-0.75, 0.25]),
        alternating(DsoDro {}, 0.25, [0.0; 2], [-2.0, 2.0]),
        nft(),
    ]
}

/// Pass rates of 1, which is taken as 0.98, 1/2, 0, which is taken as 0.02, 1 and 1/2. Scores so small that no bound is met, beyond
/// which gradients are not slopes.
fn nft() -> Subject {
    let objective = Nft {
        negative_weight: 2.0,
        epsilon: 0.1,
        prompt_weight: NftPromptWeight::FailureRate,
    };
    let grads = vec![-0.02, 2.0 * 0.5, -0.98, 2.0 * 0.98, -0.5];
    subject(objective, 0.01, vec![0.0; 5], grads)
}

/// All orders of a list are equally likely: a response is as often among the first as its place says.
fn uniform_picks(objective: impl Into<Objective>, scale: f64, beta: f64) -> Subject {
    let grads = [-2.0 / 3.0, -1.0 / 6.0, 5.0 / 6.0, -0.5, 0.5].map(|grad| beta * grad);
    subject(objective, scale, vec![6f64.ln(), LN_2], grads.to_vec())
}

/// Pairs 12, 13 and 23 of the first list and 12 of the second have these weights.
fn weighted_pairs(objective: impl Into<Objective>, scale: f64, beta: f64, weights: [f64; 4]) -> Subject {
    let [first, widest, last, other] = weights;
    let grads = [-first - widest, first - last, widest + last, -other, other].map(|grad| 0.5 * beta * grad);
    subject(
        objective,
        scale,
        vec![(first + widest + last) * LN_2, other * LN_2],
        grads.to_vec(),
    )
}

fn lists() -> Vec<Subject> {
    // Gains of 1, 1/2 and 0, discounts of the first three ranks: equal scores rank in their order.
    let gains = [2.0, 2f64.sqrt(), 1.0];
    let discounts = [2f64, 3.0, 4.0].map(|rank| 1.0 / rank.ln());
    let exchange = |i: usize, j: usize| (gains[i] - gains[j]) * (discounts[i] - discounts[j]);
    let lambda = [exchange(0, 1), exchange(0, 2), exchange(1, 2), exchange(0, 1)];

    let lipo = |weights| LipoLambda { beta: 0.1, weights };
    let rank_dpo = |beta, ranking| RankDpo { beta, ranking };
    let pro = |temperature| Pro {
        sft_weight: 0.05,
        temperature,
    };
    // Slopes of the ranking a token, and of the supervised term: 4 and 1 times its weight on the best.
    let supervised = |ranking: [f64; 5]| {
        let [first, second, third, fourth, fifth] = ranking.map(|slope| slope / 2.0);
        vec![first - 0.05 * 4.0, second, third, fourth - 0.05, fifth]
    };
    let orders = vec![6f64.ln(), LN_2];
    vec![
        uniform_picks(PlackettLuce { beta: 0.1 }, 60.0, 0.1),
        uniform_picks(PlackettLuce { beta: 5000.0 }, 0.25, 5000.0),
        // 2 tokens each.
        uniform_picks(ListMle { beta: 3.0 }, 60.0, 3.0 / 2.0),
        weighted_pairs(lipo(PairWeights::Lambda), 60.0, 0.1, lambda),
        weighted_pairs(lipo(PairWeights::Constant), 60.0, 0.1, [1.0; 4]),
        weighted_pairs(rank_dpo(5000.0, Ranking::Judge), 0.25, 5000.0, lambda),
        weighted_pairs(rank_dpo(0.1, Ranking::Policy), 60.0, 0.1, lambda),
        Subject {
            // Nothing is out of order: the best responses rise and the others stay.
            at_rest: &[2, 4],
            ..subject(Rrhf::default(), 60.0, vec![0.0; 2], vec![-1.0, 0.0, 0.0, -1.0, 0.0])
        },
        subject(
            pro(ProTemperature::Unit),
            60.0,
            orders.clone(),
            supervised([-2.0 / 3.0, -1.0 / 6.0, 5.0 / 6.0, -0.5, 0.5]),
        ),
        subject(
            pro(ProTemperature::JudgeScores),
            60.0,
            orders,
            supervised([-2.0 / 3.0, -1.0 / 12.0, 7.0 / 12.0, -0.25, 0.25]),
        ),
    ]
}
