//! Values that are there once, by yaql's equality.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::eval::equal;
use crate::functions::python::whole;
use crate::value::Value;

/// Values, each once. To find one costs what the value costs, however many there are: with every
/// value compared with every other a line of a template would take hours.
#[derive(Default)]
pub(super) struct Unique<'v> {
    by_hash: HashMap<u64, Vec<&'v Value>>,
    hasher: RandomState,
}

impl<'v> Unique<'v> {
    /// The values, those that are equal once.
    pub(super) fn of(values: &'v [Value]) -> Self {
        let mut unique = Self::default();
        for value in values {
            unique.insert(value);
        }
        unique
    }

    /// Takes a value; says whether it is new.
    pub(super) fn insert(&mut self, value: &'v Value) -> bool {
        let alike = self
            .by_hash
            .entry(scatter(&self.hasher, value))
            .or_default();
        let new = !alike.iter().any(|known| equal(known, value));
        if new {
            alike.push(value);
        }
        new
    }

    /// Whether an equal value is there.
    pub(super) fn contains(&self, value: &Value) -> bool {
        let alike = self.by_hash.get(&scatter(&self.hasher, value));
        alike.is_some_and(|alike| alike.iter().any(|known| equal(known, value)))
    }
}

/// A number for a value; equal values have the same: `1`, `1.0` and `true` are equal, and maps
/// in whatever order.
fn scatter(hasher: &RandomState, value: &Value) -> u64 {
    match value {
        Value::Null => hasher.hash_one(0),
        Value::Bool(_) | Value::Number(_) => match whole(value) {
            Some(whole) => hasher.hash_one(whole),
            None => fraction(hasher, value.as_f64().unwrap_or_default()),
        },
        Value::String(text) => hasher.hash_one(text.as_str()),
        Value::Array(items) => items.iter().fold(hasher.hash_one("list"), |before, item| {
            hasher.hash_one((before, scatter(hasher, item)))
        }),
        Value::Object(map) => {
            let entries = map.iter();
            let entries =
                entries.map(|(key, value)| hasher.hash_one((key.as_str(), scatter(hasher, value))));
            entries.fold(hasher.hash_one("map"), u64::wrapping_add)
        }
    }
}

fn fraction(hasher: &RandomState, number: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, reason = "it is whole and fits")]
    if number.fract() == 0.0 && number.abs() < 1e38 {
        hasher.hash_one(number as i128)
    } else {
        hasher.hash_one(number.to_bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::json;

    #[test]
    fn equal_values_are_kept_once() {
        let values = [
            json!(1),
            json!(1.0),
            json!(true),
            json!("1"),
            json!([1, {"a": 2, "b": null}]),
            json!([1.0, {"b": null, "a": 2}]),
            json!(0.5),
            json!(-0.0),
            json!(0),
            json!(null),
        ];
        let mut unique = Unique::default();
        let new: Vec<bool> = values.iter().map(|value| unique.insert(value)).collect();
        let wanted = [
            true, false, false, true, true, false, true, true, false, true,
        ];
        assert_eq!(new, wanted);
        assert!(Unique::of(&values).contains(&json!(false)));
        assert!(!unique.contains(&json!([1])));
    }
}
