//! Words that a layer must not know, in code and literals; comments may explain.

use regex::Regex;

use crate::repo::Repo;
use crate::source::{Keep, is_test_path, mask, test_lines};
use crate::tidy::Violation;

/// Where which words are banned, and why.
struct Ban {
    /// Directories.
    under: &'static [&'static str],
    /// Files that may.
    except: &'static [&'static str],
    words: &'static str,
    reason: &'static str,
}

const LIBRARIES: &[&str] = &[
    "crates/core/src/",
    "crates/data/src/",
    "crates/diffusion/src/",
    "crates/diptych/src/",
    "crates/eval/src/",
    "crates/llm/src/",
    "crates/models/src/",
    "crates/shapes/src/",
    "crates/tensor/src/",
    "crates/train/src/",
    "crates/vlm/src/",
];

const BANS: &[Ban] = &[
    Ban {
        under: &["crates/train/src/"],
        except: &[],
        words: r"(?i)(?:\b|_)(unet|vae|latents?|pixels?|timesteps?|denois\w*|diffusion|vlm|llm|captions?|prompts?|lora)(?:\b|_)",
        reason: "the training loop knows no modality; it belongs in the modality's crate",
    },
    Ban {
        under: &["crates/core/src/"],
        except: &[],
        words: r"\bstd::(fs|io|net|env|time|process)\b|\brand(_\w+)?::|\brandom::",
        reason: "objectives are pure: no IO, no clock, no randomness",
    },
    Ban {
        under: LIBRARIES,
        except: &[],
        words: r"\benv::(var|vars|var_os|set_var|args|args_os)\b|\bprocess::exit\b",
        reason: "only the command line reads the environment or exits",
    },
    Ban {
        under: LIBRARIES,
        except: &["crates/train/src/clock.rs"],
        words: r"\b(Instant|SystemTime)::now\b",
        reason: "time enters through `diptych_train`'s clock alone, so that runs do not depend on it",
    },
    Ban {
        under: LIBRARIES,
        except: &[],
        words: r"\b(thread_rng|from_os_rng|from_entropy|rand::rng|rand::random|OsRng|StdRng|SmallRng)\b",
        reason: "every random number is a function of the recipe's seed; see `diptych_tensor::random`",
    },
];

pub(crate) fn check(repo: &Repo) -> Vec<Violation> {
    let mut found = Vec::new();
    for ban in BANS {
        let pattern = Regex::new(ban.words).expect("a valid pattern");
        for (path, text) in repo.texts("crates/", ".rs") {
            let is_subject = ban.under.iter().any(|under| path.starts_with(under)) && !is_test_path(path);
            if is_subject && !ban.except.contains(&path) {
                found.extend(banned(path, text, &pattern, ban.reason));
            }
        }
    }
    found
}

fn banned(path: &str, text: &str, pattern: &Regex, reason: &str) -> Vec<Violation> {
    let is_test = test_lines(&mask(text, Keep::Code));
    let code = mask(text, Keep::CodeAndLiterals);
    code.lines()
        .enumerate()
        .filter(|(index, _)| !is_test[*index])
        .filter_map(|(index, line)| {
            let word = pattern.find(line)?.as_str().trim_matches('_');
            Some(Violation::error(path, index + 1, format!("`{word}`: {reason}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn num_found(path: &str, text: &str) -> usize {
        check(&Repo::of(&[(path, text)])).len()
    }

    #[test]
    fn the_loop_knows_no_modality() {
        for code in [
            "fn f(latents: u8) {}",
            "struct UNet;",
            "let k = \"prompt\";",
            "let num_timesteps = 1;",
        ] {
            assert_eq!(num_found("crates/train/src/a.rs", code), 1, "{code}");
        }
        for code in [
            "// a U-Net, a prompt",
            "#[cfg(test)]\nmod tests { struct Diffusion; }",
            "let patent = 1;",
        ] {
            assert_eq!(num_found("crates/train/src/a.rs", code), 0, "{code}");
        }
        assert_eq!(num_found("crates/diffusion/src/a.rs", "struct UNet;"), 0);
    }

    #[test]
    fn libraries_have_no_clock_environment_or_ambient_randomness() {
        for code in [
            "std::env::var(\"X\")",
            "Instant::now()",
            "rand::rng()",
            "std::process::exit(1)",
        ] {
            assert_eq!(num_found("crates/tensor/src/a.rs", code), 1, "{code}");
            assert_eq!(num_found("crates/cli/src/a.rs", code), 0, "{code}");
        }
        assert_eq!(num_found("crates/train/src/clock.rs", "Instant::now()"), 0);
        assert_eq!(num_found("crates/core/src/a.rs", "use std::fs;"), 1);
    }

    #[test]
    fn every_library_is_covered() {
        let repo = Repo::open().unwrap();
        for name in repo.crates() {
            let is_tool = matches!(name, "cli" | "dev");
            assert!(
                is_tool || LIBRARIES.contains(&&*format!("crates/{name}/src/")),
                "{name} is not in LIBRARIES"
            );
        }
    }
}
