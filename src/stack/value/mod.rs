//! Values of templates. They are JSON values with cheap copies: copies share texts, lists and maps
//! until one of them is changed. Values are copied often, from templates to stacks and to resources,
//! and most are never changed.

mod convert;
mod map;

use std::fmt;
use std::ops::{Index, IndexMut};

pub use crate::json;
pub use map::Map;
#[doc(hidden)]
pub use serde_json;
pub use serde_json::Number;

/// A text; short ones need no room of their own.
pub type Text = ecow::EcoString;
/// Values in order.
pub type List = ecow::EcoVec<Value>;

static NULL: Value = Value::Null;

/// One value, whatever is in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A number: 64 bits, whole or not.
    Number(Number),
    /// A text.
    String(Text),
    /// A list.
    Array(List),
    /// A map.
    Object(Map),
}

/// Approximate size of a value in bytes.
#[must_use]
pub fn weight(value: &Value) -> usize {
    16 + match value {
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(map) => map.iter().map(|(key, v)| key.len() + weight(v)).sum(),
        Value::String(text) => text.len(),
        _ => 0,
    }
}

impl Value {
    /// Whether it is null.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether it is true or false.
    #[must_use]
    pub fn is_boolean(&self) -> bool {
        matches!(self, Self::Bool(_))
    }

    /// Whether it is a number.
    #[must_use]
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Number(_))
    }

    /// Whether it is a whole number of 64 bits with a sign.
    #[must_use]
    pub fn is_i64(&self) -> bool {
        self.as_i64().is_some()
    }

    /// Whether it is a whole number of 64 bits without a sign.
    #[must_use]
    pub fn is_u64(&self) -> bool {
        self.as_u64().is_some()
    }

    /// Whether it is a text.
    #[must_use]
    pub fn is_string(&self) -> bool {
        matches!(self, Self::String(_))
    }

    /// Whether it is a list.
    #[must_use]
    pub fn is_array(&self) -> bool {
        matches!(self, Self::Array(_))
    }

    /// Whether it is a map.
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    /// The flag, if it is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The number, if it is a whole one that fits.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Number(number) => number.as_i64(),
            _ => None,
        }
    }

    /// The number, if it is a whole one that fits and is not negative.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(number) => number.as_u64(),
            _ => None,
        }
    }

    /// The number, if it is one; large whole ones lose digits.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.as_f64(),
            _ => None,
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items, if it is a list.
    #[must_use]
    pub fn as_array(&self) -> Option<&List> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The map, if it is one.
    #[must_use]
    pub fn as_object(&self) -> Option<&Map> {
        match self {
            Self::Object(map) => Some(map),
            _ => None,
        }
    }

    /// The map to change, if it is one.
    #[must_use]
    pub fn as_object_mut(&mut self) -> Option<&mut Map> {
        match self {
            Self::Object(map) => Some(map),
            _ => None,
        }
    }

    /// What a map has under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_object()?.get(key)
    }

    /// What a map has under `key`, to change.
    #[must_use]
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.as_object_mut()?.get_mut(key)
    }

    /// The value, null in its place.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Puts every map in it, at any depth, in the order of keys.
    pub fn sort_all_objects(&mut self) {
        match self {
            Self::Array(items) => {
                for item in items.make_mut() {
                    item.sort_all_objects();
                }
            }
            Self::Object(map) => {
                map.sort_keys();
                for (_, value) in map.iter_mut() {
                    value.sort_all_objects();
                }
            }
            _ => {}
        }
    }
}

/// As JSON.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a map has under a key; null when there is none.
impl<K: AsRef<str> + ?Sized> Index<&K> for Value {
    type Output = Self;

    fn index(&self, key: &K) -> &Self {
        self.get(key.as_ref()).unwrap_or(&NULL)
    }
}

/// An item of a list; null when there is none.
impl Index<usize> for Value {
    type Output = Self;

    fn index(&self, at: usize) -> &Self {
        let item = self.as_array().and_then(|items| items.get(at));
        item.unwrap_or(&NULL)
    }
}

/// What a map has under a key, null put there when there is none; what is no map becomes one.
impl<K: AsRef<str> + ?Sized> IndexMut<&K> for Value {
    fn index_mut(&mut self, key: &K) -> &mut Self {
        if !self.is_object() {
            *self = Self::Object(Map::new());
        }
        match self {
            Self::Object(map) => map.or_insert_with(key.as_ref(), Self::default),
            // It is a map by now.
            other => other,
        }
    }
}
