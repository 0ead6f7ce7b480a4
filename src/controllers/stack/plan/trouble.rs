//! What stands in the way of deciding, and what the API server refuses for good.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::{Action, Key, Ledger, Problem, Seen, State};
use crate::api::{Reason, Stack};
use crate::kube_ext::finalize;

/// What the API server refused for good, and why, by resource.
pub type Refused = BTreeMap<Key, String>;

/// Why nothing can be decided now: without a record what exists would be made a second time,
/// and what cannot be seen may exist or not.
#[must_use]
pub fn obstacle(stack: &Stack, seen: &Seen<'_>, record: &str) -> Option<Problem> {
    let recorded = stack
        .status
        .as_ref()
        .is_some_and(|status| status.record.is_some());
    if recorded && seen.ledger.is_none() && !finalize::is_deleting(stack) {
        return Some(Problem {
            reason: Reason::RecordMissing,
            message: format!(
                "the Secret {record} with the record of what the stack has made is gone; restore \
                 it, or delete the Stack, which removes what carries its mark"
            ),
        });
    }
    seen.denied.as_ref().map(|why| Problem {
        reason: Reason::AccountDenied,
        message: format!(
            "the ServiceAccount `{}` may not see what was made with its rights: {why}; give it \
             the right to get, create, patch and delete it",
            stack
                .spec
                .service_account_name
                .as_deref()
                .unwrap_or_default()
        ),
    })
}

/// Notes what was refused: those resources have failed.
pub fn refuse(ledger: &mut Ledger, refused: Refused, now: Timestamp) {
    for (key, why) in refused {
        if let Some(entry) = ledger.entries.get_mut(&key) {
            let action = match entry.action {
                Action::Delete => continue,
                action => action,
            };
            // Nothing was made; what may not be made may often not be read either.
            if action == Action::Create && entry.by_account {
                entry.objects.clear();
            }
            entry.set(action, State::Failed, why, now);
        }
    }
}
