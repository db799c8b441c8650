//! What tests of recipes share, here and where images are read: sections that are changed, and numbers of tensors.

use std::path::PathBuf;

use diptych_tensor::{DType, Tensor};
use serde_json::{Map, Value};

/// Sections of which a change says all.
const CHOICES: [&str; 7] = [
    "adapter",
    "reference",
    "method",
    "objective",
    "schedule",
    "samples",
    "eval",
];

/// A recipe with some sections changed: of [`CHOICES`] all of it, of the others key by key.
pub(crate) fn changed(mut recipe: Value, changes: &Value) -> Value {
    let sections = recipe.as_object_mut().unwrap();
    for (name, change) in changes.as_object().unwrap() {
        match sections.get_mut(name).and_then(Value::as_object_mut) {
            Some(section) if !CHOICES.contains(&name.as_str()) => merge(section, change.as_object().unwrap()),
            _ => {
                sections.insert(name.clone(), change.clone());
            }
        }
    }
    recipe
}

fn merge(section: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (key, value) in changes {
        match (section.get_mut(key).and_then(Value::as_object_mut), value.as_object()) {
            (Some(old), Some(new)) => merge(old, new),
            _ => {
                section.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Writes rows and returns where.
pub(crate) fn write_rows(path: PathBuf, rows: &[Value]) -> PathBuf {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// The numbers of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().flatten_all().unwrap();
    flat.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}
