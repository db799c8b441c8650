//! One row of a JSON lines file, and the typed reading of its keys.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::ImageSource;
use crate::error::{Error, Result, RowProblem};
use crate::json::{Object, Value};
use crate::nearest::nearest;

/// Standard alphabet; padding may be left out, as several exporters do.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const IMAGE: &str = "a path relative to the file, or {\"bytes\": \"<base64>\"}";

const IMAGES: &str = "a list of images, each a path relative to the file, or {\"bytes\": \"<base64>\"}";

/// A row whose keys are taken one by one.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) path: Arc<Path>,
    /// Line number in the file, from 1.
    pub(crate) number: usize,
    pub(crate) fields: Vec<(String, Value)>,
}

impl Row {
    /// Refuses any key that is not among `known`: a misspelt optional key would otherwise be ignored.
    pub(crate) fn check_keys(&self, known: &[&str]) -> Result<()> {
        match self.fields.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => Err(self.error(unknown_key(key, key, known))),
        }
    }

    /// The string at a key that must be there.
    pub(crate) fn take_string(&mut self, key: &str) -> Result<String> {
        match self.take(key) {
            Some(Value::String(value)) => Ok(value),
            Some(found) => Err(self.wrong_type(key, &found, "a string")),
            None => Err(self.missing(key, "a string")),
        }
    }

    /// The number at a key that may be absent or null.
    pub(crate) fn take_number(&mut self, key: &str) -> Result<Option<f64>> {
        let found = match self.take(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(found) => found,
        };
        match &found {
            Value::Number(number) => match number.as_f64() {
                Some(value) if value.is_finite() => Ok(Some(value)),
                _ => Err(self.wrong_type(key, &found, "a finite number")),
            },
            _ => Err(self.wrong_type(key, &found, "a number")),
        }
    }

    /// The row's `id` (a string or an integer), or `file:row`.
    pub(crate) fn take_id(&mut self) -> Result<String> {
        self.take_id_of(&["id"])
    }

    /// The string at a key that may be absent or null; an integer is its digits.
    pub(crate) fn take_name(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) if !name.is_empty() => Ok(Some(name)),
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
            Some(found) => Err(self.wrong_type(key, &found, "a string that is not empty, or an integer")),
        }
    }

    /// The same at the first of some keys that is there.
    pub(crate) fn take_id_of(&mut self, keys: &[&str]) -> Result<String> {
        let expected = "a string or an integer";
        let mut found = None;
        for key in keys {
            let value = self.take(key).filter(|value| *value != Value::Null);
            found = found.or(value.map(|value| (*key, value)));
        }
        let key = found.as_ref().map_or("id", |(key, _)| key);
        match found.map(|(_, value)| value) {
            None => {
                let name = self.path.file_name().unwrap_or_default().to_string_lossy();
                Ok(format!("{name}:{}", self.number))
            }
            Some(Value::String(id)) if !id.is_empty() => Ok(id),
            Some(Value::Number(id)) if id.is_i64() || id.is_u64() => Ok(id.to_string()),
            Some(found) => Err(self.wrong_type(key, &found, expected)),
        }
    }

    /// The image at a key that must be there. A path is checked to name a file; nothing is decoded.
    pub(crate) fn take_image(&mut self, key: &str) -> Result<ImageSource> {
        let value = self.take(key);
        self.image(key, value)
    }

    /// The images of a list that may be absent; a single image is a list of one.
    pub(crate) fn take_images(&mut self, key: &str) -> Result<Vec<ImageSource>> {
        self.take_images_among(key, &[""])
    }

    /// The same, where paths are looked for below some folders.
    pub(crate) fn take_images_among(&mut self, key: &str, folders: &[&str]) -> Result<Vec<ImageSource>> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(elements)) => {
                let element =
                    |(at, value): (usize, Value)| self.image_among(&format!("{key}[{at}]"), Some(value), folders);
                elements.into_iter().enumerate().map(element).collect()
            }
            Some(found @ (Value::Bool(_) | Value::Number(_))) => Err(self.wrong_type(key, &found, IMAGES)),
            Some(value) => Ok(vec![self.image_among(key, Some(value), folders)?]),
        }
    }

    /// The image that a value is.
    pub(crate) fn image(&self, key: &str, value: Option<Value>) -> Result<ImageSource> {
        self.image_among(key, value, &[""])
    }

    /// The image that a value is; a path is looked for below some folders.
    pub(crate) fn image_among(&self, key: &str, value: Option<Value>, folders: &[&str]) -> Result<ImageSource> {
        match value {
            None => Err(self.missing(key, IMAGE)),
            Some(Value::String(found)) => match data_url(&found) {
                Some(base64) => self.embedded(key, base64),
                None => self.image_in(key, &found, folders),
            },
            Some(Value::Object(object)) => self.image_object(key, object, folders),
            Some(Value::Cell(cell)) => Ok(ImageSource::Cell(cell)),
            Some(found) => Err(self.wrong_type(key, &found, IMAGE)),
        }
    }

    /// `{"bytes": base64 or null, "path": string or null}` as Hugging Face `datasets` writes its `Image` feature. The
    /// bytes win; beside them the path is only the name of the file they came from.
    fn image_object(&self, key: &str, Object(fields): Object, folders: &[&str]) -> Result<ImageSource> {
        let (mut bytes, mut path) = (None, None);
        for (inner, value) in fields {
            let full = format!("{key}.{inner}");
            let slot = match inner.as_str() {
                "bytes" => &mut bytes,
                "path" => &mut path,
                _ => return Err(self.error(unknown_key(&full, &inner, &["bytes", "path"]))),
            };
            match value {
                // The table does not say whether the cell is null: one that is fails when it is read.
                Value::Cell(cell) if inner == "bytes" => return Ok(ImageSource::Cell(cell)),
                Value::String(value) => *slot = Some(value),
                Value::Null => {}
                found => return Err(self.wrong_type(&full, &found, "a string")),
            }
        }
        match (bytes, path) {
            (Some(bytes), _) => self.embedded(&format!("{key}.bytes"), &bytes),
            (None, Some(path)) => self.image_in(&format!("{key}.path"), &path, folders),
            (None, None) => Err(self.missing(&format!("{key}.bytes"), "the image's bytes as base64")),
        }
    }

    fn embedded(&self, key: &str, base64: &str) -> Result<ImageSource> {
        match BASE64.decode(base64) {
            Ok(bytes) => Ok(ImageSource::Bytes(bytes.into())),
            Err(error) => Err(self.error(RowProblem::Base64 {
                key: key.to_owned(),
                reason: error.to_string(),
            })),
        }
    }

    /// The image file at a path of the row, below the first of some folders beside the row's file where it lies.
    ///
    /// A dataset is a folder that can be moved and shared, and one from elsewhere must not make us read other files
    /// of this machine: paths stay inside the folder of the JSON lines file.
    pub(crate) fn image_in(&self, key: &str, found: &str, folders: &[&str]) -> Result<ImageSource> {
        let refuse = |reason| {
            Err(self.error(RowProblem::ImagePath {
                key: key.to_owned(),
                found: found.to_owned(),
                reason,
            }))
        };
        if found.is_empty() {
            return refuse("is empty");
        }
        if ["http://", "https://"].iter().any(|scheme| found.starts_with(scheme)) {
            return refuse("is an address, and nothing is downloaded");
        }
        let mut depth = 0_i64;
        for component in Path::new(found).components() {
            match component {
                Component::Normal(_) => depth += 1,
                Component::CurDir => {}
                Component::ParentDir => depth -= 1,
                Component::RootDir | Component::Prefix(_) => return refuse("is absolute"),
            }
            if depth < 0 {
                return refuse("leads out of the folder through `..`");
            }
        }
        let base = self.path.parent().unwrap_or(Path::new(""));
        let mut paths = folders.iter().map(|folder| base.join(folder).join(found));
        // A null byte, a missing file and a folder all end here: none of them is an image file.
        let is_file = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        match paths.clone().find(is_file) {
            Some(path) => Ok(ImageSource::Path(path)),
            None => Err(self.error(RowProblem::MissingImage {
                key: key.to_owned(),
                path: paths.next_back().unwrap_or_default(),
            })),
        }
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        let at = self.fields.iter().position(|(known, _)| known == key)?;
        Some(self.fields.swap_remove(at).1)
    }

    pub(crate) fn missing(&self, key: &str, expected: &str) -> Error {
        self.error(RowProblem::MissingKey {
            key: key.to_owned(),
            expected: expected.to_owned(),
        })
    }

    pub(crate) fn wrong_type(&self, key: &str, found: &Value, expected: &str) -> Error {
        let (key, found, expected) = (key.to_owned(), found.describe(), expected.to_owned());
        self.error(RowProblem::WrongType { key, found, expected })
    }

    pub(crate) fn error(&self, problem: RowProblem) -> Error {
        Error::Row {
            path: self.path.to_path_buf(),
            row: self.number,
            problem,
        }
    }
}

/// What is embedded in a data URL: `data:image/jpeg;base64,..`.
fn data_url(text: &str) -> Option<&str> {
    let (head, base64) = text.strip_prefix("data:")?.split_once(',')?;
    head.ends_with(";base64").then_some(base64)
}

pub(crate) fn unknown_key(full: &str, key: &str, known: &[&str]) -> RowProblem {
    RowProblem::UnknownKey {
        key: full.to_owned(),
        expected: known.join(", "),
        nearest: nearest(key, known.iter().copied()),
    }
}
