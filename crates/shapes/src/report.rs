//! A caption's claims, held against what is in an image.

use serde::Serialize;

use crate::claims::{Claims, Group};
use crate::named::named;
use crate::relation::RELATION_MARGIN;
use crate::verifier::{ReadObject, Reading};
use crate::{Background, Size};

named! {
    /// What a claim is about.
    pub enum ClaimKind as "claim kind" {
        /// An object is there.
        Existence = "existence",
        /// It has this color.
        Color = "color",
        /// It has this shape.
        Shape = "shape",
        /// It has this size.
        Size = "size",
        /// Two objects stand like this.
        Relation = "relation",
        /// The background has this color.
        Background = "background",
        /// Nothing else is there. Only reported for objects that are.
        NothingElse = "nothing_else",
    }
}

/// One claim and whether it holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClaimResult {
    /// What the claim is about.
    pub kind: ClaimKind,
    /// The claim in words: "a red circle is red".
    pub claim: String,
    /// What was read in its place, for attributes of objects that were matched and for backgrounds.
    pub found: Option<String>,
    /// Whether it holds, as a yes or no: the credit is more than 0 and what was read is what is claimed.
    pub holds: bool,
    /// How well it holds, 0 to 1.
    pub credit: f64,
    /// Its weight in the score: 1, except for objects too many.
    pub weight: f64,
}

/// All claims of a caption, held against one image.
///
/// # Formula
/// Every claimed object is a slot; slots are matched to the objects read, each to at most one, so that the score is highest.
/// Every claim has a credit in `[0, 1]`:
///
/// | claim | credit |
/// |---|---|
/// | an object is there | 1 if the slot is matched, else 0 |
/// | its color | 0 for another color; else 1 up to an RGB distance of 64 from the palette, falling to 0 at 192 |
/// | its shape | 0 for another shape; else 1 from a confidence of 0.85, falling to 0 at 0.5 |
/// | its size | 1 up to the border between the sizes, falling to 0 at the other size (linear in the extent) |
/// | a relation | centers' distance along its axis over [`RELATION_MARGIN`], between 0 and 1; 0 if either object is missing |
/// | the background | 0 for another; else as color |
/// | nothing else is there | made once for every object too many, credit 0 |
///
/// A claim of a missing object's attribute has credit 0. The score is the sum of the credits over the number of claims,
/// where each object too many counts as many claims as the caption makes per object (on average, at least two). So a wrong
/// shape costs less than a missing object, and a score of 1 means that everything holds and nothing else is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The claims: objects and their attributes in the order of the caption, relations, background, objects too many.
    pub claims: Vec<ClaimResult>,
    /// Objects read that the caption does not mention.
    pub extra_objects: usize,
}

/// Objects beyond this number, those that stand out least, are not matched (they still count as too many): no scene has
/// as many, and trying every matching must stay cheap on noise.
const MAX_MATCHED: usize = 8;

impl Report {
    /// Holds claims against a reading. `Reading::from(&scene)` gives the truth about a scene.
    pub fn new(claims: &Claims, reading: &Reading) -> Self {
        let slots: Vec<(usize, Group)> = claims
            .groups()
            .iter()
            .enumerate()
            .flat_map(|(index, group)| std::iter::repeat_n((index, Group { count: 1, ..*group }), group.count))
            .collect();
        let candidates = &reading.objects[..reading.objects.len().min(MAX_MATCHED)];
        let matching = Matching {
            claims,
            slots: &slots,
            objects: candidates,
        }
        .best();
        let matched = |slot: usize| matching[slot].map(|index| &candidates[index]);
        let mut results = Vec::new();
        for (slot, (_, group)) in slots.iter().enumerate() {
            results.extend(object_claims(group, matched(slot)));
        }
        let of_group = |group: usize| slots.iter().position(|(index, _)| *index == group).and_then(matched);
        for relation in claims.relations() {
            let (subject, object) = (of_group(relation.subject), of_group(relation.object));
            let offset = subject
                .zip(object)
                .map_or(0.0, |(s, o)| relation.relation.offset(s.center, o.center));
            let [first, second] = [relation.subject, relation.object].map(|index| claims.groups()[index]);
            results.push(ClaimResult {
                kind: ClaimKind::Relation,
                claim: format!("{first} is {} {second}", relation.relation),
                found: None,
                holds: offset >= RELATION_MARGIN,
                credit: relation_credit(offset),
                weight: 1.0,
            });
        }
        results.extend(
            claims
                .background()
                .map(|background| background_claim(background, reading)),
        );
        let extra_objects = reading.objects.len() - matching.iter().flatten().count();
        let per_object = slots.iter().map(|(_, group)| num_claims(group)).sum::<f64>() / slots.len().max(1) as f64;
        results.extend((0..extra_objects).map(|_| ClaimResult {
            kind: ClaimKind::NothingElse,
            claim: "nothing else is there".to_owned(),
            found: None,
            holds: false,
            credit: 0.0,
            weight: per_object.max(2.0),
        }));
        Self {
            claims: results,
            extra_objects,
        }
    }

    /// The share of the claims that hold, 0 to 1; 1 only when every one holds fully and nothing else is there.
    pub fn score(&self) -> f64 {
        let weight: f64 = self.claims.iter().map(|claim| claim.weight).sum();
        let credit: f64 = self.claims.iter().map(|claim| claim.weight * claim.credit).sum();
        if weight > 0.0 { credit / weight } else { 0.0 }
    }

    /// Whether every claim holds, as a yes or no.
    pub fn holds(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds)
    }
}

/// Claims made of one object: that it is there, and its attributes.
fn num_claims(group: &Group) -> f64 {
    let attributes = [group.size.is_some(), group.color.is_some(), group.shape.is_some()];
    1.0 + attributes.into_iter().filter(|claimed| *claimed).count() as f64
}

fn object_claims(group: &Group, object: Option<&ReadObject>) -> Vec<ClaimResult> {
    let there = object.is_some();
    let existence = ClaimResult {
        kind: ClaimKind::Existence,
        claim: format!("there is {group}"),
        found: None,
        holds: there,
        credit: f64::from(u8::from(there)),
        weight: 1.0,
    };
    // A claim, what was read, and its credit, where an object was matched.
    let attribute = |kind, claimed: &str, found: Option<&str>, credit: Option<f64>| {
        let credit = credit.unwrap_or(0.0);
        let article = if kind == ClaimKind::Shape { "a " } else { "" };
        ClaimResult {
            kind,
            claim: format!("{group} is {article}{claimed}"),
            found: found.map(str::to_owned),
            holds: found == Some(claimed) && credit > 0.0,
            credit,
            weight: 1.0,
        }
    };
    let size = group.size.map(|size| {
        let credit = object.map(|object| size_credit(size, object));
        attribute(
            ClaimKind::Size,
            size.name(),
            object.map(|object| object.size.name()),
            credit,
        )
    });
    let color = group.color.map(|color| {
        let credit = object.map(|object| color_credit(group, object));
        attribute(
            ClaimKind::Color,
            color.name(),
            object.map(|object| object.color.name()),
            credit,
        )
    });
    let shape = group.shape.map(|shape| {
        let credit = object.map(|object| shape_credit(group, object));
        attribute(
            ClaimKind::Shape,
            shape.name(),
            object.map(|object| object.shape.name()),
            credit,
        )
    });
    [Some(existence), size, color, shape].into_iter().flatten().collect()
}

/// Sum of the credits of what a slot claims of an object, without the object being there.
fn attribute_credit(group: &Group, object: &ReadObject) -> f64 {
    let size = group.size.map_or(0.0, |size| size_credit(size, object));
    size + color_credit(group, object) + shape_credit(group, object)
}

fn size_credit(size: Size, object: &ReadObject) -> f64 {
    if object.size == size {
        return 1.0;
    }
    let other = object.size.extent();
    let border = (size.extent() * other).sqrt();
    f64::from(((other - object.extent) / (other - border)).clamp(0.0, 1.0))
}

fn color_credit(group: &Group, object: &ReadObject) -> f64 {
    match group.color {
        Some(color) if color == object.color => clarity(crate::color::distance(color.rgb().map(f32::from), object.rgb)),
        _ => 0.0,
    }
}

fn shape_credit(group: &Group, object: &ReadObject) -> f64 {
    match group.shape {
        Some(shape) if shape == object.shape => f64::from(((object.confidence - 0.5) / 0.35).clamp(0.0, 1.0)),
        _ => 0.0,
    }
}

/// Credit of a color at a distance from the palette.
fn clarity(distance: f32) -> f64 {
    f64::from(((192.0 - distance) / 128.0).clamp(0.0, 1.0))
}

fn relation_credit(offset: f32) -> f64 {
    f64::from((offset / RELATION_MARGIN).clamp(0.0, 1.0))
}

fn background_claim(background: Background, reading: &Reading) -> ClaimResult {
    let holds = reading.background == Some(background);
    ClaimResult {
        kind: ClaimKind::Background,
        claim: format!("the background is {background}"),
        found: reading.background.map(|background| background.to_string()),
        holds,
        credit: if holds {
            clarity(reading.background_distance)
        } else {
            0.0
        },
        weight: 1.0,
    }
}

/// The search for the matching of slots and objects with the most credit.
struct Matching<'a> {
    claims: &'a Claims,
    slots: &'a [(usize, Group)],
    objects: &'a [ReadObject],
}

impl Matching<'_> {
    /// For every slot, the object it is matched to.
    fn best(&self) -> Vec<Option<usize>> {
        let empty = vec![None; self.slots.len()];
        let mut best = (f64::NEG_INFINITY, empty.clone());
        self.extend(0, 0.0, &mut empty.clone(), &mut best);
        best.1
    }

    fn extend(
        &self,
        slot: usize,
        credit: f64,
        matching: &mut Vec<Option<usize>>,
        best: &mut (f64, Vec<Option<usize>>),
    ) {
        let Some((_, group)) = self.slots.get(slot) else {
            let total = credit + self.relations(matching);
            // The first of equals wins; the margin keeps rounding from choosing.
            if total > best.0 + 1e-9 {
                *best = (total, matching.clone());
            }
            return;
        };
        for (index, object) in self.objects.iter().enumerate() {
            if !matching[..slot].contains(&Some(index)) {
                matching[slot] = Some(index);
                self.extend(slot + 1, credit + 1.0 + attribute_credit(group, object), matching, best);
                matching[slot] = None;
            }
        }
        // An empty slot only where objects run out: a poor match is never worse than none.
        if self.objects.len() < self.slots.len() {
            self.extend(slot + 1, credit, matching, best);
        }
    }

    fn relations(&self, matching: &[Option<usize>]) -> f64 {
        let of_group = |group: usize| {
            let slot = self.slots.iter().position(|(index, _)| *index == group)?;
            matching[slot].map(|index| self.objects[index].center)
        };
        let credits = self.claims.relations().iter().map(|claim| {
            let centers = of_group(claim.subject).zip(of_group(claim.object));
            centers.map_or(0.0, |(first, second)| {
                relation_credit(claim.relation.offset(first, second))
            })
        });
        credits.sum()
    }
}
