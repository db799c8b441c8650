//! Preference pairs from a vision-language model's own answers about the embedded world: what is true of the picture is chosen, what says
//! that something is there which is not is rejected. Truth comes from the scene that was rendered.
//!
//! Of every scene several captions are sampled. A pair is a hallucinating one and a true one that leaves out nothing, of the nearest length. Every
//! scene is also asked after an object that is there and one that is not (the companion of another where that is missing); where an answer is
//! wrong, both questions become pairs of the right and the wrong answer: corrected alone, a model that says yes too often learns to say no.
//!
//! Run: `cargo run --release --example shapes_vlm_pairs -- MODEL SCENES.toml OUT.jsonl NUM_PAIRS mark|mask`
//!
//! With `mark`, spans of weight 1, which change nothing, say where a rejected answer hallucinates. With `mask`, spans of weight 0 leave out
//! what is true in it, as Mask-DPO (Gu et al., ICLR 2025) does.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use diptych::data::{CharSpan, ImageSource, SpecialTokens, TextDataset, TextPair, Tokenizer, write_text};
use diptych::models::lm::{GenerateConfig, Sampling};
use diptych::models::vlm::{TowerTraining, VisionLanguageModel, VlmDir, VlmImageProcessor, VlmPrompt};
use diptych::models::{Builder, BuilderConfig};
use diptych::shapes::{
    Answer, CAPTION_REQUEST, COMPLETION_START, Claims, Example, ObjectKind, Question, QuestionKind, Scene, SceneConfig,
    Split, picture_prompt, render,
};

/// Of the scenes: those of pretraining have another.
const SEED: u64 = 2;
const SIDE: u32 = 32;
const NUM_CAPTIONS: usize = 6;
/// Scenes that are answered about together.
const BATCH: usize = 32;
const MAX_NEW_TOKENS: usize = 24;

#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, scenes, out, num_pairs, spans] = arguments.as_slice() else {
        anyhow::bail!("expected MODEL SCENES.toml OUT.jsonl NUM_PAIRS mark|mask");
    };
    let num_pairs: usize = num_pairs.parse().context("NUM_PAIRS is no number")?;
    let spans = match spans.as_str() {
        "mark" => Spans::Mark,
        "mask" => Spans::Mask,
        other => anyhow::bail!("found {other:?}, expected mark or mask"),
    };
    let world: SceneConfig = toml::from_str(&std::fs::read_to_string(scenes).with_context(|| scenes.clone())?)?;
    let model = Model::load(model)?;
    let (mut pairs, mut counts) = (Vec::new(), Counts::default());
    let mut first = 0;
    while pairs.len() < num_pairs {
        let examples = (first..first + BATCH as u64)
            .map(|index| Example::generate(SEED, index, Split::Train, &world))
            .collect::<Result<Vec<_>, _>>()?;
        pairs.extend(model.pairs(&examples, &world, &mut counts)?);
        first += BATCH as u64;
    }
    pairs.truncate(num_pairs);
    let records = pairs.iter().map(|pair| pair.record(spans)).collect();
    if let Some(directory) = Path::new(out).parent() {
        std::fs::create_dir_all(directory)?;
    }
    write_text(Path::new(out), &TextDataset::Pairs(records))?;
    println!(
        "{first} scenes: {} of {} captions hallucinate, {} of {} answers are wrong; {} pairs",
        counts.hallucinating,
        counts.captions,
        counts.wrong,
        counts.answers,
        pairs.len()
    );
    Ok(())
}

#[derive(Default)]
struct Counts {
    captions: usize,
    hallucinating: usize,
    answers: usize,
    wrong: usize,
}

/// What the spans of rejected answers are for.
#[derive(Clone, Copy)]
enum Spans {
    /// They mark what is not there.
    Mark,
    /// They leave out the rest.
    Mask,
}

/// A pair about one picture.
struct Pair {
    id: String,
    request: String,
    image: ImageSource,
    chosen: String,
    rejected: String,
    /// Characters of the rejected answer that are not true, in their order.
    false_parts: Vec<(usize, usize)>,
}

impl Pair {
    fn record(&self, spans: Spans) -> TextPair {
        let [chosen, rejected] = [&self.chosen, &self.rejected].map(|answer| format!("{COMPLETION_START}{answer}"));
        let mut pair = TextPair::new(self.id.clone(), picture_prompt(&self.request), chosen, rejected);
        pair.images = vec![self.image.clone()];
        let (parts, weight) = match spans {
            Spans::Mark => (self.false_parts.clone(), 1.0),
            Spans::Mask if self.false_parts.is_empty() => (Vec::new(), 0.0),
            Spans::Mask => (self.rest(), 0.0),
        };
        let shift = COMPLETION_START.len();
        let span = |(start, end): (usize, usize)| CharSpan {
            start: start + shift,
            end: end + shift,
            weight,
        };
        pair.rejected_spans = parts.into_iter().map(span).collect();
        pair
    }

    /// Everything but the false parts, words between them included.
    fn rest(&self) -> Vec<(usize, usize)> {
        let (mut rest, mut from) = (Vec::new(), 0);
        for &(start, end) in &self.false_parts {
            rest.extend((from < start).then_some((from, start)));
            from = end;
        }
        rest.extend((from < self.rejected.len()).then_some((from, self.rejected.len())));
        rest
    }
}

struct Model {
    network: VisionLanguageModel,
    directory: VlmDir,
    processor: VlmImageProcessor,
    tokenizer: Tokenizer,
}

/// A request about one of the pictures of a batch.
struct Request {
    picture: usize,
    text: String,
    /// Key of the random choices.
    example: u64,
}

impl Model {
    fn load(path: &str) -> anyhow::Result<Self> {
        let directory = VlmDir::open(path)?;
        let weights = directory.weights()?;
        let builder = Builder::new(BuilderConfig::new(Some(&weights)))?;
        let network = VisionLanguageModel::load(&builder, directory.config(), TowerTraining::Frozen)?;
        builder.finish()?;
        Ok(Self {
            processor: directory.image_processor()?,
            tokenizer: Tokenizer::from_dir(path)?,
            network,
            directory,
        })
    }

    /// The pairs of some examples: of each at most one of captions, and two of answers or none.
    fn pairs(&self, examples: &[Example], world: &SceneConfig, counts: &mut Counts) -> anyhow::Result<Vec<Pair>> {
        let (mut requests, mut asked) = (Vec::new(), Vec::new());
        for (picture, example) in examples.iter().enumerate() {
            let key = example.index * 100;
            requests.extend((0..NUM_CAPTIONS as u64).map(|number| Request {
                picture,
                text: CAPTION_REQUEST.to_owned(),
                example: key + number,
            }));
            for (number, question) in questions(example, world).into_iter().enumerate() {
                requests.push(Request {
                    picture,
                    text: question.text.clone(),
                    example: key + 50 + number as u64,
                });
                asked.push((picture, question));
            }
        }
        let answers = self.answers(examples, &requests)?;
        let mut pairs = Vec::new();
        for (picture, example) in examples.iter().enumerate() {
            let of_picture = requests
                .iter()
                .zip(&answers)
                .filter(|(request, _)| request.picture == picture);
            let captions = of_picture.filter(|(request, _)| request.text == CAPTION_REQUEST);
            let captions: Vec<&str> = captions.map(|(_, answer)| answer.as_str()).collect();
            pairs.extend(caption_pair(example, &captions, counts)?);
        }
        let answered = requests
            .iter()
            .zip(&answers)
            .filter(|(request, _)| request.text != CAPTION_REQUEST);
        let answered: Vec<_> = asked.iter().zip(answered.map(|(_, answer)| answer)).collect();
        for of_picture in answered.chunk_by(|((first, _), _), ((second, _), _)| first == second) {
            let num_wrong = of_picture
                .iter()
                .filter(|((_, question), answer)| **answer != question.answer.to_string())
                .count();
            counts.answers += of_picture.len();
            counts.wrong += num_wrong;
            if num_wrong == 0 {
                continue;
            }
            for ((picture, question), _) in of_picture {
                let wrong = if question.answer == Answer::Yes {
                    Answer::No
                } else {
                    Answer::Yes
                };
                pairs.push(Pair {
                    id: format!("{}-{}", examples[*picture].index, question.answer),
                    request: question.text.clone(),
                    image: ImageSource::from_image(&render(&examples[*picture].scene, SIDE))?,
                    chosen: question.answer.to_string(),
                    false_parts: vec![(0, wrong.to_string().len())],
                    rejected: wrong.to_string(),
                });
            }
        }
        Ok(pairs)
    }

    fn answers(&self, examples: &[Example], requests: &[Request]) -> anyhow::Result<Vec<String>> {
        let pictures = examples
            .iter()
            .map(|example| Ok(self.processor.process(&render(&example.scene, SIDE))?));
        let pictures = pictures.collect::<anyhow::Result<Vec<_>>>()?;
        let embeddings = self.network.encode(&pictures.iter().collect::<Vec<_>>())?;
        let config = self.directory.config();
        let mut texts = Vec::with_capacity(requests.len());
        for request in requests {
            let tokens = self
                .tokenizer
                .encode(&picture_prompt(&request.text), SpecialTokens::Include)?;
            texts.push(
                config
                    .expand(&tokens.ids, &[pictures[request.picture].layout])?
                    .input_ids,
            );
        }
        let images: Vec<_> = requests.iter().map(|request| [&embeddings[request.picture]]).collect();
        let prompts: Vec<VlmPrompt<'_>> = requests
            .iter()
            .zip(&texts)
            .zip(&images)
            .map(|((request, input_ids), images)| VlmPrompt {
                input_ids,
                images,
                example: request.example,
            })
            .collect();
        let generate = GenerateConfig {
            max_new_tokens: MAX_NEW_TOKENS,
            sampling: Sampling::default(),
            eos_token_ids: config.text.eos_token_ids.clone(),
            seed: SEED,
        };
        let answers = self.network.generate(&prompts, &generate)?;
        let decode = |tokens: &[u32]| Ok(self.tokenizer.decode(tokens, SpecialTokens::Omit)?);
        answers.iter().map(|answer| decode(&answer.tokens)).collect()
    }
}

/// After an object that is there, and after one that is not: the companion that is missed, or else any.
fn questions(example: &Example, world: &SceneConfig) -> Vec<Question> {
    let is_there = |kind: &ObjectKind| kinds(&example.scene).contains(kind);
    let missed = world
        .companions
        .rules
        .iter()
        .find(|[object, companion]| is_there(object) && !is_there(companion));
    let existence = |question: &&Question| question.kind == QuestionKind::Existence;
    let mut questions: Vec<Question> = example.questions.iter().filter(existence).cloned().collect();
    if let Some([_, companion]) = missed {
        let article = if companion.to_string().starts_with(['a', 'e', 'i', 'o', 'u']) {
            "an"
        } else {
            "a"
        };
        questions.retain(|question| question.answer == Answer::Yes);
        questions.push(Question {
            kind: QuestionKind::Existence,
            text: format!("is there {article} {companion}"),
            answer: Answer::No,
        });
    }
    questions
}

fn kinds(scene: &Scene) -> BTreeSet<ObjectKind> {
    let kind = |object: &diptych::shapes::Object| ObjectKind {
        color: object.color,
        shape: object.shape,
    };
    scene.objects.iter().map(kind).collect()
}

/// What a caption says of a scene.
struct Judged<'a> {
    caption: &'a str,
    /// Characters of each part that names something, and whether it is there.
    parts: Vec<(usize, usize, bool)>,
    num_recalled: usize,
}

impl<'a> Judged<'a> {
    /// None for what is no caption.
    fn new(caption: &'a str, scene: &Scene) -> Option<Self> {
        let claims = Claims::parse(caption).ok()?;
        let (mut parts, mut recalled, mut start) = (Vec::new(), BTreeSet::new(), 0);
        for group in claims.groups() {
            let words = group.to_string();
            start += caption[start..].find(&words)?;
            let kind = group
                .color
                .zip(group.shape)
                .map(|(color, shape)| ObjectKind { color, shape })?;
            let is_there = kinds(scene).contains(&kind);
            recalled.extend(is_there.then_some(kind));
            parts.push((start, start + words.len(), is_there));
            start += words.len();
        }
        Some(Self {
            caption,
            parts,
            num_recalled: recalled.len(),
        })
    }

    fn hallucinates(&self) -> bool {
        self.parts.iter().any(|(_, _, is_there)| !is_there)
    }

    fn false_parts(&self) -> Vec<(usize, usize)> {
        let parts = self.parts.iter().filter(|(_, _, is_there)| !is_there);
        parts.map(|&(start, end, _)| (start, end)).collect()
    }
}

fn caption_pair(example: &Example, captions: &[&str], counts: &mut Counts) -> anyhow::Result<Option<Pair>> {
    let judged: Vec<Judged<'_>> = captions
        .iter()
        .filter_map(|caption| Judged::new(caption, &example.scene))
        .collect();
    counts.captions += captions.len();
    counts.hallucinating += judged.iter().filter(|caption| caption.hallucinates()).count();
    let num_kinds = kinds(&example.scene).len();
    let complete = |caption: &&Judged<'_>| !caption.hallucinates() && caption.num_recalled == num_kinds;
    let pairs = judged.iter().filter(complete).flat_map(|chosen| {
        let rejected = judged.iter().filter(|caption| caption.hallucinates());
        rejected.map(move |rejected| (chosen, rejected))
    });
    let nearest = pairs.min_by_key(|(chosen, rejected)| chosen.parts.len().abs_diff(rejected.parts.len()));
    let Some((chosen, rejected)) = nearest else {
        return Ok(None);
    };
    Ok(Some(Pair {
        id: format!("{}-caption", example.index),
        request: CAPTION_REQUEST.to_owned(),
        image: ImageSource::from_image(&render(&example.scene, SIDE))?,
        chosen: chosen.caption.to_owned(),
        rejected: rejected.caption.to_owned(),
        false_parts: rejected.false_parts(),
    }))
}
