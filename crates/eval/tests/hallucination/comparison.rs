//! Two systems before the same questions.

use diptych_eval::hallucination::{BenchmarkReport, YesNo, read_pope_questions};
use serde_json::{Value, json};

use crate::place::{Place, lines, message};

#[test]
fn answers_are_compared_with_those_of_another_system() {
    let place = Place::new();
    let questions = read_pope_questions(&place.path("pope_random.jsonl")).unwrap();
    let perfect: Vec<Value> = questions
        .iter()
        .map(|one| json!({"question_id": one.question_id, "answer": if one.label == YesNo::No { "No" } else { "Yes" }}))
        .collect();
    place.write("perfect.jsonl", &lines(&perfect));
    let base = place.pope("random", "pope_answers_random.jsonl").unwrap();
    let scored = place.pope("random", "perfect.jsonl").unwrap();
    let report = BenchmarkReport::of(&scored, Some(&base), 0, 500).unwrap();
    let accuracy = &report.differences.as_ref().unwrap()[0];
    let seen = 1.0 - base.tally.value("random/accuracy").unwrap();
    assert_eq!(accuracy.name, "random/accuracy");
    assert!((accuracy.difference.value.unwrap() - seen).abs() < 1e-12 && accuracy.difference.low.unwrap() > 0.0);
    // Five images: the only exchanges as extreme are none and all, as long as the base errs on each.
    assert_eq!(accuracy.p_value, Some(2.0 / 32.0));
    assert_eq!(report.metrics[0].low, Some(1.0));
    assert!(report.to_string().contains("| base"), "{report}");
    let same = BenchmarkReport::of(&base, Some(&base), 0, 100)
        .unwrap()
        .differences
        .unwrap();
    assert!(
        same.iter()
            .all(|one| one.difference.value == Some(0.0) && one.p_value == Some(1.0))
    );
    let other = place.pope("popular", "pope_answers_popular.jsonl").unwrap();
    assert!(message(BenchmarkReport::of(&base, Some(&other), 0, 100)).contains("different numbers"));
    assert!(message(BenchmarkReport::of(&base, None, 0, 0)).contains("`bootstrap_samples` is 0"));
}
