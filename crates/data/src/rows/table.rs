//! Rows of a Parquet table, as Hugging Face datasets are published.
//!
//! Columns of text, numbers, booleans, lists and structs are read, uncompressed or with Snappy, which is what `datasets` and
//! pyarrow write by default. A null, and a NaN, with which pandas marks a missing number, are absent keys. Columns of bytes, which are
//! images, stay in the file: a row has a [`TableCell`] for each, null or not, and for each element of a list of images.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as TableRow};
use parquet::schema::types::{ColumnDescriptor, Type as SchemaType, TypePtr};
use serde_json::Number;

use super::image_table::ImageTable;

use crate::error::{Error, Result, RowProblem};
use crate::json::{Object, Value};
use crate::row::Row;
use crate::table_cell::{CellTable, TableCell};

/// The rows of a table, numbered from 1.
pub(crate) struct ParquetRows {
    path: Arc<Path>,
    /// The columns that are read with the row; none where all are bytes.
    rows: Option<RowIter<'static>>,
    table: Arc<dyn CellTable>,
    cells: Vec<CellColumn>,
    number: usize,
    num_rows: usize,
    is_done: bool,
}

/// A column of bytes.
struct CellColumn {
    leaf: usize,
    /// The keys that lead to it.
    keys: Vec<String>,
    name: Arc<str>,
    /// Whether each row has a list of them.
    is_of_list: bool,
}

impl ParquetRows {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open = || File::open(path).map_err(Error::io(path));
        let (file, for_cells) = (open()?, open()?);
        let opened = guarded(|| {
            let reader = SerializedFileReader::new(file)?;
            let table = ImageTable::new(path, SerializedFileReader::new(for_cells)?);
            let descriptor = reader.metadata().file_metadata().schema_descr_ptr();
            let columns: Vec<Vec<String>> = (0..descriptor.num_columns())
                .map(|leaf| descriptor.column(leaf).path().parts().to_vec())
                .collect();
            let cells: Vec<CellColumn> = (0..descriptor.num_columns())
                .filter(|leaf| {
                    let column = descriptor.column(*leaf);
                    is_bytes(&column) || is_bytes_of_list(&column, &columns)
                })
                .map(|leaf| {
                    let path = descriptor.column(leaf).path().clone();
                    CellColumn {
                        leaf,
                        name: path.string().into(),
                        keys: path.parts().to_vec(),
                        is_of_list: descriptor.column(leaf).max_rep_level() > 0,
                    }
                })
                .collect();
            let num_rows = usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
            let rows = match without(descriptor.root_schema(), &cells, &mut Vec::new())? {
                Some(projection) => {
                    let projection = Arc::unwrap_or_clone(projection);
                    Some(RowIter::from_file_into(Box::new(reader)).project(Some(projection))?)
                }
                None => None,
            };
            Ok((rows, Arc::new(table), cells, num_rows))
        });
        let (rows, table, cells, num_rows) = opened.map_err(|reason| broken(path, 1, reason))?;
        Ok(Self {
            path: path.into(),
            rows,
            table,
            cells,
            number: 0,
            num_rows,
            is_done: false,
        })
    }

    fn fields(&self, row: Option<TableRow>) -> Result<Vec<(String, Value)>> {
        let mut fields = match row {
            Some(row) => fields_of(&self.path, self.number, "", row)?,
            None => Vec::new(),
        };
        for column in &self.cells {
            let cell = |element| {
                Value::Cell(TableCell {
                    table: Arc::clone(&self.table),
                    row: self.number - 1,
                    column: column.leaf,
                    element,
                    name: Arc::clone(&column.name),
                })
            };
            match column.keys.as_slice() {
                [key, .., leaf] if column.is_of_list => insert_in_list(&mut fields, key, leaf, |at| cell(Some(at))),
                keys => insert(&mut fields, keys, cell(None)),
            }
        }
        Ok(fields)
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let row = match &mut self.rows {
            Some(rows) => guarded(|| rows.next().transpose()).transpose()?.map(Some),
            None if self.number < self.num_rows => Ok(None),
            None => return None,
        };
        self.number += 1;
        let row = row.map_err(|reason| {
            // The reader stands somewhere in a damaged page: what follows is not to be trusted.
            self.is_done = true;
            Error::Row {
                path: self.path.to_path_buf(),
                row: self.number,
                problem: RowProblem::Rest {
                    reason: format!(
                        "not a readable Parquet table: {reason}; it has {} more rows",
                        self.num_rows.saturating_sub(self.number)
                    ),
                },
            }
        });
        Some(row.and_then(|row| {
            Ok(Row {
                path: Arc::clone(&self.path),
                number: self.number,
                fields: self.fields(row)?,
            })
        }))
    }
}

/// Whether a column holds bytes that are no text, one value a row. Other lists of bytes are read with the row, and refused there.
fn is_bytes(column: &ColumnDescriptor) -> bool {
    is_binary(column) && column.max_rep_level() == 0
}

/// Whether a column holds the bytes of a list of images, as `datasets` writes it: beside something else (`path`), which is read with the
/// row and tells how many there are.
fn is_bytes_of_list(column: &ColumnDescriptor, columns: &[Vec<String>]) -> bool {
    let keys = column.path().parts();
    let [key, list, element, _] = keys else { return false };
    let has_neighbour =
        |other: &Vec<String>| other[..] != *keys && other.starts_with(&[key.clone(), list.clone(), element.clone()]);
    is_binary(column) && column.max_rep_level() == 1 && columns.iter().any(has_neighbour)
}

fn is_binary(column: &ColumnDescriptor) -> bool {
    let is_plain = matches!(column.logical_type_ref(), None | Some(LogicalType::Unknown));
    column.physical_type() == PhysicalType::BYTE_ARRAY && column.converted_type() == ConvertedType::NONE && is_plain
}

/// A schema without some columns, and without the groups that are empty then; none if nothing is left.
fn without(
    schema: &SchemaType,
    cells: &[CellColumn],
    keys: &mut Vec<String>,
) -> parquet::errors::Result<Option<TypePtr>> {
    let SchemaType::GroupType { basic_info, fields, .. } = schema else {
        let is_cell = cells.iter().any(|cell| cell.keys == *keys);
        return Ok((!is_cell).then(|| Arc::new(schema.clone())));
    };
    let mut kept = Vec::new();
    for field in fields {
        keys.push(field.name().to_owned());
        kept.extend(without(field, cells, keys)?);
        keys.pop();
    }
    if kept.is_empty() {
        return Ok(None);
    }
    let mut builder = SchemaType::group_type_builder(schema.name())
        .with_converted_type(basic_info.converted_type())
        .with_logical_type(basic_info.logical_type_ref().cloned())
        .with_fields(kept);
    if basic_info.has_repetition() {
        builder = builder.with_repetition(basic_info.repetition());
    }
    Ok(Some(Arc::new(builder.build()?)))
}

/// Puts a value where some keys lead, through objects that are made where there is none.
fn insert(fields: &mut Vec<(String, Value)>, keys: &[String], value: Value) {
    let [key, rest @ ..] = keys else { return };
    if rest.is_empty() {
        fields.push((key.clone(), value));
        return;
    }
    let at = fields.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
        fields.push((key.clone(), Value::Null));
        fields.len() - 1
    });
    if !matches!(fields[at].1, Value::Object(_)) {
        fields[at].1 = Value::Object(Object(Vec::new()));
    }
    if let Value::Object(Object(inner)) = &mut fields[at].1 {
        insert(inner, rest, value);
    }
}

/// Puts a value into each object of the list at a key.
fn insert_in_list(fields: &mut [(String, Value)], key: &str, leaf: &str, cell: impl Fn(usize) -> Value) {
    let list = fields.iter_mut().find_map(|(known, value)| match value {
        Value::Array(elements) if known == key => Some(elements),
        _ => None,
    });
    for (at, element) in list.into_iter().flatten().enumerate() {
        if let Value::Object(Object(inner)) = element {
            inner.push((leaf.to_owned(), cell(at)));
        }
    }
}

/// The reader of damaged files panics in places. A panic is an error of the file like any other.
pub(super) fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err("the reader gave up on damaged data".to_owned()),
    }
}

pub(super) fn broken(path: &Path, row: usize, reason: String) -> Error {
    Error::Row {
        path: path.to_path_buf(),
        row,
        problem: RowProblem::Table { reason },
    }
}

fn fields_of(path: &Path, number: usize, prefix: &str, row: TableRow) -> Result<Vec<(String, Value)>> {
    row.into_columns()
        .into_iter()
        .map(|(name, field)| {
            let value = value(path, number, &format!("{prefix}{name}"), field)?;
            Ok((name, value))
        })
        .collect()
}

fn value(path: &Path, number: usize, key: &str, field: Field) -> Result<Value> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(value) => Value::Number(value.into()),
        Field::Short(value) => Value::Number(value.into()),
        Field::Int(value) | Field::Date(value) | Field::TimeMillis(value) => Value::Number(value.into()),
        Field::Long(value)
        | Field::TimeMicros(value)
        | Field::TimestampMillis(value)
        | Field::TimestampMicros(value) => Value::Number(value.into()),
        Field::UByte(value) => Value::Number(value.into()),
        Field::UShort(value) => Value::Number(value.into()),
        Field::UInt(value) => Value::Number(value.into()),
        Field::ULong(value) => Value::Number(value.into()),
        Field::Float16(value) => float(path, number, key, value.into())?,
        Field::Float(value) => float(path, number, key, value.into())?,
        Field::Double(value) => float(path, number, key, value)?,
        Field::Str(value) => Value::String(value),
        Field::Group(row) => Value::Object(Object(fields_of(path, number, &format!("{key}."), row)?)),
        Field::ListInternal(list) => {
            let elements = list.elements().iter().cloned().enumerate();
            let elements = elements.map(|(at, field)| value(path, number, &format!("{key}[{at}]"), field));
            Value::Array(elements.collect::<Result<_>>()?)
        }
        other => return Err(wrong(path, number, key, format!("a value such as `{other}`"))),
    })
}

fn float(path: &Path, number: usize, key: &str, value: f64) -> Result<Value> {
    if value.is_nan() {
        return Ok(Value::Null);
    }
    Number::from_f64(value)
        .map(Value::Number)
        .ok_or_else(|| wrong(path, number, key, "an infinite number".to_owned()))
}

fn wrong(path: &Path, row: usize, key: &str, found: String) -> Error {
    let found = match found.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &found[..at]),
        None => found,
    };
    Error::Row {
        path: path.to_path_buf(),
        row,
        problem: RowProblem::WrongType {
            key: key.to_owned(),
            found,
            expected: "text, a number, a boolean, a list or a struct".to_owned(),
        },
    }
}
