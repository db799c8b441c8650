//! What a denoiser is told besides noisy latents and timesteps.
//!
//! Shape letters: B batch, T tokens, D width, P pooled width, S vectors of a user.

use diptych_tensor::{DType, Device, Tensor};

use crate::{Error, Result};

/// What a denoiser is told about each example of a batch. Which parts there must be is the network's to say; a part that it does not
/// take is refused by [`Denoiser::predict`](super::Denoiser::predict), never dropped.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Conditioning {
    /// Text, (B, T, D).
    pub encoder_hidden_states: Tensor,
    /// One vector a text, (B, P): `text_embeds` of SDXL, `pooled_projections` of SD3 and Flux.
    pub pooled: Option<Tensor>,
    /// SDXL: original height and width, top and left of the crop, target height and width, pixels, (B, 6); the refiner has the
    /// aesthetic score in place of the target size, (B, 5).
    pub time_ids: Option<Tensor>,
    /// Strength of guidance of all examples, for a network that takes it as an input (Flux dev), which without it is told diffusers'
    /// default of 3.5.
    pub guidance: Option<f32>,
    /// Who the image is for, (B, S, width of users), for a network that attends to users; zeros are nobody.
    pub users: Option<Tensor>,
}

impl Conditioning {
    /// Text alone, (B, T, D).
    pub fn new(encoder_hidden_states: Tensor) -> Self {
        Self {
            encoder_hidden_states,
            pooled: None,
            time_ids: None,
            guidance: None,
            users: None,
        }
    }

    /// With who each image is for, (B, S, width of users).
    #[must_use]
    pub fn with_users(mut self, users: Tensor) -> Self {
        self.users = Some(users);
        self
    }

    /// With one vector a text, (B, P).
    #[must_use]
    pub fn with_pooled(mut self, pooled: Tensor) -> Self {
        self.pooled = Some(pooled);
        self
    }

    /// With sizes and crops, (B, 6).
    #[must_use]
    pub fn with_time_ids(mut self, time_ids: Tensor) -> Self {
        self.time_ids = Some(time_ids);
        self
    }

    /// With a strength of guidance.
    #[must_use]
    pub fn with_guidance(mut self, guidance: f32) -> Self {
        self.guidance = Some(guidance);
        self
    }

    /// Number of examples, B.
    pub fn batch_size(&self) -> usize {
        self.encoder_hidden_states.dims().first().copied().unwrap_or(0)
    }

    /// The batch `times` times, one after the other, (times B, ..): for the sides of a pair, which share their prompts.
    ///
    /// # Errors
    /// Tensor operations.
    pub fn repeat(&self, times: usize) -> Result<Self> {
        self.map(|part| Ok(Tensor::cat(&vec![part; times], 0)?))
    }

    /// The examples at `rows`, in this order; a row may stand there more than once.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn gather(&self, rows: &[usize]) -> Result<Self> {
        self.map(|part| rows_of(part, rows))
    }

    /// Several batches one behind the other, as guidance needs them: without the prompt first, then with it.
    ///
    /// # Errors
    /// [`Error::Conditioning`] when one has a part that another has not; shapes that do not fit.
    pub fn cat(batches: &[&Self]) -> Result<Self> {
        let whole = |part: fn(&Self) -> Option<&Tensor>, name| -> Result<Option<Tensor>> {
            let parts: Vec<&Tensor> = batches.iter().filter_map(|batch| part(batch)).collect();
            match parts.len() {
                0 => Ok(None),
                len if len == batches.len() => Ok(Some(joined(&parts)?)),
                _ => Err(Error::Conditioning {
                    name,
                    problem: "is there for some examples only",
                }),
            }
        };
        let states = whole(|batch| Some(&batch.encoder_hidden_states), "encoder_hidden_states")?;
        Ok(Self {
            encoder_hidden_states: states.ok_or(Error::Conditioning {
                name: "encoder_hidden_states",
                problem: "is missing: there is no example",
            })?,
            pooled: whole(|batch| batch.pooled.as_ref(), "pooled")?,
            time_ids: whole(|batch| batch.time_ids.as_ref(), "time_ids")?,
            guidance: Self::one_guidance(batches)?,
            users: whole(|batch| batch.users.as_ref(), "users")?,
        })
    }

    /// The strength of guidance that all batches have.
    fn one_guidance(batches: &[&Self]) -> Result<Option<f32>> {
        let first = batches.first().and_then(|batch| batch.guidance);
        if batches.iter().any(|batch| batch.guidance != first) {
            return Err(Error::Conditioning {
                name: "guidance",
                problem: "differs between examples",
            });
        }
        Ok(first)
    }

    /// The text of each example times its factor; sizes and crops stay.
    ///
    /// # Errors
    /// Tensor operations.
    pub(crate) fn scaled(&self, factors: &[f32]) -> Result<Self> {
        let pooled = self.pooled.as_ref().map(|pooled| scaled_rows(pooled, factors));
        Ok(Self {
            encoder_hidden_states: scaled_rows(&self.encoder_hidden_states, factors)?,
            pooled: pooled.transpose()?,
            time_ids: self.time_ids.clone(),
            guidance: self.guidance,
            users: self.users.clone(),
        })
    }

    /// Every part in another type.
    ///
    /// # Errors
    /// Tensor operations.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        self.map(|part| Ok(part.to_dtype(dtype)?))
    }

    /// Every part elsewhere.
    ///
    /// # Errors
    /// When the device cannot hold it.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.map(|part| Ok(part.to_device(device)?))
    }

    fn map(&self, mut f: impl FnMut(&Tensor) -> diptych_tensor::Result<Tensor>) -> Result<Self> {
        Ok(Self {
            encoder_hidden_states: f(&self.encoder_hidden_states)?,
            pooled: self.pooled.as_ref().map(&mut f).transpose()?,
            time_ids: self.time_ids.as_ref().map(&mut f).transpose()?,
            guidance: self.guidance,
            users: self.users.as_ref().map(&mut f).transpose()?,
        })
    }
}

fn rows_of(part: &Tensor, rows: &[usize]) -> diptych_tensor::Result<Tensor> {
    let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    let rows = Tensor::from_slice(&rows, rows.len(), part.device())?;
    Ok(part.contiguous()?.index_select(&rows, 0)?)
}

fn scaled_rows(part: &Tensor, factors: &[f32]) -> diptych_tensor::Result<Tensor> {
    let mut shape = vec![1; part.dims().len()];
    shape[0] = factors.len();
    let factors = Tensor::from_slice(factors, shape, part.device())?.to_dtype(part.dtype())?;
    Ok(part.broadcast_mul(&factors)?)
}

fn joined(parts: &[&Tensor]) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::cat(parts, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::host_f32;

    fn pair() -> Conditioning {
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        Conditioning::new(tensor(&[0.0, 1.0, 2.0, 3.0], &[2, 1, 2]))
            .with_pooled(tensor(&[10.0, 11.0], &[2, 1]))
            .with_time_ids(tensor(
                &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0],
                &[2, 6],
            ))
    }

    fn text_and_pooled(conditioning: &Conditioning) -> (Vec<f32>, Vec<f32>) {
        let pooled = conditioning.pooled.as_ref().unwrap();
        assert_eq!(
            conditioning.time_ids.as_ref().unwrap().dims(),
            [conditioning.batch_size(), 6]
        );
        (
            host_f32(&conditioning.encoder_hidden_states).unwrap(),
            host_f32(pooled).unwrap(),
        )
    }

    #[test]
    fn every_part_is_repeated_gathered_and_joined() {
        let pair = pair();
        let repeated = pair.repeat(2).unwrap();
        let expected = (
            vec![0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0],
            vec![10.0, 11.0, 10.0, 11.0],
        );
        assert_eq!(text_and_pooled(&repeated), expected);
        let gathered = pair.gather(&[1, 1, 0]).unwrap();
        let expected = (vec![2.0, 3.0, 2.0, 3.0, 0.0, 1.0], vec![11.0, 11.0, 10.0]);
        assert_eq!(text_and_pooled(&gathered), expected);
        let joined = Conditioning::cat(&[&gathered, &pair]).unwrap();
        assert_eq!(joined.batch_size(), 5);
        assert_eq!(text_and_pooled(&joined).1, [11.0, 11.0, 10.0, 10.0, 11.0]);
        assert!(pair.gather(&[2]).is_err());
    }

    #[test]
    fn a_part_that_is_there_for_some_only_is_named() {
        let text = Conditioning::new(pair().encoder_hidden_states);
        let message = Conditioning::cat(&[&pair(), &text]).unwrap_err().to_string();
        assert!(message.contains("`pooled`"), "{message}");
    }
}
