//! The rows of a file, whatever its format.

#[cfg(feature = "parquet")]
mod image_table;
mod json_array;
#[cfg(feature = "parquet")]
mod table;

use std::path::Path;

use json_array::JsonArray;

#[cfg(not(feature = "parquet"))]
use crate::error::Error;
use crate::error::Result;
use crate::json_lines::JsonLines;
use crate::row::Row;

/// The rows of a record file: JSON lines, the elements of one array, or (with the feature) a Parquet table.
///
/// A `.parquet` file is a table. A `.json` file whose first character is `[` is an array; everything else is JSON lines, where a row that starts with
/// `[` is an error.
pub(crate) enum Rows {
    Lines(JsonLines),
    Array(JsonArray),
    #[cfg(feature = "parquet")]
    Table(Box<table::ParquetRows>),
}

impl Rows {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let is = |known: &str| {
            path.extension()
                .is_some_and(|extension| extension.eq_ignore_ascii_case(known))
        };
        if is("parquet") {
            #[cfg(feature = "parquet")]
            return table::ParquetRows::open(path).map(|rows| Self::Table(Box::new(rows)));
            #[cfg(not(feature = "parquet"))]
            return Err(Error::UnknownLayout {
                path: path.to_path_buf(),
                found: "a .parquet file, which this build does not read (it lacks the feature `parquet`)".to_owned(),
            });
        }
        if is("json")
            && let Some(array) = JsonArray::open(path)?
        {
            return Ok(Self::Array(array));
        }
        Ok(Self::Lines(JsonLines::open(path)?))
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Lines(lines) => lines.next(),
            Self::Array(array) => array.next(),
            #[cfg(feature = "parquet")]
            Self::Table(table) => table.next(),
        }
    }
}
