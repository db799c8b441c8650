//! Preference data that needs other images: similar ones, and several at once.

use diptych_data::{OnError, TextPair};
use diptych_vlm::build::{BuildConfig, BuildRecipe, MaskCompletion, MiaDpo, MultiImage, ReAlign, Skip};
use serde_json::json;

use crate::build::{Site, built, plain, refused, repository, said, trains};

fn re_align(completion: MaskCompletion) -> ReAlign {
    let is_asked = completion == MaskCompletion::Request;
    ReAlign {
        completion,
        mask: 0.5,
        max_segment: 1,
        // What the tiny model understands as the beginning of a description.
        request: is_asked.then(|| "describe the picture: {}".to_owned()),
        mark: is_asked.then(|| "and".to_owned()),
        ..ReAlign::default()
    }
}

#[test]
fn segments_are_completed_under_the_nearest_other_image() {
    let site = Site::new(12);
    let config = site.config(BuildRecipe::ReAlign(re_align(MaskCompletion::InPlace)), "pairs.jsonl");
    let (report, pairs) = built(&config);
    assert!(pairs.len() >= 6, "{report}");
    for pair in &pairs {
        let others = pair.other_images.as_ref().unwrap();
        assert_eq!((pair.images.len(), others.len()), (1, 1));
        assert_ne!(pair.images[0].decode().unwrap(), others[0].decode().unwrap());
        let [chosen, rejected] = [said(&pair.chosen), said(&pair.rejected)];
        let [chosen, rejected]: [Vec<&str>; 2] = [&chosen, &rejected].map(|text| text.split_whitespace().collect());
        // Word for word the same but for the masked ones, of which there are at least as many as wanted and not all.
        assert_eq!(chosen.len(), rejected.len(), "{pair:?}");
        let same = chosen.iter().zip(&rejected).filter(|(a, b)| a == b).count();
        assert!(same >= chosen.len() / 4 && same < chosen.len(), "{pair:?}");
    }
    trains(&site, &config.out, true);

    // A CLIP finds other neighbors, and every row has one.
    let mut clip = config.clone();
    clip.embedder = Some(repository("models/shapes-clip"));
    clip.out = site.path("clip.jsonl");
    let (_, others) = built(&clip);
    let neighbor = |pairs: &[TextPair], id: &str| {
        let pair = pairs.iter().find(|pair| pair.id == id)?;
        Some(pair.other_images.as_ref()?[0].decode().unwrap())
    };
    let ids = (0..12).map(|index| format!("row-{index}"));
    let both = ids.filter_map(|id| Some((neighbor(&pairs, &id)?, neighbor(&others, &id)?)));
    assert!(both.filter(|(tower, clip)| tower != clip).count() > 0);

    // A similarity that nothing is below drops every pair.
    let strict = ReAlign {
        max_similarity: 0.0,
        ..re_align(MaskCompletion::InPlace)
    };
    let error = refused(&site.config(BuildRecipe::ReAlign(strict), "none.jsonl"));
    assert!(error.to_string().contains("the answers are too similar"), "{error}");

    let asked = site.config(BuildRecipe::ReAlign(re_align(MaskCompletion::Request)), "asked.jsonl");
    let (_, pairs) = built(&asked);
    assert!(pairs.iter().all(|pair| !said(&pair.rejected).trim().is_empty()));
}

#[test]
fn a_similar_image_needs_another_image_and_an_answer() {
    let site = Site::new(2);
    let row = |prompt: &str, more: serde_json::Value| {
        let mut row = json!({ "prompt": prompt, "images": ["0.png"] });
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let answered = json!({ "completion": " a red circle" });
    site.write(&[
        row("<image> describe the picture:", answered.clone()),
        row("<image> what:", answered),
    ]);
    let config = site.config(BuildRecipe::ReAlign(re_align(MaskCompletion::InPlace)), "out.jsonl");
    let error = refused(&config);
    assert!(
        error.to_string().contains("2 different images") && error.to_string().contains("found 1"),
        "{error}"
    );
    let bare = json!({ "prompt": "<image> what:", "images": ["1.png"] });
    site.write(&[bare, json!({ "prompt": "<image> what:", "images": ["0.png"] })]);
    let config = site.config(BuildRecipe::ReAlign(re_align(MaskCompletion::InPlace)), "other.jsonl");
    let error = refused(&config);
    assert!(error.to_string().contains("no answer"), "{error}");
}

#[test]
fn what_is_completed_in_place_is_asked_in_no_words() {
    let site = Site::new(2);
    let in_place = |change: &dyn Fn(&mut ReAlign)| {
        let mut recipe = re_align(MaskCompletion::InPlace);
        change(&mut recipe);
        BuildRecipe::ReAlign(recipe)
    };
    for (recipe, key) in [
        (
            in_place(&|recipe| recipe.mark = Some("[MASK]".to_owned())),
            "`mark` is given",
        ),
        (
            in_place(&|recipe| recipe.request = Some("{}".to_owned())),
            "`request` is given",
        ),
    ] {
        let error = recipe.validate().unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("in_place"), "{error}");
    }
    let mut config = site.config(in_place(&|_| {}), "out.jsonl");
    config.format = Some(plain());
    let error = refused(&config).to_string();
    assert!(
        error.contains("`prompt_format` is given") && error.contains("in place"),
        "{error}"
    );
    config.format = None;
    config.max_frames = Some(2);
    let error = refused(&config).to_string();
    assert!(error.contains("`max_frames`") && error.contains("one image"), "{error}");
}

fn mia(kind: MultiImage, num_images: usize) -> MiaDpo {
    MiaDpo {
        kind,
        num_images,
        cell: (kind == MultiImage::Collage).then_some(32),
        label: (kind == MultiImage::Sequence).then(String::new),
        pointer: Some(String::new()),
        max_attention: Some(1.0),
        min_perplexity: 0.0,
        ..MiaDpo::default()
    }
}

#[test]
fn questions_about_one_image_become_questions_about_one_of_several() {
    let site = Site::new(8);
    let config = site.config(BuildRecipe::MiaDpo(mia(MultiImage::Sequence, 2)), "two.jsonl");
    let (report, pairs) = built(&config);
    assert!(pairs.len() >= 4, "{report}");
    let own = |pair: &TextPair| {
        let number: usize = pair.id.strip_prefix("row-").unwrap().parse().unwrap();
        image::open(site.path(&format!("{number}.png"))).unwrap().into_rgb8()
    };
    for pair in &pairs {
        assert_eq!(pair.images.len(), 2);
        assert_eq!(pair.prompt.num_images(), Some(2));
        let shown = pair.images.iter().map(|image| image.decode().unwrap());
        assert_eq!(shown.filter(|image| *image == own(pair)).count(), 1);
    }
    trains(&site, &config.out, false);

    for (kind, num, name) in [
        (MultiImage::Collage, 4, "collage.jsonl"),
        (MultiImage::PictureInPicture, 2, "inside.jsonl"),
    ] {
        let (report, pairs) = built(&site.config(BuildRecipe::MiaDpo(mia(kind, num)), name));
        assert!(pairs.len() >= 4, "{report}");
        for pair in &pairs {
            let image = pair.images[0].decode().unwrap();
            assert_eq!((pair.images.len(), image.width()), (1, image.height()));
        }
    }
}

#[test]
fn answers_that_look_at_their_image_are_dropped() {
    let site = Site::new(8);
    let kept = |limit: f64, name: &str| {
        let recipe = MiaDpo {
            max_attention: Some(limit),
            ..mia(MultiImage::Sequence, 2)
        };
        site.config(BuildRecipe::MiaDpo(recipe), name)
    };
    let counts = |config: &BuildConfig| {
        let (report, _) = built(config);
        let dropped = report.skipped.get(&Skip::AttendsToTarget).copied().unwrap_or(0);
        (report.num_made, dropped)
    };
    let all = counts(&kept(1.0, "all.jsonl"));
    assert_eq!(all.1, 0);
    let none = refused(&kept(0.0, "none.jsonl")).to_string();
    assert!(none.contains(&format!("{}: the answer looks enough", all.0)), "{none}");
    // Shares of two images are around one half: a limit there parts the rows.
    let half = counts(&kept(0.5, "half.jsonl"));
    assert!(
        half.0 > 0 && half.0 < all.0 && half.0 + half.1 == all.0,
        "{half:?} of {all:?}"
    );

    let sure = MiaDpo {
        min_perplexity: 1e9,
        ..mia(MultiImage::Sequence, 2)
    };
    let error = refused(&site.config(BuildRecipe::MiaDpo(sure), "sure.jsonl"));
    assert!(error.to_string().contains("without doubt"), "{error}");
    let mut deep = site.config(
        BuildRecipe::MiaDpo(MiaDpo {
            layer: Some(3),
            ..mia(MultiImage::Sequence, 2)
        }),
        "deep.jsonl",
    );
    deep.on_error = OnError::Skip;
    let error = refused(&deep);
    assert!(error.to_string().contains("layer"), "{error}");
}

#[test]
fn images_that_cannot_come_together_as_is_said_are_refused() {
    for (changed, key) in [
        (mia(MultiImage::Collage, 5), "num_images"),
        (mia(MultiImage::PictureInPicture, 3), "num_images"),
        (
            MiaDpo {
                max_attention: None,
                ..mia(MultiImage::Sequence, 7)
            },
            "max_attention",
        ),
        (
            MiaDpo {
                cell: Some(64),
                ..mia(MultiImage::Sequence, 2)
            },
            "`cell` is given; expected nothing: there is no collage",
        ),
        (
            MiaDpo {
                label: Some("Image".to_owned()),
                ..mia(MultiImage::Collage, 4)
            },
            "`label` is given",
        ),
        (
            MiaDpo {
                share: Some(0.5),
                ..mia(MultiImage::Collage, 4)
            },
            "`share` is given",
        ),
    ] {
        let error = BuildRecipe::MiaDpo(changed).validate().unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
}
