//! POPE: scores, what is refused, and questions that are built.

use std::collections::{BTreeMap, BTreeSet};

use diptych_eval::hallucination::{
    PopeConfig, PopeFiles, PopeSetting, YesNo, build_pope_questions, coco_image_objects, parse_pope_answer,
    pope_question_lines, read_image_objects, read_pope_questions, score_pope,
};
use serde_json::{Value, json};

use crate::place::{Place, assert_metrics, lines, message};

#[test]
fn pope_is_scored_as_published() {
    let place = Place::new();
    let parsed = place.expected["pope_parse"].as_array().unwrap();
    assert_eq!(parsed.len(), 27);
    for case in parsed {
        let said = if case[1] == "no" { YesNo::No } else { YesNo::Yes };
        assert_eq!(parse_pope_answer(case[0].as_str().unwrap()), said, "{case}");
    }
    let names = ["random", "popular", "adversarial"];
    let paths = names.map(|name| {
        (
            place.path(&format!("pope_{name}.jsonl")),
            place.path(&format!("pope_answers_{name}.jsonl")),
        )
    });
    let files: Vec<PopeFiles<'_>> = names
        .iter()
        .zip(&paths)
        .map(|(setting, (questions, answers))| PopeFiles {
            setting: (*setting).to_owned(),
            questions,
            answers,
        })
        .collect();
    let scored = score_pope(&files).unwrap();
    assert_metrics(&scored, &place.expected["pope"], 20);
    assert_eq!((scored.rows.len(), scored.tally.num_units()), (90, 5));
}

#[test]
fn pope_answers_that_do_not_fit_their_questions_are_refused() {
    let place = Place::new();
    let answers = place.read("pope_answers_random.jsonl");
    let cut: String = answers.split_inclusive('\n').take(29).collect();
    place.write("cut.jsonl", &cut);
    let said = message(place.pope("random", "cut.jsonl"));
    assert!(said.contains("cut.jsonl: found 29 answers, expected 30"), "{said}");
    place.write("long.jsonl", &format!("{answers}{}", json!({"answer": "no"})));
    assert!(message(place.pope("random", "long.jsonl")).contains("found 31 answers, expected 30"));
    let questions = read_pope_questions(&place.path("pope_random.jsonl")).unwrap();
    let named = |swap: bool| {
        let mut rows: Vec<Value> = questions
            .iter()
            .map(|one| json!({"question": one.text, "text": "Yes"}))
            .collect();
        let other = questions.iter().position(|one| one.text != questions[0].text).unwrap();
        if swap {
            rows.swap(0, other);
        }
        place.write("named.jsonl", &lines(&rows));
        place.pope("random", "named.jsonl")
    };
    named(false).unwrap();
    let said = message(named(true));
    assert!(
        said.contains("named.jsonl, row 1: `question` is") && said.contains("order of the questions"),
        "{said}"
    );
    let said = message(place.pope("random", "pope_random.jsonl"));
    assert!(said.contains("row 1") && said.contains("the question itself"), "{said}");
    for (bad, wanted) in [
        ("{\"answer\": 3}\n", "row 1: `answer` or `text` is 3, expected a string"),
        ("{\"reply\": \"no\"}\n", "row 1: there is no `answer` or `text`"),
        ("{\"answer\": \"no\"", "row 1: no JSON object"),
        ("\n\n[]", "there are no rows in it"),
        ("[{\"answer\": \"no\"}, 3]", "row 2: found 3, expected a JSON object"),
        ("[{\"answer\": \"no\"}", "no JSON list"),
        ("", "there are no rows in it"),
        (
            "{\"question_id\": 2, \"answer\": \"no\"}",
            "`question_id` is \"2\", expected \"1\"",
        ),
    ] {
        place.write("bad.jsonl", bad);
        let said = message(place.pope("random", "bad.jsonl"));
        assert!(said.contains("bad.jsonl") && said.contains(wanted), "{said}");
    }
    place.write(
        "pope_odd.jsonl",
        &json!({"question_id": 1, "image": "a", "text": "?", "label": "maybe"}).to_string(),
    );
    assert!(message(place.pope("odd", "bad.jsonl")).contains("row 1: `label` is \"maybe\", expected yes or no"));
}

#[test]
fn pope_questions_are_built_as_published() {
    let place = Place::new();
    let images = read_image_objects(&place.path("pope_objects.jsonl")).unwrap();
    let config = PopeConfig::default();
    let built = build_pope_questions(&images, &config).unwrap();
    let by_image: BTreeMap<&str, &Vec<String>> = images.iter().map(|one| (one.image.as_str(), &one.objects)).collect();
    let word = |text: &str| {
        text.trim_end_matches(" in the image?")
            .rsplit(' ')
            .next()
            .unwrap()
            .to_owned()
    };
    for (setting, questions) in &built {
        assert!(
            questions
                .iter()
                .enumerate()
                .all(|(place, one)| one.question_id == place as u64 + 1)
        );
        for pair in questions.chunks(2) {
            assert_eq!((pair[0].label, pair[1].label), (YesNo::Yes, YesNo::No));
            assert!(by_image[pair[0].image.as_str()].contains(&word(&pair[0].text)));
            assert!(
                !by_image[pair[1].image.as_str()].contains(&word(&pair[1].text)),
                "{pair:?}"
            );
        }
        for image in questions.chunks(6) {
            assert_eq!(
                image.iter().map(|one| &one.text).collect::<BTreeSet<_>>().len(),
                6,
                "each object once"
            );
        }
        if *setting == PopeSetting::Random {
            continue;
        }
        let expected = place.expected["pope_questions"][setting.name()].as_array().unwrap();
        assert_eq!(questions.len(), 2 * expected.len());
        for (pair, expected) in questions.chunks(2).zip(expected) {
            assert_eq!(pair[0].image, expected[0]);
            assert_eq!(word(&pair[0].text), expected[1]);
            assert!(
                expected[2].is_null() || word(&pair[1].text) == expected[2],
                "{pair:?}, expected {expected}"
            );
        }
    }
    let text = &built[0].1.iter().find(|one| one.text.contains("apple")).unwrap().text;
    assert_eq!(text, "Is there an apple in the image?");
    // What is written is read again, and the seed alone decides.
    let path = place.write("built.jsonl", &pope_question_lines(&built[2].1));
    assert_eq!(read_pope_questions(&path).unwrap(), built[2].1);
    assert_eq!(build_pope_questions(&images, &config).unwrap(), built);
    let other = build_pope_questions(
        &images,
        &PopeConfig {
            seed: 1,
            ..config.clone()
        },
    )
    .unwrap();
    assert!(other[0] != built[0] && other[2].1.len() == built[2].1.len());
    let few = build_pope_questions(
        &images,
        &PopeConfig {
            num_images: Some(15),
            ..config.clone()
        },
    )
    .unwrap();
    assert_eq!(few[0].1.len(), 90);
    for (bad, wanted) in [
        (
            PopeConfig {
                num_images: Some(400),
                ..config.clone()
            },
            "images with 3 or more objects, expected at least 400",
        ),
        (
            PopeConfig {
                objects_per_image: 0,
                ..config.clone()
            },
            "must be at least 1",
        ),
        (
            PopeConfig {
                template: "what".to_owned(),
                ..config.clone()
            },
            "has no `{}`",
        ),
        (
            PopeConfig {
                objects_per_image: 5,
                ..config
            },
            "every object is there or was asked about already",
        ),
    ] {
        let said = message(build_pope_questions(&images, &bad));
        assert!(said.contains(wanted), "{said}");
    }
    let coco = coco_image_objects(&place.path("instances.json")).unwrap();
    assert!(
        coco.iter()
            .all(|one| one.image.contains(".jpg") && !one.objects.is_empty())
    );
}
