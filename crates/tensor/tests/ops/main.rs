//! Every operation against its composed form, central differences, frozen operands, strided operands, half precision and
//! another number of threads.
#![expect(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod batches;
mod cases;
mod decoder;
mod masks;
mod operands;
mod properties;
mod token_head;
mod values;

/// The operations of every test also run on reused, unclean memory.
#[global_allocator]
static ALLOCATOR: diptych_tensor::memory::BlockCache = diptych_tensor::memory::BlockCache::new();
