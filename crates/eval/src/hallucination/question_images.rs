//! The images that benchmarks ask about.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diptych_data::ImageSource;
use diptych_shapes::render;

use super::rows::{broken, stored_row};
use super::shapes::ShapesScene;
use crate::error::{Error, Result};

/// Endings of files that hold images.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Where the images of a benchmark are.
#[derive(Debug, Clone)]
pub struct QuestionImages {
    folder: Option<PathBuf>,
    pictures: BTreeMap<String, ImageSource>,
}

impl QuestionImages {
    /// Files in a folder, under the names that the questions give them.
    ///
    /// # Errors
    /// [`Error::BenchmarkFile`] for what is no folder.
    pub fn folder(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(broken(path, "there is no such folder of images"));
        }
        Ok(Self {
            folder: Some(path.to_owned()),
            pictures: BTreeMap::new(),
        })
    }

    /// None but those that the rows of a file of questions hold themselves.
    pub fn in_rows() -> Self {
        Self {
            folder: None,
            pictures: BTreeMap::new(),
        }
    }

    /// Pictures of scenes of the shapes world, of `size` x `size` pixels.
    ///
    /// # Errors
    /// [`Error::Benchmark`] for two scenes of one image.
    pub fn scenes(scenes: &[ShapesScene], size: u32) -> Result<Self> {
        let mut pictures = BTreeMap::new();
        for ShapesScene { image, scene } in scenes {
            let picture = ImageSource::from_image(&render(scene, size))?;
            if pictures.insert(image.clone(), picture).is_some() {
                let reason = format!("image {image:?} has two scenes");
                return Err(Error::Benchmark { reason });
            }
        }
        Ok(Self { folder: None, pictures })
    }

    /// The picture of a scene.
    pub fn picture(&self, name: &str) -> Option<ImageSource> {
        self.pictures.get(name).cloned()
    }

    /// The names of all images: those of the scenes in the order of these names (numbers by value), or of the files in the folder.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let Some(folder) = &self.folder else {
            let mut names: Vec<String> = self.pictures.keys().cloned().collect();
            names.sort_by_key(|name| (name.parse::<u64>().unwrap_or(u64::MAX), name.clone()));
            return Ok(names);
        };
        let failed = |source| Error::Io {
            path: folder.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let ending = path
                .extension()
                .map(|ending| ending.to_string_lossy().to_ascii_lowercase());
            let is_image = ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()));
            if let (true, Some(name)) = (is_image && path.is_file(), path.file_name()) {
                names.push(name.to_string_lossy().into_owned());
            }
        }
        names.sort();
        if names.is_empty() {
            return Err(broken(folder, "there is no image in it (jpg, jpeg, png or webp)"));
        }
        Ok(names)
    }

    /// The image that row `row` of `file` calls by one of `names`, or holds itself in base64.
    pub(crate) fn find(&self, names: &[&str], file: &Path, row: usize) -> Result<ImageSource> {
        let first = names.first().copied().unwrap_or_default();
        if let Some(picture) = names.iter().find_map(|name| self.pictures.get(*name)) {
            return Ok(picture.clone());
        }
        if let Some(bytes) = embedded(first) {
            return Ok(ImageSource::Bytes(bytes));
        }
        let reason = match &self.folder {
            None if self.pictures.is_empty() => {
                format!("image {first:?} is a file: give the folder that it is in")
            }
            None => format!("image {first:?} is not among the scenes"),
            Some(folder) => {
                let mut paths = names.iter().map(|name| folder.join(name.trim_start_matches("./")));
                if let Some(path) = paths.find(|path| path.is_file()) {
                    return Ok(ImageSource::Path(path));
                }
                format!("image {first:?} is not in {}", folder.display())
            }
        };
        Err(stored_row(file, row, reason))
    }
}

/// The contents of an image file as rows of published benchmarks hold them.
pub(crate) fn embedded(text: &str) -> Option<Arc<[u8]>> {
    // The beginnings of JPEG, PNG and WebP: no name of a file is so long.
    let is_likely = text.len() > 100 && ["/9j/", "iVBOR", "UklGR"].iter().any(|start| text.starts_with(start));
    if !is_likely {
        return None;
    }
    STANDARD.decode(text.trim()).ok().map(Arc::from)
}
