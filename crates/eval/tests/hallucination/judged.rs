//! Benchmarks whose answers a judge reads.

use diptych_eval::hallucination::{
    HallusionVerdict, JudgedAnswers, JudgedBenchmark, StoredJudgments, parse_hallusion_verdict, parse_mmhal_rating,
    score_hallusion, score_mmhal,
};
use serde_json::{Value, json};

use crate::place::{Place, assert_metrics, message};

#[test]
fn judged_benchmarks_are_scored_as_published() {
    let place = Place::new();
    let types = [
        "attribute",
        "adversarial",
        "comparison",
        "counting",
        "relation",
        "environment",
        "holistic",
        "other",
    ];
    let mut rows: Vec<Value> = (0..96)
        .map(|index| json!({"question_type": types[index % 8], "question": "?", "gt_answer": "!", "model_answer": "a", "image_content": ["Dog"]}))
        .collect();
    let answers = place.write("mmhal.json", &json!(rows).to_string());
    let mut replies = StoredJudgments::read(&place.path("mmhal_replies.json")).unwrap();
    replies.check_len(96).unwrap();
    let scored = score_mmhal(&answers, &mut replies).unwrap();
    assert_metrics(&scored, &place.expected["mmhal"], 11);
    assert!(scored.notes[0].contains("no rating, or several"), "{:?}", scored.notes);
    assert!(message(replies.check_len(95)).contains("found 96 judgments, expected 95"));
    rows.swap(3, 4);
    let swapped = place.write("swapped.json", &json!(rows).to_string());
    let said = message(score_mmhal(&swapped, &mut replies));
    assert!(
        said.contains("swapped.json, row 4: `question_type` is \"relation\", expected \"counting\""),
        "{said}"
    );

    let answers = place.path("hallusion_answers.json");
    let scored = score_hallusion(&answers, None).unwrap();
    assert_metrics(&scored, &place.expected["hallusion"], 10);
    let mut rows: Vec<Value> = serde_json::from_str(&place.read("hallusion_answers.json")).unwrap();
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        row.remove("gpt4v_output_gpt_check");
        row.extend(["question", "gt_answer_details", "model_prediction"].map(|key| (key.to_owned(), json!("."))));
    }
    let unjudged = place.write("unjudged.json", &json!(rows).to_string());
    let said = message(score_hallusion(&unjudged, None));
    assert!(said.contains("row 1: there is no `gpt4v_output_gpt_check`"), "{said}");
    let mut replies = StoredJudgments::read(&place.path("hallusion_replies.jsonl")).unwrap();
    assert_metrics(
        &score_hallusion(&unjudged, Some(&mut replies)).unwrap(),
        &place.expected["hallusion"],
        10,
    );
    let shifted = place.write(
        "shifted.jsonl",
        &rows
            .iter()
            .map(|_| "{\"judgment\": \"correct\", \"question\": \"another\"}\n")
            .collect::<String>(),
    );
    let mut shifted = StoredJudgments::read(&shifted).unwrap();
    let said = message(score_hallusion(&unjudged, Some(&mut shifted)));
    assert!(
        said.contains("shifted.jsonl: judgment 1 is about the question \"another\", expected \".\""),
        "{said}"
    );
    rows.push(rows[0].clone());
    let twice = place.write("twice.json", &json!(rows).to_string());
    assert!(message(score_hallusion(&twice, Some(&mut replies))).contains("is in an earlier row already"));
}

#[test]
fn replies_are_read_as_the_official_programs_read_them() {
    for (reply, rating) in [
        ("It invents a cat.\nRating: 2", Some(2)),
        ("RATING: 6", Some(6)),
        ("Rating: 10", Some(1)),
        ("rating:3", None),
        ("Rating: 3 or Rating: 4", None),
        ("Rating: 3. As said, rating: 3", Some(3)),
        ("Rating: 7", None),
        ("", None),
    ] {
        assert_eq!(parse_mmhal_rating(reply), rating, "{reply:?}");
    }
    for (reply, verdict) in [
        ("Correct.", HallusionVerdict::Correct),
        ("incorrect", HallusionVerdict::Incorrect),
        ("It is not incorrect but correct", HallusionVerdict::Incorrect),
        ("Unclear", HallusionVerdict::Unclear),
        ("yes", HallusionVerdict::Unclear),
    ] {
        assert_eq!(parse_hallusion_verdict(reply), verdict, "{reply:?}");
    }
}

#[test]
fn a_judge_is_asked_about_every_answer_and_its_replies_read_back() {
    let place = Place::new();
    let row = |answer: &str| json!({"question": "What is it?", "gt_answer": "A dog.", "model_answer": answer, "image_content": ["Dog", "Ball"]});
    let answers = place.write(
        "asked.json",
        &json!([row("A cat."), row("A dog with a ball.")]).to_string(),
    );
    let asked = JudgedAnswers::read(JudgedBenchmark::Mmhal, &answers).unwrap();
    let prompts = asked.prompts();
    assert_eq!(prompts.len(), 2);
    for (prompt, answer) in prompts.iter().zip(["A cat.", "A dog with a ball."]) {
        for part in ["What is it?", "A dog.", "Dog, Ball", answer, "\"Rating: \""] {
            assert!(prompt.contains(part), "{part} is not in {prompt}");
        }
        // The scale is no reply: a judge that only repeats what it was asked has given no rating.
        assert_eq!(parse_mmhal_rating(prompt), None);
    }
    let stored = place.write("said.jsonl", &asked.judgment_file(&["Rating: 1", "no idea"]).unwrap());
    let scored = score_mmhal(&answers, &mut StoredJudgments::read(&stored).unwrap()).unwrap();
    assert_eq!(scored.tally.value("score"), Some(0.5));
    assert!(
        scored.notes[0].starts_with("1 replies of the judge"),
        "{:?}",
        scored.notes
    );
    assert!(message(asked.judgment_file(&["one"])).contains("found 1 judgments, expected 2"));
    // Replies to other answers are refused.
    let others = place.write(
        "others.json",
        &json!([row("A cow."), row("A dog with a ball.")]).to_string(),
    );
    let said = message(score_mmhal(&others, &mut StoredJudgments::read(&stored).unwrap()));
    assert!(said.contains("judgment 1 is about the answer"), "{said}");

    let row = |number: usize| {
        json!({
            "category": "VD", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "1", "question_id": number,
            "gt_answer": "1", "question": "Is it so?", "gt_answer_details": "It is so.", "model_prediction": "Yes.",
        })
    };
    let answers = place.write("yes.json", &json!([row(0), row(1), row(2), row(3)]).to_string());
    let asked = JudgedAnswers::read(JudgedBenchmark::Hallusion, &answers).unwrap();
    assert!(asked.prompts()[3].contains("It is so.") && asked.prompts()[3].contains("Yes."));
    let said = asked
        .judgment_file(&["correct", "Incorrect", "unclear", "what?"])
        .unwrap();
    let stored = place.write("verdicts.jsonl", &said);
    let mut judgments = StoredJudgments::read(&stored).unwrap();
    let scored = score_hallusion(&answers, Some(&mut judgments)).unwrap();
    assert_eq!(scored.tally.value("a_acc"), Some(25.0));
    assert!(
        scored.notes[0].starts_with("1 replies of the judge say neither"),
        "{:?}",
        scored.notes
    );
}
