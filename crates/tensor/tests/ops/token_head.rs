//! Whole distributions of tokens, against PyTorch's in `tests/golden/vlm_preferences.json`.

use candle_core::{DType, Device, Tensor, Var};
use diptych_tensor::ops::{self, TokenHead, TokenLogpsConfig};
use serde_json::Value;

struct Case(Value);

impl Case {
    fn numbers(&self, key: &str) -> Vec<f64> {
        serde_json::from_value(self.0[key].clone()).unwrap()
    }

    fn ids(&self, key: &str) -> Vec<u32> {
        serde_json::from_value(self.0[key].clone()).unwrap()
    }

    fn len(&self, key: &str) -> usize {
        self.0[key].as_u64().unwrap() as usize
    }

    fn tensor(&self, key: &str, rows: usize) -> Tensor {
        let numbers = self.numbers(key);
        let shape = (rows, numbers.len() / rows);
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }

    fn config(&self) -> TokenLogpsConfig {
        TokenLogpsConfig {
            softcap: self.0["softcap"].as_f64(),
            // Fewer than any case has.
            chunk_rows: Some(2),
            ..TokenLogpsConfig::default()
        }
    }
}

fn cases() -> Vec<Case> {
    let text = include_str!("../../../../tests/golden/vlm_preferences.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    golden["heads"].as_array().unwrap().iter().cloned().map(Case).collect()
}

fn assert_close(what: &str, found: &Tensor, expected: &[f64], tolerance: f64) {
    let found: Vec<f64> = found
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let bound = tolerance * expected.abs().max(1.0);
        assert!(
            (found - expected).abs() <= bound,
            "{what}: {found}, expected {expected}"
        );
    }
}

#[test]
fn divergences_and_their_gradients_are_those_of_pytorch() {
    let cases = cases();
    for (at, case) in cases.iter().enumerate() {
        let (rows, words) = (case.len("rows"), case.len("words"));
        for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 2e-4)] {
            let of = |key: &str, rows: usize| case.tensor(key, rows).to_dtype(dtype).unwrap();
            let hidden = Var::from_tensor(&of("hidden", rows)).unwrap();
            let weight = Var::from_tensor(&of("weight", words)).unwrap();
            let head = |hidden: &Tensor, weight: &Tensor| TokenHead {
                hidden: hidden.clone(),
                weight: weight.clone(),
                config: case.config(),
            };
            // Tracked too: the other network must get no gradient for it.
            let other_hidden = Var::from_tensor(&of("other_hidden", rows)).unwrap();
            let other = head(&other_hidden, &of("other_weight", words));
            let found = ops::token_divergences(&head(&hidden, &weight), &other).unwrap();
            assert_close(
                &format!("{at} {dtype:?}"),
                &found,
                &case.numbers("divergences"),
                tolerance,
            );
            let upstream = Tensor::new(case.numbers("upstream"), &Device::Cpu)
                .unwrap()
                .to_dtype(dtype)
                .unwrap();
            let gradients = (found * upstream).unwrap().sum_all().unwrap().backward().unwrap();
            let what = |of: &str| format!("{at} {dtype:?}: gradient of {of}");
            let by_hidden = case.numbers("gradient_hidden");
            assert_close(&what("hidden"), gradients.get(&hidden).unwrap(), &by_hidden, tolerance);
            let by_weight = case.numbers("gradient_weight");
            assert_close(&what("weight"), gradients.get(&weight).unwrap(), &by_weight, tolerance);
            assert!(gradients.get(&other_hidden).is_none());
        }
    }
    assert_eq!(cases.len(), 4);
    // The last one compares a network with itself: nothing diverges, and nothing pulls.
    assert!(cases[3].numbers("divergences").iter().all(|value| value.abs() < 1e-12));
}

#[test]
fn likeliest_words_are_those_of_pytorch() {
    for case in cases() {
        let (rows, words) = (case.len("rows"), case.len("words"));
        let head = TokenHead {
            hidden: case.tensor("hidden", rows),
            weight: case.tensor("weight", words),
            config: case.config(),
        };
        let first = ops::likeliest_tokens(&head, None).unwrap();
        assert_eq!(first.to_vec1::<u32>().unwrap(), case.ids("likeliest"));
        let second = ops::likeliest_tokens(&head, Some(&first)).unwrap();
        assert_eq!(second.to_vec1::<u32>().unwrap(), case.ids("second"));
        // What is not the likeliest anyway stands in nobody's way.
        let again = ops::likeliest_tokens(&head, Some(&second)).unwrap();
        assert_eq!(again.to_vec1::<u32>().unwrap(), case.ids("likeliest"));
    }
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let head = |rows: usize, words: usize| TokenHead {
        hidden: Tensor::zeros((rows, 2), DType::F32, &Device::Cpu).unwrap(),
        weight: Tensor::zeros((words, 2), DType::F32, &Device::Cpu).unwrap(),
        config: TokenLogpsConfig::default(),
    };
    for (rows, words) in [(2, 5), (3, 4)] {
        let error = ops::token_divergences(&head(3, 5), &head(rows, words))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("token_divergences") && error.contains("(3, 5)"),
            "{error}"
        );
    }
    let others = Tensor::zeros(2, DType::U32, &Device::Cpu).unwrap();
    let error = ops::likeliest_tokens(&head(3, 5), Some(&others))
        .unwrap_err()
        .to_string();
    assert!(error.contains("likeliest_tokens"), "{error}");
    let mut no_rows = head(3, 5);
    no_rows.config.chunk_rows = Some(0);
    for odd in [no_rows, head(3, 0)] {
        let error = ops::token_divergences(&odd, &odd).unwrap_err().to_string();
        assert!(error.contains("at least 1 each"), "{error}");
    }
    let none = ops::token_divergences(&head(0, 5), &head(0, 5)).unwrap();
    assert_eq!(none.dims(), [0]);
}
