//! Users as vectors: what an image is told about who it is for.
//!
//! Dang et al., "Personalized Preference Fine-tuning of Diffusion Models" (PPD), CVPR 2025, arXiv:2501.06655: a user is an embedding, theirs a
//! vision-language model's of a few of the user's pairs, and a mixture of users is the same mixture of their embeddings.
//!
//! Shape letters: B batch, S vectors of a user, D width.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_tensor::{DType, Device, Tensor, Weights};

use crate::tensors::host_f32;
use crate::{Error, Result};

/// The file of embeddings inside a result.
pub(crate) const USERS_FILE: &str = "users.safetensors";
/// The file of the attention to users inside a result.
pub(crate) const USER_ATTENTION_FILE: &str = "user_attention.safetensors";

/// Embeddings of users by name, all of one shape.
#[derive(Debug, Clone)]
pub struct UserEmbeddings {
    file: PathBuf,
    /// (S, D).
    shape: [usize; 2],
    users: BTreeMap<String, Vec<f32>>,
}

impl UserEmbeddings {
    /// Reads a safetensors file with one tensor a user, (D) or (S, D).
    ///
    /// # Errors
    /// A file that is missing or damaged; [`Error::Users`] for users of different shapes, numbers that are not finite, or no user.
    pub fn read(path: &Path) -> Result<Self> {
        let weights = Weights::open(path)?;
        let mut users = BTreeMap::new();
        let mut common = None;
        let wrong = |problem: String| Error::Users {
            path: path.to_path_buf(),
            problem,
        };
        for name in weights.names() {
            let tensor = weights.read(name, DType::F32, &Device::Cpu)?;
            let shape = match *tensor.dims() {
                [dim] => [1, dim],
                [num, dim] => [num, dim],
                ref other => {
                    return Err(wrong(format!(
                        "has `{name}` of shape {other:?}, expected (D) or (S, D)"
                    )));
                }
            };
            let expected = *common.get_or_insert(shape);
            if shape != expected || shape.contains(&0) {
                return Err(wrong(format!(
                    "has `{name}` of shape {shape:?} beside another of {expected:?}"
                )));
            }
            let values = host_f32(&tensor)?;
            if values.iter().any(|value| !value.is_finite()) {
                return Err(wrong(format!("has a number in `{name}` that is not finite")));
            }
            users.insert(name.to_owned(), values);
        }
        Ok(Self {
            file: path.to_path_buf(),
            shape: common.ok_or_else(|| wrong("has no user".into()))?,
            users,
        })
    }

    /// The file they were read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Vectors a user and their width, (S, D).
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The values of a user, row-major.
    ///
    /// # Errors
    /// [`Error::Users`] for a user that is not there, with the first names that are.
    pub fn values(&self, name: &str) -> Result<&[f32]> {
        if let Some(values) = self.users.get(name) {
            return Ok(values);
        }
        let known: Vec<&str> = self.names().take(5).collect();
        Err(Error::Users {
            path: self.file.clone(),
            problem: format!(
                "has no user `{name}`; it has {} users: {}{}",
                self.users.len(),
                known.join(", "),
                if self.users.len() > known.len() { ", …" } else { "" }
            ),
        })
    }

    /// The weighted sum of users, (S, D): an interpolation where the weights sum to 1.
    ///
    /// # Errors
    /// As [`UserEmbeddings::values`]; [`Error::Users`] for a weight that is not finite, or no user.
    pub fn mixture(&self, users: &[(String, f64)], device: &Device) -> Result<Tensor> {
        let wrong = |problem: String| Error::Users {
            path: self.file.clone(),
            problem,
        };
        if users.is_empty() {
            return Err(wrong("is asked for nobody".into()));
        }
        let mut sum = vec![0.0_f64; self.shape[0] * self.shape[1]];
        for (name, weight) in users {
            if !weight.is_finite() {
                return Err(wrong(format!("is asked for `{name}` with a weight of {weight}")));
            }
            for (sum, value) in sum.iter_mut().zip(self.values(name)?) {
                *sum += weight * f64::from(*value);
            }
        }
        let sum: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
        let tensor =
            || -> diptych_tensor::Result<Tensor> { Ok(Tensor::from_vec(sum, (self.shape[0], self.shape[1]), device)?) };
        Ok(tensor()?)
    }

    /// Users of a batch, (B, S, D); nobody is zeros.
    ///
    /// # Errors
    /// As [`UserEmbeddings::values`].
    pub(crate) fn gather(&self, users: &[Option<&str>], device: &Device) -> Result<Tensor> {
        let len = self.shape[0] * self.shape[1];
        let mut values = Vec::with_capacity(users.len() * len);
        for user in users {
            match user {
                Some(name) => values.extend_from_slice(self.values(name)?),
                None => values.resize(values.len() + len, 0.0),
            }
        }
        let shape = (users.len(), self.shape[0], self.shape[1]);
        let tensor = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::from_vec(values, shape, device)?) };
        Ok(tensor()?)
    }
}

/// One user for the second half of 2B rows, nobody for the first, which guidance leads away from; for all rows without guidance.
pub(crate) fn for_rows(user_sd: &Tensor, num_rows: usize, num_nobody: usize) -> diptych_tensor::Result<Tensor> {
    let one = user_sd.unsqueeze(0)?;
    let nobody = one.zeros_like()?;
    let rows: Vec<&Tensor> = (0..num_rows)
        .map(|row| if row < num_nobody { &nobody } else { &one })
        .collect();
    Ok(Tensor::cat(&rows, 0)?)
}
