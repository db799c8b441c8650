//! The benchmarks' own files: questions are read from them, and answers are written so that they can be scored.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diptych_data::ImageSource;
use diptych_eval::hallucination::{
    AmberDimension, AmberWords, Benchmark, CAPTION_PROMPT, ExtractedObjects, NounSource, ObjectTruth, ObjectVocabulary,
    PopeFiles, QuestionFile, QuestionImages, QuestionWording, ShapesNaming, StoredJudgments, SynonymRules,
    YesNoAnswers, mention_spans, read_amber_queries, score_amber, score_chair, score_hallusion, score_mmhal,
    score_object_halbench, score_pope, score_shapes_chair, shapes_scenes,
};
use diptych_shapes::{SceneConfig, Split};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    /// With a folder of images.
    fn new(images: &[&str]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for name in images {
            let path = place.path("images").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::new(3, 2).save(path).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<str>) -> PathBuf {
        std::fs::write(self.path(name), text.as_ref()).unwrap();
        self.path(name)
    }

    fn lines(&self, name: &str, rows: &[Value]) -> PathBuf {
        self.write(name, rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n"))
    }

    fn images(&self) -> QuestionImages {
        QuestionImages::folder(&self.path("images")).unwrap()
    }

    fn read(&self, benchmark: Benchmark, name: &str) -> diptych_eval::Result<QuestionFile> {
        QuestionFile::read(benchmark, &self.path(name), &self.images(), &QuestionWording::default())
    }

    /// Writes the answers to a file of questions and returns where.
    fn answer(&self, file: &QuestionFile, answers: &[&str]) -> PathBuf {
        let name = format!("answers.{}", file.extension());
        self.write(&name, file.answer_file(answers).unwrap())
    }
}

fn shown(file: &QuestionFile) -> Vec<(&str, Option<PathBuf>)> {
    let path = |image: &ImageSource| match image {
        ImageSource::Path(path) => path.file_name().unwrap().into(),
        other => PathBuf::from(other.to_string()),
    };
    let questions = file.questions().iter();
    questions
        .map(|question| (question.text.as_str(), question.image.as_ref().map(path)))
        .collect()
}

#[test]
fn pope() {
    let place = Place::new(&["a.jpg", "b.png"]);
    let row = |id, image, label| json!({"question_id": id, "image": image, "text": "Is there a cat in the image?", "label": label});
    let questions = place.lines("pope.jsonl", &[row(1, "a.jpg", "yes"), row(2, "b.png", "no")]);
    let wording = QuestionWording {
        suffix: "\nAnswer the question using a single word or phrase.".to_owned(),
        ..QuestionWording::default()
    };
    let file = QuestionFile::read(Benchmark::Pope, &questions, &place.images(), &wording).unwrap();
    let asked = "Is there a cat in the image?\nAnswer the question using a single word or phrase.";
    assert_eq!(
        shown(&file),
        [(asked, Some("a.jpg".into())), (asked, Some("b.png".into()))]
    );
    // The official program compares nothing but the order; ours compares the question that was asked, without what stood behind it.
    let answers = place.answer(&file, &["Yes", "Yes, there is."]);
    let scored = score_pope(&[PopeFiles {
        setting: "random".to_owned(),
        questions: &questions,
        answers: &answers,
    }])
    .unwrap();
    assert_eq!(scored.tally.value("random/accuracy"), Some(0.5));
    assert_eq!(scored.tally.value("random/false_yes"), Some(1.0));
    assert!(file.answer_file(&["Yes"]).unwrap_err().to_string().contains("found 1"));
}

#[test]
fn chair() {
    let place = Place::new(&["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"]);
    let vocabulary = ObjectVocabulary::read(
        &place.write("synonyms.txt", "dog, puppy\ncat, kitten\n"),
        SynonymRules::Chair,
    )
    .unwrap();
    let truth = place.lines(
        "truth.jsonl",
        &[
            json!({"image_id": 42, "objects": ["dog"]}),
            json!({"image_id": 7, "objects": ["cat", "dog"]}),
        ],
    );
    let truth = ObjectTruth::read(&truth, &vocabulary).unwrap();
    // All of the folder, by name; rows with names, several of them about one image; ids alone.
    let all = QuestionFile::captions(&place.images(), &QuestionWording::default()).unwrap();
    place.lines(
        "named.jsonl",
        &[
            json!({"image": "COCO_val2014_000000000007.jpg"}),
            json!({"image": "COCO_val2014_000000000007.jpg"}),
            json!({"image": "COCO_val2014_000000000042.jpg"}),
        ],
    );
    place.write("ids.json", r#"[{"image_id": 7}, {"image_id": 42}]"#);
    let [named, ids] = ["named.jsonl", "ids.json"].map(|name| place.read(Benchmark::Chair, name).unwrap());
    for file in [all, named, ids] {
        let names = ["COCO_val2014_000000000007.jpg", "COCO_val2014_000000000042.jpg"];
        assert_eq!(shown(&file), names.map(|name| (CAPTION_PROMPT, Some(name.into()))));
        let answers = place.answer(&file, &["A cat beside a puppy.", "A dog and a kitten."]);
        let scored = score_chair(&answers, &vocabulary, &truth).unwrap();
        assert_eq!(scored.tally.value("chair_s"), Some(0.5));
        assert_eq!(scored.tally.value("chair_i"), Some(0.25));
        assert_eq!(scored.tally.value("recall"), Some(1.0));
    }
}

#[test]
fn object_halbench() {
    let place = Place::new(&["COCO_val2014_000000000007.jpg"]);
    let picture = std::fs::read(place.path("images/COCO_val2014_000000000007.jpg")).unwrap();
    let rows = [
        json!({"image_id": 42, "question": "What is in the picture?", "image": STANDARD.encode(&picture)}),
        json!({"image_id": 7, "question": "Describe it."}),
    ];
    place.lines("halbench.jsonl", &rows);
    let file = place.read(Benchmark::ObjectHalbench, "halbench.jsonl").unwrap();
    let embedded = format!("embedded image of {} bytes", picture.len());
    assert_eq!(
        shown(&file),
        [
            ("What is in the picture?", Some(embedded.into())),
            ("Describe it.", Some("COCO_val2014_000000000007.jpg".into()))
        ]
    );
    let answers = place.answer(&file, &["a dog beside a kitten", "there is a cat, a cat and a puppy"]);
    let text = std::fs::read_to_string(&answers).unwrap();
    assert!(text.len() < 300, "the picture is left out: {text}");
    let vocabulary = ObjectVocabulary::read(
        &place.write("synonyms.txt", "dog, puppy\ncat, kitten\n"),
        SynonymRules::ObjectHalBench,
    )
    .unwrap();
    let truth = place.lines(
        "truth.jsonl",
        &[
            json!({"image_id": 42, "objects": ["dog"]}),
            json!({"image_id": 7, "objects": ["cat", "dog"]}),
        ],
    );
    let truth = ObjectTruth::read(&truth, &vocabulary).unwrap();
    let score = |extracted| score_object_halbench(&answers, &vocabulary, &truth, extracted);
    let refused = score(ExtractedObjects::Refused).unwrap_err().to_string();
    assert!(refused.contains("objs"), "{refused}");
    let scored = score(ExtractedObjects::WholeAnswer).unwrap();
    assert_eq!(scored.tally.value("response_hallucination"), Some(50.0));
    assert_eq!(scored.tally.value("object_hallucination"), Some(25.0));
    assert!(scored.notes[0].contains("word by word"), "{:?}", scored.notes);
}

#[test]
fn amber() {
    let place = Place::new(&["AMBER_1.jpg"]);
    let queries = json!([
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 2, "image": "AMBER_1.jpg", "query": "Is there a sea in this image?"},
        {"id": 3, "image": "AMBER_1.jpg", "query": "Is the sky blue in this image?"},
    ]);
    let path = place.write("queries.json", queries.to_string());
    let annotations = json!([
        {"id": 1, "type": "generative", "truth": ["sky"], "hallu": ["sea"]},
        {"id": 2, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 3, "type": "discriminative-attribute-state", "truth": "yes"},
    ]);
    let annotations = place.write("annotations.json", annotations.to_string());
    let relation = place.write("relation.json", r#"{"sky": [], "sea": ["water"]}"#);
    let words = AmberWords::read(&relation, &place.write("safe.txt", "light\n"), None, 0.8).unwrap();
    let images = read_amber_queries(&path).unwrap();
    let accuracy = |yes_no_answers| {
        let wording = QuestionWording {
            yes_no_answers,
            ..QuestionWording::default()
        };
        let file = QuestionFile::read(Benchmark::Amber, &path, &place.images(), &wording).unwrap();
        let answers = place.answer(&file, &["No sea, but a sky", "no, there is none", "Yes."]);
        let read: Vec<BTreeMap<String, Value>> =
            serde_json::from_str(&std::fs::read_to_string(&answers).unwrap()).unwrap();
        // A description stays whole, whatever it begins with.
        assert_eq!(read[0]["response"], "No sea, but a sky");
        let nouns = NounSource::EveryWord(None);
        let scored = score_amber(&answers, &annotations, &words, &nouns, &AmberDimension::ALL, &images).unwrap();
        assert_eq!(scored.tally.num_units(), 1);
        let found = scored.rows.iter().filter(|row| row["is_correct"] == true).count();
        (found, scored.rows.len())
    };
    assert_eq!(accuracy(YesNoAnswers::FirstWord), (2, 3));
    assert_eq!(accuracy(YesNoAnswers::Verbatim), (0, 3));
}

#[test]
fn mmhal_and_hallusion() {
    let place = Place::new(&["1_ab.jpg", "VD/chart/0_1.png"]);
    let template = json!([
        {"question_type": "attribute", "question_topic": "food", "image_id": "x", "image_src": "https://host/folder/1_ab.jpg",
         "image_content": ["Food"], "question": "What is it?", "gt_answer": "Food", "model_answer": ""},
    ]);
    place.write("mmhal.json", template.to_string());
    let file = place.read(Benchmark::Mmhal, "mmhal.json").unwrap();
    assert_eq!(shown(&file), [("What is it?", Some("1_ab.jpg".into()))]);
    let answers = place.answer(&file, &["It is food."]);
    let replies = place.lines(
        "replies.jsonl",
        &[json!({"judgment": "Rating: 5", "question": "What is it?", "model_answer": "It is food."})],
    );
    let scored = score_mmhal(&answers, &mut StoredJudgments::read(&replies).unwrap()).unwrap();
    assert_eq!(scored.tally.value("score"), Some(5.0));

    let row = |category: &str, visual: &str, file: Value| {
        json!({"category": category, "subcategory": "chart", "visual_input": visual, "set_id": "0", "figure_id": visual,
            "question_id": "0", "question": "Is it so?", "gt_answer": "1", "gt_answer_details": "It is.", "filename": file,
            "model_prediction": "old", "gpt4v_output_gpt_check": "1"})
    };
    let rows = json!([row("VS", "0", Value::Null), row("VD", "1", json!("./VD/chart/0_1.png")),]);
    place.write("hallusion.json", rows.to_string());
    let file = place.read(Benchmark::Hallusion, "hallusion.json").unwrap();
    assert_eq!(
        shown(&file),
        [("Is it so?", None), ("Is it so?", Some("0_1.png".into()))]
    );
    let answers = place.answer(&file, &["I cannot say.", "It is."]);
    // Verdicts about other answers are gone, so that they cannot be taken for those about these.
    let error = score_hallusion(&answers, None).unwrap_err().to_string();
    assert!(error.contains("gpt4v_output_gpt_check"), "{error}");
    let replies = place.lines(
        "replies.jsonl",
        &[json!({"judgment": "Unclear"}), json!({"judgment": "Correct"})],
    );
    let mut replies = StoredJudgments::read(&replies).unwrap();
    let scored = score_hallusion(&answers, Some(&mut replies)).unwrap();
    assert_eq!(scored.tally.value("a_acc"), Some(100.0));
}

#[test]
fn scenes_of_the_shapes_world() {
    let place = Place::new(&[]);
    let scenes = shapes_scenes(5, Split::HeldOut, 12, &SceneConfig::default()).unwrap();
    let images = QuestionImages::scenes(&scenes, 32).unwrap();
    let file = QuestionFile::captions(&images, &QuestionWording::default()).unwrap();
    assert_eq!(file.questions().len(), 12);
    let lines = scenes.iter().map(|scene| serde_json::to_value(scene).unwrap());
    let path = place.lines("scenes.jsonl", &lines.collect::<Vec<_>>());
    // Each scene gets the truth about itself: the pictures are in the order of the scenes.
    let truths: Vec<String> = scenes
        .iter()
        .map(|scene| ShapesNaming::ColoredShape.name(&scene.scene.objects[0]))
        .collect();
    let answers = place.answer(&file, &truths.iter().map(String::as_str).collect::<Vec<_>>());
    let scored = score_shapes_chair(&answers, &path, ShapesNaming::ColoredShape).unwrap();
    assert_eq!(scored.tally.value("chair_s"), Some(0.0));
    for (scene, question) in scenes.iter().zip(file.questions()) {
        let picture = question.image.as_ref().unwrap().decode().unwrap();
        assert_eq!(picture, diptych_shapes::render(&scene.scene, 32));
    }
}

#[test]
fn hallucinated_words_are_found_where_they_stand() {
    let names = ["red circle".to_owned(), "blue object".to_owned(), "star".to_owned()];
    let spans = |caption: &str| -> Vec<String> {
        let spans = mention_spans(caption, &names).into_iter();
        spans.map(|span| caption[span].to_owned()).collect()
    };
    assert_eq!(
        spans("Two red circles, a blue star and a red square; blue objects"),
        ["red circles", "star", "blue objects"]
    );
    assert_eq!(spans("a red square above a circle"), Vec::<String>::new());
}

#[test]
fn what_is_missing_names_its_row() {
    let place = Place::new(&["a.jpg"]);
    let pope =
        |image: &str| json!({"question_id": 1, "image": image, "text": "Is there a cat in the image?", "label": "yes"});
    let cases: [(Benchmark, Value, &str); 7] = [
        (Benchmark::Pope, pope("lost.jpg"), "lost.jpg"),
        (Benchmark::Chair, json!({"image": "lost.jpg"}), "lost.jpg"),
        (Benchmark::Chair, json!({"picture": "a.jpg"}), "image"),
        (
            Benchmark::ObjectHalbench,
            json!({"image_id": 3, "image": "a.jpg"}),
            "question",
        ),
        (
            Benchmark::Amber,
            json!({"id": "x", "image": "a.jpg", "query": "Describe this image."}),
            "`id`",
        ),
        (
            Benchmark::Mmhal,
            json!({"image_src": "https://host/lost.jpg", "question": "?"}),
            "lost.jpg",
        ),
        (
            Benchmark::Hallusion,
            json!({"visual_input": "1", "question": "?", "filename": null}),
            "filename",
        ),
    ];
    for (benchmark, bad, word) in cases {
        let good = match benchmark {
            Benchmark::Pope => pope("a.jpg"),
            Benchmark::Chair => json!({"image": "a.jpg"}),
            Benchmark::ObjectHalbench => json!({"image_id": 1, "image": "a.jpg", "question": "?"}),
            Benchmark::Amber => json!({"id": 1, "image": "a.jpg", "query": "Describe this image."}),
            Benchmark::Mmhal => json!({"image_src": "https://host/a.jpg", "question": "?"}),
            Benchmark::Hallusion => json!({"visual_input": "0", "question": "?"}),
        };
        place.lines("questions.jsonl", &[good, bad]);
        let error = place.read(benchmark, "questions.jsonl").unwrap_err().to_string();
        assert!(
            error.contains("questions.jsonl") && error.contains("row 2") && error.contains(word),
            "{benchmark:?}: {error}"
        );
    }
    let none = QuestionFile::read(
        Benchmark::Pope,
        &place.lines("pope.jsonl", &[pope("a.jpg")]),
        &QuestionImages::in_rows(),
        &QuestionWording::default(),
    );
    assert!(none.unwrap_err().to_string().contains("give the folder"));
}
