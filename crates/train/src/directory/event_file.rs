//! TensorBoard's event files: records framed as in `TFRecord`, each a protocol buffer `Event`.
//!
//! A record is its length (u64, little endian), the masked CRC-32C of these eight bytes, the data, and the masked
//! CRC-32C of the data. Fields used, from TensorFlow's `event.proto` and `summary.proto`:
//! `Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }`,
//! `Summary { repeated Value value = 1; }`, `Value { string tag = 1; float simple_value = 2; }`.

use std::path::Path;

use crate::{Error, Result};

/// Wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// One number of an event file.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalarEvent {
    /// Optimizer step.
    pub step: u64,
    /// The number's name.
    pub tag: String,
    /// The number.
    pub value: f32,
}

/// The record every event file begins with.
pub(super) fn file_version(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    fixed64_field(1, wall_time, &mut event);
    bytes_field(3, b"brain.Event:2", &mut event);
    frame(&event)
}

/// One record with all numbers of a step.
pub(super) fn scalars<'a>(wall_time: f64, step: u64, numbers: impl Iterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in numbers {
        let mut scalar = Vec::new();
        bytes_field(1, tag.as_bytes(), &mut scalar);
        varint(2 << 3 | FIXED32, &mut scalar);
        scalar.extend((value as f32).to_le_bytes());
        bytes_field(1, &scalar, &mut summary);
    }
    let mut event = Vec::new();
    fixed64_field(1, wall_time, &mut event);
    varint(2 << 3 | VARINT, &mut event);
    varint(step, &mut event);
    bytes_field(5, &summary, &mut event);
    frame(&event)
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn fixed64_field(field: u64, value: f64, out: &mut Vec<u8>) {
    varint(field << 3 | FIXED64, out);
    out.extend(value.to_le_bytes());
}

fn bytes_field(field: u64, value: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | BYTES, out);
    varint(value.len() as u64, out);
    out.extend(value);
}

fn frame(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(len);
    record.extend(masked_crc(&len).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted by a constant so that a checksum of data with checksums stays a good one.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The whole, undamaged records at the beginning of a file, with their frames.
pub(super) fn records(mut bytes: &[u8]) -> Vec<Record<'_>> {
    let mut records = Vec::new();
    while let Some(record) = Record::first(bytes) {
        bytes = &bytes[record.framed.len()..];
        records.push(record);
    }
    records
}

/// One record of an event file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    /// With its frame.
    pub(super) framed: &'a [u8],
    data: &'a [u8],
}

impl<'a> Record<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let len_bytes: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
        let len = usize::try_from(u64::from_le_bytes(len_bytes)).ok()?;
        let len_crc = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
        let end = len.checked_add(12)?;
        let data = bytes.get(12..end)?;
        let crc = u32::from_le_bytes(bytes.get(end..end.checked_add(4)?)?.try_into().ok()?);
        let is_whole = len_crc == masked_crc(&len_bytes) && crc == masked_crc(data);
        is_whole.then(|| Self {
            framed: &bytes[..end + 4],
            data,
        })
    }

    /// The step; 0 for the record of the file's version.
    pub(super) fn step(&self) -> u64 {
        let steps = Fields(self.data).filter_map(|(field, value)| match (field, value) {
            (2, Value::Varint(step)) => Some(step),
            _ => None,
        });
        steps.last().unwrap_or(0)
    }

    fn scalars(&self) -> Vec<ScalarEvent> {
        let step = self.step();
        let summaries = Fields(self.data).filter_map(|(field, value)| value.bytes().filter(|_| field == 5));
        let values = summaries.flat_map(|summary| {
            Fields(summary)
                .filter_map(|(field, value)| value.bytes().filter(|_| field == 1))
                .collect::<Vec<_>>()
        });
        values
            .filter_map(|scalar| {
                let (mut tag, mut number) = (None, None);
                for (field, value) in Fields(scalar) {
                    match (field, value) {
                        (1, Value::Bytes(name)) => tag = Some(String::from_utf8_lossy(name).into_owned()),
                        (2, Value::Fixed32(bits)) => number = Some(f32::from_bits(bits)),
                        _ => {}
                    }
                }
                Some(ScalarEvent {
                    step,
                    tag: tag?,
                    value: number?,
                })
            })
            .collect()
    }
}

/// The numbers of an event file, in the order they were written.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Damaged`] when a record is not whole.
pub fn read_scalars(path: &Path) -> Result<Vec<ScalarEvent>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let records = records(&bytes);
    let whole: usize = records.iter().map(|record| record.framed.len()).sum();
    if whole != bytes.len() {
        return Err(Error::damaged(
            path,
            &format!("the record at byte {whole} is not whole"),
        ));
    }
    Ok(records.iter().flat_map(Record::scalars).collect())
}

/// The fields of a protocol buffer; ends at the first byte that is not one.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Value<'a> {
    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Varint(_) | Self::Fixed64 | Self::Fixed32(_) => None,
        }
    }
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let value = match key & 7 {
            VARINT => Value::Varint(self.varint()?),
            FIXED64 => self.take(8).map(|_| Value::Fixed64)?,
            BYTES => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            FIXED32 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let mut bytes = file_version(1.5);
        bytes.extend(scalars(
            2.5,
            300,
            [("loss", 0.5), ("rewards/margins", -1.25)].into_iter(),
        ));
        bytes
    }

    /// The same two events, written by Python's `tensorboard` package (`RecordWriter`, `event_pb2`, `summary_pb2`).
    const WRITTEN_BY_TENSORBOARD: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c33000000000000000ca7205609000000000000044010ac022a250a0b0a046c6f7373150000003f0a160a0f726577617264732f6d617267696e73150000a0bf557563fe";

    #[test]
    fn bytes_are_those_that_tensorboard_writes() {
        assert_eq!(crate::plan::hex(&file()), WRITTEN_BY_TENSORBOARD);
    }

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        std::fs::write(&path, file()).unwrap();
        let expected = [("loss", 0.5), ("rewards/margins", -1.25)].map(|(tag, value)| ScalarEvent {
            step: 300,
            tag: tag.into(),
            value,
        });
        assert_eq!(read_scalars(&path).unwrap(), expected);
    }

    #[test]
    fn a_torn_or_flipped_record_ends_the_file() {
        let whole = file();
        let first = file_version(1.5).len();
        for len in first..whole.len() {
            assert_eq!(records(&whole[..len]).len(), 1, "{len} bytes");
        }
        for at in first..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert_eq!(records(&flipped).len(), 1, "a flipped bit of byte {at} went unnoticed");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let message = read_scalars(&path).unwrap_err().to_string();
        assert!(
            message.contains(&format!("the record at byte {first} is not whole")),
            "{message}"
        );
    }
}
