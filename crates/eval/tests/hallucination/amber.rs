//! AMBER, with nouns that are stored and without.

use std::collections::BTreeMap;

use diptych_eval::hallucination::{AmberDimension, AmberWords, BenchmarkReport, NounSource, WordNet, score_amber};
use serde_json::{Value, json};

use crate::place::{Place, assert_metrics, message};

#[test]
fn amber_is_scored_as_published_in_any_order() {
    let place = Place::new();
    let scored = place.amber("amber_answers.json", &AmberDimension::ALL).unwrap();
    assert_metrics(&scored, &place.expected["amber"], 33);
    assert!(
        scored.notes[0].contains("are neither `Yes` nor `No`"),
        "{:?}",
        scored.notes
    );
    assert_eq!(scored.tally.num_units(), 94, "two ids are of one image");
    let mut answers: Vec<Value> = serde_json::from_str(&place.read("amber_answers.json")).unwrap();
    answers.sort_by_key(|row| row["id"].as_u64());
    place.write("sorted.json", &json!(answers).to_string());
    let sorted = place.amber("sorted.json", &AmberDimension::ALL).unwrap();
    let (one, other) = (
        BenchmarkReport::of(&scored, None, 3, 50),
        BenchmarkReport::of(&sorted, None, 3, 50),
    );
    assert_eq!(one.unwrap().metrics, other.unwrap().metrics);

    place.write("cut.json", &json!(answers[1..]).to_string());
    let said = message(place.amber("cut.json", &AmberDimension::ALL));
    assert!(said.contains("cut.json: id 1 is not answered"), "{said}");
    place.amber("cut.json", &[AmberDimension::Relation]).unwrap();
    let mut twice = answers.clone();
    twice.push(answers[4].clone());
    place.write("twice.json", &json!(twice).to_string());
    assert!(
        message(place.amber("twice.json", &AmberDimension::ALL))
            .contains("row 96: id 5 was answered in an earlier row")
    );
    place.write("stray.json", &json!([{"id": 999, "response": "Yes"}]).to_string());
    assert!(message(place.amber("stray.json", &AmberDimension::ALL)).contains("row 1: id 999 is not among"));
    let (relation, safe) = (place.path("relation.json"), place.path("safe_words.txt"));
    let vectors = place.write("few.txt", "sky 1 2\ngrass 1\n");
    assert!(
        message(AmberWords::read(&relation, &safe, Some(&vectors), 0.8))
            .contains("few.txt, row 2: expected a word and 2")
    );
    let vectors = place.write("few.txt", "sky 1 2\n");
    assert!(message(AmberWords::read(&relation, &safe, Some(&vectors), 0.8)).contains("there is no vector of"));
}

#[test]
fn amber_nouns_can_be_every_word_of_the_vocabulary() {
    let place = Place::new();
    let words = AmberWords::read(&place.path("relation.json"), &place.path("safe_words.txt"), None, 0.8).unwrap();
    let annotations = place.write(
        "a.json",
        &json!([{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["ship"]}]).to_string(),
    );
    let answers = place.write(
        "r.json",
        &json!([{"id": 1, "response": "Two dogs watch the ships. Dogs!"}]).to_string(),
    );
    let dimensions = [AmberDimension::Generative];
    let score = |nouns| score_amber(&answers, &annotations, &words, &nouns, &dimensions, &BTreeMap::new()).unwrap();
    let scored = score(NounSource::EveryWord(None));
    // The capital is lost, as in the official program.
    assert_eq!(scored.rows[0]["nouns"], json!(["dog", "ship"]));
    assert_eq!(scored.rows[0]["unsafe"], json!(["ship"]));
    assert!(
        scored
            .notes
            .iter()
            .filter(|note| note.starts_with("approximate"))
            .count()
            == 2,
        "{:?}",
        scored.notes
    );
    place.write(
        "index.noun",
        "  1 license\ndog n 1\nship n 1\nman n 1\ngoose n 1\nboss n 1\n",
    );
    place.write("noun.exc", "geese goose\n");
    let wordnet = WordNet::read(place.folder.path()).unwrap();
    for (word, lemma) in [
        ("dogs", "dog"),
        ("men", "man"),
        ("geese", "goose"),
        ("bosses", "boss"),
        ("boss", "boss"),
        ("xs", "xs"),
    ] {
        assert_eq!(wordnet.lemma(word), lemma);
    }
    assert_eq!(score(NounSource::EveryWord(Some(wordnet))).rows, scored.rows);
}
