//! Noise schedules, denoising errors, samplers and alignment methods for image diffusion.
