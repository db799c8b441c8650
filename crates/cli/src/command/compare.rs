//! `diptych compare`: several runs on one page.

use std::fmt::Write as _;

use diptych_train::{RunComparison, compare_runs};

use crate::arguments::CompareArguments;
use crate::output::{create_parent, print};

pub(crate) fn run(arguments: &CompareArguments) -> anyhow::Result<()> {
    create_parent(&arguments.out)?;
    let comparison = compare_runs(&arguments.runs, &arguments.out)?;
    print(format!("{}comparison: {}", text(&comparison)?, arguments.out.display()))
}

/// What differs and where the runs ended, for a terminal.
fn text(comparison: &RunComparison) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for (title, rows) in [
        ("what differs", &comparison.differences),
        ("where they ended", &comparison.results),
    ] {
        if rows.is_empty() {
            continue;
        }
        let width = rows.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        let columns: Vec<usize> = (0..comparison.names.len())
            .map(|place| {
                let cells = rows.iter().map(|(_, values)| values[place].chars().count());
                cells
                    .chain([comparison.names[place].chars().count()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        write!(text, "{title:width$}")?;
        for (name, column) in comparison.names.iter().zip(&columns) {
            write!(text, "  {name:>column$}")?;
        }
        for (key, values) in rows {
            write!(text, "\n{key:width$}")?;
            for (value, column) in values.iter().zip(&columns) {
                write!(text, "  {value:>column$}")?;
            }
        }
        text.push_str("\n\n");
    }
    Ok(text)
}
