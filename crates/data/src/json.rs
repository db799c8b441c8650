//! JSON as rows use it: keys at most once, and a bound on what one row may hold, so that a hostile line costs little memory.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number};

use crate::TableCell;

/// More keys than any layout has; beyond it a row is refused.
const MAX_KEYS: usize = 256;

/// More values than any row needs: a value takes tens of bytes of memory for the two that `0,` takes in a file.
const MAX_VALUES: usize = 1 << 20;

/// One JSON object, keys in the order of the file, each at most once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object(pub(crate) Vec<(String, Value)>);

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Self>),
    Object(Object),
    /// Bytes of a table that are still in its file.
    #[cfg_attr(
        not(feature = "parquet"),
        expect(dead_code, reason = "only tables have cells, and this build reads none")
    )]
    Cell(TableCell),
}

impl Value {
    /// The JSON type's name, for summaries.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
            Self::Cell(_) => "bytes",
        }
    }

    /// What an error says was found.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Number(value) => format!("the number {value}"),
            Self::String(value) if value.chars().count() > 40 => {
                format!("the string \"{}…\"", value.chars().take(40).collect::<String>())
            }
            Self::String(value) => format!("the string \"{value}\""),
            Self::Array(elements) => format!("an array of {} elements", elements.len()),
            Self::Cell(_) => "bytes".to_owned(),
            Self::Object(Object(fields)) => {
                let keys: Vec<&str> = fields.iter().take(8).map(|(key, _)| key.as_str()).collect();
                format!("an object with the keys [{}]", keys.join(", "))
            }
        }
    }
}

impl From<Value> for serde_json::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(value) => Self::Number(value),
            Value::String(value) => Self::String(value),
            Value::Array(elements) => Self::Array(elements.into_iter().map(Self::from).collect()),
            Value::Object(object) => Self::Object(object.into()),
            // Text records have no use for bytes; where they lie is all that can be said in JSON.
            Value::Cell(cell) => Self::String(cell.to_string()),
        }
    }
}

impl From<Object> for Map<String, serde_json::Value> {
    fn from(Object(fields): Object) -> Self {
        fields.into_iter().map(|(key, value)| (key, value.into())).collect()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(&Budget::new()))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ValueSeed(&Budget::new()).deserialize(deserializer)
    }
}

/// How many values a row may still hold.
struct Budget(Cell<usize>);

impl Budget {
    fn new() -> Self {
        Self(Cell::new(MAX_VALUES))
    }

    fn spend<E: Error>(&self) -> Result<(), E> {
        let left = self.0.get().checked_sub(1);
        let left = left.ok_or_else(|| E::custom(format_args!("more than {MAX_VALUES} values in one row")))?;
        self.0.set(left);
        Ok(())
    }
}

struct ObjectVisitor<'a>(&'a Budget);

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut fields: Vec<(String, Value)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if fields.len() == MAX_KEYS {
                return Err(A::Error::custom(format_args!(
                    "more than {MAX_KEYS} keys in one object"
                )));
            }
            // JSON leaves the meaning of a repeated key open, and most parsers silently keep the last one.
            if fields.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format_args!("the key `{key}` appears twice")));
            }
            fields.push((key, map.next_value_seed(ValueSeed(self.0))?));
        }
        Ok(Object(fields))
    }
}

struct ValueSeed<'a>(&'a Budget);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.spend()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element_seed(ValueSeed(self.0))? {
            elements.push(element);
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        ObjectVisitor(self.0).visit_map(map).map(Value::Object)
    }
}
