//! Where an image lies, and how it becomes pixels.

use std::fmt;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use sha2::{Digest as _, Sha256};

use crate::TableCell;
use crate::error::{Error, Result};
use crate::hash::hex;
use crate::images::jpeg;

/// The longest side of an image that is decoded, in pixels. A small file can claim any size; memory is reserved only
/// below it.
pub const MAX_IMAGE_SIDE: u32 = 16_384;

/// The largest image file that is read, in bytes: 256 MiB.
pub const MAX_IMAGE_FILE_BYTES: u64 = 256 << 20;

/// Decoders may reserve this much: an image of [`MAX_IMAGE_SIDE`] squared with 8 bits a channel is 768 MiB and refused.
const MAX_DECODED_BYTES: u64 = 512 << 20;

/// An encoded image (PNG, JPEG or WebP): in a file, in a table, or in memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageSource {
    /// A file.
    Path(PathBuf),
    /// The contents of such a file.
    Bytes(Arc<[u8]>),
    /// A cell of a table, read when the image is needed.
    Cell(TableCell),
}

impl ImageSource {
    /// The image as PNG in memory; decoding gives the same pixels back.
    ///
    /// # Errors
    /// [`Error::ImageSize`] for an image without pixels.
    pub fn from_image(image: &RgbImage) -> Result<Self> {
        let (width, height) = image.dimensions();
        let mut bytes = Vec::new();
        image
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
            .map_err(|_| Error::ImageSize {
                width,
                height,
                max: MAX_IMAGE_SIDE,
            })?;
        Ok(Self::Bytes(bytes.into()))
    }

    /// The pixels, 8 bits a channel.
    ///
    /// The format is told from the contents, not the name. Gray becomes RGB, 16 bits become 8, transparency is laid
    /// over white (as a page would show it), and the orientation a camera wrote into the EXIF data is applied, as
    /// Hugging Face `datasets` does.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Image`] when it is not a PNG, JPEG or WebP, is corrupt or cut
    /// short, or has a side longer than [`MAX_IMAGE_SIDE`] or a file larger than [`MAX_IMAGE_FILE_BYTES`].
    pub fn decode(&self) -> Result<RgbImage> {
        decode(&self.encoded()?).map_err(|reason| self.error(reason))
    }

    /// Width and height in pixels as [`ImageSource::decode`] gives them, from the header alone.
    ///
    /// # Errors
    /// As [`ImageSource::decode`], but for damage behind the header.
    pub fn dimensions(&self) -> Result<(u32, u32)> {
        let bytes = self.encoded()?;
        let mut decoder = decoder(&bytes).map_err(|reason| self.error(reason))?;
        let (width, height) = decoder.dimensions();
        let orientation = decoder.orientation().map_err(|error| self.error(error.to_string()))?;
        Ok(match orientation {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => (height, width),
            Orientation::NoTransforms
            | Orientation::Rotate180
            | Orientation::FlipHorizontal
            | Orientation::FlipVertical => (width, height),
        })
    }

    /// The encoded bytes, as they are.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Image`] when it is larger than [`MAX_IMAGE_FILE_BYTES`].
    pub fn encoded(&self) -> Result<Arc<[u8]>> {
        match self {
            Self::Bytes(bytes) => Ok(Arc::clone(bytes)),
            Self::Cell(cell) => cell.read(),
            Self::Path(path) => {
                self.check_file_size(path)?;
                Ok(std::fs::read(path).map_err(Error::io(path))?.into())
            }
        }
    }

    /// Names the image: its path, its cell, or a hash of its bytes. Two names may be of one image, but no name of two.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Cell(cell) => cell.to_string(),
            Self::Bytes(bytes) => hex(&Sha256::digest(bytes)),
        }
    }

    fn check_file_size(&self, path: &Path) -> Result<()> {
        let num_bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if num_bytes > MAX_IMAGE_FILE_BYTES {
            return Err(self.error(format!("{num_bytes} bytes; at most {MAX_IMAGE_FILE_BYTES} are read")));
        }
        Ok(())
    }

    fn error(&self, reason: String) -> Error {
        Error::Image {
            image: self.to_string(),
            reason,
        }
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Bytes(bytes) => write!(f, "embedded image of {} bytes", bytes.len()),
            Self::Cell(cell) => write!(f, "{cell}"),
        }
    }
}

impl fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageSource({self})")
    }
}

/// Reads the header of an image that may be decoded.
fn decoder(bytes: &[u8]) -> std::result::Result<impl ImageDecoder + '_, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| error.to_string())?;
    match reader.format() {
        // The decoder fills what is missing with gray and says nothing.
        Some(ImageFormat::Jpeg) if !jpeg::is_complete(bytes) => return Err("the JPEG data is cut short".to_owned()),
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) => {}
        _ => return Err("neither PNG, JPEG nor WebP".to_owned()),
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_IMAGE_SIDE);
    limits.max_image_height = Some(MAX_IMAGE_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(format!(
            "{width}x{height} pixels need more than {MAX_DECODED_BYTES} bytes"
        ));
    }
    Ok(decoder)
}

fn decode(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    let mut decoder = decoder(bytes)?;
    let orientation = decoder.orientation().map_err(|error| error.to_string())?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() {
        over_white(&image.to_rgba8())
    } else {
        image.into_rgb8()
    })
}

fn over_white(image: &image::RgbaImage) -> RgbImage {
    let mut flat = RgbImage::new(image.width(), image.height());
    for (to, from) in flat.pixels_mut().zip(image.pixels()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        // Rounded to the nearest of 255 steps.
        to.0 = [red, green, blue].map(|value| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    flat
}
