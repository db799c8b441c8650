//! The one training loop, its recipe, checkpoints and run directory.
