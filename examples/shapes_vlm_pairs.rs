//! Preference pairs from a vision-language model's own answers about the embedded world: what is true of the picture is chosen, what says
//! that something is there which is not is rejected. Truth comes from the scene that was rendered.
//!
//! Of every scene several captions are sampled. A pair is a hallucinating one and a true one that leaves out nothing, of the nearest length. Every
//! scene is also asked after an object that is there and one that is not (the companion of another where that is missing); a wrong answer
//! and the right one are a pair.
//!
//! Run: `cargo run --release --example shapes_vlm_pairs -- MODEL SCENES.toml OUT_DIR [NUM_PAIRS]`
//!
//! It writes `OUT_DIR/pairs.jsonl`, and `OUT_DIR/mask.jsonl` with spans: the same pairs with weight 0 on the words of rejected captions
//! that are true, as Mask-DPO (Gu et al., ICLR 2025) masks them.

use std::collections::BTreeSet;
use std::path::PathBuf;

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
const NUM_PAIRS: usize = 800;
/// Scenes that are answered about together.
const BATCH: usize = 32;
const MAX_NEW_TOKENS: usize = 24;

#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, scenes, out, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("expected MODEL SCENES.toml OUT_DIR [NUM_PAIRS]");
    };
    let num_pairs = rest.first().map_or(Ok(NUM_PAIRS), |number| number.parse())?;
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
    let out = PathBuf::from(out);
    std::fs::create_dir_all(&out)?;
    let masked = pairs
        .iter()
        .map(|pair| pair.record(true))
        .collect::<anyhow::Result<_>>()?;
    let plain = pairs
        .iter()
        .map(|pair| pair.record(false))
        .collect::<anyhow::Result<_>>()?;
    write_text(&out.join("mask.jsonl"), &TextDataset::Pairs(masked))?;
    write_text(&out.join("pairs.jsonl"), &TextDataset::Pairs(plain))?;
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

/// A pair about one picture.
struct Pair {
    id: String,
    request: String,
    image: ImageSource,
    chosen: String,
    rejected: String,
    /// Characters of the rejected answer that are true.
    true_parts: Vec<(usize, usize)>,
}

impl Pair {
    fn record(&self, with_spans: bool) -> anyhow::Result<TextPair> {
        let [chosen, rejected] = [&self.chosen, &self.rejected].map(|answer| format!("{COMPLETION_START}{answer}"));
        let mut pair = TextPair::new(self.id.clone(), picture_prompt(&self.request), chosen, rejected);
        pair.images = vec![self.image.clone()];
        if with_spans {
            let shift = COMPLETION_START.len();
            let spans = self.true_parts.iter().map(|&(start, end)| CharSpan {
                start: start + shift,
                end: end + shift,
                weight: 0.0,
            });
            pair.rejected_spans = spans.collect();
        }
        Ok(pair)
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

    /// The pairs of some examples: of each at most one of captions and two of answers.
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
        for ((_, answer), (picture, question)) in answered.zip(&asked) {
            counts.answers += 1;
            let right = question.answer.to_string();
            let wrong = if question.answer == Answer::Yes {
                Answer::No
            } else {
                Answer::Yes
            }
            .to_string();
            // What is neither yes nor no is no answer to learn from.
            if *answer == wrong {
                counts.wrong += 1;
                pairs.push(Pair {
                    id: format!("{}-{}", examples[*picture].index, question.answer),
                    request: question.text.clone(),
                    image: ImageSource::from_image(&render(&examples[*picture].scene, SIDE))?,
                    chosen: right,
                    rejected: wrong,
                    true_parts: Vec::new(),
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

    /// Everything but what is not there, words between included.
    fn true_parts(&self) -> Vec<(usize, usize)> {
        let (mut spans, mut from) = (Vec::new(), 0);
        for &(start, end, is_there) in &self.parts {
            if !is_there {
                spans.extend((from < start).then_some((from, start)));
                from = end;
            }
        }
        spans.extend((from < self.caption.len()).then_some((from, self.caption.len())));
        spans
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
        true_parts: rejected.true_parts(),
    }))
}
