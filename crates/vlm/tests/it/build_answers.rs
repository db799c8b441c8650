//! Preference data from frames of videos, second answers and judged claims.

use diptych_data::{TextPair, TextPrompt};
use diptych_models::lm::Sampling;
use diptych_shapes::{Example, QuestionKind, SceneConfig, Split};
use diptych_train::Reporter;
use diptych_vlm::answers::{AnswerSettings, Answerer};
use diptych_vlm::build::{
    AnswerCheck, BuildConfig, BuildRecipe, ClaimSettings, ClaimSplit, Disturbance, Lengths, LlavaHound, RejectedFrames,
    RlaifV, SelfCorrection, Skip, Temple, Tpo, build,
};
use serde_json::json;

use crate::build::{Site, built, said, trains, trains_with};

fn videos(site: &Site, num: usize) {
    let row = |at: usize| {
        let frames: Vec<String> = (0..3).map(|frame| format!("{}.png", at + frame)).collect();
        json!({ "id": format!("video-{at}"), "prompt": "<video> describe the picture:", "videos": [frames] })
    };
    site.write(&(0..num).map(row).collect::<Vec<_>>());
}

#[test]
fn videos_with_disturbed_frames_give_rejected_answers_from_coarse_to_fine() {
    let site = Site::new(10);
    videos(&site, 8);
    let temple = Temple {
        disturbances: vec![Disturbance::Reverse, Disturbance::Shuffle],
        magnitudes: vec![3, 2],
        max_length_ratio: 10.0,
        frames: RejectedFrames::Disturbed,
        ..Temple::default()
    };
    let config = site.config(BuildRecipe::Temple(temple.clone()), "pairs.jsonl");
    let (report, pairs) = built(&config);
    assert!(pairs.len() >= 6 && report.stages.len() == 2, "{report}");
    let stage = |pair: &TextPair| usize::from(pair.id.ends_with("-2"));
    assert!(pairs.iter().map(stage).is_sorted(), "coarse disturbances come first");
    let mut num_reversed = 0;
    for pair in &pairs {
        let frames = |images: &[diptych_data::ImageSource]| -> Vec<_> {
            images.iter().map(|image| image.decode().unwrap()).collect()
        };
        let (own, other) = (frames(&pair.images), frames(pair.other_images.as_ref().unwrap()));
        assert_eq!((own.len(), other.len(), pair.prompt.num_images()), (3, 3, Some(3)));
        assert_ne!(own, other);
        if pair.id.ends_with("reverse-3") {
            num_reversed += 1;
            assert!(own.iter().eq(other.iter().rev()), "{}", pair.id);
        }
    }
    assert!(num_reversed > 0);
    trains(&site, &config.out, true);
    let still = Site::new(2);
    let error = build(
        &still.config(BuildRecipe::Temple(temple), "out.jsonl"),
        &mut Reporter::silent(),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("row-0: 1 images") && error.to_string().contains("frames"),
        "{error}"
    );
}

#[test]
fn rows_with_videos_are_trained_on_with_as_many_frames_as_are_wanted() {
    let site = Site::new(10);
    // All frames of a row would leave no room for an answer.
    let row = |at: usize| {
        let frames: Vec<String> = (0..8).map(|frame| format!("{}.png", (at + frame) % 10)).collect();
        let video = json!({ "role": "user", "content": [{ "type": "video" }, { "type": "text", "text": "describe the picture" }] });
        json!({
            "prompt": [video],
            "chosen": [{ "role": "assistant", "content": "a red circle" }],
            "rejected": [{ "role": "assistant", "content": "a blue square" }],
            "videos": [frames],
        })
    };
    site.write(&(0..4).map(row).collect::<Vec<_>>());
    trains_with(
        &site,
        &json!({ "path": site.path("rows.jsonl"), "max_frames": 2, "max_len": 45 }),
        false,
    );
}

#[test]
fn an_answer_to_fewer_frames_is_shorter() {
    let site = Site::new(10);
    videos(&site, 8);
    let mut short = site.config(
        BuildRecipe::Temple(Temple {
            disturbances: vec![Disturbance::Drop],
            frames: RejectedFrames::Kept,
            magnitudes: vec![3, 2],
            ..Temple::default()
        }),
        "short.jsonl",
    );
    short.max_frames = Some(2);
    match build(&short, &mut Reporter::silent()) {
        Ok(report) => {
            let (_, pairs) = (
                report,
                diptych_data::TextDataset::load(std::slice::from_ref(&short.out), diptych_data::Layout::Auto).unwrap(),
            );
            let diptych_data::TextDataset::Pairs(pairs) = pairs else {
                panic!("pairs")
            };
            assert!(
                pairs
                    .iter()
                    .all(|pair| pair.images.len() == 2 && pair.other_images.is_none())
            );
            let longer = |pair: &TextPair| said(&pair.chosen).len() > said(&pair.rejected).len();
            assert!(pairs.iter().all(longer));
        }
        Err(error) => assert!(error.to_string().contains("not shorter"), "{error}"),
    }
}

#[test]
fn of_two_answers_the_right_one_is_chosen() {
    let site = Site::new(8);
    let mut rows = Vec::new();
    for index in 0..8 {
        let example = Example::generate(11, index, Split::Train, &SceneConfig::default()).unwrap();
        let questions = example
            .questions
            .iter()
            .filter(|question| question.kind == QuestionKind::Existence);
        for (number, question) in questions.enumerate() {
            rows.push(json!({
                "id": format!("{index}-{number}"),
                "prompt": format!("<image> {}:", question.text),
                "completion": format!(" {}", question.answer),
                "images": [format!("{index}.png")],
            }));
        }
    }
    site.write(&rows);
    // Asked for a description after its answer, the tiny model often changes its mind.
    let recipe = SelfCorrection {
        request: "describe the picture".to_owned(),
        check: AnswerCheck::Equals,
        ..SelfCorrection::default()
    };
    let config = site.config(BuildRecipe::SelfCorrection(recipe.clone()), "pairs.jsonl");
    let (report, pairs) = built(&config);
    let counts = [Skip::BothRight, Skip::BothWrong].map(|skip| report.skipped.get(&skip).copied().unwrap_or(0));
    assert_eq!(report.num_made + counts[0] + counts[1], rows.len(), "{report}");
    assert!(pairs.len() > 1 && counts[0] > 0 && counts[1] > 0, "{report}");
    for pair in &pairs {
        let row = rows.iter().find(|row| row["id"] == pair.id.as_str()).unwrap();
        assert_eq!(row["completion"], said(&pair.chosen));
        assert_ne!(row["completion"], said(&pair.rejected));
    }
    let judged = SelfCorrection {
        check: AnswerCheck::Judge,
        judgment: "is there {answer}".to_owned(),
        ..recipe
    };
    match build(
        &site.config(BuildRecipe::SelfCorrection(judged), "judged.jsonl"),
        &mut Reporter::silent(),
    ) {
        Ok(report) => assert!(report.num_made > 0),
        Err(error) => assert!(error.to_string().contains("both answers are"), "{error}"),
    }
}

fn claims() -> ClaimSettings {
    ClaimSettings {
        split: ClaimSplit::Clauses,
        question: "is there {}".to_owned(),
        ..ClaimSettings::default()
    }
}

fn sampled(mut config: BuildConfig) -> BuildConfig {
    config.answers.sampling = Sampling {
        temperature: 1.5,
        ..Sampling::GREEDY
    };
    config
}

/// How many of an answer's claims the model itself says no to, and how many it does not say yes to: it may say neither.
fn refused(config: &BuildConfig, pair: &TextPair, answer: &str) -> [usize; 2] {
    let settings = AnswerSettings {
        sampling: Sampling::GREEDY,
        ..config.answers.clone()
    };
    let answerer = Answerer::open(&config.model, settings).unwrap();
    let prompts: Vec<TextPrompt> = answer
        .trim()
        .split(" and ")
        .map(|claim| TextPrompt {
            images: pair.images.clone(),
            ..TextPrompt::new(claim, format!("<image> is there {claim}:"))
        })
        .collect();
    let prepared = answerer.prepare(&prompts, &mut Reporter::silent()).unwrap();
    let answers = answerer
        .answer(None, &prepared, "answers", &mut Reporter::silent())
        .unwrap();
    let said = |word| answers.iter().filter(|answer| answer.text.trim() == word).count();
    [said("no"), answers.len() - said("yes")]
}

#[test]
fn answers_with_fewer_refuted_claims_are_chosen() {
    let site = Site::new(6);
    let recipe = RlaifV {
        num_answers: 6,
        claims: claims(),
        lengths: Lengths::Any,
        ..RlaifV::default()
    };
    let config = sampled(site.config(BuildRecipe::RlaifV(recipe.clone()), "pairs.jsonl"));
    let (report, pairs) = built(&config);
    assert!(pairs.len() >= 4, "{report}");
    for pair in &pairs {
        for (answer, score) in [(&pair.chosen, pair.chosen_score), (&pair.rejected, pair.rejected_score)] {
            let [no, not_yes] = refused(&config, pair, &said(answer)).map(|count| count as f64);
            assert!((no..=not_yes).contains(&-score.unwrap()), "{no} to {not_yes}: {pair:?}");
        }
        assert!(pair.chosen_score.unwrap() >= pair.rejected_score.unwrap() + 1.0);
    }
    // A judge of its own, here a copy of the model, says the same.
    let mut judged = config.clone();
    judged.judge = Some(judged.model.clone());
    judged.out = site.path("judged.jsonl");
    assert_eq!(built(&judged).1, pairs);
    judged.recipe = BuildRecipe::Seva(diptych_vlm::build::Seva::default());
    judged.out = site.path("seva.jsonl");
    let error = build(&judged, &mut Reporter::silent()).unwrap_err();
    assert!(error.to_string().contains("`judge`"), "{error}");
}

#[test]
fn claims_on_a_topic_are_overwritten_with_the_best_and_the_worst() {
    let site = Site::new(8);
    let tpo = Tpo {
        num_answers: 6,
        claims: claims(),
        ..Tpo::default()
    };
    let config = sampled(site.config(BuildRecipe::Tpo(tpo), "pairs.jsonl"));
    let (report, pairs) = built(&config);
    assert!(pairs.len() >= 3, "{report}");
    let mut refuted = [0, 0];
    for pair in &pairs {
        let [chosen, rejected] = [said(&pair.chosen), said(&pair.rejected)];
        assert_eq!(
            chosen.matches(" and ").count(),
            rejected.matches(" and ").count(),
            "{pair:?}"
        );
        refuted[0] += refused(&config, pair, &chosen)[0];
        refuted[1] += refused(&config, pair, &rejected)[0];
    }
    assert!(refuted[0] < refuted[1], "{refuted:?}");
    trains(&site, &config.out, false);
}

#[test]
fn a_reader_of_captions_judges_answers() {
    let site = Site::new(4);
    let captions: Vec<String> = (0..3)
        .map(|index| json!({ "id": format!("row-{index}"), "caption": "a red circle" }).to_string())
        .collect();
    std::fs::write(site.path("captions.jsonl"), captions.join("\n")).unwrap();
    // The tiny model knows no numbers: its scale has two words, and what it finds of them is some order of the answers.
    let hound = LlavaHound {
        num_answers: 6,
        judgment: "{caption} is there {answer}".to_owned(),
        scale: vec!["no".to_owned(), "yes".to_owned()],
        limit: 1.5,
        ..LlavaHound::new(site.path("captions.jsonl"))
    };
    let config = sampled(site.config(BuildRecipe::LlavaHound(hound.clone()), "pairs.jsonl"));
    match build(&config, &mut Reporter::silent()) {
        Ok(report) => {
            assert_eq!(report.skipped[&Skip::NoCaption], 1, "{report}");
            let files = diptych_data::TextDataset::load(std::slice::from_ref(&config.out), diptych_data::Layout::Auto);
            let diptych_data::TextDataset::Pairs(pairs) = files.unwrap() else {
                panic!("pairs")
            };
            for pair in pairs {
                assert!(
                    pair.chosen_score.unwrap() >= 1.5 && pair.rejected_score.unwrap() < 1.5,
                    "{pair:?}"
                );
            }
        }
        Err(error) => assert!(
            error.to_string().contains("3: the scores of the answers are too close"),
            "{error}"
        ),
    }
    let unknown = LlavaHound {
        scale: vec!["zebra".to_owned(), "yes".to_owned()],
        ..hound
    };
    let config = sampled(site.config(BuildRecipe::LlavaHound(unknown), "other.jsonl"));
    let error = build(&config, &mut Reporter::silent()).unwrap_err();
    assert!(error.to_string().contains("zebra"), "{error}");
}
