//! Benchmarks of hallucination against `tests/golden/generate_hallucination.py`, and what is wrong with their files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::too_many_lines, reason = "tables of cases")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use diptych_eval::hallucination::{
    AmberDimension, AmberWords, BenchmarkReport, ExtractedObjects, Lemmatizer, NounSource, ObjectTruth,
    ObjectVocabulary, PopeConfig, PopeFiles, PopeSetting, Scored, ShapesNaming, StoredJudgments, SynonymRules, WordNet,
    YesNo, build_pope_questions, captioned_images, coco_image_objects, parse_pope_answer, pope_question_lines,
    read_image_objects, read_pope_questions, score_amber, score_chair, score_hallusion, score_mmhal,
    score_object_halbench, score_pope, score_shapes_chair, shapes_image_objects, shapes_pope_config, shapes_scenes,
};
use diptych_shapes::{Example, SceneConfig, Split};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The golden files, each where its name says.
struct Place {
    folder: TempDir,
    expected: Value,
}

impl Place {
    fn new() -> Self {
        let text = include_str!("../../../tests/golden/hallucination/cases.json");
        let mut golden: Value = serde_json::from_str(text).unwrap();
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            expected: golden["expected"].take(),
        };
        let files = golden["files"].as_object().unwrap();
        assert_eq!(files.len(), 21);
        for (name, content) in files {
            match content {
                Value::String(text) => place.write(name, text),
                rows if name.rsplit('.').next() == Some("jsonl") => place.write(name, &lines(rows.as_array().unwrap())),
                other => place.write(name, &other.to_string()),
            };
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn vocabulary(&self, rules: SynonymRules) -> ObjectVocabulary {
        ObjectVocabulary::read(&self.path("synonyms.txt"), rules).unwrap()
    }

    fn chair_truth(&self, vocabulary: &ObjectVocabulary) -> ObjectTruth {
        let images = captioned_images(&self.path("chair_answers.jsonl")).unwrap();
        let (instances, captions) = ([self.path("instances.json")], [self.path("captions.json")]);
        ObjectTruth::from_coco(&instances, &captions, &images, vocabulary, &Lemmatizer::PatternRules).unwrap()
    }

    fn amber(&self, answers: &str, dimensions: &[AmberDimension]) -> diptych_eval::Result<Scored> {
        let vectors = self.path("vectors.txt");
        let (relation, safe) = (self.path("relation.json"), self.path("safe_words.txt"));
        let words = AmberWords::read(&relation, &safe, Some(&vectors), 0.8)?;
        let annotations = self.path("amber_annotations.json");
        let images = BTreeMap::from([(31, "one.jpg".to_owned()), (32, "one.jpg".to_owned())]);
        score_amber(
            &self.path(answers),
            &annotations,
            &words,
            &NounSource::Stored,
            dimensions,
            &images,
        )
    }

    fn pope(&self, setting: &str, answers: &str) -> diptych_eval::Result<Scored> {
        score_pope(&[PopeFiles {
            setting: setting.to_owned(),
            questions: &self.path(&format!("pope_{setting}.jsonl")),
            answers: &self.path(answers),
        }])
    }
}

fn lines(rows: &[Value]) -> String {
    rows.iter()
        .fold(String::new(), |text, row| text + &row.to_string() + "\n")
}

/// Compares every number, and that there are so many.
fn assert_metrics(scored: &Scored, expected: &Value, count: usize) {
    let expected = expected.as_object().unwrap();
    assert_eq!(expected.len(), count);
    for (name, value) in expected {
        match (scored.tally.value(name), value.as_f64()) {
            (Some(found), Some(value)) => assert!((found - value).abs() < 1e-9, "{name}: {found}, expected {value}"),
            (found, value) => assert_eq!(found, value, "{name}"),
        }
    }
}

fn message<T>(result: diptych_eval::Result<T>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

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
fn amber_is_scored_as_published_in_any_order() {
    let place = Place::new();
    let scored = place.amber("amber_answers.json", &AmberDimension::ALL).unwrap();
    assert_metrics(&scored, &place.expected["amber"], 33);
    assert!(
        scored.notes[0].contains("are neither `Yes` nor `No`"),
        "{:?}",
        scored.notes
    );
    assert_eq!(scored.tally.num_units(), 94, "two ids are of one image");
    let mut answers: Vec<Value> = serde_json::from_str(&place.read("amber_answers.json")).unwrap();
    answers.sort_by_key(|row| row["id"].as_u64());
    place.write("sorted.json", &json!(answers).to_string());
    let sorted = place.amber("sorted.json", &AmberDimension::ALL).unwrap();
    let (one, other) = (
        BenchmarkReport::of(&scored, None, 3, 50),
        BenchmarkReport::of(&sorted, None, 3, 50),
    );
    assert_eq!(one.unwrap().metrics, other.unwrap().metrics);

    place.write("cut.json", &json!(answers[1..]).to_string());
    let said = message(place.amber("cut.json", &AmberDimension::ALL));
    assert!(said.contains("cut.json: id 1 is not answered"), "{said}");
    place.amber("cut.json", &[AmberDimension::Relation]).unwrap();
    let mut twice = answers.clone();
    twice.push(answers[4].clone());
    place.write("twice.json", &json!(twice).to_string());
    assert!(
        message(place.amber("twice.json", &AmberDimension::ALL))
            .contains("row 96: id 5 was answered in an earlier row")
    );
    place.write("stray.json", &json!([{"id": 999, "response": "Yes"}]).to_string());
    assert!(message(place.amber("stray.json", &AmberDimension::ALL)).contains("row 1: id 999 is not among"));
    let (relation, safe) = (place.path("relation.json"), place.path("safe_words.txt"));
    let vectors = place.write("few.txt", "sky 1 2\ngrass 1\n");
    assert!(
        message(AmberWords::read(&relation, &safe, Some(&vectors), 0.8))
            .contains("few.txt, row 2: expected a word and 2")
    );
    let vectors = place.write("few.txt", "sky 1 2\n");
    assert!(message(AmberWords::read(&relation, &safe, Some(&vectors), 0.8)).contains("there is no vector of"));
}

#[test]
fn amber_nouns_can_be_every_word_of_the_vocabulary() {
    let place = Place::new();
    let words = AmberWords::read(&place.path("relation.json"), &place.path("safe_words.txt"), None, 0.8).unwrap();
    let annotations = place.write(
        "a.json",
        &json!([{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["ship"]}]).to_string(),
    );
    let answers = place.write(
        "r.json",
        &json!([{"id": 1, "response": "Two dogs watch the ships. Dogs!"}]).to_string(),
    );
    let dimensions = [AmberDimension::Generative];
    let score = |nouns| score_amber(&answers, &annotations, &words, &nouns, &dimensions, &BTreeMap::new()).unwrap();
    let scored = score(NounSource::EveryWord(None));
    // The capital is lost, as in the official program.
    assert_eq!(scored.rows[0]["nouns"], json!(["dog", "ship"]));
    assert_eq!(scored.rows[0]["unsafe"], json!(["ship"]));
    assert!(
        scored
            .notes
            .iter()
            .filter(|note| note.starts_with("approximate"))
            .count()
            == 2,
        "{:?}",
        scored.notes
    );
    place.write(
        "index.noun",
        "  1 license\ndog n 1\nship n 1\nman n 1\ngoose n 1\nboss n 1\n",
    );
    place.write("noun.exc", "geese goose\n");
    let wordnet = WordNet::read(place.folder.path()).unwrap();
    for (word, lemma) in [
        ("dogs", "dog"),
        ("men", "man"),
        ("geese", "goose"),
        ("bosses", "boss"),
        ("boss", "boss"),
        ("xs", "xs"),
    ] {
        assert_eq!(wordnet.lemma(word), lemma);
    }
    assert_eq!(score(NounSource::EveryWord(Some(wordnet))).rows, scored.rows);
}

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
