//! How much better an image is than what is usual.

use std::collections::BTreeMap;

use diptych_tensor::{DType, Device, Tensor, Weights};

use super::config::AdvantageConfig;
use crate::Result;

/// The last rewards of each prompt, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct RewardMemory(BTreeMap<usize, Vec<f64>>);

const REWARDS: &str = "rewards";

impl RewardMemory {
    /// Advantages of rewards of these prompts, each within `± limit`. With memories of each prompt they are updated first, and what
    /// is not remembered well enough is compared with the batch; as in DDPO's code.
    pub(super) fn advantages(
        &mut self,
        config: &AdvantageConfig,
        records: &[usize],
        rewards: &[f64],
        limit: f64,
    ) -> Vec<f64> {
        let (mean, deviation) = moments(rewards);
        let advantage = |reward: f64, mean: f64, deviation: f64| ((reward - mean) / deviation).clamp(-limit, limit);
        match *config {
            AdvantageConfig::Batch {} => rewards
                .iter()
                .map(|&reward| advantage(reward, mean, deviation + 1e-8))
                .collect(),
            AdvantageConfig::PerPrompt { buffer_size, min_count } => {
                for (record, reward) in records.iter().zip(rewards) {
                    let memory = self.0.entry(*record).or_default();
                    memory.push(*reward);
                    if memory.len() > buffer_size {
                        memory.remove(0);
                    }
                }
                let of = |(record, reward): (&usize, &f64)| {
                    let memory = &self.0[record];
                    let (mean, deviation) = if memory.len() < min_count {
                        (mean, deviation)
                    } else {
                        moments(memory)
                    };
                    advantage(*reward, mean, deviation + 1e-6)
                };
                records.iter().zip(rewards).map(of).collect()
            }
        }
    }

    /// As tensors: a row (prompt, reward) for each remembered one.
    pub(super) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let rows: Vec<f64> = self
            .0
            .iter()
            .flat_map(|(record, rewards)| rewards.iter().flat_map(|&reward| [*record as f64, reward]))
            .collect();
        if rows.is_empty() {
            return Ok(BTreeMap::new());
        }
        let table = || -> diptych_tensor::Result<Tensor> {
            let len = rows.len() / 2;
            Ok(Tensor::from_vec(rows, (len, 2), &Device::Cpu)?)
        };
        Ok(BTreeMap::from([(REWARDS.to_owned(), table()?)]))
    }

    /// Reads what [`RewardMemory::tensors`] gave.
    pub(super) fn read(weights: &Weights) -> Result<Self> {
        let mut memory = Self::default();
        if !weights.contains(REWARDS) {
            return Ok(memory);
        }
        let table = weights.read(REWARDS, DType::F64, &Device::Cpu)?;
        let rows = || -> diptych_tensor::Result<Vec<f64>> { Ok(table.flatten_all()?.to_vec1()?) };
        for row in rows()?.chunks_exact(2) {
            memory.0.entry(row[0] as usize).or_default().push(row[1]);
        }
        Ok(memory)
    }
}

/// Mean and standard deviation of the population.
fn moments(values: &[f64]) -> (f64, f64) {
    let len = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / len;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / len;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    /// Numbers of a `NumPy` run of the published rule with buffers of 3, used from 2 on.
    #[test]
    fn a_prompts_own_memory_takes_over_once_it_is_long_enough() {
        let config = AdvantageConfig::PerPrompt {
            buffer_size: 3,
            min_count: 2,
        };
        let mut memory = RewardMemory::default();
        // Everything is new: the batch has mean 2 and deviation 0.8165.
        let first = memory.advantages(&config, &[0, 1, 2], &[1.0, 2.0, 3.0], 5.0);
        close(&first, &[-1.224_743, 0.0, 1.224_743]);
        // Prompt 0 remembers 1 and 5: mean 3, deviation 2. Prompt 3 is new: the batch has mean 3.5, deviation 1.5.
        let second = memory.advantages(&config, &[0, 3], &[5.0, 2.0], 5.0);
        close(&second, &[1.0, -1.0]);
        // 1, 5, 6, then 9 without the 1: mean 20/3, deviation 1.6997.
        memory.advantages(&config, &[0], &[6.0], 5.0);
        let third = memory.advantages(&config, &[0], &[9.0], 5.0);
        close(&third, &[1.372_813]);
        let cut = memory.advantages(&config, &[0], &[1000.0], 0.5);
        close(&cut, &[0.5]);
    }

    #[test]
    fn memories_survive_a_checkpoint_in_their_order() {
        let config = AdvantageConfig::default();
        let mut memory = RewardMemory::default();
        memory.advantages(&config, &[4, 0, 4, 4], &[0.1, 2.0, -1.0 / 3.0, 7.0], 5.0);
        let weights = Weights::from_tensors("state", memory.tensors().unwrap());
        assert_eq!(RewardMemory::read(&weights).unwrap(), memory);
        let empty = Weights::from_tensors("state", BTreeMap::new());
        assert_eq!(RewardMemory::read(&empty).unwrap(), RewardMemory::default());
    }

    #[test]
    fn a_batch_is_its_own_measure() {
        let mut memory = RewardMemory::default();
        let advantages = memory.advantages(&AdvantageConfig::Batch {}, &[0, 0], &[2.0, 4.0], 5.0);
        close(&advantages, &[-1.0, 1.0]);
        assert!(memory.tensors().unwrap().is_empty());
    }
}
