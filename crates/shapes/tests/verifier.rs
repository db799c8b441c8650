//! The verifier reads what was rendered, scores captions by the documented formula, and survives any image.

use diptych_shapes::{
    Background, ClaimKind, Claims, Color, Example, Object, Reading, Report, Scene, SceneConfig, Shape, Size, Split,
    Verifier, render,
};
use image::{Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const CAPTION: &str = "a small red circle left of a large blue square on a gray background";

fn pair() -> Scene {
    Scene {
        background: Background::Gray,
        objects: vec![
            Object {
                shape: Shape::Circle,
                color: Color::Red,
                size: Size::Small,
                center: [0.24, 0.3],
            },
            Object {
                shape: Shape::Square,
                color: Color::Blue,
                size: Size::Large,
                center: [0.7, 0.45],
            },
        ],
    }
}

fn scene(seed: u64) -> Scene {
    Scene::sample(&mut ChaCha8Rng::seed_from_u64(seed), &SceneConfig::default()).expect("the default is valid")
}

fn reads_exactly(reading: &Reading, scene: &Scene) -> bool {
    reading.background == Some(scene.background)
        && reading.objects.len() == scene.objects.len()
        && scene.objects.iter().all(|object| {
            reading.objects.iter().any(|read| {
                let near = (0..2).all(|axis| (read.center[axis] - object.center[axis]).abs() < 0.03);
                near && (read.shape, read.color, read.size) == (object.shape, object.color, object.size)
            })
        })
}

#[test]
fn clean_renders_are_read_exactly() {
    let verifier = Verifier::new();
    for size in [32, 48, 64, 96, 128] {
        let exact = (10_000..10_300).filter(|&seed| {
            let scene = scene(seed);
            reads_exactly(&verifier.read(&render(&scene, size)), &scene)
        });
        let exact = exact.count();
        assert!(exact >= 297, "{exact} of 300 at {size} px");
    }
}

#[test]
fn noise_is_tolerated() {
    let verifier = Verifier::new();
    for (amplitude, least) in [(30, 297), (60, 285)] {
        let exact = (20_000..20_300).filter(|&seed| {
            let (scene, mut rng) = (scene(seed), ChaCha8Rng::seed_from_u64(seed));
            let mut image = render(&scene, 32);
            for value in image.iter_mut() {
                *value = (i32::from(*value) + rng.random_range(-amplitude..=amplitude)).clamp(0, 255) as u8;
            }
            reads_exactly(&verifier.read(&image), &scene)
        });
        let exact = exact.count();
        assert!(exact >= least, "{exact} of 300 under noise of +-{amplitude}");
    }
}

#[test]
fn true_captions_score_one() {
    let verifier = Verifier::new();
    for index in 0..200 {
        let split = if index % 2 == 0 { Split::Train } else { Split::HeldOut };
        let example = Example::generate(11, index, split, &SceneConfig::default()).unwrap();
        let report = verifier.check(&example.caption, &render(&example.scene, 32)).unwrap();
        assert_eq!(report.score(), 1.0, "{}: {report:#?}", example.caption);
        assert!(report.holds());
    }
}

#[test]
fn truth_and_pixels_agree_on_any_caption() {
    let verifier = Verifier::new();
    for seed in 0..150 {
        let (shown, other) = (scene(seed), scene(seed + 1000));
        let config = SceneConfig::default();
        let claims = other.caption(&mut ChaCha8Rng::seed_from_u64(seed), &config.captions);
        let truth = Report::new(&claims, &Reading::from(&shown)).score();
        let read = verifier.score(&claims.to_string(), &render(&shown, 64)).unwrap();
        assert!(
            (truth - read).abs() < 0.02,
            "{claims}: {truth} from the scene, {read} from pixels"
        );
        assert!(truth < 1.0 || other.objects.len() == shown.objects.len());
    }
}

/// The caption makes ten claims: four of each object, the relation, the background.
#[test]
fn scores_follow_the_formula() {
    type Change<'a> = &'a dyn Fn(&mut Scene);
    let verifier = Verifier::new();
    let score = |change: Change<'_>| {
        let mut scene = pair();
        change(&mut scene);
        verifier.score(CAPTION, &render(&scene, 32)).unwrap()
    };
    let cases: [(&str, f64, Change<'_>); 11] = [
        ("exact", 1.0, &|_| {}),
        ("wrong color", 0.9, &|scene| scene.objects[0].color = Color::Green),
        ("wrong shape", 0.9, &|scene| scene.objects[0].shape = Shape::Star),
        ("wrong size", 0.9, &|scene| scene.objects[1].size = Size::Small),
        ("wrong background", 0.9, &|scene| scene.background = Background::White),
        ("wrong side", 0.9, &|scene| {
            scene.objects[0].center = [0.76, 0.3];
            scene.objects[1].center = [0.3, 0.45];
        }),
        ("wrong color and shape", 0.8, &|scene| {
            scene.objects[0].color = Color::Green;
            scene.objects[0].shape = Shape::Star;
        }),
        ("circle missing", 0.5, &|scene| {
            scene.objects = scene.objects[1..].to_vec();
        }),
        ("square missing", 0.5, &|scene| scene.objects.truncate(1)),
        ("nothing but background", 0.1, &|scene| scene.objects.clear()),
        ("one too many", 10.0 / 14.0, &|scene| {
            let center = [0.24, 0.78];
            scene.objects.push(Object {
                shape: Shape::Heart,
                color: Color::Pink,
                size: Size::Small,
                center,
            });
        }),
    ];
    for (name, expected, change) in cases {
        let found = score(change);
        assert!((found - expected).abs() < 1e-3, "{name}: {found} instead of {expected}");
    }
}

#[test]
fn colors_swapped_between_objects_are_noticed() {
    let mut swapped = pair();
    swapped.objects[0].color = Color::Blue;
    swapped.objects[1].color = Color::Red;
    let score = Verifier::new().score(CAPTION, &render(&swapped, 32)).unwrap();
    assert!((score - 0.8).abs() < 1e-3, "{score}");
}

#[test]
fn counts_matter() {
    let verifier = Verifier::new();
    let image = render(&pair(), 32);
    let score = |caption| verifier.score(caption, &image).unwrap();
    assert_eq!(score("two objects"), 1.0);
    assert!(score("a red object") < 1.0);
    assert!(score("three objects") < 1.0);
    assert!(score("two red objects") < score("a red object and a blue object"));
}

#[test]
fn reports_name_what_fails() {
    let mut scene = pair();
    scene.objects[0].color = Color::Cyan;
    let report = Verifier::new().check(CAPTION, &render(&scene, 48)).unwrap();
    let failed: Vec<&str> = report
        .claims
        .iter()
        .filter(|claim| !claim.holds)
        .map(|claim| claim.claim.as_str())
        .collect();
    assert_eq!(failed, ["a small red circle is red"]);
    assert!(!report.holds());
    let color = report.claims.iter().find(|claim| !claim.holds).unwrap();
    assert_eq!(
        (color.kind, color.found.as_deref(), color.credit),
        (ClaimKind::Color, Some("cyan"), 0.0)
    );
}

#[test]
fn a_gradual_change_lowers_the_score_gradually() {
    let verifier = Verifier::new();
    // The red circle fades into the gray background.
    let image = render(&pair(), 32);
    let mut last = 1.1;
    let mut distinct = 0;
    for step in 0..=10 {
        let mut faded = image.clone();
        for pixel in faded.pixels_mut().filter(|pixel| pixel.0[0] > 132) {
            for value in &mut pixel.0 {
                *value = (i32::from(*value) + (128 - i32::from(*value)) * step / 10) as u8;
            }
        }
        let score = verifier.score(CAPTION, &faded).unwrap();
        assert!(score <= last + 1e-6, "step {step}: {score} after {last}");
        distinct += usize::from(score < last - 1e-6);
        last = score;
    }
    assert!(distinct >= 4, "only {distinct} different scores");
    assert!((last - 0.5).abs() < 1e-3, "{last}");
}

#[test]
fn touching_objects_are_told_apart() {
    let verifier = Verifier::new();
    let mut scene = pair();
    scene.objects[0] = Object {
        shape: Shape::Square,
        color: Color::Red,
        size: Size::Large,
        center: [0.275, 0.45],
    };
    scene.objects[1].center = [0.275 + 0.86 * 0.43, 0.45];
    let reading = verifier.read(&render(&scene, 48));
    assert!(reads_exactly(&reading, &scene), "{reading:?}");
}

#[test]
fn bad_captions_are_errors() {
    let verifier = Verifier::new();
    let image = render(&pair(), 32);
    for caption in [
        "",
        "a red blob",
        "two circle",
        "five stars",
        "a star on fire",
        "\u{1F600}",
    ] {
        assert!(verifier.score(caption, &image).is_err(), "{caption:?}");
    }
}

#[test]
fn any_image_can_be_read() {
    let verifier = Verifier::new();
    let claims = Claims::parse(CAPTION).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut images = Vec::new();
    for (width, height) in [
        (0, 0),
        (0, 9),
        (1, 1),
        (1, 200),
        (3, 3),
        (7, 8),
        (8, 8),
        (900, 9),
        (16, 16),
        (33, 57),
        (700, 500),
    ] {
        images.push(RgbImage::new(width, height));
        images.push(RgbImage::from_pixel(width, height, Rgb(Color::Red.rgb())));
        images.push(RgbImage::from_fn(width, height, |x, y| {
            Rgb([255 * ((x + y) % 2) as u8; 3])
        }));
        images.push(RgbImage::from_fn(width, height, |x, y| {
            Rgb([x as u8, y as u8, (x * y) as u8])
        }));
        images.push(RgbImage::from_fn(width, height, |_, _| Rgb(rng.random())));
    }
    for image in &images {
        let reading = verifier.read(image);
        assert!(reading.objects.iter().all(|object| {
            let values = [object.confidence, object.extent, object.center[0], object.center[1]];
            values.iter().all(|value| value.is_finite()) && (0.0..=1.0).contains(&object.confidence)
        }));
        let score = Report::new(&claims, &reading).score();
        assert!(
            (0.0..0.75).contains(&score),
            "{:?} scores {score}: {reading:?}",
            image.dimensions()
        );
    }
    assert_eq!(images.len(), 55);
}

#[test]
fn noise_and_flat_color_hold_nothing() {
    let verifier = Verifier::new();
    for &background in Background::ALL {
        let reading = verifier.read(&RgbImage::from_pixel(32, 32, Rgb(background.rgb())));
        assert_eq!((reading.background, reading.objects.len()), (Some(background), 0));
    }
    assert_eq!(
        verifier
            .read(&RgbImage::from_pixel(32, 32, Rgb(Color::Cyan.rgb())))
            .background,
        None
    );
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let found: usize = (0..50)
        .map(|_| {
            verifier
                .read(&RgbImage::from_fn(32, 32, |_, _| Rgb(rng.random())))
                .objects
                .len()
        })
        .sum();
    assert!(found <= 25, "{found} objects in 50 images of noise");
}

#[test]
fn images_that_are_not_square_are_read() {
    let square = render(&pair(), 48);
    let wide = RgbImage::from_fn(80, 48, |x, y| *square.get_pixel(x.min(47), y));
    let reading = Verifier::new().read(&wide);
    let mut shapes: Vec<Shape> = reading.objects.iter().map(|object| object.shape).collect();
    shapes.sort_unstable();
    assert_eq!(shapes, [Shape::Circle, Shape::Square]);
    assert!(
        reading
            .objects
            .iter()
            .any(|object| (object.center[0] - 0.24 * 48.0 / 80.0).abs() < 0.02)
    );
}
