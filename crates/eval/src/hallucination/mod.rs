//! Benchmarks of hallucination, scored from files of answers: no model is needed. [`QuestionFile`] reads what a model is asked and writes its
//! answers into such files.
//!
//! Each module says which official program it follows, which of its quirks are kept, and what differs. Every function gives a
//! [`Scored`]: the counts of each image, from which [`BenchmarkReport`] makes the numbers, their intervals and, against other answers to the
//! same questions, their differences with p-values.
//!
//! | benchmark | scored by | from outside |
//! |---|---|---|
//! | POPE | [`score_pope`], questions from [`build_pope_questions`] | |
//! | CHAIR | [`score_chair`] | the list of synonyms |
//! | Object `HalBench` | [`score_object_halbench`] | synonyms, extracted objects |
//! | AMBER | [`score_amber`] | its word lists; nouns and word vectors, or an approximation of each |
//! | MMHal-Bench | [`score_mmhal`] | a judge's replies ([`Judgments`]), to what [`JudgedAnswers`] asks |
//! | `HallusionBench` | [`score_hallusion`] | a judge's verdicts, likewise |
//! | POPE and CHAIR on shapes | [`shapes_image_objects`], [`score_shapes_chair`] | |
//!
//! ```
//! use diptych_eval::hallucination::{BenchmarkReport, PopeFiles, score_pope};
//! # let folder = tempfile::tempdir()?;
//! # let (questions, answers) = (folder.path().join("q.jsonl"), folder.path().join("a.jsonl"));
//! let question = r#"{"question_id": 1, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"}"#;
//! std::fs::write(&questions, question)?;
//! std::fs::write(&answers, r#"{"question": "Is there a cat in the image?", "answer": "No."}"#)?;
//! let setting = "random".to_owned();
//! let scored = score_pope(&[PopeFiles { setting, questions: &questions, answers: &answers }])?;
//! assert_eq!(scored.tally.value("random/accuracy"), Some(1.0));
//! // Never said "yes": there is no precision.
//! assert_eq!(scored.tally.value("random/precision"), None);
//! println!("{}", BenchmarkReport::of(&scored, None, 0, 1000)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod amber;
mod amber_nouns;
mod asked;
mod chair;
mod coco;
mod ground_truth;
mod hallusion;
mod judge_questions;
mod judgments;
mod mmhal;
mod object_halbench;
mod pope;
mod pope_questions;
mod question_images;
mod report;
mod rows;
mod shapes;
mod singular;
mod tally;
mod tokenize;
mod vocabulary;
mod wordnet;

pub use amber::{AmberDimension, read_amber_queries, score_amber};
pub use amber_nouns::{AmberWords, NounSource};
pub use asked::{Benchmark, BenchmarkQuestion, CAPTION_PROMPT, QuestionFile, QuestionWording, YesNoAnswers};
pub use chair::score_chair;
pub use ground_truth::{ObjectTruth, captioned_images};
pub use hallusion::{HallusionVerdict, parse_hallusion_verdict, score_hallusion};
pub use judge_questions::{JudgedAnswers, JudgedBenchmark};
pub use judgments::{JudgmentRequest, Judgments, StoredJudgments};
pub use mmhal::{parse_mmhal_rating, score_mmhal};
pub use object_halbench::{ExtractedObjects, score_object_halbench};
pub use pope::{
    PopeFiles, PopeQuestion, YesNo, parse_pope_answer, pope_question_lines, read_pope_questions, score_pope,
};
pub use pope_questions::{
    ArticleRule, ImageObjects, PopeConfig, PopeSetting, build_pope_questions, coco_image_objects, read_image_objects,
};
pub use question_images::QuestionImages;
pub use report::{BenchmarkReport, Scored};
pub use shapes::{
    ShapesNaming, ShapesScene, mention_spans, read_shapes_scenes, score_shapes_chair, shapes_image_objects,
    shapes_pope_config, shapes_scenes,
};
pub use tally::{MetricDifference, MetricEstimate, Tally};
pub use vocabulary::{Lemmatizer, Mentions, ObjectVocabulary, SynonymRules};
pub use wordnet::WordNet;
