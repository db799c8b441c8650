//! An image inside a table, read when it is needed.

use std::cmp::Ordering;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::error::Result;

/// A table whose cells are read one at a time, by any number of threads.
pub(crate) trait CellTable: Send + Sync {
    /// The table's file.
    fn path(&self) -> &Path;

    /// The bytes at a row (from 0) of a leaf column.
    /// In a column of lists, those of one element of the list.
    fn read(&self, row: usize, column: usize, element: Option<usize>) -> Result<Arc<[u8]>>;
}

/// One cell of a table that stays in its file: a place, of a few bytes, whatever the cell holds.
#[derive(Clone)]
pub struct TableCell {
    pub(crate) table: Arc<dyn CellTable>,
    /// From 0.
    pub(crate) row: usize,
    /// Number of the leaf column, from 0.
    pub(crate) column: usize,
    /// Place in the row's list, from 0, in a column of lists.
    pub(crate) element: Option<usize>,
    /// What the file calls the column.
    pub(crate) name: Arc<str>,
}

impl TableCell {
    /// The table's file.
    pub fn path(&self) -> &Path {
        self.table.path()
    }

    /// The file, and the place in it.
    fn place(&self) -> (&Path, usize, usize, Option<usize>) {
        (self.path(), self.row, self.column, self.element)
    }

    /// The bytes, read from the file.
    ///
    /// # Errors
    /// [`crate::Error::Row`] for a cell that is null or cannot be read, which names file, row and column.
    pub fn read(&self) -> Result<Arc<[u8]>> {
        self.table.read(self.row, self.column, self.element)
    }
}

impl PartialEq for TableCell {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for TableCell {}

impl PartialOrd for TableCell {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TableCell {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl fmt::Display for TableCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.table.path().display();
        write!(f, "{path}, row {}, column `{}`", self.row + 1, self.name)?;
        match self.element {
            Some(element) => write!(f, ", element {element}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for TableCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableCell({self})")
    }
}
