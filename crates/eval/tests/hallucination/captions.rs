//! CHAIR, Object `HalBench`, and captions of the embedded world.

use std::collections::BTreeSet;

use diptych_eval::hallucination::{
    ExtractedObjects, Lemmatizer, ObjectTruth, ObjectVocabulary, ShapesNaming, SynonymRules, YesNo,
    build_pope_questions, score_chair, score_object_halbench, score_shapes_chair, shapes_image_objects,
    shapes_pope_config, shapes_scenes,
};
use diptych_shapes::{Example, SceneConfig, Split};
use serde_json::{Value, json};

use crate::place::{Place, assert_metrics, lines, message};

#[test]
fn captions_are_scored_as_chair_does() {
    let place = Place::new();
    let vocabulary = place.vocabulary(SynonymRules::Chair);
    let truth = place.chair_truth(&vocabulary);
    let scored = score_chair(&place.path("chair_answers.jsonl"), &vocabulary, &truth).unwrap();
    assert_metrics(&scored, &place.expected["chair"], 3);
    let sentences = place.expected["chair_sentences"].as_array().unwrap();
    assert_eq!(scored.rows.len(), sentences.len());
    for (found, expected) in scored.rows.iter().zip(sentences) {
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&found[key], value, "{key} of {}", found["caption"]);
        }
    }
    // What was written can be scored again, and serves as the truth.
    let written = place.write("sentences.json", &json!({"sentences": scored.rows}).to_string());
    assert_eq!(ObjectTruth::read(&written, &vocabulary).unwrap(), truth);
    let again = score_chair(&written, &vocabulary, &truth).unwrap();
    assert_metrics(&again, &place.expected["chair"], 3);
}

#[test]
fn unknown_images_and_objects_are_named() {
    let place = Place::new();
    let vocabulary = place.vocabulary(SynonymRules::Chair);
    let truth = place.chair_truth(&vocabulary);
    let stray = place.write(
        "stray.jsonl",
        "{\"image_id\": 1, \"caption\": \"a cup\"}\n{\"image_id\": 99, \"caption\": \"a cup\"}\n",
    );
    let said = message(score_chair(&stray, &vocabulary, &truth));
    assert!(
        said.contains("stray.jsonl, row 2: image 99 is not among the annotations"),
        "{said}"
    );
    let unknown = place.write("truth.jsonl", "{\"image_id\": 1, \"objects\": [\"cup\", \"unicorn\"]}");
    let said = message(ObjectTruth::read(&unknown, &vocabulary));
    assert!(said.contains("row 1: \"unicorn\" is no object of the list"), "{said}");
    let small = ObjectVocabulary::parse("person\n", SynonymRules::Chair);
    let images = BTreeSet::from(["0".to_owned(), "1".to_owned(), "2".to_owned(), "3".to_owned()]);
    let instances = [place.path("instances.json")];
    let said = message(ObjectTruth::from_coco(
        &instances,
        &[],
        &images,
        &small,
        &Lemmatizer::PatternRules,
    ));
    assert!(
        said.contains("instances.json: category") && said.contains("no object of the list of synonyms"),
        "{said}"
    );
    let truncated = place.read("instances.json");
    let broken = [place.write("broken.json", &truncated[..truncated.len() / 2])];
    let said = message(ObjectTruth::from_coco(
        &broken,
        &[],
        &images,
        &vocabulary,
        &Lemmatizer::PatternRules,
    ));
    assert!(said.contains("broken.json: EOF while parsing"), "{said}");
    let captions = [place.write(
        "captions_of_one.json",
        r#"{"annotations": [{"image_id": 1, "caption": "A cup."}]}"#,
    )];
    let said = message(ObjectTruth::from_coco(
        &instances,
        &captions,
        &images,
        &vocabulary,
        &Lemmatizer::PatternRules,
    ));
    assert!(
        said.contains("captions_of_one.json: image 0 is in none of the files of captions"),
        "{said}"
    );
    let empty = place.write("none.txt", "\n");
    assert!(message(ObjectVocabulary::read(&empty, SynonymRules::Chair)).contains("none.txt: there are no objects"));
}

#[test]
fn extracted_objects_are_scored_as_object_halbench_does() {
    let place = Place::new();
    let vocabulary = place.vocabulary(SynonymRules::ObjectHalBench);
    let truth = ObjectTruth::read(&place.path("halbench_truth.jsonl"), &vocabulary).unwrap();
    let answers = place.path("halbench_answers.jsonl");
    let scored = score_object_halbench(&answers, &vocabulary, &truth, ExtractedObjects::Refused).unwrap();
    assert_metrics(&scored, &place.expected["object_halbench"], 6);
    assert!(scored.notes.is_empty());

    let raw = json!({"image_id": 0, "caption": "There are many things here", "extract_objs": ["two wine glasses", "wooden stools", "a pup"]});
    let short = json!({"image_id": 0, "caption": "A bus here.", "extract_objs": ["buses"]});
    let path = place.write("raw.jsonl", &lines(&[raw, short]));
    let said = message(score_object_halbench(
        &path,
        &vocabulary,
        &truth,
        ExtractedObjects::Refused,
    ));
    assert!(
        said.contains("raw.jsonl, row 1: there is only `extract_objs`"),
        "{said}"
    );
    let scored = score_object_halbench(&path, &vocabulary, &truth, ExtractedObjects::HeadNoun).unwrap();
    assert_eq!(scored.rows[0]["objs"], json!(["wine glass", "stool", "a pup"]));
    assert_eq!(scored.rows[1]["objs"], json!([]));
    assert!(scored.notes[0].starts_with("2 answers have only `extract_objs`"));
}

#[test]
fn captions_of_shapes_are_true_or_not() {
    let place = Place::new();
    let scenes = shapes_scenes(5, Split::HeldOut, 40, &SceneConfig::default()).unwrap();
    let rows: Vec<Value> = scenes
        .iter()
        .map(|scene| serde_json::to_value(scene).unwrap())
        .collect();
    let path = place.write("scenes.jsonl", &lines(&rows));
    let caption = |index: u64| {
        Example::generate(5, index, Split::HeldOut, &SceneConfig::default())
            .unwrap()
            .caption
    };
    let score = |name: &str, captions: Vec<Value>, naming| {
        let captions = place.write(name, &lines(&captions));
        score_shapes_chair(&captions, &path, naming)
    };
    let truths: Vec<Value> = (0..40)
        .map(|index| json!({"image": index.to_string(), "caption": caption(index)}))
        .collect();
    // Said in other words, the same objects are found.
    let unread: Vec<Value> = (0..40)
        .map(|index| json!({"image": index.to_string(), "caption": format!("I see {}, I think!", caption(index))}))
        .collect();
    for naming in [ShapesNaming::Shape, ShapesNaming::ColoredShape] {
        let scored = score("true.jsonl", truths.clone(), naming).unwrap();
        assert_eq!(
            (scored.tally.value("chair_s"), scored.tally.value("chair_i")),
            (Some(0.0), Some(0.0))
        );
        assert!(scored.notes.is_empty());
        let again = score("unread.jsonl", unread.clone(), naming).unwrap();
        for (one, other) in scored.rows.iter().zip(&again.rows) {
            assert_eq!(one["mentioned"], other["mentioned"], "{one}");
        }
        assert!(again.notes[0].starts_with("40 captions are not of the grammar"));
    }
    let shifted: Vec<Value> = (0..40)
        .map(|index| json!({"image": index.to_string(), "caption": caption((index + 1) % 40)}))
        .collect();
    let scored = score("shifted.jsonl", shifted, ShapesNaming::ColoredShape).unwrap();
    assert!(
        scored.tally.value("chair_s").unwrap() > 0.8,
        "{:?}",
        scored.tally.value("chair_s")
    );
    let said = message(score(
        "stray.jsonl",
        vec![json!({"image": "x", "caption": "a star"})],
        ShapesNaming::Shape,
    ));
    assert!(
        said.contains("stray.jsonl, row 1: image \"x\" is not among the scenes"),
        "{said}"
    );

    let objects = shapes_image_objects(&scenes, ShapesNaming::ColoredShape);
    let built = build_pope_questions(&objects, &shapes_pope_config(0)).unwrap();
    for (_, questions) in &built {
        assert_eq!(questions.len(), 80);
        for question in questions {
            let scene = &scenes[question.image.parse::<usize>().unwrap()].scene;
            let named = question
                .text
                .trim_start_matches("is there a")
                .trim_start_matches('n')
                .trim();
            let is_there = scene
                .objects
                .iter()
                .any(|object| format!("{} {}", object.color, object.shape) == named);
            assert_eq!(is_there, question.label == YesNo::Yes, "{question:?}");
        }
    }
}
