//! Responses in ragged lists, half of them desirable, with everything an objective may need.

use diptych_core::{Kind, ListLogps, Objective, Responses, ResponsesOutput, Result, TokenLogps, UnpairedLogps};
use diptych_tensor::{DType, Device, Tensor, Var};

/// Responses of several lists, one list after the other. As unpaired responses the labels alternate.
#[derive(Clone)]
pub(crate) struct Batch {
    /// Scores under the policy.
    pub(crate) policy: Vec<f64>,
    /// Scores under the reference.
    pub(crate) reference: Vec<f64>,
    /// Tokens of each response.
    lengths: Vec<f64>,
    /// A judge's scores, falling along each list.
    judge_scores: Vec<f64>,
    labels: Vec<bool>,
    /// Responses of each list.
    pub(crate) list_lens: Vec<usize>,
}

/// Everything that comes out of a batch, on the host.
pub(crate) struct Found {
    /// One a response or one a list.
    pub(crate) losses: Vec<f64>,
    /// One a response.
    pub(crate) rewards: Vec<f64>,
    /// Gradients of the sum of the losses with respect to the policy's scores.
    pub(crate) grads: Vec<f64>,
}

impl Found {
    /// Every vector with its name.
    pub(crate) fn vectors(&self) -> [(&'static str, &Vec<f64>); 3] {
        [
            ("losses", &self.losses),
            ("rewards", &self.rewards),
            ("grads", &self.grads),
        ]
    }
}

impl Batch {
    /// Lists of 2, 3, 4, 2 and so on responses with scores in `[-scale, 0]` that look random and are the same everywhere.
    pub(crate) fn scattered(num_lists: usize, scale: f64) -> Self {
        let mut batch = Self {
            policy: Vec::new(),
            reference: Vec::new(),
            lengths: Vec::new(),
            judge_scores: Vec::new(),
            labels: Vec::new(),
            list_lens: Vec::new(),
        };
        let score = |network: usize, i: usize| {
            -scale * ((network * 31 + i * (17 + 4 * network) + 5) as f64 * 0.618_033_988_75).fract()
        };
        for list in 0..num_lists {
            let scores: Vec<(f64, f64)> = (0..2 + list % 3)
                .map(|i| (score(0, 7 * list + i), score(1, 7 * list + i)))
                .collect();
            batch.push_list(&scores);
        }
        batch
    }

    /// Adds a list of responses with these scores of policy and reference.
    pub(crate) fn push_list(&mut self, scores: &[(f64, f64)]) {
        for (i, &(policy, reference)) in scores.iter().enumerate() {
            let row = self.policy.len();
            self.policy.push(policy);
            self.reference.push(reference);
            self.lengths.push((1 + row * 5 % 7) as f64);
            self.judge_scores.push((16 - 3 * i) as f64 / 16.0);
            self.labels.push(row.is_multiple_of(2));
        }
        self.list_lens.push(scores.len());
    }

    /// A list of three and one of two, all with score 0 under both networks, 2 tokens, and 1, 1/2 and 0 from the judge.
    pub(crate) fn at_start() -> Self {
        Self {
            policy: vec![0.0; 5],
            reference: vec![0.0; 5],
            lengths: vec![2.0; 5],
            judge_scores: vec![1.0, 0.5, 0.0, 1.0, 0.5],
            labels: vec![true, false, true, false, true],
            list_lens: vec![3, 2],
        }
    }

    /// Rows of the responses of these lists.
    pub(crate) fn rows_of(&self, lists: &[usize]) -> Vec<usize> {
        let first = |list: usize| self.list_lens[..list].iter().sum::<usize>();
        lists
            .iter()
            .flat_map(|&list| first(list)..first(list) + self.list_lens[list])
            .collect()
    }

    /// These lists, in that order.
    pub(crate) fn select(&self, lists: &[usize]) -> Self {
        let rows = self.rows_of(lists);
        let of = |values: &[f64]| rows.iter().map(|&row| values[row]).collect();
        Self {
            policy: of(&self.policy),
            reference: of(&self.reference),
            lengths: of(&self.lengths),
            judge_scores: of(&self.judge_scores),
            labels: rows.iter().map(|&row| self.labels[row]).collect(),
            list_lens: lists.iter().map(|&list| self.list_lens[list]).collect(),
        }
    }

    fn around(&self, policy: &Tensor, reference: &Tensor) -> Responses {
        let dtype = policy.dtype();
        Responses {
            reference: Some(reference.clone()),
            lengths: Some(vector(&self.lengths, dtype)),
            judge_scores: Some(vector(&self.judge_scores, dtype)),
            tokens: Some(self.tokens(policy, reference)),
            ..Responses::new(policy.clone())
        }
    }

    /// Every score in equal parts on as many tokens as the response has.
    fn tokens(&self, policy: &Tensor, reference: &Tensor) -> TokenLogps {
        let longest = self.lengths.iter().fold(0.0f64, |longest, &len| longest.max(len)) as usize;
        let each = |token: fn(f64) -> f64| -> Tensor {
            let row = |&len: &f64| (0..longest).map(move |t| if (t as f64) < len { token(len) } else { 0.0 });
            let values: Vec<f64> = self.lengths.iter().flat_map(row).collect();
            let shape = (self.lengths.len(), longest);
            Tensor::from_vec(values, shape, &Device::Cpu)
                .unwrap()
                .to_dtype(policy.dtype())
                .unwrap()
        };
        let shares = each(f64::recip);
        let spread = |scores: &Tensor| scores.unsqueeze(1).unwrap().broadcast_mul(&shares).unwrap();
        TokenLogps {
            policy: spread(policy),
            reference: Some(spread(reference)),
            mask: each(|_| 1.0),
            log_collisions: None,
        }
    }

    /// The responses.
    pub(crate) fn responses(&self, dtype: DType) -> Responses {
        self.around(&vector(&self.policy, dtype), &vector(&self.reference, dtype))
    }

    fn unpaired_of(&self, responses: Responses) -> UnpairedLogps {
        // Log-ratios of 1/4 at the start; no score of a response itself, so that none of them is differentiated.
        let dtype = responses.policy.dtype();
        let logratios: Vec<f64> = self.lengths.iter().map(|len| len / 8.0).collect();
        let mismatched = Responses {
            reference: responses
                .reference
                .as_ref()
                .map(|reference| reference.zeros_like().unwrap()),
            ..Responses::new(vector(&logratios, dtype))
        };
        UnpairedLogps {
            reward_shift: Some(0.25),
            ..UnpairedLogps::new(responses, self.labels.clone()).with_mismatched(mismatched)
        }
    }

    /// As responses judged good or bad.
    pub(crate) fn unpaired(&self, dtype: DType) -> UnpairedLogps {
        self.unpaired_of(self.responses(dtype))
    }

    /// As ranked lists.
    pub(crate) fn lists(&self, dtype: DType) -> ListLogps {
        ListLogps::new(self.responses(dtype), self.list_lens.clone())
    }

    fn run(&self, objective: &Objective, responses: Responses) -> Result<ResponsesOutput> {
        match objective.requirements().kind {
            Kind::Lists => objective.list_losses(&ListLogps::new(responses, self.list_lens.clone())),
            Kind::Chosen | Kind::Pairs | Kind::Unpaired => objective.unpaired_losses(&self.unpaired_of(responses)),
        }
    }

    /// What comes out around these scores.
    pub(crate) fn output(&self, objective: &Objective, policy: &Tensor, reference: &Tensor) -> Result<ResponsesOutput> {
        self.run(objective, self.around(policy, reference))
    }

    /// What comes out when something is removed from the responses, and so from the mismatched ones.
    pub(crate) fn output_of(
        &self,
        objective: &Objective,
        dtype: DType,
        remove: fn(&mut Responses),
    ) -> Result<ResponsesOutput> {
        let mut responses = self.responses(dtype);
        remove(&mut responses);
        self.run(objective, responses)
    }

    /// Losses, rewards and gradients in one precision.
    pub(crate) fn evaluate(&self, objective: &Objective, dtype: DType) -> Found {
        let policy = Var::from_tensor(&vector(&self.policy, dtype)).unwrap();
        let output = self
            .output(objective, policy.as_tensor(), &vector(&self.reference, dtype))
            .unwrap();
        let gradients = output.losses.sum_all().unwrap().backward().unwrap();
        Found {
            losses: host(&output.losses),
            rewards: host(&output.rewards),
            grads: gradients
                .get(&policy)
                .map_or_else(|| vec![0.0; policy.elem_count()], host),
        }
    }
}

/// A tensor on the host.
pub(crate) fn vector(values: &[f64], dtype: DType) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The numbers of a tensor.
pub(crate) fn host(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}
