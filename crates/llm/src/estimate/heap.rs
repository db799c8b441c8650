//! What is allocated and what is given back, counted.
//!
//! Large blocks are kept and used again, as [`diptych_tensor::memory::BlockCache`] does it: what a process holds is what
//! lives and what is kept.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use diptych_tensor::memory::block_bytes;

/// What memory is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    Frozen,
    Trained,
    Moments,
    Average,
    Reference,
    Scores,
    Gradients,
    Activations,
    ReferencePass,
    Backward,
    Update,
    Loading,
    Saving,
    Sampling,
    Images,
}

impl Use {
    /// As people read it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Frozen => "parameters, frozen",
            Self::Trained => "parameters, trained",
            Self::Moments => "optimizer moments",
            Self::Average => "moving average",
            Self::Reference => "reference network",
            Self::Scores => "reference scores",
            Self::Gradients => "gradients",
            Self::Activations => "activations",
            Self::ReferencePass => "reference pass",
            Self::Backward => "backward pass",
            Self::Update => "update",
            Self::Loading => "loading",
            Self::Saving => "files being written",
            Self::Sampling => "sampling",
            Self::Images => "images that are kept",
        }
    }
}

/// The most that was held, and the most that lived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Peak {
    /// With blocks that were free and kept.
    pub(super) bytes: usize,
    /// What lived when most lived, by use.
    pub(super) live: BTreeMap<Use, usize>,
    /// What was being done then.
    pub(super) moment: &'static str,
}

impl Peak {
    /// Sum of what lived.
    pub(super) fn live_bytes(&self) -> usize {
        self.live.values().sum()
    }
}

/// Counts bytes and operations of a run that does not happen.
#[derive(Debug, Clone, Default)]
pub(super) struct Heap(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    live: BTreeMap<Use, usize>,
    total: usize,
    blocks: Blocks,
    moment: &'static str,
    most_live: usize,
    peak: Peak,
    work: Work,
}

/// Work done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Work {
    /// Multiplications and additions of matrix products.
    pub(super) flop: f64,
    /// Bytes of all results.
    pub(super) bytes: f64,
}

/// Large blocks of the allocator.
#[derive(Debug, Default)]
struct Blocks {
    live: usize,
    peak: usize,
    kept: usize,
    /// Number of kept blocks by size.
    sizes: BTreeMap<usize, usize>,
}

/// Bytes that are in use as long as this exists.
#[derive(Debug)]
pub(super) struct Block {
    heap: Heap,
    of: Use,
    bytes: usize,
    is_large: bool,
}

impl Heap {
    /// Takes memory.
    pub(super) fn take(&self, of: Use, bytes: usize) -> Rc<Block> {
        let state = &mut *self.0.borrow_mut();
        state.work.bytes += bytes as f64;
        let large = block_bytes(bytes);
        let bytes = large.unwrap_or(bytes);
        if large.is_some() {
            state.blocks.take(bytes);
        }
        *state.live.entry(of).or_default() += bytes;
        state.total += bytes;
        state.peak.bytes = state.peak.bytes.max(state.total + state.blocks.kept);
        if state.total > state.most_live {
            state.most_live = state.total;
            state.peak.live = state.live.clone();
            state.peak.moment = state.moment;
        }
        let is_large = large.is_some();
        Rc::new(Block {
            heap: self.clone(),
            of,
            bytes,
            is_large,
        })
    }

    /// Says what is being done from now on.
    pub(super) fn begin(&self, moment: &'static str) {
        self.0.borrow_mut().moment = moment;
    }

    /// Counts multiplications and additions.
    pub(super) fn compute(&self, flop: f64) {
        self.0.borrow_mut().work.flop += flop;
    }

    /// The most that was held at once so far.
    pub(super) fn peak(&self) -> Peak {
        self.0.borrow().peak.clone()
    }

    /// What lives now of a use.
    #[cfg(test)]
    pub(super) fn live(&self, of: Use) -> usize {
        self.0.borrow().live.get(&of).copied().unwrap_or(0)
    }

    /// The work so far.
    pub(super) fn work(&self) -> Work {
        self.0.borrow().work
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let state = &mut *self.heap.0.borrow_mut();
        state.total -= self.bytes;
        if let Some(live) = state.live.get_mut(&self.of) {
            *live -= self.bytes;
        }
        if self.is_large {
            state.blocks.give_back(self.bytes);
        }
    }
}

impl Blocks {
    fn take(&mut self, bytes: usize) {
        self.live += bytes;
        self.peak = self.peak.max(self.live);
        if !self.reuse(bytes) {
            self.shrink();
        }
    }

    fn give_back(&mut self, bytes: usize) {
        self.live -= bytes;
        self.kept += bytes;
        *self.sizes.entry(bytes).or_default() += 1;
        self.shrink();
    }

    /// Takes a kept block of this size, if there is one.
    fn reuse(&mut self, bytes: usize) -> bool {
        let Some(count) = self.sizes.get_mut(&bytes) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            self.sizes.remove(&bytes);
        }
        self.kept -= bytes;
        true
    }

    /// Gives kept blocks back to the system until they and the live ones are within five quarters of the peak.
    fn shrink(&mut self) {
        while self.live + self.kept > self.peak + self.peak / 4 {
            let Some((&largest, _)) = self.sizes.last_key_value() else {
                break;
            };
            self.reuse(largest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_held_is_what_lives_and_what_is_kept() {
        let heap = Heap::default();
        heap.begin("first");
        let small = heap.take(Use::Frozen, 1000);
        let large = heap.take(Use::Activations, 8 * MIB);
        assert_eq!(heap.peak().bytes, 1000 + 8 * MIB);
        drop(large);
        heap.begin("second");
        // The same size is used again, another one is new; a quarter beyond the most in use may be kept.
        let again = heap.take(Use::Activations, 8 * MIB);
        assert_eq!((heap.peak().bytes, heap.peak().moment), (1000 + 8 * MIB, "first"));
        drop(again);
        let other = heap.take(Use::Backward, 2 * MIB);
        assert_eq!(heap.peak().bytes, 1000 + 10 * MIB);
        // Most lived before.
        assert_eq!(
            (heap.peak().live_bytes(), heap.peak().moment),
            (1000 + 8 * MIB, "first")
        );
        assert_eq!(heap.peak().live[&Use::Activations], 8 * MIB);
        drop((small, other));
        assert_eq!(heap.0.borrow().total, 0);
        assert!(heap.work().bytes >= (18 * MIB) as f64);
    }

    #[test]
    fn kept_blocks_stay_within_a_quarter() {
        let heap = Heap::default();
        for i in 1..100 {
            drop(heap.take(Use::Backward, i * MIB / 2));
        }
        let most = diptych_tensor::memory::block_bytes(99 * MIB / 2).unwrap();
        assert!(heap.peak().bytes <= most + most / 4);
    }
}
