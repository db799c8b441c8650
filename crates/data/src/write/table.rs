//! Parquet tables of images, in plain columns that `datasets` and pyarrow read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomic_write_file::AtomicWriteFile;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::image_rows::ImageRecord;
use crate::convert::EncodedImage;
use crate::error::{Error, Result};
use crate::{Layout, RecordKind};

/// Bytes of images of a row group: it is in memory while it is written.
const GROUP_BYTES: usize = 64 << 20;

/// Rows of a row group, at most.
const GROUP_ROWS: usize = 1000;

/// A table that is being written.
pub(crate) struct TableWriter {
    path: PathBuf,
    writer: SerializedFileWriter<AtomicWriteFile>,
    columns: Columns,
    rows: Rows,
}

/// Which columns behind `id` and `prompt`.
struct Columns {
    images: &'static [&'static str],
    scores: &'static [&'static str],
    has_label: bool,
    /// Whether records may say who preferred.
    has_user: bool,
}

/// Rows that are not written yet, column by column.
#[derive(Default)]
struct Rows {
    ids: Vec<ByteArray>,
    prompts: Vec<ByteArray>,
    images: Vec<Vec<ByteArray>>,
    labels: Vec<bool>,
    scores: Vec<Vec<Option<f64>>>,
    users: Vec<Option<ByteArray>>,
    num_bytes: usize,
}

impl TableWriter {
    /// # Errors
    /// [`Error::NotATable`] for records with a list in them; a file that cannot be created.
    pub(crate) fn open(path: &Path, layout: Layout, records: RecordKind) -> Result<Self> {
        let (images, scores, has_label): (&[&str], &[&str], bool) = match layout {
            Layout::Preference => (
                &["chosen_image", "rejected_image"],
                &["chosen_score", "rejected_score"],
                false,
            ),
            Layout::ImageCaption => (&["image"], &[], false),
            Layout::Unpaired => (&["image"], &["score"], true),
            Layout::PromptOnly => (&[], &[], false),
            _ => {
                return Err(Error::NotATable {
                    path: path.to_path_buf(),
                    records,
                    reason: "its rows hold lists of images",
                });
            }
        };
        let columns = Columns {
            images,
            scores,
            has_label,
            has_user: layout == Layout::Preference,
        };
        let file = AtomicWriteFile::open(path).map_err(Error::io(path))?;
        let open = || {
            let schema = Arc::new(parse_message_type(&columns.schema())?);
            // As `datasets` writes images: a dictionary of different values is of no use.
            let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
            SerializedFileWriter::new(file, schema, Arc::new(properties))
        };
        let writer = open().map_err(|error| failed(path, error))?;
        Ok(Self {
            path: path.to_path_buf(),
            writer,
            rows: Rows::new(&columns),
            columns,
        })
    }

    pub(crate) fn add<T: ImageRecord>(&mut self, records: &[T], images: &[Vec<EncodedImage>]) -> Result<()> {
        for (record, images) in records.iter().zip(images) {
            self.rows.add(record, images);
            if self.rows.num_bytes >= GROUP_BYTES || self.rows.ids.len() >= GROUP_ROWS {
                self.write_group()?;
            }
        }
        Ok(())
    }

    pub(crate) fn commit(mut self) -> Result<()> {
        if !self.rows.ids.is_empty() {
            self.write_group()?;
        }
        let file = self.writer.into_inner().map_err(|error| failed(&self.path, error))?;
        file.commit().map_err(Error::io(&self.path))
    }

    fn write_group(&mut self) -> Result<()> {
        let rows = std::mem::replace(&mut self.rows, Rows::new(&self.columns));
        let mut write = || {
            let mut group = self.writer.next_row_group()?;
            rows.write(&self.columns, &mut group)?;
            group.close().map(drop)
        };
        write().map_err(|error| failed(&self.path, error))
    }
}

impl Columns {
    fn schema(&self) -> String {
        let images = self.images.iter().map(|name| format!("required binary {name};"));
        let label = self.has_label.then(|| "required boolean label;".to_owned());
        let scores = self.scores.iter().map(|name| format!("optional double {name};"));
        let user = self.has_user.then(|| "optional binary user_id (UTF8);".to_owned());
        let rest: Vec<String> = images.chain(label).chain(scores).chain(user).collect();
        format!(
            "message schema {{ required binary id (UTF8); required binary prompt (UTF8); {} }}",
            rest.join(" ")
        )
    }
}

impl Rows {
    fn new(columns: &Columns) -> Self {
        Self {
            images: columns.images.iter().map(|_| Vec::new()).collect(),
            scores: columns.scores.iter().map(|_| Vec::new()).collect(),
            ..Self::default()
        }
    }

    fn add<T: ImageRecord>(&mut self, record: &T, images: &[EncodedImage]) {
        self.ids.push(record.id().into());
        self.prompts.push(record.prompt().into());
        for (column, image) in self.images.iter_mut().zip(images) {
            column.push(ByteArray::from(image.bytes.to_vec()));
            self.num_bytes += image.bytes.len();
        }
        self.labels.extend(record.label());
        for (column, (_, score)) in self.scores.iter_mut().zip(record.scores()) {
            column.push(score);
        }
        self.users.push(record.user().map(ByteArray::from));
    }

    fn write(&self, columns: &Columns, group: &mut SerializedRowGroupWriter<'_, AtomicWriteFile>) -> ParquetResult<()> {
        for texts in [&self.ids, &self.prompts] {
            write_column::<ByteArrayType>(group, texts, None)?;
        }
        for images in &self.images {
            write_column::<ByteArrayType>(group, images, None)?;
        }
        if !self.labels.is_empty() {
            write_column::<BoolType>(group, &self.labels, None)?;
        }
        for scores in &self.scores {
            let levels: Vec<i16> = scores.iter().map(|score| i16::from(score.is_some())).collect();
            let values: Vec<f64> = scores.iter().copied().flatten().collect();
            write_column::<DoubleType>(group, &values, Some(&levels))?;
        }
        if columns.has_user {
            let levels: Vec<i16> = self.users.iter().map(|user| i16::from(user.is_some())).collect();
            let values: Vec<ByteArray> = self.users.iter().flatten().cloned().collect();
            write_column::<ByteArrayType>(group, &values, Some(&levels))?;
        }
        Ok(())
    }
}

/// Writes the next column; `levels` says where there is a value, if there may be none.
fn write_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, AtomicWriteFile>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> ParquetResult<()> {
    let missing = || ParquetError::General("the schema has fewer columns than the rows".to_owned());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, levels, None)?;
    column.close()
}

fn failed(path: &Path, error: ParquetError) -> Error {
    Error::io(path)(std::io::Error::other(error))
}
