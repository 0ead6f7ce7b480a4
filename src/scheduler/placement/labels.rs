//! Labels of hosts; each pair of key and value is stored once with a reference count.
//!
//! Most hosts have a label that no other has, such as their name, so pairs must be small: the
//! key is an id.

use hashbrown::HashTable;

use crate::placement::host_set::ROW;
use crate::placement::intern::Interner;
use crate::placement::request::{hash, mix};

#[derive(Clone, Debug)]
struct Pair {
    key: u32,
    /// Number of hosts that have it; if 0 the id is free.
    references: u32,
    value: Box<str>,
}

/// Pairs of key and value by a small id.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    keys: Interner<String>,
    pairs: Vec<Pair>,
    index: HashTable<u32>,
    free: Vec<u32>,
}

fn digest(key: u32, value: &str) -> u64 {
    mix(hash(value), u64::from(key))
}

impl Labels {
    fn find(&self, key: u32, value: &str) -> Option<u32> {
        let same = |id: &u32| {
            let pair = &self.pairs[*id as usize];
            pair.key == key && &*pair.value == value
        };
        self.index.find(digest(key, value), same).copied()
    }

    /// The id of a pair; adds a reference.
    pub fn intern(&mut self, key: String, value: &str) -> u32 {
        if let Some(id) = self.id(&key, value) {
            self.pairs[id as usize].references += 1;
            return id;
        }
        let pair = Pair {
            key: self.keys.intern(key),
            references: 1,
            value: value.into(),
        };
        let digested = digest(pair.key, value);
        let id = if let Some(id) = self.free.pop() {
            self.pairs[id as usize] = pair;
            id
        } else {
            if self.pairs.len() == self.pairs.capacity() {
                self.pairs.reserve_exact(self.pairs.len() / 16 + ROW);
            }
            self.pairs.push(pair);
            u32::try_from(self.pairs.len() - 1).unwrap_or(u32::MAX)
        };
        let pairs = &self.pairs;
        self.index.insert_unique(digested, id, |&id| {
            let pair = &pairs[id as usize];
            digest(pair.key, &pair.value)
        });
        id
    }

    /// Removes a reference.
    pub fn release(&mut self, id: u32) {
        let Some(pair) = self.pairs.get_mut(id as usize) else {
            return;
        };
        pair.references = pair.references.saturating_sub(1);
        if pair.references > 0 {
            return;
        }
        let digested = digest(pair.key, &pair.value);
        self.keys.release(pair.key);
        pair.value = Box::default();
        if let Ok(entry) = self.index.find_entry(digested, |other| *other == id) {
            entry.remove();
            self.free.push(id);
        }
    }

    /// The id of a pair, if a host has it.
    #[must_use]
    pub fn id(&self, key: &str, value: &str) -> Option<u32> {
        self.find(self.keys.id(&key.to_owned())?, value)
    }

    /// The value of a pair, if it has this key.
    #[must_use]
    pub fn value(&self, id: u32, key: &str) -> Option<&str> {
        let pair = self.pairs.get(id as usize)?;
        let of_key = pair.references > 0 && self.keys.get(pair.key).is_some_and(|k| k == key);
        of_key.then_some(&*pair.value)
    }

    /// All ids are below this.
    #[must_use]
    pub fn id_bound(&self) -> usize {
        self.pairs.len()
    }

    /// The ids of all pairs with this key.
    pub fn of_key(&self, key: &str) -> impl Iterator<Item = usize> {
        let key = self.keys.id(&key.to_owned());
        let pairs = self.pairs.iter().enumerate();
        let some = pairs.filter(move |(_, p)| p.references > 0 && Some(p.key) == key);
        some.map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_stored_while_it_is_referenced_and_its_id_is_used_again() {
        let mut labels = Labels::default();
        let intern = |labels: &mut Labels, k: &str, v: &str| labels.intern(k.to_owned(), v);
        let (a, b) = (
            intern(&mut labels, "rack", "1"),
            intern(&mut labels, "rack", "2"),
        );
        assert_eq!(intern(&mut labels, "rack", "1"), a);
        let c = intern(&mut labels, "room", "1");
        assert_eq!(
            labels.of_key("rack").collect::<Vec<_>>(),
            [a, b].map(|id| id as usize)
        );
        assert_eq!(labels.value(c, "room"), Some("1"));
        assert_eq!(labels.value(c, "rack"), None);
        labels.release(a);
        assert_eq!(labels.id("rack", "1"), Some(a));
        labels.release(a);
        labels.release(c);
        assert_eq!(
            (labels.id("rack", "1"), labels.id("room", "1")),
            (None, None)
        );
        assert_eq!(labels.of_key("room").count(), 0);
        assert_eq!(intern(&mut labels, "row", "9"), c);
        assert_eq!(labels.id("rack", "2"), Some(b));
        assert_eq!(labels.id_bound(), 3);
    }
}
