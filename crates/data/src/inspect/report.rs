//! An inspection as text.

use std::fmt;

use super::{Inspection, Severity};

/// Image sizes shown in the text; the JSON has all.
const MAX_SIZES: usize = 8;

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} layout, {} records in {} file(s)",
            self.layout,
            self.num_records,
            self.files.len()
        )?;
        if self.num_good_records < self.num_records {
            write!(f, ", {} of them good", self.num_good_records)?;
        }
        writeln!(f)?;
        for (reason, count) in &self.left_out {
            writeln!(f, "left out: {count} {}", reason.description())?;
        }
        if let Some(sha256) = &self.sha256 {
            writeln!(f, "sha256 {sha256}")?;
        }
        if let Some(form) = &self.form {
            writeln!(f, "{}: {form}", self.records)?;
        }
        self.write_fields(f)?;
        if !self.ignored_keys.is_empty() {
            writeln!(f, "not read: {}", self.ignored_keys.join(", "))?;
        }
        self.write_statistics(f)?;
        for preview in &self.previews {
            writeln!(
                f,
                "record {}: {:?} {}",
                preview.id,
                preview.prompt,
                preview.images.join("; ")
            )?;
        }
        self.write_problems(f)
    }
}

impl Inspection {
    fn write_fields(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for field in &self.fields {
            let kinds: Vec<String> = field
                .kinds
                .iter()
                .map(|(kind, count)| format!("{count} {kind}"))
                .collect();
            writeln!(
                f,
                "  {:<16} {:>8} rows: {}",
                field.name,
                field.num_present,
                kinds.join(", ")
            )?;
        }
        for tensor in &self.tensors {
            let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
            writeln!(
                f,
                "  {:<22} ({}): mean {:.4}, std {:.4}, min {:.4}, max {:.4}",
                tensor.name,
                shape.join(", "),
                tensor.mean,
                tensor.std,
                tensor.min,
                tensor.max
            )?;
        }
        Ok(())
    }

    fn write_statistics(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.image_sizes.is_empty() {
            let shown = self.image_sizes.iter().take(MAX_SIZES);
            let sizes: Vec<String> = shown
                .map(|size| format!("{} of {}x{}", size.num_images, size.width, size.height))
                .collect();
            let rest = self.image_sizes.len().saturating_sub(MAX_SIZES);
            let rest = if rest > 0 {
                format!(", … ({rest} more sizes)")
            } else {
                String::new()
            };
            writeln!(f, "images: {}{rest}", sizes.join(", "))?;
        }
        if let Some(prompts) = &self.prompts {
            writeln!(
                f,
                "prompts: {} different, {} repeated; {} to {} characters, mean {:.1}; at most {} words",
                prompts.num_distinct,
                prompts.num_duplicates,
                prompts.min_chars,
                prompts.max_chars,
                prompts.mean_chars,
                prompts.max_words
            )?;
        }
        for lengths in &self.completion_lengths {
            writeln!(
                f,
                "{}: {} texts of {} to {} characters, mean {:.1}",
                lengths.key, lengths.num_texts, lengths.min, lengths.max, lengths.mean
            )?;
        }
        if self.num_desirable + self.num_undesirable > 0 {
            writeln!(
                f,
                "labels: {} desirable, {} undesirable",
                self.num_desirable, self.num_undesirable
            )?;
        }
        if let Some(scores) = &self.score_margins {
            writeln!(
                f,
                "chosen minus rejected score: mean {:.4}, min {:.4}, max {:.4} ({} scored)",
                scores.mean, scores.min, scores.max, scores.num_scored
            )?;
        }
        Ok(())
    }

    fn write_problems(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            let severity = match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(f, "{severity}: {}", problem.message)?;
        }
        let hidden = self.num_errors + self.num_warnings - self.problems.len();
        if hidden > 0 {
            writeln!(f, "… and {hidden} more")?;
        }
        write!(f, "{} error(s), {} warning(s)", self.num_errors, self.num_warnings)
    }
}
