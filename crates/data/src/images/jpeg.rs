//! Whether a JPEG file is all there.

/// Walks the markers (ITU T.81, annex B) from the start to the end-of-image marker; false where the bytes run out
/// before it.
pub(crate) fn is_complete(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;

    // Behind the start-of-image marker.
    let mut at = 2;
    loop {
        let Some(found) = next_marker(bytes, at) else {
            return false;
        };
        let (marker, after) = found;
        match marker {
            END_OF_IMAGE => return true,
            // Markers without a segment: start of image, restart, temporary.
            0xd0..=0xd8 | 0x01 => at = after,
            marker => {
                let Some(length) = bytes.get(after..after + 2) else {
                    return false;
                };
                at = after + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
                if marker == START_OF_SCAN {
                    at = end_of_scan(bytes, at);
                }
            }
        }
    }
}

/// The next marker's code and the place behind it; fill bytes in front of it are passed over.
fn next_marker(bytes: &[u8], from: usize) -> Option<(u8, usize)> {
    let start = from + bytes.get(from..)?.iter().position(|byte| *byte == 0xff)?;
    let code = start + bytes[start..].iter().position(|byte| *byte != 0xff)?;
    Some((bytes[code], code + 1))
}

/// Where the entropy-coded data behind a scan's header ends: at the first 0xFF that is neither a stuffed byte nor a
/// restart.
fn end_of_scan(bytes: &[u8], mut at: usize) -> usize {
    while let Some(pair) = bytes.get(at..at + 2) {
        if pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7) {
            return at;
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_proper_prefix_is_incomplete() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
        for name in ["photo.jpg", "gray.jpg", "progressive.jpg", "turned.jpg"] {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            assert!(is_complete(&bytes), "{name}");
            assert!((2..bytes.len()).all(|len| !is_complete(&bytes[..len])), "{name}");
            // Trailing bytes are harmless: some cameras append a preview.
            assert!(is_complete(&[&bytes, b"more".as_slice()].concat()), "{name}");
        }
    }
}
