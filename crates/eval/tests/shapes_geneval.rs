//! `GenEval` on shapes: pictures that are drawn as asked pass, others fail where they should.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use diptych_eval::{
    Error, GenevalAnswer, GenevalCategory, GenevalPrompt, GenevalTable, geneval_answers, geneval_prompts,
};
use diptych_shapes::{Background, Claims, Color, Object, Relation, Scene, Shape, Size, Verifier, render};
use image::RgbImage;

/// A scene that a caption is true of, with `color` where it tells none.
fn scene(prompt: &str) -> Scene {
    let claims = Claims::parse(prompt).unwrap();
    let groups = claims
        .groups()
        .iter()
        .flat_map(|group| std::iter::repeat_n(group, group.count));
    let mut centers = vec![[0.25, 0.25], [0.75, 0.75], [0.25, 0.75], [0.75, 0.25]];
    if let Some(relation) = claims.relations().first() {
        let (first, second) = match relation.relation {
            Relation::Left => ([0.25, 0.5], [0.75, 0.5]),
            Relation::Right => ([0.75, 0.5], [0.25, 0.5]),
            Relation::Above => ([0.5, 0.25], [0.5, 0.75]),
            Relation::Below => ([0.5, 0.75], [0.5, 0.25]),
        };
        centers = vec![first, second];
    }
    let objects = groups.zip(centers).map(|(group, center)| Object {
        shape: group.shape.unwrap(),
        color: group.color.unwrap_or(Color::Red),
        size: Size::Large,
        center,
    });
    Scene {
        background: Background::ALL[0],
        objects: objects.collect(),
    }
}

fn drawn(prompts: &[GenevalPrompt]) -> Vec<RgbImage> {
    prompts
        .iter()
        .map(|prompt| render(&scene(&prompt.prompt), 64))
        .collect()
}

#[test]
fn prompts_are_captions_of_every_kind_and_reproducible() {
    let prompts = geneval_prompts(3, 20);
    for category in GenevalCategory::ALL {
        let of_kind: Vec<&GenevalPrompt> = prompts.iter().filter(|prompt| prompt.category == category).collect();
        let expected = if category == GenevalCategory::SingleObject {
            Shape::ALL.len()
        } else {
            20
        };
        assert_eq!(of_kind.len(), expected.min(20), "{}", category.name());
        for prompt in of_kind {
            let claims = Claims::parse(&prompt.prompt).unwrap();
            assert_eq!(claims.to_string(), prompt.prompt);
            let shape = |count: usize, colors: usize, relations: usize| {
                let colored = claims.groups().iter().filter(|group| group.color.is_some()).count();
                assert_eq!(
                    (claims.groups().len(), colored, claims.relations().len()),
                    (count, colors, relations)
                );
            };
            match category {
                GenevalCategory::SingleObject => shape(1, 0, 0),
                GenevalCategory::TwoObjects => shape(2, 0, 0),
                GenevalCategory::Counting => {
                    shape(1, 0, 0);
                    assert!(claims.num_objects() > 1);
                }
                GenevalCategory::Colors => shape(1, 1, 0),
                GenevalCategory::Position => shape(2, 0, 1),
                GenevalCategory::AttributeBinding => shape(2, 2, 0),
            }
        }
    }
    assert_eq!(prompts, geneval_prompts(3, 20));
    assert_ne!(prompts, geneval_prompts(4, 20));
}

#[test]
fn pictures_as_asked_pass_and_each_mistake_costs_its_kind() {
    let prompts = geneval_prompts(0, 8);
    let answers = geneval_answers(&prompts, &drawn(&prompts), 1).unwrap();
    assert!(answers.iter().all(|answer| answer.is_correct && answer.is_complete));
    let table = GenevalTable::of(&prompts, &answers, 0, 200).unwrap();
    assert_eq!((table.categories.len(), table.overall.mean), (6, 1.0));

    // Right colors on the wrong objects, relations turned around, one object too few.
    let wrong: Vec<RgbImage> = prompts
        .iter()
        .map(|prompt| {
            let mut scene = scene(&prompt.prompt);
            match prompt.category {
                GenevalCategory::AttributeBinding | GenevalCategory::Position => {
                    let swapped = scene.objects[0].shape;
                    scene.objects[0].shape = scene.objects[1].shape;
                    scene.objects[1].shape = swapped;
                }
                GenevalCategory::Counting | GenevalCategory::TwoObjects => {
                    scene.objects.pop();
                }
                GenevalCategory::Colors => {
                    let other = Color::ALL.iter().find(|color| **color != scene.objects[0].color);
                    scene.objects[0].color = *other.unwrap();
                }
                GenevalCategory::SingleObject => {
                    let other = Shape::ALL.iter().find(|shape| **shape != scene.objects[0].shape);
                    scene.objects[0].shape = *other.unwrap();
                }
            }
            render(&scene, 64)
        })
        .collect();
    let answers = geneval_answers(&prompts, &wrong, 1).unwrap();
    assert!(answers.iter().all(|answer| !answer.is_correct), "{answers:?}");
    let table = GenevalTable::of(&prompts, &answers, 0, 200).unwrap();
    assert_eq!((table.overall.mean, table.overall.high), (0.0, 0.0));
}

/// `GenEval` asks only whether what is named is there, except when counting.
#[test]
fn surplus_objects_are_wrong_only_when_counting() {
    let prompts: Vec<GenevalPrompt> = geneval_prompts(1, 6)
        .into_iter()
        .filter(|prompt| Claims::parse(&prompt.prompt).unwrap().num_objects() < 3)
        .collect();
    let images: Vec<RgbImage> = prompts
        .iter()
        .map(|prompt| {
            let mut scene = scene(&prompt.prompt);
            for object in &mut scene.objects {
                object.size = Size::Small;
            }
            let mut extra = scene.objects[0];
            // Objects of one color that touch could be read as one.
            let other = Color::ALL.iter().find(|color| **color != extra.color);
            extra.color = *other.unwrap();
            let taken: Vec<[f32; 2]> = scene.objects.iter().map(|object| object.center).collect();
            let free = [[0.15, 0.85], [0.85, 0.15], [0.85, 0.85], [0.15, 0.15]];
            let clear = |place: &&[f32; 2]| {
                taken
                    .iter()
                    .all(|other| (place[0] - other[0]).hypot(place[1] - other[1]) > 0.3)
            };
            extra.center = *free.iter().find(clear).unwrap_or(&free[1]);
            scene.objects.push(extra);
            render(&scene, 64)
        })
        .collect();
    let answers = geneval_answers(&prompts, &images, 1).unwrap();
    for ((prompt, answer), image) in prompts.iter().zip(&answers).zip(&images) {
        assert!(!answer.is_complete, "{prompt:?}");
        let report = Verifier::new().check(&prompt.prompt, image).unwrap();
        let is_correct = prompt.category != GenevalCategory::Counting;
        assert_eq!(answer.is_correct, is_correct, "{prompt:?} {report:?}");
    }
}

#[test]
fn the_table_resamples_prompts_with_their_images() {
    let prompts = geneval_prompts(0, 4);
    let answers: Vec<GenevalAnswer> = (0..prompts.len() * 2)
        .map(|index| GenevalAnswer {
            is_correct: index % 2 == 0,
            is_complete: index % 8 == 0,
        })
        .collect();
    let table = GenevalTable::of(&prompts, &answers, 5, 300).unwrap();
    // One image of each prompt is right, so no resampling changes the share.
    assert_eq!(
        (table.overall.mean, table.overall.low, table.overall.high),
        (0.5, 0.5, 0.5)
    );
    let first = &table.categories[0];
    assert_eq!(
        (first.num_prompts, first.num_images, first.complete.mean),
        (4, 8, 0.125)
    );
    assert!(first.complete.low < first.complete.high);
    assert!(table.to_string().contains("attribute_binding"), "{table}");
    assert_eq!(table, GenevalTable::of(&prompts, &answers, 5, 300).unwrap());
    assert!(matches!(
        GenevalTable::of(&prompts, &answers[1..], 5, 300),
        Err(Error::Ungroupable { .. })
    ));
    assert!(matches!(GenevalTable::of(&prompts, &[], 5, 300), Err(Error::NoScores)));
    assert!(matches!(
        geneval_answers(&prompts, &[], 1),
        Err(Error::Ungroupable { .. })
    ));
}
