//! Preference data from frames of videos, second answers and judged claims.

use std::path::{Path, PathBuf};

use diptych_data::{TextPair, TextPrompt};
use diptych_models::lm::Sampling;
use diptych_shapes::{Example, QuestionKind, SceneConfig, Split};
use diptych_train::Reporter;
use diptych_vlm::answers::{AnswerSettings, Answerer, PromptFormat};
use diptych_vlm::build::{
    AnswerCheck, BuildConfig, BuildRecipe, ClaimSettings, ClaimSplit, Disturbance, JudgeConfig, Lengths, LlavaHound,
    OtherImages, RlaifV, SelfCorrection, Skip, Temple, Tpo, build,
};
use serde_json::json;

use crate::build::{Site, built, plain, refused, repository, said, trains, trains_with};

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
        max_length_ratio: Some(10.0),
        other_images: OtherImages::Disturbed,
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
    let error = refused(&still.config(BuildRecipe::Temple(temple), "out.jsonl"));
    assert!(
        error.to_string().contains("row-0: 1 images") && error.to_string().contains("frames"),
        "{error}"
    );
    // Nothing is asked in other words, and a ratio is not looked at where frames are only left out.
    let dropped = Temple {
        disturbances: vec![Disturbance::Drop],
        ..Temple::default()
    };
    let ratio = Temple {
        max_length_ratio: Some(2.0),
        ..dropped.clone()
    };
    let error = BuildRecipe::Temple(ratio).validate().unwrap_err().to_string();
    assert!(error.contains("`max_length_ratio` is given"), "{error}");
    let mut formatted = still.config(BuildRecipe::Temple(dropped), "out.jsonl");
    formatted.format = Some(PromptFormat::Chat {
        system: Some("be brief".to_owned()),
    });
    let error = refused(&formatted).to_string();
    assert!(
        error.contains("`system` is given") && error.contains("as they are"),
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
            magnitudes: vec![3, 2],
            ..Temple::default()
        }),
        "short.jsonl",
    );
    short.max_frames = Some(2);
    let (report, pairs) = built(&short);
    assert!(
        pairs
            .iter()
            .all(|pair| pair.images.len() == 2 && pair.other_images.is_none())
    );
    let longer = |pair: &TextPair| said(&pair.chosen).len() > said(&pair.rejected).len();
    assert!(!pairs.is_empty() && pairs.iter().all(longer), "{report}");
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
    let unused = SelfCorrection {
        judgment: Some("is there {answer}".to_owned()),
        ..recipe.clone()
    };
    let error = BuildRecipe::SelfCorrection(unused).validate().unwrap_err().to_string();
    assert!(error.contains("`judgment` is given"), "{error}");
    let judged = SelfCorrection {
        check: AnswerCheck::Judge,
        judgment: Some("is there {answer}".to_owned()),
        ..recipe
    };
    let (report, pairs) = built(&site.config(BuildRecipe::SelfCorrection(judged), "judged.jsonl"));
    assert!(!pairs.is_empty(), "{report}");
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
fn num_refused(config: &BuildConfig, pair: &TextPair, answer: &str) -> [usize; 2] {
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
            let [no, not_yes] = num_refused(&config, pair, &said(answer)).map(|count| count as f64);
            assert!((no..=not_yes).contains(&-score.unwrap()), "{no} to {not_yes}: {pair:?}");
        }
        assert!(pair.chosen_score.unwrap() >= pair.rejected_score.unwrap() + 1.0);
    }
    // A judge of its own, here a copy of the model, says the same.
    let mut judged = config.clone();
    let judge = |model: &Path, format| {
        Some(JudgeConfig {
            model: model.to_owned(),
            format,
        })
    };
    judged.judge = judge(&judged.model, Some(plain()));
    judged.format = None;
    judged.out = site.path("judged.jsonl");
    assert_eq!(built(&judged).1, pairs);
    // It is asked in a format of its own: the model's would be of no use.
    judged.format = Some(plain());
    let error = refused(&judged).to_string();
    assert!(
        error.contains("`prompt_format` is given") && error.contains("judge"),
        "{error}"
    );
    judged.format = None;
    let speechless = with_template(&site, "{{ raise_exception('the judge is asked') }}");
    judged.judge = judge(&speechless, None);
    judged.out = site.path("speechless.jsonl");
    let error = refused(&judged).to_string();
    assert!(error.contains("the judge is asked"), "{error}");
    judged.judge = judge(&speechless, Some(plain()));
    judged.out = site.path("formatted.jsonl");
    assert_eq!(built(&judged).1, pairs);

    judged.recipe = BuildRecipe::Seva(diptych_vlm::build::Seva::default());
    judged.out = site.path("seva.jsonl");
    let error = refused(&judged);
    assert!(error.to_string().contains("`judge`"), "{error}");
}

/// The embedded model with another chat template.
fn with_template(site: &Site, template: &str) -> PathBuf {
    let to = site.path("other-template");
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(repository("models/shapes-vlm")).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            std::fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
        }
    }
    let path = to.join("tokenizer_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(config["chat_template"].is_string());
    config["chat_template"] = json!(template);
    std::fs::write(&path, config.to_string()).unwrap();
    to
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
        refuted[0] += num_refused(&config, pair, &chosen)[0];
        refuted[1] += num_refused(&config, pair, &rejected)[0];
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
        limit: 2.0,
        ..LlavaHound::new(site.path("captions.jsonl"))
    };
    let limited = |limit: f64| {
        let hound = LlavaHound { limit, ..hound.clone() };
        sampled(site.config(BuildRecipe::LlavaHound(hound), &format!("{limit}.jsonl")))
    };
    // No answer is certainly right, and all are right to someone who asks for nothing.
    for limit in [2.0, 1.0] {
        let error = refused(&limited(limit)).to_string();
        assert!(error.contains("3: the scores of the answers are too close"), "{error}");
    }
    // Halves, quarters, eighths, … until one lies between the best and the worst answer of a row.
    let mut limits = (1..=6)
        .flat_map(|depth: i32| (0..1 << (depth - 1)).map(move |at| 1.0 + f64::from(2 * at + 1) / 2_f64.powi(depth)));
    let is_between = |limit: &f64| build(&limited(*limit), &mut Reporter::silent()).is_ok();
    let limit = limits.find(is_between).unwrap();
    std::fs::remove_file(limited(limit).out).unwrap();
    let (report, pairs) = built(&limited(limit));
    assert_eq!(report.skipped[&Skip::NoCaption], 1, "{report}");
    for pair in &pairs {
        assert!(
            pair.chosen_score.unwrap() >= limit && pair.rejected_score.unwrap() < limit,
            "{pair:?}"
        );
    }
    // Words that begin alike cannot be told apart: both would have the probability of one token.
    let alike = LlavaHound {
        scale: vec!["no".to_owned(), "yes please".to_owned(), "yes".to_owned()],
        ..hound.clone()
    };
    let alike = sampled(site.config(BuildRecipe::LlavaHound(alike), "alike.jsonl"));
    let error = refused(&alike);
    assert!(
        error.to_string().contains("\"yes please\" or \"yes\"")
            && error.to_string().contains("both begin with \"yes\""),
        "{error}"
    );
    assert!(error.is_configuration());
    let unknown = LlavaHound {
        scale: vec!["zebra".to_owned(), "yes".to_owned()],
        ..hound
    };
    let config = sampled(site.config(BuildRecipe::LlavaHound(unknown), "other.jsonl"));
    let error = refused(&config);
    assert!(error.to_string().contains("zebra"), "{error}");
}
