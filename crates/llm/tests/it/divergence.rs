//! The divergence from the reference along the answers of pairs, and weights of the tokens that differ.

use diptych_data::{Encoder, EncodingConfig, TextDataset, Tokenizer};
use diptych_llm::policy::{NetworkOptions, TrainedLm, load_frozen};
use diptych_llm::records::{EncodedRecord, EncodedResponse, encode};
use diptych_models::lm::{CausalLm, LmDir, LmInput, LmSequence};
use diptych_tensor::{DType, Device, Tensor, backward, ops};
use serde_json::{Value, json};

use crate::bench::{Bench, Computed, apart, compute, difference, golden, message, rows_of};

const BETA: f64 = 0.1;

fn dpo() -> Value {
    json!({ "dpo": { "beta": BETA } })
}

/// The tiny Qwen2 with and without a trained adapter, and a method of pairs with these keys.
fn pairs(objective: &Value, keys: &Value) -> Value {
    let mut changes = apart(objective);
    changes["reference"] = json!({ "checkpoint": { "path": golden().join("qwen2") } });
    changes["method"] = json!({ "offline_pairs": keys });
    changes
}

fn diverging(weight: f64, role: &str) -> Value {
    json!({ "token_divergence": { "weight": weight, "role": role } })
}

fn with_keys(bench: &Bench, keys: &Value) -> Computed {
    compute(&bench.method(&pairs(&dpo(), keys)), 3, 3)
}

struct ByHand {
    policy: TrainedLm,
    reference: CausalLm,
    records: Vec<EncodedRecord>,
}

impl ByHand {
    fn new(bench: &Bench) -> Self {
        let path = golden().join("qwen2");
        let directory = LmDir::open(&path).unwrap();
        let options = NetworkOptions {
            device: Device::Cpu,
            dtype: DType::F32,
            seed: 0,
            quantization: None,
        };
        let recipe = bench.recipe(&pairs(&dpo(), &json!({})));
        let rows = TextDataset::load(&[golden().join("data/pairs.jsonl")], diptych_data::Layout::Auto).unwrap();
        let tokenizer = Tokenizer::from_dir(&path).unwrap();
        let encoder = Encoder::try_new(&tokenizer, EncodingConfig::default()).unwrap();
        Self {
            policy: TrainedLm::load(&directory, &recipe.adapter.0, &options).unwrap(),
            reference: load_frozen(&directory, None, &options).unwrap(),
            records: encode(&rows, &encoder).unwrap(),
        }
    }

    /// Log-probabilities of every word at every token of an answer, (T, V).
    fn words(model: &CausalLm, response: &EncodedResponse) -> Tensor {
        let ids = [response.prompt.as_slice(), &response.ids].concat();
        let input = LmInput::packed(&[vec![LmSequence::plain(&ids)]], 0, &Device::Cpu).unwrap();
        let hidden = model.forward(&input).unwrap().squeeze(0).unwrap();
        let (first, len) = (response.prompt.len() - 1, response.ids.len());
        let logits = model.logits(&hidden.narrow(0, first, len).unwrap()).unwrap();
        ops::log_softmax_composed(&logits.to_dtype(DType::F32).unwrap()).unwrap()
    }

    /// The sum over an answer of the divergence of the policy from the reference, which is constant.
    fn divergence(&self, response: &EncodedResponse) -> Tensor {
        let (own, other) = (
            Self::words(&self.policy.model, response),
            Self::words(&self.reference, response).detach(),
        );
        ((&other - own).unwrap() * other.exp().unwrap())
            .unwrap()
            .sum_all()
            .unwrap()
    }

    /// Of every record the divergences of both answers.
    fn divergences(&self) -> Vec<[f64; 2]> {
        let of = |record: &EncodedRecord| {
            [0, 1].map(|side| {
                let divergence = self.divergence(&record.responses[side]);
                f64::from(divergence.to_scalar::<f32>().unwrap())
            })
        };
        self.records[..3].iter().map(of).collect()
    }
}

fn sigmoid_loss(logit: f64) -> f64 {
    (-logit).exp().ln_1p()
}

fn metric(computed: &Computed, key: &str) -> Vec<f64> {
    computed.outputs[0].metrics[key].clone()
}

/// `A_w - A_l` of every record.
fn margins(computed: &Computed) -> Vec<f64> {
    let (chosen, rejected) = (
        metric(computed, "logratios/chosen"),
        metric(computed, "logratios/rejected"),
    );
    chosen
        .iter()
        .zip(rejected)
        .map(|(chosen, rejected)| chosen - rejected)
        .collect()
}

#[test]
fn divergences_are_those_of_all_words_and_enter_the_sigmoid() {
    let bench = Bench::new();
    let by_hand = ByHand::new(&bench);
    let divergences = by_hand.divergences();
    let plain = with_keys(&bench, &json!({}));
    let mut found = Vec::new();
    for role in ["margin", "margin_of_both"] {
        let with = with_keys(&bench, &diverging(0.5, role));
        for (at, [chosen, rejected]) in divergences.iter().enumerate() {
            assert!(*chosen > 1e-3 && *rejected > 1e-3, "nothing diverges");
            assert!((metric(&with, "kl/chosen")[at] - chosen).abs() < 1e-3 * chosen);
            assert!((metric(&with, "kl/rejected")[at] - rejected).abs() < 1e-3 * rejected);
            let expected = sigmoid_loss(BETA * (margins(&plain)[at] - 0.5 * (rejected - chosen)));
            assert!(
                (with.losses[at] - expected).abs() < 1e-5,
                "{role}: {}, expected {expected}",
                with.losses[at]
            );
        }
        // Scores that are logged are those of the answers.
        assert_eq!(metric(&with, "logps/chosen"), metric(&plain, "logps/chosen"));
        found.push(with);
    }
    assert!(
        found[0].gradient_difference(&found[1]) > 1e-4,
        "the chosen answer's is held in one of them alone"
    );
    let measured = with_keys(&bench, &diverging(0.0, "margin"));
    measured.assert_equals(&plain, 1e-6, "a weight of 0");
    assert_eq!(metric(&measured, "kl/chosen"), metric(&found[0], "kl/chosen"));
}

#[test]
fn a_penalty_has_the_gradient_of_the_chosen_answers_divergence() {
    let bench = Bench::new();
    let by_hand = ByHand::new(&bench);
    let plain = with_keys(&bench, &json!({}));
    let with = with_keys(&bench, &diverging(0.2, "penalty"));
    let mut total = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    for at in 0..3 {
        let divergence = by_hand.divergence(&by_hand.records[at].responses[0]);
        let expected = plain.losses[at] + 0.2 * f64::from(divergence.to_scalar::<f32>().unwrap());
        assert!((with.losses[at] - expected).abs() < 1e-5 * expected.max(1.0));
        total = (total + (divergence * (0.2 / 3.0)).unwrap()).unwrap();
    }
    let gradients = backward(&total, &by_hand.policy.params).unwrap();
    let mut num = 0;
    for (name, expected) in gradients.iter() {
        let expected: Vec<f64> = expected
            .flatten_all()
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
            .to_vec1()
            .unwrap();
        let pairs = with.gradients[name].iter().zip(&plain.gradients[name]);
        let found: Vec<f64> = pairs.map(|(with, without)| with - without).collect();
        assert!(difference(&found, &expected) < 1e-3, "{name}");
        num += usize::from(expected.iter().any(|slope| slope.abs() > 1e-3));
    }
    assert!(num >= 5, "{num} parameters with a slope to compare");
    assert!(!with.outputs[0].metrics.contains_key("kl/rejected"));
}

#[test]
fn weights_of_spans_leave_no_token_out_of_a_divergence() {
    let bench = Bench::new();
    let plain = rows_of("pairs.jsonl")[..3].to_vec();
    let weighed: Vec<Value> = plain
        .iter()
        .map(|row| {
            let mut row = row.clone();
            for side in ["chosen", "rejected"] {
                let end = row[side].as_str().unwrap().chars().count().min(8);
                row[format!("{side}_spans")] = json!([{ "start": 0, "end": end - 1, "weight": 0.0 }]);
            }
            row
        })
        .collect();
    let of = |name: &str, rows: &[Value], role: &str| {
        let mut changes = pairs(&dpo(), &diverging(0.5, role));
        changes["data"] = json!({ "path": bench.rows(name, rows) });
        compute(&bench.method(&changes), 3, 3)
    };
    for role in ["margin", "penalty"] {
        let (all, some) = (of("all.jsonl", &plain, role), of("some.jsonl", &weighed, role));
        // RRPO scores phrases, and holds the whole of the chosen answer.
        assert_eq!(metric(&all, "kl/chosen"), metric(&some, "kl/chosen"), "{role}");
        let pairs = metric(&all, "logps/chosen")
            .into_iter()
            .zip(metric(&some, "logps/chosen"));
        assert!(
            pairs.into_iter().any(|(all, some)| all < some - 0.1),
            "{role}: spans weigh nothing"
        );
    }
}

#[test]
fn layout_of_a_batch_changes_no_divergence() {
    let bench = Bench::new();
    let of = |arrangement: &str, micro_batch: usize| {
        let mut keys = diverging(0.3, "margin");
        keys["arrangement"] = json!(arrangement);
        keys["token_weights"] = json!({ "gamma": 4.0, "beside": 0.5 });
        compute(&bench.method(&pairs(&dpo(), &keys)), 4, micro_batch)
    };
    let expected = of("padded", 4);
    for (arrangement, micro_batch) in [("packed", 4), ("shared_prefix", 4), ("padded", 2), ("shared_prefix", 1)] {
        of(arrangement, micro_batch).assert_equals(&expected, 1e-5, &format!("{arrangement} {micro_batch}"));
    }
}

#[test]
fn a_policy_equal_to_its_reference_diverges_nowhere() {
    let bench = Bench::new();
    for role in ["margin", "margin_of_both", "penalty"] {
        let keys = diverging(0.5, role);
        let changes = json!({ "reference": { "frozen": {} }, "method": { "offline_pairs": keys } });
        let with = compute(&bench.method(&changes), 4, 2);
        let plain = compute(&bench.method(&json!({ "reference": { "frozen": {} } })), 4, 2);
        assert!(
            with.losses.iter().all(|loss| (loss - 2_f64.ln()).abs() < 1e-5),
            "{role}: {:?}",
            with.losses
        );
        // The divergence is least there.
        with.assert_equals(&plain, 1e-4, role);
    }
}

#[test]
fn weighed_sums_stand_beside_plain_ones() {
    let bench = Bench::new();
    let plain = with_keys(&bench, &json!({}));
    let instead = with_keys(&bench, &json!({ "token_weights": { "gamma": 4.0 } }));
    let both = with_keys(&bench, &json!({ "token_weights": { "gamma": 4.0, "beside": 3.0 } }));
    for at in 0..3 {
        let expected = plain.losses[at] + 3.0 * instead.losses[at];
        assert!((both.losses[at] - expected).abs() < 1e-5 * expected);
        assert!((plain.losses[at] - instead.losses[at]).abs() > 1e-5);
    }
    assert_eq!(metric(&both, "logps/chosen"), metric(&plain, "logps/chosen"));
    assert_eq!(metric(&both, "token_weights/loss").len(), 3);
}

/// RRPO: the sum of the phrases that differ, and the divergence of the whole chosen answer.
#[test]
fn phrases_alone_are_preferred_and_the_whole_answer_is_held() {
    let bench = Bench::new();
    let row = |id: &str, chosen: &str, rejected: &str| json!({ "id": id, "prompt": "The tide is", "chosen": chosen, "rejected": rejected });
    let rows = [
        row(
            "one",
            " rising under the quiet moon of the bay",
            " falling under the quiet moon of the bay",
        ),
        row(
            "two",
            " rising under the quiet moon of the bay",
            " rising under the quiet sun of the bay",
        ),
    ];
    let of = |keys: &Value| {
        let mut changes = pairs(&dpo(), keys);
        changes["data"] = json!({ "path": bench.rows("phrases.jsonl", &rows) });
        compute(&bench.method(&changes), 2, 2)
    };
    let weights = json!({ "gamma": 1.0, "unchanged": 0.0, "normalization": "none" });
    let phrases = of(&json!({ "token_weights": weights }));
    let whole = of(&diverging(0.05, "penalty"));
    let plain = of(&json!({}));
    let rrpo = of(&json!({
        "token_weights": weights, "token_divergence": { "weight": 0.05, "role": "penalty" },
    }));
    for at in 0..2 {
        let divergence = metric(&whole, "kl/chosen")[at];
        assert!((metric(&rrpo, "kl/chosen")[at] - divergence).abs() < 1e-5 * divergence);
        assert!((rrpo.losses[at] - phrases.losses[at] - 0.05 * divergence).abs() < 1e-6);
        // Fewer tokens than the answer has.
        assert!(metric(&rrpo, "lengths/chosen")[at] < metric(&plain, "lengths/chosen")[at]);
        assert!(metric(&rrpo, "logps/chosen")[at] > metric(&plain, "logps/chosen")[at]);
    }
}

#[test]
fn divergences_without_a_use_are_refused() {
    let bench = Bench::new();
    let simpo = json!({ "simpo": { "beta": 2.0, "gamma": 1.0 } });
    let orpo = json!({ "orpo": { "beta": 0.1, "likelihood_of": "text" } });
    let tried = |objective: &Value, keys: &Value, reference: Value| {
        let mut changes = pairs(objective, keys);
        changes["reference"] = reference;
        message(bench.try_recipe(&changes))
    };
    let live = || json!({ "frozen": {} });
    let weights = |more: Value| json!({ "token_weights": more });
    let cases = [
        (
            tried(&dpo(), &diverging(-1.0, "margin"), live()),
            "token_divergence.weight",
        ),
        (tried(&dpo(), &diverging(1.0, "sigmoid"), live()), "sigmoid"),
        (
            tried(&simpo, &diverging(1.0, "margin"), live()),
            "token_divergence.role",
        ),
        (
            tried(&dpo(), &diverging(1.0, "penalty"), json!({ "cached": {} })),
            "reference.cached",
        ),
        (
            tried(&simpo, &diverging(1.0, "penalty"), json!({ "none": {} })),
            "token_divergence` needs a reference",
        ),
        (
            tried(&dpo(), &weights(json!({ "gamma": 2.0, "unchanged": -1.0 })), live()),
            "token_weights.unchanged",
        ),
        (
            tried(&dpo(), &weights(json!({ "gamma": 2.0, "beside": 0.0 })), live()),
            "token_weights.beside",
        ),
        (
            tried(
                &orpo,
                &weights(json!({ "gamma": 2.0, "beside": 1.0 })),
                json!({ "none": {} }),
            ),
            "token_weights.beside",
        ),
    ];
    for (error, expected) in &cases {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert_eq!(cases.len(), 8);
    // Beside an objective without a reference a penalty is one of a reference all the same.
    let mut changes = pairs(&simpo, &diverging(1.0, "penalty"));
    changes.as_object_mut().unwrap().remove("reference");
    assert_eq!(bench.recipe(&changes).reference.name(), "frozen");
}
