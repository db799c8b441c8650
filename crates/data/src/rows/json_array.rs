//! Reading a file that is one JSON array of objects, or one object of them, one element at a time, with bounded memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result, RowProblem};
use crate::json::{Object, Value};
use crate::json_lines::{MAX_LINE_BYTES, parse};
use crate::row::Row;

/// The elements of an array. After an element that is no row the next one can still be read, as long as brackets match.
pub(crate) struct JsonArray {
    path: Arc<Path>,
    reader: BufReader<File>,
    number: usize,
    limit: usize,
    is_done: bool,
    shape: Shape,
}

/// What the elements stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Array,
    /// `{"1": {..}, ..}`: rows that are named by the number of an image.
    Keyed,
}

/// The key of a row that is named by a number.
const NUMBER_KEY: &str = "image_id";

/// Bytes in which the first row of an object of rows must begin.
const LOOKED_AT: u64 = 4096;

/// How an element ended.
enum End {
    Comma,
    Bracket,
    Cut,
}

/// Where in the JSON of an element the reader is.
#[derive(Default)]
struct Scanner {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Scanner {
    /// Takes one byte; an end when it is the comma or bracket after the element.
    fn take(&mut self, byte: u8, closing: u8) -> Option<End> {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return None;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            _ if byte == closing && self.depth == 0 => return Some(End::Bracket),
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b',' if self.depth == 0 => return Some(End::Comma),
            _ => {}
        }
        None
    }
}

impl JsonArray {
    /// None where the first character is not `[`, unless the file is an object of rows that are named by numbers.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        let shape = if is_keyed(path).map_err(Error::io(path))? {
            Shape::Keyed
        } else {
            Shape::Array
        };
        let file = File::open(path).map_err(Error::io(path))?;
        let mut array = Self {
            path: path.into(),
            reader: BufReader::with_capacity(1 << 16, file),
            number: 0,
            limit: MAX_LINE_BYTES,
            is_done: false,
            shape,
        };
        let opening = if shape == Shape::Keyed { b'{' } else { b'[' };
        Ok((array.first().map_err(Error::io(path))? == Some(opening)).then_some(array))
    }

    /// The first byte that is neither white space nor part of a byte order mark, which it reads past.
    fn first(&mut self) -> std::io::Result<Option<u8>> {
        loop {
            let available = self.reader.fill_buf()?;
            if available.is_empty() {
                return Ok(None);
            }
            let is_content = |byte: &u8| !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(byte);
            if let Some(at) = available.iter().position(is_content) {
                let byte = available[at];
                self.reader.consume(at + 1);
                return Ok(Some(byte));
            }
            let len = available.len();
            self.reader.consume(len);
        }
    }

    /// Reads an element up to and including the comma or bracket after it. What is longer than the limit is passed over.
    fn read_element(&mut self, element: &mut Vec<u8>) -> std::io::Result<(End, bool)> {
        let closing = if self.shape == Shape::Keyed { b'}' } else { b']' };
        let mut scanner = Scanner::default();
        let mut total = 0;
        loop {
            let available = self.reader.fill_buf()?;
            if available.is_empty() {
                return Ok((End::Cut, total > self.limit));
            }
            let mut end = None;
            let mut len = 0;
            for byte in available {
                end = scanner.take(*byte, closing);
                if end.is_some() {
                    break;
                }
                len += 1;
            }
            total += len;
            if total <= self.limit {
                element.extend_from_slice(&available[..len]);
            }
            self.reader.consume(len + usize::from(end.is_some()));
            if let Some(end) = end {
                return Ok((end, total > self.limit));
            }
        }
    }

    fn error(&self, problem: RowProblem) -> Error {
        Error::Row {
            path: self.path.to_path_buf(),
            row: self.number,
            problem,
        }
    }

    /// What follows the closing bracket must be nothing.
    fn check_end(&mut self) -> Result<()> {
        match self.first().map_err(Error::io(&*self.path))? {
            None => Ok(()),
            Some(byte) => Err(self.error(RowProblem::Json {
                reason: format!("after the array that this file is, found `{}`", byte.escape_ascii()),
                column: 1,
            })),
        }
    }
}

impl Iterator for JsonArray {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let mut element = Vec::new();
        let (end, is_too_long) = match self.read_element(&mut element) {
            Ok(read) => read,
            Err(source) => {
                self.is_done = true;
                return Some(Err(Error::io(&*self.path)(source)));
            }
        };
        self.number += 1;
        let is_blank = element.trim_ascii().is_empty();
        match end {
            End::Comma => {}
            End::Bracket => {
                self.is_done = true;
                if let Err(error) = self.check_end() {
                    return Some(Err(error));
                }
                if self.number == 1 && is_blank {
                    return None;
                }
            }
            End::Cut => {
                self.is_done = true;
                return Some(Err(self.error(RowProblem::Rest {
                    reason: "it ends inside the array that it is".to_owned(),
                })));
            }
        }
        if is_too_long {
            return Some(Err(self.error(RowProblem::TooLong { limit: self.limit })));
        }
        Some(match self.shape {
            Shape::Array => parse(&self.path, self.number, element.trim_ascii()),
            Shape::Keyed => self.keyed(&element),
        })
    }
}

impl JsonArray {
    /// The row of `"number": {..}`.
    fn keyed(&self, element: &[u8]) -> Result<Row> {
        let mut row = parse(&self.path, self.number, &[b"{", element, b"}"].concat())?;
        let (number, value) = row.fields.pop().ok_or_else(|| row.missing(NUMBER_KEY, "a row"))?;
        let Value::Object(Object(mut fields)) = value else {
            return Err(row.wrong_type(&number, &value, "an object, the row of this number"));
        };
        if fields.iter().any(|(key, _)| key == NUMBER_KEY) {
            return Err(self.error(RowProblem::Conflict {
                key: NUMBER_KEY.to_owned(),
                reason: "is given by the number before the row, too; leave it out".to_owned(),
            }));
        }
        fields.insert(0, (NUMBER_KEY.to_owned(), Value::String(number)));
        row.fields = fields;
        Ok(row)
    }
}

/// Whether a file begins as an object of objects that are named by numbers.
fn is_keyed(path: &Path) -> std::io::Result<bool> {
    let mut begins = Vec::new();
    File::open(path)?.take(LOOKED_AT).read_to_end(&mut begins)?;
    let after =
        |rest: &[u8], byte: u8| -> Option<Vec<u8>> { Some(rest.trim_ascii_start().strip_prefix(&[byte])?.to_vec()) };
    let begins = begins.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&begins);
    let found = after(begins, b'{')
        .and_then(|rest| after(&rest, b'"'))
        .and_then(|rest| {
            let num_digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let rest = (num_digits > 0)
                .then(|| rest[num_digits..].strip_prefix(b"\""))
                .flatten()?;
            after(&after(rest, b':')?, b'{')
        });
    Ok(found.is_some())
}

#[cfg(test)]
mod tests {
    use crate::rows::Rows;

    fn rows(content: &[u8], limit: usize) -> Vec<std::result::Result<usize, String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.json");
        std::fs::write(&path, content).unwrap();
        let Rows::Array(mut array) = Rows::open(&path).unwrap() else {
            panic!("an array")
        };
        array.limit = limit;
        array
            .map(|row| row.map(|row| row.number).map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn elements_are_told_apart_whatever_their_strings_hold() {
        let found = rows(
            b"\xef\xbb\xbf [\n {\"a\": \"],[{\\\"\\\\\"},\n{\"b\": [1, {\"c\": [2, 3]}]}\n]\n",
            100,
        );
        assert_eq!(found, [Ok(1), Ok(2)]);
        assert!(rows(b"[ ]", 100).is_empty());
    }

    #[test]
    fn reading_goes_on_after_an_element_that_is_no_row() {
        let found = rows(
            b"[{\"a\": 1}, 7, {\"long\": \"0123456789012345678901234567890\"}, {\"b\": 2},]",
            30,
        );
        assert_eq!((&found[0], &found[3]), (&Ok(1), &Ok(4)));
        let errors: Vec<&String> = [1, 2, 4].iter().map(|at| found[*at].as_ref().unwrap_err()).collect();
        assert!(errors[0].contains("row 2: not one JSON object"), "{}", errors[0]);
        assert!(
            errors[1].contains("row 3: the line is longer than 30 bytes"),
            "{}",
            errors[1]
        );
        assert!(
            errors[2].contains("row 5: not one JSON object a line: EOF"),
            "{}",
            errors[2]
        );
    }

    #[test]
    fn objects_of_numbered_rows_are_rows() {
        let content = b"{\"17\": {\"a\": \"}, {\"},\n \"18\" : {\"a\": {\"b\": 1}}}\n";
        assert_eq!(rows(content, 100), [Ok(1), Ok(2)]);
        let broken = rows(b"{\"17\": {}, \"18\": 3, \"19\": {\"image_id\": 1}, \"20\": {", 100);
        let errors: Vec<&String> = broken[1..].iter().map(|row| row.as_ref().unwrap_err()).collect();
        assert!(
            errors[0].contains("row 2: `18`: found the number 3, expected an object"),
            "{}",
            errors[0]
        );
        assert!(
            errors[1].contains("row 3: `image_id` is given by the number"),
            "{}",
            errors[1]
        );
        assert!(
            errors[2].contains("row 4: the file cannot be read from here on: it ends"),
            "{}",
            errors[2]
        );
    }

    #[test]
    fn a_cut_file_and_one_with_a_tail_are_errors() {
        let cut = rows(b"[{\"a\": 1}, {\"b\"", 100);
        assert!(
            cut[1].as_ref().unwrap_err().contains("it ends inside the array"),
            "{cut:?}"
        );
        let tail = rows(b"[{\"a\": 1}] [", 100);
        assert!(tail[0].as_ref().unwrap_err().contains("found `[`"), "{tail:?}");
    }
}
