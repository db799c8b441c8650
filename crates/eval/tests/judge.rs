//! The verifier as a judge.

use diptych_eval::{Error, Judge, WinRateConfig};
use diptych_shapes::{Claims, Example, SceneConfig, Split, render};

#[test]
fn true_pictures_score_one_and_swapped_ones_less() {
    let examples: Vec<Example> = (0..24)
        .map(|index| Example::generate(5, index, Split::HeldOut, &SceneConfig::default()).unwrap())
        .collect();
    let prompts: Vec<String> = examples.iter().map(|example| example.caption.clone()).collect();
    let images: Vec<_> = examples.iter().map(|example| render(&example.scene, 32)).collect();
    let scores = Judge::Verifier.score(&prompts, &images).unwrap();
    assert_eq!(scores.len(), 24);
    let right = scores.iter().sum::<f64>() / 24.0;
    assert!(right > 0.97, "{scores:?}");

    let mut shifted = images.clone();
    shifted.rotate_left(1);
    let wrong = Judge::Verifier.score(&prompts, &shifted).unwrap().iter().sum::<f64>() / 24.0;
    assert!(
        wrong < right - 0.3,
        "{right} for the right pictures, {wrong} for others"
    );
}

#[test]
fn what_cannot_be_judged_is_named() {
    let image = image::RgbImage::new(32, 32);
    let prompts = ["a red star".to_owned(), "a photo of an astronaut".to_owned()];
    let message = Judge::Verifier
        .score(&prompts, &[image.clone(), image.clone()])
        .unwrap_err()
        .to_string();
    let expected = "judge `verifier`, image 1, prompt \"a photo of an astronaut\": caption: unknown word \"photo\"";
    assert!(message.starts_with(expected), "{message}");
    assert!(matches!(
        Judge::Verifier.score(&prompts, &[image]),
        Err(Error::LengthMismatch { .. })
    ));
    assert_eq!(Judge::Verifier.score(&[], &[]).unwrap(), [0.0; 0]);
    assert_eq!(serde_json::to_value(Judge::Verifier).unwrap(), Judge::NAMES[0]);
    for name in ["verifier", "shapes"] {
        assert_eq!(name.parse::<Judge>().unwrap(), Judge::Verifier);
    }
    let message = "verifer".parse::<Judge>().unwrap_err().to_string();
    assert!(
        message.starts_with("unknown judge `verifer`; expected verifier, clip_score"),
        "{message}"
    );
}

#[test]
fn a_configuration_gives_its_prompts() {
    let config = WinRateConfig {
        num_prompts: Some(8),
        seed: 2,
        ..WinRateConfig::default()
    };
    let prompts = config.prompts().unwrap();
    assert_eq!(prompts.len(), 8);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.txt");
    std::fs::write(&path, prompts.join("\n")).unwrap();
    let from_file = WinRateConfig {
        num_prompts: Some(3),
        prompts: Some(path.clone()),
        ..WinRateConfig::default()
    };
    assert_eq!(from_file.prompts().unwrap(), prompts[..3]);
    let whole = WinRateConfig {
        num_prompts: None,
        ..from_file.clone()
    };
    assert_eq!(whole.prompts().unwrap(), prompts);
    let more = WinRateConfig {
        num_prompts: Some(9),
        ..from_file.clone()
    };
    let error = more.prompts().unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooFewPrompts {
                found: 8,
                wanted: 9,
                ..
            }
        ),
        "{error}"
    );
    std::fs::write(&path, "a red star\na photo of an astronaut\n").unwrap();
    let error = whole.prompts().unwrap_err();
    assert!(error.is_configuration(), "{error}");
    let expected =
        "judge `verifier` cannot judge prompt 2, \"a photo of an astronaut\": caption: unknown word \"photo\"";
    assert!(error.to_string().starts_with(expected), "{error}");

    let simple = SceneConfig {
        max_objects: 1,
        ..SceneConfig::default()
    };
    let config = WinRateConfig {
        num_prompts: Some(8),
        scenes: Some(simple),
        ..WinRateConfig::default()
    };
    for prompt in config.prompts().unwrap() {
        assert!(Claims::parse(&prompt).unwrap().num_objects() <= 1, "{prompt}");
    }
}

#[test]
fn too_small_a_world_is_an_error() {
    use diptych_shapes::{Background, Color, Shape, Size};
    // Nine scenes of one kind of object; whichever captions are held out, they are fewer than asked for.
    let scenes = SceneConfig {
        max_objects: 1,
        shapes: Shape::ALL[..3].to_vec(),
        colors: Color::ALL[..3].to_vec(),
        sizes: Size::ALL[..1].to_vec(),
        backgrounds: Background::ALL[..1].to_vec(),
        ..SceneConfig::default()
    };
    let error = diptych_eval::held_out_prompts(0, 200, &scenes).unwrap_err();
    let expected = matches!(error, Error::TooFewCaptions { wanted: 200, .. } | Error::Shapes(_));
    assert!(expected, "{error}");
}
