//! Damaged files, thousands of them: reading may succeed or fail, but it returns.

use std::path::{Path, PathBuf};

use diptych_data::{Dataset, ImageSource, Layout, inspect};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A few bytes changed, and sometimes a part cut out or doubled.
fn damage(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..damaged.len());
        damaged[at] = match rng.random_range(0..3) {
            0 => rng.random(),
            1 => damaged[at] ^ (1 << rng.random_range(0..8)),
            _ => 0xff,
        };
    }
    let (from, len) = (rng.random_range(0..damaged.len()), rng.random_range(0..64));
    let part = from..(from + len).min(damaged.len());
    match rng.random_range(0..4) {
        0 => drop(damaged.drain(part)),
        1 => {
            let copy = damaged[part.clone()].to_vec();
            damaged.splice(part.start..part.start, copy);
        }
        _ => {}
    }
    damaged
}

#[test]
fn images() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut decoded, mut refused) = (0, 0);
    for entry in std::fs::read_dir(fixtures().join("images")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for _ in 0..300 {
            match ImageSource::Bytes(damage(&bytes, &mut rng).into()).decode() {
                Ok(_) => decoded += 1,
                Err(_) => refused += 1,
            }
        }
    }
    // PNG has checksums, JPEG has not: both outcomes occur, or the damage is not what it is meant to be.
    assert_eq!(decoded + refused, 3000);
    assert!(decoded > 100 && refused > 1000, "{decoded} decoded, {refused} refused");
}

#[test]
fn records() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("images")).unwrap();
    for name in ["rgb.png", "gray.png", "photo.jpg", "turned.jpg"] {
        std::fs::copy(
            fixtures().join("images").join(name),
            folder.path().join("images").join(name),
        )
        .unwrap();
    }
    let cases = [
        ("preference.jsonl", Layout::Preference),
        ("image_caption.jsonl", Layout::ImageCaption),
        ("latents/shard-0.safetensors", Layout::LatentPairs),
    ];
    for (name, layout) in cases {
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        let path = folder.path().join(Path::new(name).file_name().unwrap());
        let mut refused = 0;
        for round in 0..400 {
            std::fs::write(&path, damage(&bytes, &mut rng)).unwrap();
            let loaded = Dataset::load(std::slice::from_ref(&path), layout);
            refused += usize::from(loaded.is_err());
            let _ = Dataset::load(std::slice::from_ref(&path), Layout::Auto);
            if round % 8 == 0 {
                let found = inspect(std::slice::from_ref(&path), layout).unwrap();
                // What cannot be loaded has an error in its inspection.
                assert!(loaded.is_ok() || found.num_errors > 0, "{name}, round {round}: {found}");
            }
        }
        assert!(refused > 50, "{name}: {refused}");
    }
}
