//! What a planner decides about one object. Planners and the pass that runs them both use it.

use crate::list_some;
use pileus_api::{ConditionType, Reason, conditions::Observation};

/// Whether an object is being deleted, and whether its deletion may be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is not being deleted.
    NotRequested,
    /// It is being deleted, and others still use it or its rows cannot be removed.
    Blocked,
    /// It is being deleted and nothing uses it: its rows and addresses are removed, then its
    /// finalizer.
    Allowed,
}

/// What is decided about one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision<S> {
    /// The whole status but for generation and conditions.
    pub status: S,
    /// The condition `Ready`, as it is once OVN has the desired rows.
    pub ready: Observation,
    /// Whether the object is being deleted, and whether its deletion may be completed.
    pub deletion: Deletion,
}

impl<S> Decision<S> {
    /// The object is what its spec asks for.
    #[must_use]
    pub fn ready(status: S, message: impl Into<String>) -> Self {
        Self {
            status,
            ready: Observation::yes(ConditionType::Ready, Reason::Ready, message),
            deletion: Deletion::NotRequested,
        }
    }

    /// The object is not what its spec asks for.
    #[must_use]
    pub fn not_ready(status: S, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            status,
            ready: Observation::no(ConditionType::Ready, reason, message),
            deletion: Deletion::NotRequested,
        }
    }

    /// The object is being deleted; its deletion waits for `users`, if there are any.
    #[must_use]
    pub fn deleting(status: S, kind: &str, users: Vec<String>) -> Self {
        if users.is_empty() {
            return Self {
                status,
                ready: Observation::no(ConditionType::Ready, Reason::Deleting, "being deleted"),
                deletion: Deletion::Allowed,
            };
        }
        let count = users.len();
        Self {
            status,
            ready: Observation::no(
                ConditionType::Ready,
                Reason::InUse,
                format!(
                    "the deletion of this {kind} waits for {count} that use it: {}",
                    list_some(users)
                ),
            ),
            deletion: Deletion::Blocked,
        }
    }

    /// Whether the object stays for now.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.deletion != Deletion::Allowed
    }
}
