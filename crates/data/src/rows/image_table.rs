//! Cells of a Parquet table, read from the file one at a time: a table of images is as large as they are.
//!
//! A cell costs the decompression of the data page it lies in, about 1 MiB as pyarrow writes it. For each column one place is
//! kept open, behind the cell that was read last, so that reading rows in order decompresses each page once. Memory is one page
//! a column, whatever the table's size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::table::{broken, guarded};
use crate::MAX_IMAGE_FILE_BYTES;
use crate::error::{Error, Result, RowProblem};
use crate::table_cell::CellTable;

pub(super) struct ImageTable {
    path: PathBuf,
    reader: SerializedFileReader<std::fs::File>,
    /// The first row of each row group, and the number of rows behind the last one.
    starts: Vec<usize>,
    /// By leaf column.
    cursors: Mutex<BTreeMap<usize, Cursor>>,
}

/// A place in a column of a row group.
struct Cursor {
    group: usize,
    /// The row of the group that is read next.
    next: usize,
    column: ColumnReaderImpl<ByteArrayType>,
}

impl ImageTable {
    pub(super) fn new(path: &Path, reader: SerializedFileReader<std::fs::File>) -> Self {
        let mut starts = vec![0];
        for group in reader.metadata().row_groups() {
            let end = starts.last().copied().unwrap_or(0) + usize::try_from(group.num_rows()).unwrap_or(0);
            starts.push(end);
        }
        Self {
            path: path.to_path_buf(),
            reader,
            starts,
            cursors: Mutex::new(BTreeMap::new()),
        }
    }

    fn column_name(&self, column: usize) -> String {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        schema.column(column).path().string()
    }

    /// The cell, or none where it is null.
    fn cell(
        &self,
        cursors: &mut BTreeMap<usize, Cursor>,
        row: usize,
        column: usize,
        element: Option<usize>,
    ) -> parquet::errors::Result<Option<ByteArray>> {
        let group = self.starts.partition_point(|start| *start <= row).saturating_sub(1);
        let offset = row - self.starts[group];
        let mut cursor = match cursors.remove(&column) {
            Some(cursor) if cursor.group == group && cursor.next <= offset => cursor,
            _ => Cursor {
                group,
                next: 0,
                column: self.open(group, column)?,
            },
        };
        let skipped = cursor.column.skip_records(offset - cursor.next)?;
        let (mut levels, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let (read, _, _) = cursor
            .column
            .read_records(1, Some(&mut levels), Some(&mut repeated), &mut values)?;
        if skipped + cursor.next != offset || read != 1 {
            let said = format!("row group {group} ends before its row {offset}");
            return Err(parquet::errors::ParquetError::General(said));
        }
        cursor.next = offset + 1;
        cursors.insert(column, cursor);
        let Some(element) = element else {
            return Ok(values.pop());
        };
        // Every element has a level, and a value only where that is the highest.
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let highest = schema.column(column).max_def_level();
        let has_value = levels.get(element) == Some(&highest);
        let before = levels.iter().take(element).filter(|level| **level == highest).count();
        Ok((has_value && before < values.len()).then(|| values.swap_remove(before)))
    }

    fn open(&self, group: usize, column: usize) -> parquet::errors::Result<ColumnReaderImpl<ByteArrayType>> {
        let reader = self.reader.get_row_group(group)?.get_column_reader(column)?;
        match reader {
            reader @ ColumnReader::ByteArrayColumnReader(_) => Ok(get_typed_column_reader(reader)),
            _ => Err(parquet::errors::ParquetError::General(
                "not a column of bytes".to_owned(),
            )),
        }
    }
}

impl CellTable for ImageTable {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, row: usize, column: usize, element: Option<usize>) -> Result<Arc<[u8]>> {
        // A cursor is taken out while it is used, so that one that failed is never used again.
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = guarded(|| self.cell(&mut cursors, row, column, element));
        drop(cursors);
        let failed = |problem| Error::Row {
            path: self.path.clone(),
            row: row + 1,
            problem,
        };
        match cell.map_err(|reason| broken(&self.path, row + 1, reason))? {
            Some(bytes) if bytes.len() as u64 > MAX_IMAGE_FILE_BYTES => Err(failed(RowProblem::WrongType {
                key: self.column_name(column),
                found: format!("{} bytes", bytes.len()),
                expected: format!("an image of at most {MAX_IMAGE_FILE_BYTES} bytes"),
            })),
            Some(bytes) => Ok(bytes.data().into()),
            None => Err(failed(RowProblem::WrongType {
                key: self.column_name(column),
                found: "null".to_owned(),
                expected: "the bytes of an image".to_owned(),
            })),
        }
    }
}
