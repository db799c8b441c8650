//! Ragged lists as matrices.
//!
//! Shape letters: L lists, K responses of the longest list, N responses of all lists.

use diptych_tensor::{D, Device, Tensor};

use crate::arithmetic::{self, logistic};
use crate::{Error, ListLogps, ObjectiveOutput, PairLogps, Responses, ResponsesOutput, Result, TokenLogps, WholeTexts};

/// Stands for minus infinity where a list has ended: `exp` of it is 0, and 0 times it is 0.
const NOTHING: f64 = -1e30;

/// Where the responses of each list lie in the vectors of all responses.
///
/// A list shorter than the longest is filled up with its best response, so that padding is as finite as what is real; masks
/// and weights keep it out of every sum.
pub(crate) struct PaddedLists {
    list_lens: Vec<usize>,
    /// Number of columns.
    longest: usize,
    /// Row of each element in the vectors of all responses, `(L * K,)`.
    rows: Tensor,
    /// Like the scores: precision and device of the constants made here.
    like: Tensor,
}

impl PaddedLists {
    /// Of lists that have been checked.
    pub(crate) fn try_new(logps: &ListLogps) -> Result<Self> {
        let longest = logps.list_lens.iter().copied().max().unwrap_or(0);
        let mut rows = Vec::with_capacity(logps.list_lens.len() * longest);
        let mut first = 0;
        for &list_len in &logps.list_lens {
            rows.extend((0..longest).map(|i| (first + if i < list_len { i } else { 0 }) as u32));
            first += list_len;
        }
        let like = logps.responses.policy.detach();
        Ok(Self {
            list_lens: logps.list_lens.clone(),
            longest,
            rows: Tensor::new(rows, like.device())?,
            like,
        })
    }

    /// Values of all responses `(N,)` as `(L, K)`, differentiable.
    pub(crate) fn gather(&self, values: &Tensor) -> Result<Tensor> {
        let rows = values.index_select(&self.rows, 0)?;
        Ok(rows.reshape((self.list_lens.len(), self.longest))?)
    }

    /// A constant `(L,)`: one number for each list, from how many responses it has.
    pub(crate) fn each_list(&self, value: impl Fn(usize) -> f64) -> Result<Tensor> {
        self.constant(
            self.list_lens.iter().map(|&list_len| value(list_len)).collect(),
            &[self.list_lens.len()],
        )
    }

    /// A constant `(L, K)`: `value(list, i)` of the i-th response of a list, 0 where it has ended.
    pub(crate) fn each(&self, mut value: impl FnMut(usize, usize) -> f64) -> Result<Tensor> {
        let mut values = Vec::with_capacity(self.list_lens.len() * self.longest);
        for (list, &list_len) in self.list_lens.iter().enumerate() {
            values.extend((0..self.longest).map(|i| if i < list_len { value(list, i) } else { 0.0 }));
        }
        self.constant(values, &[self.list_lens.len(), self.longest])
    }

    /// A constant `(L, K, K)`: `value(list, i, j)` for every pair in which response i stands before j, 0 elsewhere.
    pub(crate) fn each_pair(&self, mut value: impl FnMut(usize, usize, usize) -> f64) -> Result<Tensor> {
        let mut values = Vec::with_capacity(self.list_lens.len() * self.longest * self.longest);
        for (list, &list_len) in self.list_lens.iter().enumerate() {
            for i in 0..self.longest {
                values.extend((0..self.longest).map(|j| if i < j && j < list_len { value(list, i, j) } else { 0.0 }));
            }
        }
        self.constant(values, &[self.list_lens.len(), self.longest, self.longest])
    }

    fn constant(&self, values: Vec<f64>, shape: &[usize]) -> Result<Tensor> {
        let dtype = self.like.dtype();
        // Narrowed on the host: Metal has no f64.
        let values = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
        Ok(values.to_device(self.like.device())?)
    }

    /// Constants of all responses, such as a judge's scores, one vector a list, on the host.
    pub(crate) fn host(&self, values: &Tensor) -> Result<Vec<Vec<f64>>> {
        let values = arithmetic::host(&values.detach())?;
        let mut rest = values.as_slice();
        let mut lists = Vec::with_capacity(self.list_lens.len());
        for &list_len in &self.list_lens {
            let (list, after) = rest.split_at(list_len);
            lists.push(list.to_vec());
            rest = after;
        }
        Ok(lists)
    }

    /// What a judge gave the responses of each list.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::OutOfRange`] for a score that is not finite or lies outside `[-126, 126]`, where powers of
    /// two leave f32, and for a response with more than the one before it.
    pub(crate) fn judge_scores(&self, objective: &'static str, logps: &ListLogps) -> Result<Vec<Vec<f64>>> {
        let lists = self.host(logps.responses.judge_scores(objective)?)?;
        for list in &lists {
            check_ranked_scores(objective, list)?;
        }
        Ok(lists)
    }

    /// Sum over the pairs of each list of `weights * loss(s_i - s_j)`, `(L,)`, of scores `(N,)`; `weights` is `(L, K, K)`.
    pub(crate) fn weighted_pairs(
        &self,
        scores: &Tensor,
        weights: &Tensor,
        loss: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let scores = self.gather(scores)?;
        let differences = scores.unsqueeze(2)?.broadcast_sub(&scores.unsqueeze(1)?)?;
        Ok((loss(&differences)? * weights)?.sum((1, 2))?)
    }

    /// `sum_i log(1 + sum_(j after i) e^(logits_ij))` of each list, `(L,)`: minus the log-likelihood that the responses are
    /// picked one by one in their order, where `logits_ij`, `(L, K, K)`, is how much likelier j is than i to be next.
    pub(crate) fn picked_in_order(&self, logits: &Tensor) -> Result<Tensor> {
        let is_after = self.each_pair(|_, _, _| 1.0)?.gt(0.5)?;
        let nothing = (logits.zeros_like()? + NOTHING)?;
        let logits = is_after.where_cond(logits, &nothing)?;
        let largest = logits.detach().max_keepdim(D::Minus1)?;
        // exp(NOTHING - NOTHING) is 1: a response with none after it sums to K here and to nothing once `largest` is added.
        let sum = logits.broadcast_sub(&largest)?.exp()?.sum(D::Minus1)?;
        let rest = (sum.log()? + largest.squeeze(D::Minus1)?)?;
        // As in DPO, which this is for two responses, tails are kept: log(1 + e^x) is -log s(-x).
        Ok(logistic(&rest.neg()?, 0.0)?.sum(1)?)
    }

    /// [`picked_in_order`](Self::picked_in_order) in proportion to `e^(beta score)`, scores `(N,)`.
    pub(crate) fn plackett_luce(&self, scores: &Tensor, beta: f64) -> Result<Tensor> {
        let scores = self.gather(scores)?;
        // Subtracted before beta multiplies: beta is up to 5000 and would magnify the rounding.
        let differences = scores.unsqueeze(1)?.broadcast_sub(&scores.unsqueeze(2)?)?;
        self.picked_in_order(&(differences * beta)?)
    }
}

impl Responses {
    /// The responses of both, those of `first` first. What only one of them knows is dropped.
    fn concatenate(first: &Self, second: &Self) -> Result<Self> {
        let join = |first: &Tensor, second: &Tensor| -> Result<Tensor> { Ok(Tensor::cat(&[first, second], 0)?) };
        let optional = |first: &Option<Tensor>, second: &Option<Tensor>| {
            first
                .as_ref()
                .zip(second.as_ref())
                .map(|(first, second)| join(first, second))
                .transpose()
        };
        let tokens = first.tokens.as_ref().zip(second.tokens.as_ref());
        let texts = first.whole_texts.as_ref().zip(second.whole_texts.as_ref());
        Ok(Self {
            policy: join(&first.policy, &second.policy)?,
            reference: optional(&first.reference, &second.reference)?,
            lengths: optional(&first.lengths, &second.lengths)?,
            mean_length: first.mean_length.or(second.mean_length),
            tokens: tokens
                .map(|(first, second)| TokenLogps::concatenate(first, second))
                .transpose()?,
            judge_scores: optional(&first.judge_scores, &second.judge_scores)?,
            whole_texts: texts
                .map(|(first, second)| WholeTexts::concatenate(first, second))
                .transpose()?,
        })
    }
}

impl ListLogps {
    /// Pairs as lists of two.
    pub(crate) fn of_pairs(pairs: &PairLogps) -> Result<Self> {
        let num_pairs = pairs.chosen.policy.elem_count();
        let both = Responses::concatenate(&pairs.chosen, &pairs.rejected)?;
        let alternating: Vec<u32> = (0..num_pairs)
            .flat_map(|i| [i as u32, (num_pairs + i) as u32])
            .collect();
        Ok(Self::new(both.select(&alternating)?, vec![2; num_pairs]))
    }
}

impl ResponsesOutput {
    /// The output of [`ListLogps::of_pairs`] as that of the pairs.
    pub(crate) fn into_pairs(self) -> Result<ObjectiveOutput> {
        let side = |side: usize| -> Result<Tensor> {
            let num_pairs = self.rewards.elem_count() / 2;
            Ok(self
                .rewards
                .reshape((num_pairs, 2))?
                .narrow(1, side, 1)?
                .squeeze(1)?
                .contiguous()?)
        };
        Ok(ObjectiveOutput {
            rewards_chosen: side(0)?,
            rewards_rejected: side(1)?,
            losses: self.losses,
        })
    }
}

/// What a judge may give the responses of a list, as [`PaddedLists::judge_scores`] says.
pub(crate) fn check_ranked_scores(objective: &'static str, list: &[f64]) -> Result<()> {
    let refused = |found: f64, expected: &'static str| Error::OutOfRange {
        objective,
        parameter: "judge_scores",
        found,
        expected,
    };
    if let Some(&score) = list.iter().find(|score| score.is_nan() || score.abs() > 126.0) {
        return Err(refused(score, "scores between -126 and 126"));
    }
    match list.windows(2).find(|pair| pair[0] < pair[1]) {
        None => Ok(()),
        Some(pair) => Err(refused(
            pair[1],
            "no response better than the one before it in its list",
        )),
    }
}

/// Rank of each value among all, 1 for the greatest; of equals the earlier is first.
pub(crate) fn ranks(values: &[f64]) -> Vec<usize> {
    let is_before = |i: usize, j: usize| values[i] > values[j] || (values[i] == values[j] && i < j);
    let rank = |j: usize| 1 + (0..values.len()).filter(|&i| is_before(i, j)).count();
    (0..values.len()).map(rank).collect()
}

/// How much exchanging two responses changes the discounted cumulative gain of their list: the difference of their gains
/// `2^score - 1` times that of their discounts `1 / log(1 + rank)`.
pub(crate) fn gain_of_exchange(scores: [f64; 2], ranks: [usize; 2]) -> f64 {
    let gain = |score: f64| score.exp2();
    let discount = |rank: usize| (rank as f64).ln_1p().recip();
    ((gain(scores[0]) - gain(scores[1])) * (discount(ranks[0]) - discount(ranks[1]))).abs()
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{DType, Var};

    use super::*;

    fn lists(scores: &[f64], list_lens: &[usize]) -> (ListLogps, PaddedLists) {
        let policy = Tensor::new(scores, &Device::Cpu).unwrap();
        let logps = ListLogps::new(Responses::new(policy), list_lens.to_vec());
        let padded = PaddedLists::try_new(&logps).unwrap();
        (logps, padded)
    }

    #[test]
    fn short_lists_are_filled_with_their_best_response() {
        let (logps, padded) = lists(&[5.0, 4.0, 3.0, 2.0, 1.0], &[2, 3]);
        let matrix = padded
            .gather(&logps.responses.policy)
            .unwrap()
            .to_vec2::<f64>()
            .unwrap();
        assert_eq!(matrix, [[5.0, 4.0, 5.0], [3.0, 2.0, 1.0]]);
        let pairs = padded.each_pair(|list, i, j| (100 * list + 10 * i + j) as f64).unwrap();
        let expected = [
            [[0.0, 1.0, 0.0], [0.0; 3], [0.0; 3]],
            [[0.0, 101.0, 102.0], [0.0, 0.0, 112.0], [0.0; 3]],
        ];
        assert_eq!(pairs.to_vec3::<f64>().unwrap(), expected);
        assert_eq!(
            padded.each(|_, i| 1.0 + i as f64).unwrap().to_vec2::<f64>().unwrap(),
            [[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]]
        );
    }

    #[test]
    fn the_likelihood_of_an_order_is_the_product_of_its_picks() {
        let scores = [0.3, -1.2, 2.0, 0.7, -0.4];
        let (_, padded) = lists(&scores, &[2, 3]);
        let var = Var::new(&scores[..], &Device::Cpu).unwrap();
        let losses = padded.plackett_luce(var.as_tensor(), 1.0).unwrap();
        let pick = |first: f64, all: &[f64]| -(first.exp() / all.iter().map(|s| s.exp()).sum::<f64>()).ln();
        let expected = [
            pick(0.3, &scores[..2]),
            pick(2.0, &scores[2..]) + pick(0.7, &scores[3..]),
        ];
        for (found, expected) in losses.to_vec1::<f64>().unwrap().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
        let gradients = losses.sum_all().unwrap().backward().unwrap();
        let gradients = gradients.get(&var).unwrap().to_vec1::<f64>().unwrap();
        // Probabilities less indicators: the gradients of a list add up to 0.
        assert!(gradients[..2].iter().sum::<f64>().abs() < 1e-14 && gradients[2..].iter().sum::<f64>().abs() < 1e-14);
        let worst = 1.0 / (1.0 + (0.3f64 + 1.2).exp());
        assert!((gradients[1] - worst).abs() < 1e-14, "{gradients:?}");
    }

    #[test]
    fn an_order_that_is_certain_or_impossible_stays_finite() {
        for dtype in [DType::F32, DType::F64] {
            let (_, padded) = lists(&[1e4, 0.0, -1e4, -1e4, 0.0], &[3, 2]);
            let scores = Tensor::new(&[1e4f64, 0.0, -1e4, -1e4, 0.0], &Device::Cpu).unwrap();
            let var = Var::from_tensor(&scores.to_dtype(dtype).unwrap()).unwrap();
            let padded = PaddedLists {
                like: var.as_tensor().detach(),
                ..padded
            };
            let losses = padded.plackett_luce(var.as_tensor(), 1.0).unwrap();
            let found = losses.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(found, [0.0, 1e4]);
            let gradients = losses.sum_all().unwrap().backward().unwrap();
            let gradients = gradients
                .get(&var)
                .unwrap()
                .to_dtype(DType::F64)
                .unwrap()
                .to_vec1::<f64>()
                .unwrap();
            assert_eq!(gradients, [0.0, 0.0, 0.0, -1.0, 1.0]);
        }
    }

    #[test]
    fn equals_rank_in_their_order() {
        assert_eq!(ranks(&[0.5, 2.0, 0.5, -1.0]), [2, 1, 3, 4]);
        // (2^1 - 2^0) (1 / ln 2 - 1 / ln 4)
        let expected = 1.0 / 2f64.ln() - 1.0 / 4f64.ln();
        assert!((gain_of_exchange([1.0, 0.0], [1, 3]) - expected).abs() < 1e-15);
        assert_eq!(gain_of_exchange([0.4, 0.4], [1, 2]), 0.0);
    }
}
