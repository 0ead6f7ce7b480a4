//! What a planner says about one object.

use pileus_api::{ConditionType, Reason, conditions::Observation};

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It lives.
    Keep,
    /// It is being deleted and others still use it.
    Blocked,
    /// It is being deleted and nothing uses it: what was made for it goes, then its
    /// finalizer.
    Release,
}

/// A planner's word: status without conditions, the condition `Ready`, and the fate.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict<S> {
    /// The whole status but for generation and conditions.
    pub status: S,
    /// The condition, as it is once OVN has what is wanted.
    pub observation: Observation,
    /// What becomes of the object.
    pub fate: Fate,
}

impl<S> Verdict<S> {
    /// Being deleted, nothing in the way.
    #[must_use]
    pub fn release(status: S) -> Self {
        Self {
            status,
            observation: Observation::no(ConditionType::Ready, Reason::Deleting, "being deleted"),
            fate: Fate::Release,
        }
    }
}

/// The condition of an object whose deletion waits for `users`.
#[must_use]
pub fn in_use(kind: &str, users: Vec<String>) -> Observation {
    let count = users.len();
    Observation::no(
        ConditionType::Ready,
        Reason::InUse,
        format!(
            "the deletion of this {kind} waits for {count} that use it: {}",
            some(users)
        ),
    )
}

/// Names up to five, in order, and how many more there are.
#[must_use]
pub fn some(mut names: Vec<String>) -> String {
    names.sort();
    let more = names.len().saturating_sub(5);
    names.truncate(5);
    let names = names.join(", ");
    if more > 0 {
        format!("{names} and {more} more")
    } else {
        names
    }
}
