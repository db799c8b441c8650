//! Records of text: against TRL, in every layout, damaged, and written and read back.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helper functions, too"
)]

mod bad_rows;
mod conversion;
mod golden;
mod inspection;
mod layouts;
mod round_trip;
mod tables;
mod vision;
mod vision_layouts;

use std::path::{Path, PathBuf};

use diptych_data::{Layout, TextDataset, TextPair};

/// A folder of one test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A JSON lines file.
    fn rows(&self, name: &str, rows: &[&str]) -> PathBuf {
        self.write(name, rows.join("\n"))
    }
}

fn load(path: &Path, layout: Layout) -> TextDataset {
    TextDataset::load(&[path.to_path_buf()], layout).unwrap()
}

fn failure(path: &Path, layout: Layout) -> String {
    TextDataset::load(&[path.to_path_buf()], layout)
        .unwrap_err()
        .to_string()
}

fn pairs(dataset: TextDataset) -> Vec<TextPair> {
    match dataset {
        TextDataset::Pairs(pairs) => pairs,
        other => panic!("{} in place of pairs", other.records()),
    }
}
