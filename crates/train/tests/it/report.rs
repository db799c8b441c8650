//! The page.

use std::fs;

use base64::Engine as _;
use diptych_train::{EvaluationTable, ResumeMode, write_evaluation, write_report};

use crate::toy::{Toy, config, run, run_until};

#[test]
fn the_page_holds_everything_and_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("a & b"));
    config.recipe_text = Some("# <script>alert(1)</script>\nmodality = \"toy\"\n".into());
    run(&Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    let page = fs::read_to_string(config.output.join("report.html")).unwrap();
    for name in ["loss", "grad_norm", "learning_rate", "noise&#x2f;mean"] {
        assert!(page.contains(&format!("<h3>{name}</h3><svg")), "{name}");
    }
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(page.contains("<title>a &amp; b</title>"));
    assert!(page.contains("# &lt;script&gt;alert(1)") && !page.contains("<script"));
    assert!(page.contains("optimizer.adamw") && page.contains("examples a second") && page.contains("20 of 20"));

    // The newest picture, byte for byte.
    let png = fs::read(config.output.join("samples/step-000020.png")).unwrap();
    let encoded = base64::engine::general_purpose::STANDARD.encode(png);
    let newest = page.split("<img").nth(1).unwrap();
    assert!(
        newest.starts_with(&format!(" src=\"data:image/png;base64,{encoded}\"")),
        "{}",
        &newest[..80]
    );
    assert_eq!(page.matches("<img").count(), 2);

    // Nothing is fetched: the only addresses are names of XML vocabularies.
    for part in page.split("http").skip(1) {
        assert!(part.starts_with("://www.w3.org/"), "{}", &part[..40]);
    }
    assert!(!page.contains("<link") && !page.contains("@import"));
}

#[test]
fn an_evaluation_can_be_added_later() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path().join("run"));
    run_until(4, &Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    let page = fs::read_to_string(config.output.join("report.html")).unwrap();
    assert!(!page.contains("<table") && page.contains("stopped before its last step"));

    let mut table = EvaluationTable {
        title: "Before | after, 256 held-out prompts".into(),
        columns: ["base", "aligned", "difference"].map(String::from).to_vec(),
        rows: vec![["0.61", "0.78", "+0.17 [0.12, 0.21] <good>"].map(String::from).to_vec()],
        note: "95 % bootstrap interval".into(),
    };
    write_evaluation(&config.output, &table).unwrap();
    let path = write_report(&config.output).unwrap();
    let page = fs::read_to_string(path).unwrap();
    assert!(page.contains("<th>aligned</th>") && page.contains("<td>0.78</td>") && page.contains("&lt;good&gt;"));
    assert!(page.contains("95 % bootstrap interval"));

    table.rows[0].pop();
    let message = write_evaluation(&config.output, &table).unwrap_err().to_string();
    assert!(message.contains("2 cells under 3 columns"), "{message}");
}
