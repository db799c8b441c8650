//! Which blocks of a network compute their activations again in the backward pass.

use std::cell::Cell;
use std::num::NonZeroUsize;

/// Which of a network's blocks keep nothing but their input for the backward pass, and compute the rest again there: see
/// [`checkpoint`](super::checkpoint()). Results are the same whichever these are.
///
/// Between none and all lies one block of every so many, the first one of each: of L blocks that keep A each, about
/// A (L - L / n) less the inputs is held, for a share of 1 / n of the forward pass once more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CheckpointPolicy {
    /// None.
    #[default]
    Off,
    /// Of so many blocks the first one; with 1 every block.
    Every(NonZeroUsize),
}

impl CheckpointPolicy {
    /// Every block.
    pub const ALL: Self = Self::Every(NonZeroUsize::MIN);

    /// Of `num` blocks the first one; none of 0 blocks.
    pub fn every(num: usize) -> Self {
        NonZeroUsize::new(num).map_or(Self::Off, Self::Every)
    }

    /// Whether this block of a network, counted from 0, is recomputed.
    pub fn recomputes(self, block: usize) -> bool {
        match self {
            Self::Off => false,
            Self::Every(num) => block.is_multiple_of(num.get()),
        }
    }

    /// The policies for a network of so many blocks, from the one that recomputes nothing to the one that recomputes all; of those that
    /// recompute equally many blocks one.
    pub fn candidates(num_blocks: usize) -> Vec<Self> {
        let mut policies = vec![Self::Off];
        let mut most = 0;
        for num in (1..=num_blocks).rev() {
            let recomputed = num_blocks.div_ceil(num);
            if recomputed > most {
                most = recomputed;
                policies.push(Self::every(num));
            }
        }
        policies
    }
}

/// The blocks of one forward pass, counted as they come.
#[derive(Debug)]
pub struct BlockCounter {
    policy: CheckpointPolicy,
    next: Cell<usize>,
}

impl BlockCounter {
    /// Before the first block.
    pub fn new(policy: CheckpointPolicy) -> Self {
        Self {
            policy,
            next: Cell::new(0),
        }
    }

    /// Whether the next block is recomputed.
    pub fn recomputes_next(&self) -> bool {
        let block = self.next.get();
        self.next.set(block + 1);
        self.policy.recomputes(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recomputed(policy: CheckpointPolicy, num_blocks: usize) -> Vec<usize> {
        let counter = BlockCounter::new(policy);
        (0..num_blocks).filter(|_| counter.recomputes_next()).collect()
    }

    #[test]
    fn of_so_many_blocks_the_first_is_recomputed() {
        assert_eq!(recomputed(CheckpointPolicy::Off, 5), [0; 0]);
        assert_eq!(recomputed(CheckpointPolicy::ALL, 5), [0, 1, 2, 3, 4]);
        assert_eq!(recomputed(CheckpointPolicy::every(2), 5), [0, 2, 4]);
        assert_eq!(recomputed(CheckpointPolicy::every(7), 5), [0]);
        assert_eq!(CheckpointPolicy::every(0), CheckpointPolicy::default());
    }

    #[test]
    fn candidates_recompute_more_and_more() {
        for num_blocks in [0, 1, 2, 7, 32] {
            let counts: Vec<usize> = CheckpointPolicy::candidates(num_blocks)
                .into_iter()
                .map(|policy| recomputed(policy, num_blocks).len())
                .collect();
            assert!(counts.windows(2).all(|two| two[0] < two[1]), "{counts:?}");
            assert_eq!((counts[0], counts[counts.len() - 1]), (0, num_blocks));
        }
    }
}
