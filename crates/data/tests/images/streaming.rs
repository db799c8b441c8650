//! Large Parquet tables in bounded memory.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use diptych_data::{Dataset, Layout, LeftOut, OnError, ReadPolicy, ReadReport};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::{failure, jpeg, read};

const SCHEMA: &str = "message schema {
    required binary caption (UTF8);
    optional binary jpg_0;
    optional binary jpg_1;
    required double label_0;
    required double label_1;
    required boolean has_label;
    required boolean are_different;
}";

/// Rows of which every tenth is a tie.
fn write_table(path: &Path, num_rows: usize, group: usize, image: impl Fn(usize, usize) -> Option<Vec<u8>>) {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    // As `datasets` writes images: no dictionary.
    let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for first in (0..num_rows).step_by(group) {
        let rows = first..(first + group).min(num_rows);
        let mut out = writer.next_row_group().unwrap();
        let captions: Vec<ByteArray> = rows
            .clone()
            .map(|row| format!("a picture of {row} birds").as_str().into())
            .collect();
        let mut column = out.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&captions, None, None)
            .unwrap();
        column.close().unwrap();
        for side in 0..2 {
            let cells: Vec<Option<Vec<u8>>> = rows.clone().map(|row| image(row, side)).collect();
            let levels: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
            let values: Vec<ByteArray> = cells.into_iter().flatten().map(ByteArray::from).collect();
            let mut column = out.next_column().unwrap().unwrap();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&levels), None)
                .unwrap();
            column.close().unwrap();
        }
        for side in 0..2 {
            let labels: Vec<f64> = rows
                .clone()
                .map(|row| if row % 10 == 9 { 0.5 } else { f64::from(side) })
                .collect();
            let mut column = out.next_column().unwrap().unwrap();
            column.typed::<DoubleType>().write_batch(&labels, None, None).unwrap();
            column.close().unwrap();
        }
        for _ in 0..2 {
            let mut column = out.next_column().unwrap().unwrap();
            column
                .typed::<BoolType>()
                .write_batch(&vec![true; rows.len()], None, None)
                .unwrap();
            column.close().unwrap();
        }
        out.close().unwrap();
    }
    writer.close().unwrap();
}

/// The largest amount of memory this process had so far, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

/// Forgets the largest amount of memory so far.
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Distinct small images behind which zeros make the file as large as one of photographs.
fn padded(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = jpeg((number % 251) as u8);
    bytes.resize(len.max(bytes.len()), 0);
    bytes
}

/// Reads all, decodes all in order and then some in another order; gives the memory beyond what was there before, in bytes.
fn stream(path: &Path, num_rows: usize) -> u64 {
    forget_peak();
    let before = peak();
    let (dataset, report) = read(path, Layout::Auto, ReadPolicy::default()).unwrap();
    assert_eq!(report.left_out[&LeftOut::Tie], num_rows / 10);
    let Dataset::Pairs(pairs) = dataset else {
        panic!("not pairs")
    };
    assert_eq!(pairs.len(), num_rows - num_rows / 10);
    let check = |pair: &diptych_data::ImagePair| {
        let (chosen, rejected) = pair.decode().unwrap();
        let row: usize = pair.prompt.split(' ').nth(3).unwrap().parse().unwrap();
        // `label_1` is 1: the second image is chosen. JPEG keeps a constant channel to within some units.
        let is = |image: &image::RgbImage, number: usize| {
            (i32::from(image.get_pixel(8, 8).0[0]) - (number % 251) as i32).abs() < 20
        };
        assert!(is(&chosen, 2 * row + 1) && is(&rejected, 2 * row), "{row}");
    };
    pairs.iter().for_each(check);
    for step in 0..200 {
        check(&pairs[step * 7919 % pairs.len()]);
    }
    peak().saturating_sub(before)
}

#[test]
fn a_table_is_read_in_memory_that_does_not_grow_with_its_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train-00000-of-00001.parquet");
    let num_rows = 3000;
    write_table(&path, num_rows, 500, |row, side| Some(padded(2 * row + side, 16 << 10)));
    let len = path.metadata().unwrap().len();
    assert!(len > 90 << 20, "{len} bytes");
    let used = stream(&path, num_rows);
    assert!(used < 32 << 20, "{used} bytes for a table of {len}");
}

/// The size of a shard of Pick-a-Pic:
/// `cargo test --release -p diptych-data --features parquet --test images -- --ignored --nocapture hundred_thousand`.
#[test]
#[ignore = "writes 3 GiB and reads them, a minute"]
fn a_hundred_thousand_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    write_table(&path, 100_000, 1000, |row, side| Some(padded(2 * row + side, 16 << 10)));
    let len = path.metadata().unwrap().len();
    let start = std::time::Instant::now();
    let used = stream(&path, 100_000);
    let secs = start.elapsed().as_secs_f64();
    eprintln!("{len} bytes read and decoded in {secs:.1} s with at most {used} bytes more than before");
    assert!(used < 128 << 20, "{used} bytes for a table of {len}");
}

#[test]
fn corrupt_cells_are_counted_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.parquet");
    write_table(&path, 20, 7, |row, side| match (row, side) {
        (2, 0) => Some(jpeg(2)[..200].to_vec()),
        (11, 1) => None,
        (15, 1) => Some(b"no image".to_vec()),
        _ => Some(jpeg(row as u8)),
    });
    let (dataset, mut report) = read(&path, Layout::Auto, ReadPolicy::default()).unwrap();
    let Dataset::Pairs(pairs) = dataset else {
        panic!("not pairs")
    };
    let mut good = 0;
    for pair in &pairs {
        match pair.decode() {
            Ok(_) => good += 1,
            Err(error) => report.skip(OnError::Skip, error).unwrap(),
        }
    }
    assert_eq!((good, report.num_unreadable), (15, 3));
    let expected = [
        "record `table.parquet:3`, `rejected_image`: ",
        "record `table.parquet:12`, `chosen_image`: ",
        "record `table.parquet:16`, `chosen_image`: ",
    ];
    for (found, expected) in report.unreadable.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
    let places = [
        "row 3, column `jpg_0`: cannot decode the image: the JPEG data is cut short",
        "row 12: `jpg_1`: found null",
        "row 16, column `jpg_1`",
    ];
    for (found, expected) in report.unreadable.iter().zip(places) {
        assert!(found.contains(expected), "{found}");
    }
    let skip = ReadPolicy {
        on_error: OnError::Skip,
        ..ReadPolicy::default()
    };
    let (kept, skipped) = read(&path, Layout::Auto, skip).unwrap();
    assert_eq!((kept.len(), skipped.num_records), (15, 15));
    assert_eq!(skipped.unreadable, report.unreadable);
    let first = pairs[2].decode().unwrap_err();
    assert!(ReadReport::default().skip(OnError::Fail, first).is_err());

    let found = diptych_data::inspect(&[path], Layout::Auto).unwrap();
    assert_eq!(
        (found.num_records, found.num_good_records, found.num_errors),
        (20, 15, 3),
        "{found}"
    );
    assert_eq!(found.left_out[&LeftOut::Tie], 2);
}

#[test]
fn columns_of_another_type_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.parquet");
    let schema = Arc::new(
        parse_message_type("message schema { required binary caption (UTF8); required double jpg_0; }").unwrap(),
    );
    let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::default()).unwrap();
    let mut out = writer.next_row_group().unwrap();
    let mut column = out.next_column().unwrap().unwrap();
    column
        .typed::<ByteArrayType>()
        .write_batch(&["p".into()], None, None)
        .unwrap();
    column.close().unwrap();
    let mut column = out.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&[1.0], None, None).unwrap();
    column.close().unwrap();
    out.close().unwrap();
    writer.close().unwrap();
    let message = failure(&path, Layout::Auto);
    assert!(message.contains("row 1: `jpg_0`: found the number 1"), "{message}");
}
