//! JSON as rows use it: parsed without keeping what no layout reads, so that a hostile line costs little memory.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

/// More keys than any layout has; beyond it a row is refused.
const MAX_KEYS: usize = 256;

/// One JSON object, keys in the order of the file, each at most once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object(pub(crate) Vec<(String, Value)>);

/// A value of a row. The elements of arrays are counted and dropped: no layout of this crate reads them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array { len: usize },
    Object(Object),
}

impl Value {
    /// The JSON type's name, for summaries.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array { .. } => "array",
            Self::Object(_) => "object",
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
            Self::Array { len } => format!("an array of {len} elements"),
            Self::Object(Object(fields)) => {
                let keys: Vec<&str> = fields.iter().take(8).map(|(key, _)| key.as_str()).collect();
                format!("an object with the keys [{}]", keys.join(", "))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
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
            fields.push((key, map.next_value()?));
        }
        Ok(Object(fields))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
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
        let mut len = 0;
        while sequence.next_element::<IgnoredAny>()?.is_some() {
            len += 1;
        }
        Ok(Value::Array { len })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        ObjectVisitor.visit_map(map).map(Value::Object)
    }
}
