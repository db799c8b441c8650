//! Win rates against numpy: see `golden/win_rate.py`.

use diptych_eval::{Error, Estimate, WinRate, mean_per_prompt};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    base: Vec<f64>,
    aligned: Vec<f64>,
    means: Columns<f64>,
    intervals: Columns<Interval>,
    wins: usize,
    ties: usize,
    losses: usize,
    win_rate: f64,
    p_value: f64,
    is_p_exact: bool,
}

#[derive(Deserialize)]
struct Columns<T> {
    base: T,
    aligned: T,
    difference: T,
}

#[derive(Deserialize)]
struct Interval {
    low: f64,
    high: f64,
    std_error: f64,
}

fn assert_estimate(found: Estimate, mean: f64, interval: &Interval, name: &str) {
    assert!(
        (found.mean - mean).abs() < 1e-12,
        "{name}: mean {} and {mean}",
        found.mean
    );
    // Five standard errors of one bound: the scores of quarters move it in steps, hence the small constant.
    let tolerance = 5.0 * interval.std_error + 1e-9;
    assert!(
        (found.low - interval.low).abs() < tolerance,
        "{name}: low {} and {}",
        found.low,
        interval.low
    );
    assert!(
        (found.high - interval.high).abs() < tolerance,
        "{name}: high {} and {}",
        found.high,
        interval.high
    );
}

#[test]
fn agrees_with_numpy() {
    let golden: Golden = serde_json::from_str(include_str!("golden/win_rate.json")).unwrap();
    assert_eq!(golden.cases.len(), 5);
    for case in golden.cases {
        let found = WinRate::compare(&case.base, &case.aligned, 11, 10_000).unwrap();
        assert_eq!(found.n, case.base.len());
        assert_eq!(
            (found.wins, found.ties, found.losses),
            (case.wins, case.ties, case.losses),
            "{}",
            case.name
        );
        assert!((found.win_rate - case.win_rate).abs() < 1e-12, "{}", case.name);
        assert_estimate(found.base, case.means.base, &case.intervals.base, &case.name);
        assert_estimate(found.aligned, case.means.aligned, &case.intervals.aligned, &case.name);
        assert_estimate(
            found.difference,
            case.means.difference,
            &case.intervals.difference,
            &case.name,
        );
        // Binomial error of 10,000 sign patterns, five times, and the 1 / 10,001 that keeps it from 0.
        let p = case.p_value;
        let tolerance = if case.is_p_exact {
            1e-12
        } else {
            5.0 * (p * (1.0 - p) / 1e4).sqrt() + 2e-4
        };
        assert!(
            (found.p_value - p).abs() <= tolerance,
            "{}: p {} and {p}",
            case.name,
            found.p_value
        );
    }
}

#[test]
fn the_seed_decides_and_nothing_else() {
    let base = [0.1, 0.5, 0.3, 0.9, 0.2];
    let aligned = [0.3, 0.4, 0.8, 0.9, 0.6];
    let compare = |seed| WinRate::compare(&base, &aligned, seed, 500).unwrap();
    assert_eq!(compare(1), compare(1));
    assert_ne!(
        (compare(1).base.low, compare(1).aligned.high),
        (compare(2).base.low, compare(2).aligned.high)
    );
    let text = serde_json::to_string(&compare(1)).unwrap();
    assert_eq!(serde_json::from_str::<WinRate>(&text).unwrap(), compare(1));
}

#[test]
fn swapping_the_sides_mirrors_the_outcome() {
    let base = [0.1, 0.5, 0.3, 0.9, 0.2, 0.5];
    let aligned = [0.3, 0.4, 0.8, 0.9, 0.6, 0.7];
    let (there, back) = (
        WinRate::compare(&base, &aligned, 0, 2000).unwrap(),
        WinRate::compare(&aligned, &base, 0, 2000).unwrap(),
    );
    assert_eq!(
        (there.wins, there.ties, there.losses),
        (back.losses, back.ties, back.wins)
    );
    // The same resamples, read from the other end.
    assert!((there.difference.low + back.difference.high).abs() < 1e-12);
    assert_eq!(there.p_value, back.p_value);
    assert_eq!(there.base, back.aligned);
}

#[test]
fn degenerate_cases() {
    let one = WinRate::compare(&[0.25], &[0.75], 0, 100).unwrap();
    assert_eq!(
        one.difference,
        Estimate {
            mean: 0.5,
            low: 0.5,
            high: 0.5
        }
    );
    assert_eq!((one.win_rate, one.p_value), (1.0, 1.0));
    assert!(one.to_string().contains("one prompt: the interval says nothing"));
    let same = WinRate::compare(&[0.5; 40], &[0.5; 40], 0, 1).unwrap();
    assert_eq!((same.ties, same.win_rate, same.p_value), (40, 0.5, 1.0));
    assert_eq!(
        same.difference,
        Estimate {
            mean: 0.0,
            low: 0.0,
            high: 0.0
        }
    );

    assert!(matches!(WinRate::compare(&[], &[], 0, 10), Err(Error::NoScores)));
    let message = WinRate::compare(&[0.0; 3], &[0.0; 2], 0, 10).unwrap_err().to_string();
    assert_eq!(
        message,
        "3 base scores but 2 aligned scores; expected as many of one as of the other"
    );
    let message = WinRate::compare(&[0.0, 1.0], &[0.0, f64::NAN], 0, 10)
        .unwrap_err()
        .to_string();
    assert_eq!(message, "score 1 of aligned is NaN; expected a finite number");
    assert!(matches!(
        WinRate::compare(&[f64::INFINITY], &[0.0], 0, 10),
        Err(Error::NotFinite {
            side: "base",
            index: 0,
            ..
        })
    ));
    assert!(matches!(
        WinRate::compare(&[0.0], &[0.0], 0, 0),
        Err(Error::InvalidConfig {
            key: "bootstrap_samples",
            ..
        })
    ));
}

#[test]
fn the_table() {
    let base = [0.25, 0.5, 0.5, 0.75];
    let aligned = [0.5, 0.75, 0.5, 1.0];
    let text = WinRate::compare(&base, &aligned, 0, 1000).unwrap().to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "    base |  aligned | difference 95 % interval        | win/tie/loss | win rate, 95 %        | p-value | n"
    );
    // Half of the sixteen sign patterns of three quarters and a zero: +++ and ---, each twice, of 16.
    assert_eq!(
        lines[1],
        "  0.5000 |   0.6875 |    +0.1875 [+0.0625, +0.2500]   |        3/1/0 | 87.5 % [62.5, 100.0]  |  0.2500 | 4"
    );
    assert_eq!(lines.len(), 2);
}

#[test]
fn images_of_a_prompt_count_once() {
    assert_eq!(mean_per_prompt(&[0.0, 1.0, 0.5, 0.75], 2).unwrap(), [0.5, 0.625]);
    assert_eq!(mean_per_prompt(&[0.25, 1.0], 1).unwrap(), [0.25, 1.0]);
    assert!(matches!(
        mean_per_prompt(&[0.0; 3], 2),
        Err(Error::Ungroupable {
            len: 3,
            images_per_prompt: 2
        })
    ));
    assert!(matches!(mean_per_prompt(&[0.0; 3], 0), Err(Error::Ungroupable { .. })));
}
