//! The typed reading of the keys that rows of images have.

use crate::ScoredImage;
use crate::error::{Result, RowProblem};
use crate::json::{Object, Value};
use crate::row::{Row, unknown_key};

impl Row {
    /// The boolean at a key that may be absent or null.
    pub(crate) fn take_optional_bool(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take_value(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(found) => Err(self.wrong_type(key, &found, "true or false")),
        }
    }

    /// The number at a key that must be there.
    pub(crate) fn take_required_number(&mut self, key: &str) -> Result<f64> {
        let found = self.take_number(key)?;
        found.ok_or_else(|| self.missing(key, "a number"))
    }

    /// The elements at a key that must be there.
    pub(crate) fn take_list(&mut self, key: &str, expected: &str) -> Result<Vec<Value>> {
        match self.take_value(key) {
            Some(Value::Array(elements)) => Ok(elements),
            Some(found) => Err(self.wrong_type(key, &found, expected)),
            None => Err(self.missing(key, expected)),
        }
    }

    /// The numbers at a key that must be there, finite.
    pub(crate) fn take_numbers(&mut self, key: &str) -> Result<Vec<f64>> {
        let expected = "a list of numbers";
        let elements = self.take_list(key, expected)?;
        let number = |value: &Value| match value {
            Value::Number(number) => number.as_f64().filter(|number| number.is_finite()),
            _ => None,
        };
        let numbers: std::result::Result<Vec<f64>, &Value> =
            elements.iter().map(|value| number(value).ok_or(value)).collect();
        numbers.map_err(|found| self.wrong_type(key, found, expected))
    }

    /// The strings at a key that must be there.
    pub(crate) fn take_strings(&mut self, key: &str) -> Result<Vec<String>> {
        let expected = "a list of strings";
        let mut strings = Vec::new();
        for element in self.take_list(key, expected)? {
            match element {
                Value::String(text) => strings.push(text),
                found => return Err(self.wrong_type(key, &found, expected)),
            }
        }
        Ok(strings)
    }

    /// `responses: [{"image": .., "score": ..}, ..]`, two or more.
    pub(crate) fn take_responses(&mut self) -> Result<Vec<ScoredImage>> {
        let expected = "a list of two or more {\"image\": .., \"score\": ..}";
        let elements = self.take_list("responses", expected)?;
        if elements.len() < 2 {
            let found = Value::Array(elements);
            return Err(self.wrong_type("responses", &found, expected));
        }
        let mut responses = Vec::new();
        for (number, element) in elements.into_iter().enumerate() {
            let Value::Object(Object(fields)) = element else {
                return Err(self.wrong_type(&format!("responses[{number}]"), &element, expected));
            };
            let (mut image, mut score) = (None, None);
            for (key, value) in fields {
                let full = format!("responses[{number}].{key}");
                match key.as_str() {
                    "image" => image = Some(self.image(&full, Some(value))?),
                    "score" => score = Some(self.score(&full, &value)?),
                    _ => return Err(self.error(unknown_key(&full, &key, &["image", "score"]))),
                }
            }
            let missing = |key: &str, what: &str| self.missing(&format!("responses[{number}].{key}"), what);
            responses.push(ScoredImage {
                image: image.ok_or_else(|| missing("image", "an image"))?,
                score: score.ok_or_else(|| missing("score", "a number"))?,
            });
        }
        Ok(responses)
    }

    fn score(&self, key: &str, value: &Value) -> Result<f64> {
        let number = match value {
            Value::Number(number) => number.as_f64().filter(|number| number.is_finite()),
            _ => None,
        };
        number.ok_or_else(|| self.wrong_type(key, value, "a finite number"))
    }

    /// Two keys, or a key and what is known otherwise, that say different things.
    pub(crate) fn conflict(&self, key: &str, reason: impl Into<String>) -> crate::Error {
        self.error(RowProblem::Conflict {
            key: key.to_owned(),
            reason: reason.into(),
        })
    }
}
