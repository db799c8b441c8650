//! `diptych list`: what is built in, and what lies in the working directory.

use std::path::Path;

use diptych_core::{Objective, ObjectiveInfo};
use diptych_data::Layout;
use diptych_diffusion::Diffusion;
use diptych_llm::Language;
use diptych_train::Modality as _;
use diptych_vlm::VisionLanguage;

use crate::arguments::{ListArguments, Listing};
use crate::command::cards::{self, Card, DatasetCard, ModelCard};
use crate::failure::usage;
use crate::output::print;

const BENCHMARKS: [[&str; 2]; 9] = [
    [
        "win-rate",
        "a judge's scores of two models on the same prompts and seeds",
    ],
    [
        "shapes-geneval",
        "objects, numbers, colors, places and their bindings in the shapes world, checked by its verifier",
    ],
    [
        "verdicts",
        "a win rate from the answers of a judge of pairs, asked in both orders",
    ],
    [
        "pope",
        "is there such an object: random, popular and adversarial questions",
    ],
    [
        "chair",
        "objects in captions that are not in the image, of COCO or the shapes world",
    ],
    ["object-halbench", "CHAIR on objects that a language model extracted"],
    [
        "amber",
        "objects in descriptions; questions about existence, attributes and relations",
    ],
    ["mmhal", "MMHal-Bench, from a judge's replies"],
    ["hallusion", "HallusionBench, from a judge's verdicts"],
];

pub(crate) fn run(arguments: &ListArguments) -> anyhow::Result<()> {
    if let (Some(name), false) = (
        &arguments.name,
        matches!(arguments.what, Listing::Models | Listing::Datasets),
    ) {
        return Err(usage(format!(
            "{name} is unused: only datasets and models are described one by one"
        )));
    }
    let text = match arguments.what {
        Listing::Objectives => objectives(),
        Listing::Methods => methods(),
        Listing::Layouts => {
            let layouts = Layout::NAMES.iter().filter_map(|name| name.parse::<Layout>().ok());
            table(layouts.map(|layout| [layout.name().into(), layout.description().into()]))
        }
        Listing::Benchmarks => table(BENCHMARKS.map(|row| row.map(str::to_owned))),
        Listing::Models => cards::<ModelCard>("models", arguments.name.as_deref())?,
        Listing::Datasets => cards::<DatasetCard>("datasets", arguments.name.as_deref())?,
    };
    print(text.trim_end())
}

fn objectives() -> String {
    let row = |info: &ObjectiveInfo| {
        [
            info.name.to_owned(),
            info.requirements.kind.name().to_owned(),
            info.requirements.needs(),
            info.paper.to_owned(),
        ]
    };
    table(Objective::CATALOG.iter().map(row))
}

fn methods() -> String {
    let of = |modality: &'static str, methods: &[(&'static str, &'static str)]| -> Vec<[String; 3]> {
        let row = |&(name, description): &(&str, &str)| [modality, name, description].map(str::to_owned);
        methods.iter().map(row).collect()
    };
    let diffusion = of(Diffusion::NAME, &diptych_diffusion::MethodConfig::DESCRIPTIONS);
    let language = of(Language::NAME, &diptych_llm::MethodConfig::DESCRIPTIONS);
    let vision = of(VisionLanguage::NAME, &diptych_vlm::MethodConfig::DESCRIPTIONS);
    table(diffusion.into_iter().chain(vision).chain(language))
}

/// Columns as wide as what is in them.
fn table<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What lies in a folder of the working directory: cards, and directories that no card is about. With a name, all that its card says.
fn cards<C: Card>(folder: &str, name: Option<&str>) -> anyhow::Result<String> {
    if !Path::new(folder).is_dir() {
        return Ok(format!("no {folder}/ in the working directory"));
    }
    let cards = cards::read::<C>(Path::new(folder))?;
    if let Some(name) = name {
        let Some((_, path, card)) = cards.iter().find(|(word, ..)| word == name) else {
            let words: Vec<&str> = cards.iter().map(|(word, ..)| word.as_str()).collect();
            return Err(usage(format!(
                "{folder}/ has no card {name}; there are {}",
                words.join(", ")
            )));
        };
        let text = std::fs::read_to_string(path)?;
        let section = text.find("\n[").map_or("", |at| &text[at + 1..]);
        return Ok(format!("{}\n{section}", card.text()));
    }
    let mut rows: Vec<[String; 4]> = cards.iter().map(|(word, _, card)| card.row(word)).collect();
    let mut directories = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let word = path.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
        if path.is_dir() && !cards.iter().any(|(known, ..)| *known == word) {
            directories.push([path.display().to_string(), String::new(), String::new(), String::new()]);
        }
    }
    directories.sort();
    rows.extend(directories);
    if rows.is_empty() {
        return Ok(format!("{folder}/ is empty"));
    }
    Ok(table(rows))
}
