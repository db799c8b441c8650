//! Sizes, shares, schedules and determinism; and values of PIL, `NumPy` and PyTorch.
//!
//! Numbers named after PIL, `NumPy` or PyTorch were made with Pillow 13.0, `NumPy` and torch 2.15 from the pixels given here.

use std::collections::BTreeMap;

use image::{Rgb, RgbImage};

use super::color_jitter::Change;
use super::*;

const DRAW: Draw = Draw {
    seed: 3,
    record: 17,
    image: 0,
    epoch: 1,
};

/// Every corruption as its default.
fn all() -> [Corruption; 9] {
    [
        Corruption::DiffusionNoise(DiffusionNoise::default()),
        Corruption::Crop(Crop::default()),
        Corruption::Blur(Blur::default()),
        Corruption::Rotate(Rotate::default()),
        Corruption::ColorJitter(ColorJitter::default()),
        Corruption::Mask(Mask::default()),
        Corruption::PatchShuffle(PatchShuffle { patch: 5 }),
        Corruption::Blank(Blank::default()),
        Corruption::LowResolution(LowResolution { side: 3 }),
    ]
}

/// Every pixel of another color than the others, for as many as 65536.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let place = x + width * y;
        Rgb([
            (place % 256) as u8,
            (place / 256) as u8,
            ((37 * x + 101 * y) % 256) as u8,
        ])
    })
}

fn image_of(width: u32, height: u32, values: &[u8]) -> RgbImage {
    RgbImage::from_raw(width, height, values.to_vec()).expect("three values a pixel")
}

#[test]
fn sizes_are_kept_and_equal_draws_give_equal_images() {
    for (width, height) in [(32, 32), (41, 23), (1, 1), (1, 9), (2, 1)] {
        let image = picture(width, height);
        for corruption in all() {
            let spoiled = corruption.apply(&image, DRAW);
            assert_eq!(spoiled.dimensions(), image.dimensions(), "{}", corruption.name());
            assert_eq!(spoiled, corruption.apply(&image, DRAW), "{}", corruption.name());
        }
    }
    for corruption in all() {
        assert_eq!(corruption.apply(&RgbImage::new(0, 5), DRAW).dimensions(), (0, 5));
    }
}

#[test]
fn each_part_of_a_draw_counts() {
    let image = picture(32, 24);
    let others = [
        Draw { seed: 4, ..DRAW },
        Draw { record: 18, ..DRAW },
        Draw { image: 1, ..DRAW },
        Draw { epoch: 2, ..DRAW },
    ];
    for corruption in all() {
        let spoiled = corruption.apply(&image, DRAW);
        assert_ne!(spoiled, image, "{} does nothing", corruption.name());
        let is_fixed = matches!(
            corruption,
            Corruption::Blur(_) | Corruption::Blank(_) | Corruption::LowResolution(_)
        );
        for other in others {
            let is_same = corruption.apply(&image, other) == spoiled;
            assert_eq!(is_same, is_fixed, "{} under {other:?}", corruption.name());
        }
    }
}

#[test]
fn names_are_those_of_recipes_and_every_parameter_has_a_default() {
    assert_eq!(all().map(|corruption| corruption.name()), Corruption::NAMES);
    for (corruption, name) in all().into_iter().zip(Corruption::NAMES) {
        let value = serde_json::to_value(corruption).unwrap();
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), [name]);
        assert_eq!(serde_json::from_value::<Corruption>(value).unwrap(), corruption);
        let default: Corruption = serde_json::from_str(&format!("{{\"{name}\": {{}}}}")).unwrap();
        default.validate().unwrap();
        assert!(serde_json::from_str::<Corruption>(&format!("{{\"{name}\": {{\"no\": 1}}}}")).is_err());
    }
}

#[test]
fn what_is_out_of_range_is_named() {
    let bad = [
        ("diffusion_noise.step", r#"{"diffusion_noise": {"step": 1000}}"#),
        ("crop.min_area", r#"{"crop": {"min_area": 0.0}}"#),
        ("crop.max_area", r#"{"crop": {"max_area": 0.001}}"#),
        ("crop.max_area", r#"{"crop": {"max_area": 1.5}}"#),
        ("crop.min_ratio", r#"{"crop": {"min_ratio": 0.0}}"#),
        ("crop.max_ratio", r#"{"crop": {"max_ratio": 0.5}}"#),
        ("blur.sigma", r#"{"blur": {"sigma": 0.0}}"#),
        ("rotate.min_degrees", r#"{"rotate": {"min_degrees": -361.0}}"#),
        (
            "rotate.max_degrees",
            r#"{"rotate": {"min_degrees": 10.0, "max_degrees": 9.0}}"#,
        ),
        ("color_jitter.brightness", r#"{"color_jitter": {"brightness": -0.1}}"#),
        ("color_jitter.contrast", r#"{"color_jitter": {"contrast": 11.0}}"#),
        ("color_jitter.saturation", r#"{"color_jitter": {"saturation": -1.0}}"#),
        ("color_jitter.hue", r#"{"color_jitter": {"hue": 0.6}}"#),
        ("mask.share", r#"{"mask": {"share": 1.1}}"#),
        ("mask.patch", r#"{"mask": {"patch": 0}}"#),
        ("patch_shuffle.patch", r#"{"patch_shuffle": {"patch": 0}}"#),
        ("low_resolution.side", r#"{"low_resolution": {"side": 0}}"#),
    ];
    for (key, json) in bad {
        let corruption: Corruption = serde_json::from_str(json).unwrap();
        match corruption.validate() {
            Err(Error::Setting { key: found, .. }) => assert_eq!(found, key),
            other => panic!("{json}: {other:?}"),
        }
    }
}

#[test]
fn the_schedule_is_that_of_vcd() {
    // sigmoid(linspace(-6, 6, 1000)) (0.5e-2 - 1e-5) + 1e-5 and its cumulative product in NumPy.
    let [keep, add] = noise_scales(500);
    assert!((keep - 0.8630171064602814).abs() < 1e-12 && (add - 0.5051746964733322).abs() < 1e-12);
    assert!((noise_scales(999)[0] - 0.2850424429870048).abs() < 1e-12);
    for step in 0..NUM_NOISE_STEPS {
        let [keep, add] = noise_scales(step);
        assert!((keep * keep + add * add - 1.0).abs() < 1e-12);
    }
}

#[test]
fn noise_has_the_mean_and_deviation_of_its_step() {
    let noise = DiffusionNoise { step: 500 };
    let [keep, add] = noise_scales(500);
    let mut pixels = vec![0.8_f32; 60_000];
    noise.apply_to_pixels(&mut pixels, DRAW);
    let count = pixels.len() as f64;
    let mean = pixels.iter().map(|pixel| f64::from(*pixel)).sum::<f64>() / count;
    let variance = pixels
        .iter()
        .map(|pixel| (f64::from(*pixel) - mean).powi(2))
        .sum::<f64>()
        / count;
    assert!((mean - 0.8 * keep).abs() < 0.01 && (variance.sqrt() - add).abs() < 0.01);

    // An image is spoiled by the very same numbers, but for rounding and cutting off.
    let image = RgbImage::from_pixel(32, 32, Rgb([130, 120, 110]));
    let spoiled = Corruption::DiffusionNoise(noise).apply(&image, DRAW);
    let (means, stds) = (
        [0.48145466, 0.4578275, 0.40821073],
        [0.26862954, 0.26130258, 0.27577711],
    );
    let mut normalized: Vec<f32> = image
        .iter()
        .enumerate()
        .map(|(place, value)| ((f64::from(*value) / 255.0 - means[place % 3]) / stds[place % 3]) as f32)
        .collect();
    noise.apply_to_pixels(&mut normalized, DRAW);
    for (place, (value, pixel)) in spoiled.iter().zip(normalized).enumerate() {
        let expected = (f64::from(pixel) * stds[place % 3] + means[place % 3]) * 255.0;
        assert!((f64::from(*value) - expected.clamp(0.0, 255.0)).abs() <= 0.51);
    }
}

#[test]
fn a_crop_is_a_box_of_the_image_with_area_and_ratio_in_range() {
    let crop = Crop::default();
    let (width, height) = (400, 300);
    let mut rng = generator(0, Stream::Corruption, 0, 0);
    let (mut shares, mut lefts) = (Vec::new(), Vec::new());
    for _ in 0..2000 {
        let [left, top, crop_width, crop_height] = crop.draw(&mut rng, width, height);
        assert!(left + crop_width <= width && top + crop_height <= height);
        let share = f64::from(crop_width * crop_height) / f64::from(width * height);
        let ratio = f64::from(crop_width) / f64::from(crop_height);
        assert!((0.0095..0.205).contains(&share), "{share}");
        assert!((0.73..1.37).contains(&ratio), "{ratio}");
        shares.push(share);
        lefts.push(f64::from(left) / f64::from(width - crop_width));
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    assert!((mean(&shares) - 0.105).abs() < 0.005, "areas are uniform");
    assert!((mean(&lefts) - 0.5).abs() < 0.03, "places are uniform");

    // No box of so large an area and so small a ratio fits: the largest one in the middle.
    let impossible = Crop {
        min_area: 1.0,
        max_area: 1.0,
        min_ratio: 0.5,
        max_ratio: 0.5,
    };
    assert_eq!(impossible.draw(&mut rng, 400, 300), [125, 0, 150, 300]);
    // What is seen is a part of the image: where all of it is one color, nothing changes.
    let plain = RgbImage::from_pixel(20, 30, Rgb([7, 8, 9]));
    assert_eq!(Corruption::Crop(crop).apply(&plain, DRAW), plain);
}

#[test]
fn a_mask_covers_exactly_its_share() {
    let image = picture(40, 30);
    for (share, patch, expected) in [
        (0.3, 1, 360),
        (0.0, 1, 0),
        (1.0, 1, 1200),
        (0.25, 5, 300),
        (0.5, 10, 600),
    ] {
        let mask = Mask {
            share,
            patch,
            fill: Fill::White,
        };
        let covered = Corruption::Mask(mask).apply(&image, DRAW);
        let changed: Vec<(u32, u32)> = image
            .enumerate_pixels()
            .filter(|(x, y, pixel)| covered.get_pixel(*x, *y) != *pixel)
            .map(|(x, y, _)| (x / patch, y / patch))
            .collect();
        assert_eq!(changed.len(), expected, "{mask:?}");
        assert!(
            covered
                .pixels()
                .zip(image.pixels())
                .all(|(new, old)| new == old || new.0 == [255; 3])
        );
        let mut patches = changed.clone();
        patches.sort_unstable();
        patches.dedup();
        assert_eq!(patches.len() as u32 * patch * patch, expected as u32, "whole patches");
    }
}

#[test]
fn shuffled_patches_are_all_still_there() {
    let image = picture(33, 22);
    let shuffled = Corruption::PatchShuffle(PatchShuffle { patch: 8 }).apply(&image, DRAW);
    let count = |image: &RgbImage| {
        let mut counts = BTreeMap::new();
        for pixel in image.pixels() {
            *counts.entry(pixel.0).or_insert(0) += 1;
        }
        counts
    };
    assert_eq!(count(&shuffled), count(&image));
    // Four by two whole patches; the rest stays.
    for (x, y, pixel) in image.enumerate_pixels().filter(|(x, y, _)| *x >= 32 || *y >= 16) {
        assert_eq!(shuffled.get_pixel(x, y), pixel);
    }
    // A pixel keeps its place in its patch, and all pixels of a patch move together.
    for (x, y, pixel) in shuffled.enumerate_pixels().filter(|(x, y, _)| *x < 32 && *y < 16) {
        let place = u32::from(pixel.0[0]) + 256 * u32::from(pixel.0[1]);
        assert_eq!(((place % 33) % 8, (place / 33) % 8), (x % 8, y % 8));
        let corner = shuffled.get_pixel(x / 8 * 8, y / 8 * 8);
        let corner_place = u32::from(corner.0[0]) + 256 * u32::from(corner.0[1]);
        assert_eq!(place - corner_place, (x % 8) + 33 * (y % 8));
    }
    // Of two patches there is one other order.
    let two = picture(8, 4);
    for epoch in 0..10 {
        let draw = Draw { epoch, ..DRAW };
        let exchanged = Corruption::PatchShuffle(PatchShuffle { patch: 4 }).apply(&two, draw);
        assert_eq!(exchanged.get_pixel(0, 0), two.get_pixel(4, 0));
    }
}

#[test]
fn a_blank_image_has_the_color_asked_for() {
    let image = image_of(2, 1, &[0, 10, 255, 3, 20, 254]);
    for (fill, color) in [
        (Fill::ProcessorMean, [122, 116, 104]),
        (Fill::ImageMean, [2, 15, 255]),
        (Fill::Black, [0; 3]),
        (Fill::White, [255; 3]),
    ] {
        let blank = Corruption::Blank(Blank { fill }).apply(&image, DRAW);
        assert!(blank.pixels().all(|pixel| pixel.0 == color), "{fill:?}");
    }
}

#[test]
fn a_blur_is_the_convolution_that_pytorch_computes() {
    let image = image_of(
        5,
        4,
        &[
            217, 163, 130, 69, 78, 10, 19, 4, 44, 208, 166, 233, 128, 155, 248, 186, 161, 139, 143, 239, 71, 208, 171,
            0, 100, 219, 141, 8, 195, 186, 216, 44, 22, 220, 5, 138, 20, 76, 123, 108, 103, 7, 1, 31, 2, 171, 134, 165,
            65, 157, 195, 98, 117, 255, 206, 251, 97, 175, 243, 166,
        ],
    );
    let expected = image_of(
        5,
        4,
        &[
            150, 136, 82, 141, 135, 81, 125, 139, 92, 112, 151, 120, 106, 158, 137, 153, 127, 90, 143, 128, 89, 124,
            135, 95, 109, 147, 111, 102, 154, 121, 155, 109, 111, 143, 113, 111, 122, 125, 107, 108, 141, 101, 102,
            147, 98, 153, 100, 123, 141, 106, 124, 121, 121, 116, 109, 139, 99, 106, 146, 91,
        ],
    );
    assert_eq!(Corruption::Blur(Blur { sigma: 1.2 }).apply(&image, DRAW), expected);
    let plain = RgbImage::from_pixel(3, 2, Rgb([9, 80, 255]));
    assert_eq!(Corruption::Blur(Blur { sigma: 100.0 }).apply(&plain, DRAW), plain);
}

#[test]
fn turns_are_those_of_pil_and_pytorch() {
    let values = [
        217, 163, 130, 69, 78, 10, 19, 4, 44, 208, 166, 233, 186, 161, 139, 143, 239, 71, 208, 171, 0, 100, 219, 141,
        216, 44, 22, 220, 5, 138, 20, 76, 123, 108, 103, 7, 171, 134, 165, 65, 157, 195, 98, 117, 255, 206, 251, 97,
    ];
    let quarter = [
        208, 166, 233, 100, 219, 141, 108, 103, 7, 206, 251, 97, 19, 4, 44, 208, 171, 0, 20, 76, 123, 98, 117, 255, 69,
        78, 10, 143, 239, 71, 220, 5, 138, 65, 157, 195, 217, 163, 130, 186, 161, 139, 216, 44, 22, 171, 134, 165,
    ];
    // torch.nn.functional.grid_sample with align_corners, outside pixels of the fill color.
    let thirty = [
        101, 101, 64, 33, 22, 41, 142, 155, 138, 114, 161, 123, 155, 147, 86, 143, 188, 43, 140, 148, 50, 107, 124, 35,
        188, 138, 117, 198, 80, 106, 84, 67, 148, 129, 159, 134, 163, 86, 70, 173, 92, 122, 74, 148, 201, 114, 119,
        169,
    ];
    let image = image_of(4, 4, &values);
    let turned = |degrees: f64| {
        let rotate = Rotate {
            min_degrees: degrees,
            max_degrees: degrees,
            fill: Fill::ProcessorMean,
        };
        Corruption::Rotate(rotate).apply(&image, DRAW)
    };
    assert_eq!(turned(0.0), image);
    assert_eq!(turned(90.0), image_of(4, 4, &quarter));
    assert_eq!(turned(-270.0), turned(90.0));
    assert_eq!(turned(180.0), image::imageops::rotate180(&image));
    assert_eq!(turned(30.0), image_of(4, 4, &thirty));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of pixels")]
fn color_operations_are_those_of_pil() {
    let values = [
        200, 30, 40, 10, 220, 90, 60, 70, 250, 128, 128, 128, 255, 240, 10, 0, 0, 0,
    ];
    let image = image_of(3, 2, &values);
    let cases: [(Change, [u8; 18]); 8] = [
        (
            Change::Brightness(0.3),
            [60, 9, 12, 3, 66, 27, 18, 21, 75, 38, 38, 38, 76, 72, 3, 0, 0, 0],
        ),
        (
            Change::Brightness(1.4),
            [
                255, 42, 56, 14, 255, 126, 84, 98, 255, 179, 179, 179, 255, 255, 14, 0, 0, 0,
            ],
        ),
        (
            Change::Contrast(0.3),
            [
                137, 86, 89, 80, 143, 104, 95, 98, 152, 115, 115, 115, 153, 149, 80, 77, 77, 77,
            ],
        ),
        (
            Change::Contrast(1.4),
            [236, 0, 12, 0, 255, 82, 40, 54, 255, 135, 135, 135, 255, 255, 0, 0, 0, 0],
        ),
        (
            Change::Saturation(0.3),
            [
                117, 66, 69, 102, 165, 126, 79, 82, 136, 128, 128, 128, 229, 224, 155, 0, 0, 0,
            ],
        ),
        (
            Change::Saturation(1.4),
            [247, 9, 23, 0, 251, 69, 48, 62, 255, 128, 128, 128, 255, 248, 0, 0, 0, 0],
        ),
        // Python's colorsys.
        (
            Change::Hue(0.25),
            [
                125, 200, 30, 10, 35, 220, 250, 60, 165, 128, 128, 128, 10, 255, 117, 0, 0, 0,
            ],
        ),
        (
            Change::Hue(-0.1),
            [
                200, 30, 142, 56, 220, 10, 60, 184, 250, 128, 128, 128, 255, 93, 10, 0, 0, 0,
            ],
        ),
    ];
    for (change, expected) in cases {
        // PIL computes in f32: a value next to a whole number may fall on its other side.
        for (found, expected) in change.apply(&image).iter().zip(expected) {
            assert!(found.abs_diff(expected) <= 1, "{change:?}: {found}, PIL {expected}");
        }
        let exact = change
            .apply(&image)
            .iter()
            .zip(expected)
            .filter(|(found, expected)| **found == *expected)
            .count();
        assert!(exact >= 16, "{change:?}: {exact} of 18 values are PIL's");
    }
    let still = ColorJitter {
        brightness: 0.0,
        contrast: 0.0,
        saturation: 0.0,
        hue: 0.0,
    };
    assert_eq!(Corruption::ColorJitter(still).apply(&image, DRAW), image);
}

#[test]
fn low_resolution_keeps_what_is_large_and_loses_what_is_small() {
    let low = Corruption::LowResolution(LowResolution { side: 8 });
    // Stripes of one pixel become gray, halves stay what they are.
    let stripes = RgbImage::from_fn(64, 128, |x, _| Rgb([255 * (x % 2) as u8; 3]));
    let blurred = low.apply(&stripes, DRAW);
    assert!(blurred.pixels().all(|pixel| (118..=138).contains(&pixel.0[0])));
    let halves = RgbImage::from_fn(64, 128, |x, _| Rgb([255 * u8::from(x >= 32); 3]));
    let kept = low.apply(&halves, DRAW);
    assert_eq!((kept.get_pixel(4, 60).0[0], kept.get_pixel(60, 60).0[0]), (0, 255));
    let small = picture(8, 40);
    assert_eq!(low.apply(&small, DRAW), small);
}
