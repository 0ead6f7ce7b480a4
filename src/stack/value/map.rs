//! Maps that keep the order in which they were made.

use std::hash::{BuildHasher, RandomState};
use std::ops::Index;
use std::sync::Arc;

use ecow::EcoVec;
use hashbrown::HashTable;

use super::{NULL, Text, Value};

/// Up to how many entries are looked through; more have an index.
const FEW: usize = 24;

type Entry = (Text, Value);

/// Values by key, in the order in which they were put there. A copy shares them until either
/// changes.
#[derive(Clone)]
pub struct Map(Inner);

#[derive(Clone)]
enum Inner {
    Few(EcoVec<Entry>),
    Many(Arc<Indexed>),
}

#[derive(Clone)]
struct Indexed {
    entries: Vec<Entry>,
    /// Where each key is.
    table: HashTable<u32>,
    /// Keys are other people's: they must not know how they are scattered.
    hasher: RandomState,
}

impl Indexed {
    fn new(entries: Vec<Entry>) -> Self {
        let mut new = Self {
            table: HashTable::with_capacity(entries.len() + FEW),
            hasher: RandomState::new(),
            entries,
        };
        new.order_changed();
        new
    }

    fn place(&self, key: &str) -> Option<usize> {
        let same = |at: &u32| self.entries[*at as usize].0 == key;
        let found = self.table.find(self.hasher.hash_one(key), same);
        found.map(|at| *at as usize)
    }

    fn push(&mut self, key: Text, value: Value) {
        let hash = self.hasher.hash_one(key.as_str());
        #[allow(clippy::cast_possible_truncation, reason = "memory ends long before")]
        let at = self.entries.len() as u32;
        let (entries, hasher) = (&self.entries, &self.hasher);
        let again = |at: &u32| hasher.hash_one(entries[*at as usize].0.as_str());
        self.table.insert_unique(hash, at, again);
        self.entries.push((key, value));
    }

    fn order_changed(&mut self) {
        self.table.clear();
        for (at, (key, _)) in (0..).zip(&self.entries) {
            let hash = self.hasher.hash_one(key.as_str());
            let again = |at: &u32| (self.hasher).hash_one(self.entries[*at as usize].0.as_str());
            self.table.insert_unique(hash, at, again);
        }
    }
}

impl Default for Map {
    fn default() -> Self {
        Self::new()
    }
}

impl Map {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self(Inner::Few(EcoVec::new()))
    }

    /// An empty map with room for so many entries.
    #[must_use]
    pub fn with_capacity(room: usize) -> Self {
        Self(if room <= FEW {
            Inner::Few(EcoVec::with_capacity(room))
        } else {
            Inner::Many(Arc::new(Indexed::new(Vec::with_capacity(room))))
        })
    }

    fn entries(&self) -> &[Entry] {
        match &self.0 {
            Inner::Few(entries) => entries,
            Inner::Many(indexed) => &indexed.entries,
        }
    }

    fn entries_mut(&mut self) -> &mut [Entry] {
        match &mut self.0 {
            Inner::Few(entries) => entries.make_mut(),
            Inner::Many(indexed) => &mut Arc::make_mut(indexed).entries,
        }
    }

    fn place(&self, key: &str) -> Option<usize> {
        match &self.0 {
            Inner::Few(entries) => entries.iter().position(|(known, _)| known == key),
            Inner::Many(indexed) => indexed.place(key),
        }
    }

    /// Puts `value` under a key that is known not to be there.
    pub fn push(&mut self, key: Text, value: Value) {
        debug_assert!(self.place(&key).is_none(), "`{key}` twice");
        match &mut self.0 {
            Inner::Few(entries) if entries.len() < FEW => entries.push((key, value)),
            Inner::Few(entries) => {
                let mut indexed = Indexed::new(std::mem::take(entries).into_iter().collect());
                indexed.push(key, value);
                self.0 = Inner::Many(Arc::new(indexed));
            }
            Inner::Many(indexed) => Arc::make_mut(indexed).push(key, value),
        }
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// What is under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.place(key).map(|at| &self.entries()[at].1)
    }

    /// What is under `key`, to change.
    #[must_use]
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        let at = self.place(key)?;
        Some(&mut self.entries_mut()[at].1)
    }

    /// What is under `key`, to change; what `make` gives is put there when nothing is.
    pub fn or_insert_with(&mut self, key: &str, make: impl FnOnce() -> Value) -> &mut Value {
        let at = self.place(key).unwrap_or_else(|| {
            self.push(key.into(), make());
            self.len() - 1
        });
        &mut self.entries_mut()[at].1
    }

    /// Whether it has `key`.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Puts `value` under `key`; gives what was there, whose place it takes.
    pub fn insert(&mut self, key: impl Into<Text>, value: Value) -> Option<Value> {
        let key = key.into();
        if let Some(at) = self.place(&key) {
            return Some(std::mem::replace(&mut self.entries_mut()[at].1, value));
        }
        self.push(key, value);
        None
    }

    /// Takes out what is under `key`; the others keep their order.
    pub fn shift_remove(&mut self, key: &str) -> Option<Value> {
        let at = self.place(key)?;
        let (_, value) = match &mut self.0 {
            Inner::Few(entries) => entries.remove(at),
            Inner::Many(indexed) => {
                let indexed = Arc::make_mut(indexed);
                let removed = indexed.entries.remove(at);
                indexed.order_changed();
                removed
            }
        };
        Some(value)
    }

    /// Keeps what `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(&Text, &mut Value) -> bool) {
        match &mut self.0 {
            Inner::Few(entries) => entries.retain(|(key, value)| keep(key, value)),
            Inner::Many(indexed) => {
                let indexed = Arc::make_mut(indexed);
                indexed.entries.retain_mut(|(key, value)| keep(key, value));
                indexed.order_changed();
            }
        }
    }

    /// Puts the entries in the order of keys.
    pub fn sort_keys(&mut self) {
        if self.entries().is_sorted_by(|(a, _), (b, _)| a <= b) {
            return;
        }
        self.entries_mut().sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Inner::Many(indexed) = &mut self.0 {
            Arc::make_mut(indexed).order_changed();
        }
    }

    /// Entries in order.
    pub fn iter(&self) -> Iter<'_> {
        self.entries().iter().map(|(key, value)| (key, value))
    }

    /// Entries in order, their values to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Text, &mut Value)> {
        let entries = self.entries_mut().iter_mut();
        entries.map(|(key, value)| (&*key, value))
    }

    /// Values in the order of their keys, to change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.iter_mut().map(|(_, value)| value)
    }

    /// Keys in order.
    #[must_use]
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Text> + DoubleEndedIterator + Clone {
        self.entries().iter().map(|(key, _)| key)
    }

    /// Values in the order of their keys.
    #[must_use]
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Value> + DoubleEndedIterator + Clone {
        self.entries().iter().map(|(_, value)| value)
    }
}

/// Entries of a map.
pub type Iter<'a> = std::iter::Map<
    std::slice::Iter<'a, (Text, Value)>,
    fn(&'a (Text, Value)) -> (&'a Text, &'a Value),
>;

/// Entries that were a map's.
pub enum IntoIter {
    /// Of a small one.
    Few(ecow::vec::IntoIter<(Text, Value)>),
    /// Of one with an index.
    Many(std::vec::IntoIter<(Text, Value)>),
}

impl Iterator for IntoIter {
    type Item = (Text, Value);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Few(entries) => entries.next(),
            Self::Many(entries) => entries.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::Few(entries) => entries.size_hint(),
            Self::Many(entries) => entries.size_hint(),
        }
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = (&'a Text, &'a Value);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Map {
    type Item = (Text, Value);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        match self.0 {
            Inner::Few(entries) => IntoIter::Few(entries.into_iter()),
            Inner::Many(indexed) => {
                IntoIter::Many(Arc::unwrap_or_clone(indexed).entries.into_iter())
            }
        }
    }
}

impl<K: Into<Text>> Extend<(K, Value)> for Map {
    fn extend<I: IntoIterator<Item = (K, Value)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Into<Text>> FromIterator<(K, Value)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(entries: I) -> Self {
        let entries = entries.into_iter();
        let mut map = Self::with_capacity(entries.size_hint().0);
        map.extend(entries);
        map
    }
}

/// What is under a key; null when there is nothing.
impl<K: AsRef<str> + ?Sized> Index<&K> for Map {
    type Output = Value;

    fn index(&self, key: &K) -> &Value {
        self.get(key.as_ref()).unwrap_or(&NULL)
    }
}

/// The same entries, in whatever order.
impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.entries(), other.entries())
            || self.len() == other.len()
                && (self.iter()).all(|(key, value)| other.get(key) == Some(value))
    }
}

impl Eq for Map {}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // The map of the library that reads JSON is what this one is to be like.
        #[test]
        fn whatever_is_done_it_is_as_a_map_that_keeps_order(
            steps in proptest::collection::vec((0..4, 0..40u32, any::<u8>()), 0..120)
        ) {
            let (mut own, mut other) = (Map::new(), serde_json::Map::new());
            let mut copies = Vec::new();
            for (what, key, value) in steps {
                let key = format!("key-{key}");
                match what {
                    0 | 1 => {
                        let old = own.insert(key.as_str(), value.into());
                        prop_assert_eq!(old.map(serde_json::Value::from), other.insert(key, value.into()));
                    }
                    2 => {
                        let old = own.shift_remove(&key);
                        prop_assert_eq!(old.map(serde_json::Value::from), other.shift_remove(&key));
                    }
                    _ => {
                        copies.push((own.clone(), other.clone()));
                        own.retain(|key, _| key.len() + usize::from(value) > 6);
                        other.retain(|key, _| key.len() + usize::from(value) > 6);
                    }
                }
                prop_assert_eq!(own.get("key-7").is_some(), other.contains_key("key-7"));
            }
            copies.push((own, other));
            for (own, other) in copies {
                let other = serde_json::Value::Object(other);
                prop_assert_eq!(Value::Object(own.clone()).to_string(), other.to_string());
                prop_assert_eq!(serde_json::Value::from(Value::Object(own)), other);
            }
        }
    }
}
