//! Trainable networks in the layouts people have, and LoRA adapters.
