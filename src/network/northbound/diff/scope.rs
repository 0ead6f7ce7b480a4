//! Whose rows a transaction changes.

use std::collections::HashSet;

/// Whose rows a transaction changes, by uid; by default everybody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// These alone, if there are any named.
    only: Option<HashSet<String>>,
    /// All but these.
    without: HashSet<String>,
}

impl Scope {
    /// Everybody's but these.
    pub fn without(uids: impl IntoIterator<Item = String>) -> Self {
        Self {
            only: None,
            without: uids.into_iter().collect(),
        }
    }

    /// Of these alone.
    pub fn only(uids: impl IntoIterator<Item = String>) -> Self {
        Self {
            only: Some(uids.into_iter().collect()),
            without: HashSet::new(),
        }
    }

    /// Leaves one more out.
    pub fn leave_out(&mut self, uid: String) {
        self.without.insert(uid);
    }

    /// Whether the rows of an owner stay as they are.
    #[must_use]
    pub fn leaves_out(&self, uid: &str) -> bool {
        self.without.contains(uid) || self.only.as_ref().is_some_and(|only| !only.contains(uid))
    }
}
