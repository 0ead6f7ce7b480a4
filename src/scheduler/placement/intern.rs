//! Values that many hosts or Servers share, kept once and counted.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Values by a small number, each kept while anybody holds it.
#[derive(Clone, Debug)]
pub struct Interner<T> {
    ids: HashMap<Arc<T>, u32>,
    values: Vec<Option<(Arc<T>, u32)>>,
    free: Vec<u32>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            ids: HashMap::new(),
            values: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: Hash + Eq> Interner<T> {
    /// The number of `value`, held once more.
    pub fn intern(&mut self, value: T) -> u32 {
        if let Some(&id) = self.ids.get(&value) {
            if let Some((_, held)) = &mut self.values[id as usize] {
                *held += 1;
            }
            return id;
        }
        let value = Arc::new(value);
        let entry = Some((value.clone(), 1));
        let id = if let Some(id) = self.free.pop() {
            self.values[id as usize] = entry;
            id
        } else {
            self.values.push(entry);
            u32::try_from(self.values.len() - 1).unwrap_or(u32::MAX)
        };
        self.ids.insert(value, id);
        id
    }

    /// Lets go of `id` once. Says whether that was the last to hold it.
    pub fn release(&mut self, id: u32) -> bool {
        let Some(entry) = self.values.get_mut(id as usize) else {
            return false;
        };
        let Some((value, held)) = entry else {
            return false;
        };
        *held -= 1;
        if *held > 0 {
            return false;
        }
        self.ids.remove(value);
        *entry = None;
        self.free.push(id);
        true
    }

    /// The value of a number that is held.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&T> {
        let (value, _) = self.values.get(id as usize)?.as_ref()?;
        Some(value)
    }

    /// The number of `value`, if anybody holds it.
    #[must_use]
    pub fn id(&self, value: &T) -> Option<u32> {
        self.ids.get(value).copied()
    }

    /// How many numbers there are, those free again included.
    #[must_use]
    pub fn id_bound(&self) -> usize {
        self.values.len()
    }

    /// Those held.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter().flatten().map(|(value, _)| &**value)
    }
}
