//! Trainable networks in the layouts people have, and LoRA adapters.
//!
//! Every network here is built by a [`Builder`], which says where its tensors come from (a checkpoint or a seeded
//! initialization), what of it is trained, and which layers carry an adapter. Parameters, configuration files and adapters have
//! the names that diffusers, transformers and PEFT give them, so what is written here is read there.
//!
//! | module | what it holds |
//! |---|---|
//! | [`unet`] | the conditional denoiser of Stable Diffusion 1.x, 2.x and XL |
//! | [`mmdit`] | the conditional denoiser of Stable Diffusion 3 and 3.5 |
//! | [`flux`] | the conditional denoiser of Flux |
//! | [`pixart`] | the conditional denoiser of `PixArt` |
//! | [`vae`] | the image autoencoders of Stable Diffusion 1 to 3 and Flux |
//! | [`text_encoder`] | the CLIP text models and their tokenizer |
//! | [`t5`] | the T5 text encoder and its tokenizer |
//! | [`vision`] | preprocessing of images and the vision towers of CLIP and `SigLIP` |
//! | [`clip`] | CLIP as a whole, from transformers' and `OpenCLIP`'s files, and with a time in its image half |
//! | [`blip`] | BLIP: a text encoder that looks at an image |
//! | [`lm`] | causal language models: Llama, Mistral, Qwen, `SmolLM`, Gemma |
//! | [`vlm`] | vision-language models: `LLaVA`, `LLaVA-NeXT`, Qwen2-VL, Qwen2.5-VL |
//! | [`lora`] | adapters on disk: PEFT directories, diffusers files, merged weights |
//! | [`diffusers`] | pipeline directories |
//! | [`layers`] | the layers all of them are made of |

mod adapter;
mod attention;
pub mod blip;
mod builder;
pub mod clip;
mod config_json;
pub mod diffusers;
mod dit;
mod error;
pub mod flux;
mod init;
pub mod layers;
mod linear_weight;
pub mod lm;
pub mod lora;
pub mod mmdit;
mod nearest;
pub mod pixart;
mod resnet;
pub mod t5;
pub mod text_encoder;
pub mod unet;
pub mod vae;
pub mod vision;
pub mod vlm;

pub use adapter::{AdapterConfig, AdapterSwitch, FullConfig, LoraConfig, LoraInit, SwitchGuard, Targets};
pub use builder::{Builder, BuilderConfig, Trainable, without_prefix};
pub use error::{Error, Result};
pub use init::Init;
