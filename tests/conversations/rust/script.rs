//! Values that tables expect, and names that they give to values.

use std::collections::HashMap;

use serde_json::Value;

use super::frames::{bytes_of, of_bytes};

/// Values by the names that a table gave them.
pub type Names = HashMap<String, Value>;

/// Checks a value against what a table says of it; names of the table get their values.
pub fn check(actual: &Value, expected: &Value, names: &mut Names, path: &str) {
    match expected {
        Value::String(text) if text.starts_with('$') => {
            assert_eq!(Some(actual), names.get(&text[1..]), "{path}");
        }
        Value::Array(expected) => {
            let actual = actual.as_array().unwrap_or_else(|| panic!("{path}: {actual}"));
            assert_eq!(actual.len(), expected.len(), "{path}");
            for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
                check(actual, expected, names, &format!("{path}.{i}"));
            }
        }
        Value::Object(fields) => {
            if let Some(name) = fields.get("as") {
                names.insert(name.as_str().unwrap().to_owned(), actual.clone());
            } else if let Some(range) = fields.get("between") {
                let (low, high) = (range[0].as_u64().unwrap(), range[1].as_u64().unwrap());
                let number = actual.as_u64().unwrap_or_else(|| panic!("{path}: {actual}"));
                assert!((low..=high).contains(&number), "{path}: {number} not in {low} to {high}");
            } else if let Some(name) = fields.get("not") {
                assert_ne!(Some(actual), names.get(&name.as_str().unwrap()[1..]), "{path}");
            } else if fields.contains_key("hex") || fields.contains_key("zeros") {
                assert_eq!(*actual, of_bytes(&bytes_of(expected)), "{path}");
            } else {
                for (key, expected) in fields {
                    check(&actual[key], expected, names, &format!("{path}.{key}"));
                }
            }
        }
        _ => assert_eq!(actual, expected, "{path}"),
    }
}

/// Puts the values of names into what a server sends or a client is asked.
pub fn resolve(value: &Value, names: &Names) -> Value {
    match value {
        Value::String(text) if text.starts_with('$') => {
            names.get(&text[1..]).unwrap_or_else(|| panic!("{text} has no value")).clone()
        }
        Value::Array(list) => list.iter().map(|one| resolve(one, names)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, one)| (key.clone(), resolve(one, names))).collect()
        }
        other => other.clone(),
    }
}
