//! Values that many hosts or Servers share, stored once with a reference count.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Values by a small id; each is stored as long as it is referenced.
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
    /// The id of `value`; adds a reference.
    pub fn intern(&mut self, value: T) -> u32 {
        if let Some(&id) = self.ids.get(&value) {
            if let Some((_, references)) = &mut self.values[id as usize] {
                *references += 1;
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

    /// Removes a reference; returns whether it was the last one.
    pub fn release(&mut self, id: u32) -> bool {
        let Some(entry) = self.values.get_mut(id as usize) else {
            return false;
        };
        let Some((value, references)) = entry else {
            return false;
        };
        *references -= 1;
        if *references > 0 {
            return false;
        }
        self.ids.remove(value);
        *entry = None;
        self.free.push(id);
        true
    }

    /// The value of an id that is in use.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&T> {
        let (value, _) = self.values.get(id as usize)?.as_ref()?;
        Some(value)
    }

    /// The id of `value`, if it is stored.
    #[must_use]
    pub fn id(&self, value: &T) -> Option<u32> {
        self.ids.get(value).copied()
    }

    /// All ids are below this.
    #[must_use]
    pub fn id_bound(&self) -> usize {
        self.values.len()
    }

    /// The stored values.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter().flatten().map(|(value, _)| &**value)
    }
}
