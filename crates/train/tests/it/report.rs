//! The page.

use std::fs;

use base64::Engine as _;
use diptych_train::{EvaluationTable, ResumeMode, compare_runs, read_metrics, write_evaluation, write_report};

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

#[test]
fn runs_are_compared_on_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let directory = |name: &str| dir.path().join(name);
    for (name, seed, lr) in [("first", 0, 0.05), ("again", 1, 0.05), ("slow", 0, 0.001)] {
        let mut config = config(directory(name));
        config.seed = seed;
        config.optimizer.set_lr(lr);
        run(&Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    }
    let table = |difference: &str| EvaluationTable {
        title: "Before | after".into(),
        columns: vec!["difference".into()],
        rows: vec![vec![difference.into()]],
        note: String::new(),
    };
    write_evaluation(&directory("first"), &table("+0.17")).unwrap();
    write_evaluation(&directory("slow"), &table("+0.01")).unwrap();
    let out = directory("comparison.html");
    let found = compare_runs(&["first", "again", "slow"].map(directory), &out).unwrap();

    assert_eq!(found.names, ["first", "again", "slow"]);
    let difference = |key: &str| {
        let found = found.differences.iter().find(|(other, _)| other == key);
        found.map(|(_, values)| values.join(" "))
    };
    assert_eq!(difference("seed").as_deref(), Some("0 1 0"));
    assert_eq!(difference("optimizer.adamw.lr").as_deref(), Some("0.05 0.05 0.001"));
    // Where a run lies and what is the same everywhere do not count.
    assert_eq!(found.differences.len(), 2, "{:?}", found.differences);

    let [seeds] = found.repetitions.as_slice() else {
        panic!("{:?}", found.repetitions);
    };
    assert_eq!(seeds.names, ["first", "again"]);
    let last_loss = |name: &str| {
        read_metrics(&directory(name).join("metrics.jsonl"))
            .unwrap()
            .pop()
            .unwrap()
            .loss
    };
    let (_, [mean, low, high]) = seeds.metrics.iter().find(|(name, _)| name == "loss").unwrap();
    let (a, b) = (last_loss("first"), last_loss("again"));
    let close = |text: &str, value: f64| (text.parse::<f64>().unwrap() - value).abs() <= value.abs() * 1e-3 + 1e-4;
    assert!(
        close(mean, f64::midpoint(a, b)) && close(low, a.min(b)) && close(high, a.max(b)),
        "{mean} {low} {high}"
    );
    assert_ne!(a, b);

    let page = fs::read_to_string(&out).unwrap();
    assert!(page.contains("<td>first</td><td>+0.17</td>") && page.contains("<td>slow</td><td>+0.01</td>"));
    assert_eq!(page.matches("Before | after").count(), 1);
    // One picture a metric with a line for each run, and the newest sample of each run.
    assert_eq!(page.matches("<svg").count(), 4);
    for color in ["#1F5AA0", "#D55E00", "#008C69"] {
        assert_eq!(page.matches(&format!("stroke=\"{color}\"")).count(), 4, "{color}");
    }
    assert_eq!(page.matches("<img").count(), 3);
    assert!(!page.contains("<link") && !page.contains("@import"));
}

#[test]
fn what_cannot_be_compared_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let run_directory = dir.path().join("run");
    run(&Toy::f32(), &config(run_directory.clone()), ResumeMode::Fresh).unwrap();
    let out = dir.path().join("comparison.html");
    let message = |directories: &[&std::path::Path]| {
        let directories: Vec<_> = directories.iter().map(|path| path.to_path_buf()).collect();
        compare_runs(&directories, &out).unwrap_err().to_string()
    };
    assert!(message(&[&run_directory]).contains("1 run, expected at least 2"));
    let same = dir.path().join("run/../run");
    assert!(message(&[&run_directory, &same]).contains("given twice"));
    assert!(message(&[&run_directory, dir.path()]).contains("holds no run"));
    assert!(message(&[&run_directory, &dir.path().join("none")]).contains("none"));
    assert!(!out.exists());
}
