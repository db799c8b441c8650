//! Preference alignment for image diffusion, vision-language and language models.
