//! Writing captions that are true of a scene.

use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::claims::{Claims, Group, MAX_WORDS, RelationClaim};
use crate::config::invalid;
use crate::error::Result;
use crate::named::named;
use crate::scene::{Object, Scene, pick};
use crate::{Background, Color, Relation, Shape, Size};

named! {
    /// What a caption mentions. Every style mentions every object.
    pub enum CaptionStyle as "caption style" {
        /// One attribute and the counts: "three circles and a star", "two red objects".
        Counting = "counting",
        /// Color and shape: "two red circles and a blue star".
        Plain = "plain",
        /// Size, color and shape: "a small red circle and a large blue star".
        Sized = "sized",
        /// Color and shape, and where objects stand: "a red circle left of a blue star".
        Spatial = "spatial",
        /// Everything: "a small red circle left of a large blue star".
        Detailed = "detailed",
    }
}

named! {
    /// In which order a caption mentions objects.
    pub enum CaptionOrder as "caption order" {
        /// Any, each equally likely.
        Shuffled = "shuffled",
        /// By color, then by shape and size, each in the order of its list: a scene has one caption of each style.
        Palette = "palette",
    }
}

/// How often each style is used, and the background mentioned.
///
/// Weights need not sum to one. A scene whose objects are not told apart by the style, or stand in no clear relation, gets
/// a caption of the same detail without a relation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionConfig {
    /// Weight of [`CaptionStyle::Counting`]. Default 1.
    pub counting: f64,
    /// Weight of [`CaptionStyle::Plain`]. Default 2.
    pub plain: f64,
    /// Weight of [`CaptionStyle::Sized`]. Default 2.
    pub sized: f64,
    /// Weight of [`CaptionStyle::Spatial`]. Default 2.
    pub spatial: f64,
    /// Weight of [`CaptionStyle::Detailed`]. Default 2.
    pub detailed: f64,
    /// Probability that the background is mentioned, in `[0, 1]`. Default 0.5.
    pub background: f64,
    /// Order of objects. Default shuffled; with `palette` no style may tell where objects stand.
    pub order: CaptionOrder,
    /// Probability that each attribute, relation and background told is another than the scene's, in `[0, 1]`: the label
    /// noise of captions found in the wild. Default 0, captions are true.
    pub mislabel: f64,
}

impl Default for CaptionConfig {
    fn default() -> Self {
        Self {
            counting: 1.0,
            plain: 2.0,
            sized: 2.0,
            spatial: 2.0,
            detailed: 2.0,
            background: 0.5,
            order: CaptionOrder::Shuffled,
            mislabel: 0.0,
        }
    }
}

impl CaptionConfig {
    fn weights(&self) -> [(CaptionStyle, f64); 5] {
        [
            (CaptionStyle::Counting, self.counting),
            (CaptionStyle::Plain, self.plain),
            (CaptionStyle::Sized, self.sized),
            (CaptionStyle::Spatial, self.spatial),
            (CaptionStyle::Detailed, self.detailed),
        ]
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let fields = [
            "captions.counting",
            "captions.plain",
            "captions.sized",
            "captions.spatial",
            "captions.detailed",
        ];
        for (field, (_, weight)) in fields.into_iter().zip(self.weights()) {
            if !(0.0..=1e6).contains(&weight) {
                return Err(invalid(field, &weight, "a weight, 0 to 1e6"));
            }
        }
        if self.weights().iter().all(|(_, weight)| *weight == 0.0) {
            return Err(invalid("captions", self, "at least one style with a weight above 0"));
        }
        if self.order == CaptionOrder::Palette && (self.spatial > 0.0 || self.detailed > 0.0) {
            let expected = "shuffled where captions tell where objects stand: `spatial` and `detailed` have a weight";
            return Err(invalid("captions.order", &self.order.name(), expected));
        }
        let probabilities = [
            ("captions.background", self.background),
            ("captions.mislabel", self.mislabel),
        ];
        for (field, probability) in probabilities {
            if !(0.0..=1.0).contains(&probability) {
                return Err(invalid(field, &probability, "a probability, 0 to 1"));
            }
        }
        Ok(())
    }

    pub(crate) fn style(&self, rng: &mut impl Rng) -> CaptionStyle {
        let total: f64 = self.weights().iter().map(|(_, weight)| weight).sum();
        let mut left = rng.random::<f64>() * total;
        let mut last = CaptionStyle::Plain;
        for (style, weight) in self.weights() {
            if weight > 0.0 {
                last = style;
                if left < weight {
                    break;
                }
                left -= weight;
            }
        }
        last
    }

    /// Brings what is claimed into order.
    pub(crate) fn arrange(&self, claims: &mut Claims) {
        if self.order == CaptionOrder::Palette {
            claims
                .groups
                .sort_by_key(|group| (group.color, group.shape, group.size));
        }
    }

    pub(crate) fn mentions_background(&self, rng: &mut impl Rng) -> bool {
        rng.random_bool(self.background.clamp(0.0, 1.0))
    }
}

impl Scene {
    /// A caption in a style and with a background mention drawn by the configuration; true, unless the configuration
    /// mislabels.
    pub fn caption(&self, rng: &mut impl Rng, config: &CaptionConfig) -> Claims {
        let style = config.style(rng);
        let background = config.mentions_background(rng).then_some(self.background);
        let mut claims = self.describe(rng, style, background);
        config.arrange(&mut claims);
        if config.mislabel > 0.0 {
            mislabel(rng, &mut claims, config.mislabel.min(1.0));
        }
        claims
    }

    /// A true caption in a style. `background` is mentioned when given: pass the scene's own.
    ///
    /// The generator decides the order of objects, which relation is mentioned, and whether a counting caption speaks of
    /// shapes or of colors.
    pub fn describe(&self, rng: &mut impl Rng, style: CaptionStyle, background: Option<Background>) -> Claims {
        let mention = Mention::new(rng, style);
        let mut objects: Vec<&Object> = self.objects.iter().collect();
        objects.shuffle(rng);
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        for object in objects {
            let group = mention.group(object);
            match kinds.iter_mut().find(|kind| Group { count: 1, ..kind.group } == group) {
                Some(kind) => kind.group.count += 1,
                None => kinds.push(Kind { group, object }),
            }
        }
        let mut claims = Claims {
            groups: Vec::new(),
            relations: Vec::new(),
            background,
        };
        if matches!(style, CaptionStyle::Spatial | CaptionStyle::Detailed) {
            relate(rng, &mut kinds, &mut claims);
        }
        claims.groups.extend(kinds.iter().map(|kind| kind.group));
        claims
    }
}

/// Objects that the caption cannot tell apart, and one of them.
#[derive(Clone, Copy)]
struct Kind<'a> {
    group: Group,
    object: &'a Object,
}

/// Moves pairs that stand in a clear relation from `kinds` to `claims`, as many as fit.
fn relate(rng: &mut impl Rng, kinds: &mut Vec<Kind<'_>>, claims: &mut Claims) {
    loop {
        let mut pairs = Vec::new();
        for (i, first) in kinds.iter().enumerate() {
            for (j, second) in kinds.iter().enumerate() {
                if i != j && first.group.count == 1 && second.group.count == 1 {
                    let relation = Relation::between(first.object.center, second.object.center);
                    pairs.extend(relation.map(|relation| (i, relation, j)));
                }
            }
        }
        if pairs.is_empty() {
            return;
        }
        let (i, relation, j) = pick(rng, &pairs);
        let mut longer = claims.clone();
        let subject = longer.groups.len();
        longer.groups.extend([kinds[i].group, kinds[j].group]);
        longer.relations.push(RelationClaim {
            subject,
            relation,
            object: subject + 1,
        });
        let rest: Vec<Kind<'_>> = (0..kinds.len())
            .filter(|k| ![i, j].contains(k))
            .map(|k| kinds[k])
            .collect();
        let mut complete = longer.clone();
        complete.groups.extend(rest.iter().map(|kind| kind.group));
        if complete.to_string().split_whitespace().count() > MAX_WORDS {
            return;
        }
        *claims = longer;
        *kinds = rest;
    }
}

/// Replaces each attribute, relation and background by another one, each with this probability.
fn mislabel(rng: &mut impl Rng, claims: &mut Claims, probability: f64) {
    fn another<T: Copy + PartialEq>(rng: &mut impl Rng, value: &mut T, members: &[T], probability: f64) {
        if rng.random_bool(probability) {
            let others: Vec<T> = members.iter().copied().filter(|member| member != value).collect();
            *value = pick(rng, &others);
        }
    }
    for group in &mut claims.groups {
        if let Some(size) = &mut group.size {
            another(rng, size, Size::ALL, probability);
        }
        if let Some(color) = &mut group.color {
            another(rng, color, Color::ALL, probability);
        }
        if let Some(shape) = &mut group.shape {
            another(rng, shape, Shape::ALL, probability);
        }
    }
    for claim in &mut claims.relations {
        another(rng, &mut claim.relation, Relation::ALL, probability);
    }
    if let Some(background) = &mut claims.background {
        another(rng, background, Background::ALL, probability);
    }
}

/// Which attributes a caption mentions.
enum Mention {
    Shape,
    Color,
    ColorShape,
    All,
}

impl Mention {
    fn new(rng: &mut impl Rng, style: CaptionStyle) -> Self {
        match style {
            CaptionStyle::Counting if rng.random_bool(0.5) => Self::Shape,
            CaptionStyle::Counting => Self::Color,
            CaptionStyle::Plain | CaptionStyle::Spatial => Self::ColorShape,
            CaptionStyle::Sized | CaptionStyle::Detailed => Self::All,
        }
    }

    fn group(&self, object: &Object) -> Group {
        let (size, color, shape) = (Some(object.size), Some(object.color), Some(object.shape));
        match self {
            Self::Shape => Group {
                count: 1,
                size: None,
                color: None,
                shape,
            },
            Self::Color => Group {
                count: 1,
                size: None,
                color,
                shape: None,
            },
            Self::ColorShape => Group {
                count: 1,
                size: None,
                color,
                shape,
            },
            Self::All => Group {
                count: 1,
                size,
                color,
                shape,
            },
        }
    }
}
