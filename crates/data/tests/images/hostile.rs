//! Files that someone made to do harm, or that were damaged.

use diptych_data::{ImageSource, Layout, MAX_IMAGE_SIDE};

use crate::{failure, golden, jpeg};

fn write(folder: &std::path::Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A PNG of a few hundred bytes that claims to be a gigapixel.
#[test]
fn an_image_that_claims_a_huge_size_is_refused_before_memory_is_taken() {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(4, 4)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    let mut bytes = bytes.into_inner();
    // The header's length, name, width and height, and their checksum.
    bytes[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    let message = ImageSource::Bytes(bytes.into()).decode().unwrap_err().to_string();
    assert!(message.contains("embedded image of"), "{message}");
    const { assert!(60_000 > MAX_IMAGE_SIDE) };

    let mut webp = std::fs::read(golden("image_reward_db/images/train/train_1/00000000.webp")).unwrap();
    ImageSource::Bytes(webp.clone().into()).decode().unwrap();
    webp.truncate(webp.len() / 2);
    assert!(ImageSource::Bytes(webp.into()).decode().is_err());
}

/// CRC-32 as PNG has it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

#[test]
fn paths_of_published_layouts_stay_in_their_folder() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("secret.jpg"), jpeg(1)).unwrap();
    let folder = outer.path().join("data");
    std::fs::create_dir_all(folder.join("train")).unwrap();
    let absolute = outer.path().join("secret.jpg");
    for path in ["../secret.jpg", "train/../../secret.jpg", absolute.to_str().unwrap()] {
        let train = format!(r#"[{{"prompt": "p", "file_path": ["{path}", "{path}"], "human_preference": [1, 0]}}]"#);
        let message = failure(&write(&folder, "train.json", &train), Layout::Hpdv2);
        assert!(message.contains("the path `"), "{message}");
        let reward = format!(r#"[{{"prompt": "p", "prompt_id": "1", "image_path": "{path}", "rank": 1}}]"#);
        let message = failure(&write(&folder, "train_1.json", &reward), Layout::ImageRewardDb);
        assert!(message.contains("the path `"), "{message}");
    }
}

#[test]
fn empty_files_and_wrong_schemas_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("empty.json", "", Layout::Hpdv2, "the dataset is empty"),
        ("none.json", "[]", Layout::Hpdv2, "the dataset is empty"),
        (
            "other.json",
            r#"[{"prompt": "p", "chosen": "a", "rejected": "b"}]"#,
            Layout::Hpdv2,
            "has the preference layout",
        ),
        (
            "short.json",
            r#"[{"prompt": "p", "file_path": ["a.jpg"], "human_preference": [1]}]"#,
            Layout::Hpdv2,
            "has 1 images and 1 preferences",
        ),
        (
            "kinds.json",
            r#"[{"prompt": "p", "file_path": [1, 2], "human_preference": [1, 0]}]"#,
            Layout::Hpdv2,
            "`file_path`: found the number 1",
        ),
        (
            "rank.json",
            r#"[{"prompt": "p", "image_path": ["a.jpg"], "rank": "1"}]"#,
            Layout::Hpdv2,
            "`rank`: found the string",
        ),
        (
            "caption.json",
            r#"[{"caption": 5, "trainset_idx": 1}]"#,
            Layout::SpoPrompts,
            "`caption`: found the number 5",
        ),
    ];
    for (name, text, layout, expected) in cases {
        let message = failure(&write(folder.path(), name, text), layout);
        assert!(
            message.contains(name) && message.contains(expected),
            "{name}: {message}"
        );
    }
    let unknown = write(folder.path(), "unknown.json", r#"[{"picture": "p"}]"#);
    assert!(failure(&unknown, Layout::Auto).contains("cannot tell the layout"));
}

#[cfg(feature = "parquet")]
#[test]
fn tables_cut_or_damaged_anywhere_are_errors_and_never_a_panic() {
    use diptych_data::{Dataset, ReadPolicy};

    use crate::read;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.parquet");
    let bytes = std::fs::read(golden("pick_a_pic.parquet")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(failure(&path, Layout::PickAPic).contains("table.parquet, row 1: not a readable Parquet table"));
    std::fs::write(&path, []).unwrap();
    assert!(failure(&path, Layout::PickAPic).contains("not a readable Parquet table"));
    let (mut refused, mut undecodable, mut read_whole) = (0, 0, 0);
    for at in (0..bytes.len()).step_by(61) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, &damaged).unwrap();
        match read(&path, Layout::PickAPic, ReadPolicy::default()) {
            Err(_) => refused += 1,
            Ok((Dataset::Pairs(pairs), _)) => match pairs.iter().try_for_each(|pair| pair.decode().map(drop)) {
                Ok(()) => read_whole += 1,
                Err(_) => undecodable += 1,
            },
            Ok(_) => panic!("another kind of record"),
        }
    }
    assert!(
        refused > 10 && undecodable > 10 && read_whole > 10,
        "{refused} {undecodable} {read_whole}"
    );
}

#[cfg(feature = "parquet")]
#[test]
fn no_row_is_lost_unnoticed_behind_a_damaged_page() {
    use diptych_data::{OnError, ReadPolicy};

    use crate::read;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.parquet");
    std::fs::write(&path, b"PAR1 nothing PAR1").unwrap();
    let skip = ReadPolicy {
        on_error: OnError::Skip,
        ..ReadPolicy::default()
    };
    // A whole file is more than one record.
    assert!(read(&path, Layout::PickAPic, skip).is_err());

    let bytes = std::fs::read(golden("pick_a_pic.parquet")).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let (_, whole) = read(&path, Layout::PickAPic, skip).unwrap();
    let mut cut_short = 0;
    for at in (0..bytes.len()).step_by(61) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, &damaged).unwrap();
        match read(&path, Layout::PickAPic, skip) {
            Err(error) => cut_short += usize::from(error.to_string().contains("cannot be read from here on")),
            Ok((_, report)) => assert_eq!(report.num_rows, whole.num_rows, "byte {at}"),
        }
    }
    assert!(cut_short > 0);
}
