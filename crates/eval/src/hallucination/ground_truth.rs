//! What is in each image.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::coco::{Captions, Instances};
use super::rows::{Row, RowFile, broken, read_text};
use super::vocabulary::{Lemmatizer, ObjectVocabulary};
use crate::error::Result;

/// The objects of each image, by its id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectTruth {
    images: BTreeMap<String, BTreeSet<String>>,
}

impl ObjectTruth {
    /// By COCO's annotations, as CHAIR reads them: everything that is annotated as an instance or mentioned in one of the captions that
    /// people wrote. Give both files of each split (the official programs take train and val of 2014). Only `images` are kept.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); [`Error::BenchmarkFile`](crate::Error::BenchmarkFile) for what is no such file, for a category
    /// that the vocabulary lacks, and for an image that only instances or only captions tell of, where both are given.
    pub fn from_coco(
        instances: &[PathBuf],
        captions: &[PathBuf],
        images: &BTreeSet<String>,
        vocabulary: &ObjectVocabulary,
        lemmatizer: &Lemmatizer,
    ) -> Result<Self> {
        let mut truth = Self::default();
        let (mut with_instances, mut with_captions) = (BTreeSet::new(), BTreeSet::new());
        for path in instances {
            let file: Instances =
                serde_json::from_str(&read_text(path)?).map_err(|source| broken(path, source.to_string()))?;
            let names = file.category_names();
            for annotation in &file.annotations {
                let id = annotation.image_id.to_string();
                if !images.contains(&id) {
                    continue;
                }
                let name = names.get(&annotation.category_id).ok_or_else(|| {
                    broken(
                        path,
                        format!("an annotation is of unknown category {}", annotation.category_id),
                    )
                })?;
                let object = vocabulary
                    .object(name)
                    .ok_or_else(|| broken(path, format!("category {name:?} is no object of the list of synonyms")))?;
                with_instances.insert(id.clone());
                truth.images.entry(id).or_default().insert(object.to_owned());
            }
            // An image without instances is known too.
            for image in &file.images {
                let id = image.id.to_string();
                if images.contains(&id) {
                    with_instances.insert(id.clone());
                    truth.images.entry(id).or_default();
                }
            }
        }
        for path in captions {
            let file: Captions =
                serde_json::from_str(&read_text(path)?).map_err(|source| broken(path, source.to_string()))?;
            for annotation in &file.annotations {
                let id = annotation.image_id.to_string();
                if images.contains(&id) {
                    let mentions = vocabulary.mentions(&annotation.caption, lemmatizer);
                    with_captions.insert(id.clone());
                    truth.images.entry(id).or_default().extend(mentions.objects);
                }
            }
        }
        if let ([.., last_instances], [.., last_captions]) = (instances, captions)
            && let Some(id) = with_instances.symmetric_difference(&with_captions).next()
        {
            let (path, kind) = if with_instances.contains(id) {
                (last_captions, "captions")
            } else {
                (last_instances, "instances")
            };
            let reason = format!("image {id} is in none of the files of {kind}; give both files of its split");
            return Err(broken(path, reason));
        }
        Ok(truth)
    }

    /// From rows with `image_id` and `objects`, or with the `mscoco_gt_words` that the official programs write.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); [`Error::StoredRow`](crate::Error::StoredRow) for a defective row, an object that the vocabulary
    /// lacks, and an image that an earlier row describes differently.
    pub fn read(path: &Path, vocabulary: &ObjectVocabulary) -> Result<Self> {
        let file = RowFile::read(path)?;
        let mut truth = Self::default();
        for row in &file.rows {
            let id = file.id(row, &["image_id"])?;
            let names = file.texts(row, &["objects", "mscoco_gt_words"])?;
            let known = names.iter().map(|name| {
                let object = vocabulary.object(name).map(str::to_owned);
                object.ok_or_else(|| file.error(row, format!("{name:?} is no object of the list of synonyms")))
            });
            let objects = known.collect::<Result<BTreeSet<String>>>()?;
            if truth.images.get(&id).is_some_and(|earlier| *earlier != objects) {
                return Err(file.error(row, format!("image {id} has other objects in an earlier row")));
            }
            truth.images.insert(id, objects);
        }
        Ok(truth)
    }

    /// The objects of the image that an answer is about.
    pub(crate) fn of<'a>(&'a self, file: &RowFile, row: &Row, image: &str) -> Result<&'a BTreeSet<String>> {
        let unknown = || file.error(row, format!("image {image} is not among the annotations"));
        self.images.get(image).ok_or_else(unknown)
    }
}

/// The images that a file of captions is about, to read annotations of no others.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::StoredRow`](crate::Error::StoredRow).
pub fn captioned_images(path: &Path) -> Result<BTreeSet<String>> {
    let file = RowFile::read(path)?;
    file.rows.iter().map(|row| file.id(row, &["image_id"])).collect()
}
