//! What stands in the way of deciding, and what the API server refuses for good.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::{Action, Key, StackRecord, Problem, Observed, State};
use pileus_api::{Reason, Stack};

/// What the API server refused for good, and why, by resource.
pub type Refused = BTreeMap<Key, String>;

/// Why nothing can be decided now: what cannot be seen may exist or not.
#[must_use]
pub fn obstacle(stack: &Stack, observed: &Observed<'_>) -> Option<Problem> {
    let why = observed.denied.as_ref()?;
    let message = match stack.spec.service_account_name.as_deref() {
        Some(account) => format!(
            "the ServiceAccount `{account}` may not see what was made with its rights: {why}; \
             give it the right to get, create, patch and delete it"
        ),
        None => format!(
            "spec.serviceAccountName is not set, and what was made with an account's rights cannot \
             be observed without: {why}; set it to the account that has made it"
        ),
    };
    Some(Problem {
        reason: Reason::AccountDenied,
        message,
    })
}

/// How soon a deletion that was refused is tried again: it must be done all the same.
const REFUSED_DELETION: Duration = Duration::from_secs(10);

/// Notes what was refused: those resources have failed, and those that are being removed say
/// why they are still there. When to look again.
pub fn refuse(record: &mut StackRecord, refused: Refused, now: Timestamp) -> Duration {
    let mut again = REFUSED_DELETION;
    for (key, why) in refused {
        if let Some(entry) = record.entries.get_mut(&key) {
            if entry.action == Action::Delete {
                entry.reason = why;
                continue;
            }
            // Nothing was made; what may not be made may often not be read either.
            if entry.action == Action::Create && entry.by_account {
                entry.objects.clear();
            }
            entry.set(entry.action, State::Failed, why, now);
            again = Duration::ZERO;
        }
    }
    again
}

/// Says of resources why what is tried again was not done. It is not noted in the record: the
/// next pass may know better.
pub fn tell(record: &mut StackRecord, told: Refused) {
    for (key, why) in told {
        if let Some(entry) = record.entries.get_mut(&key) {
            entry.reason = why;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::record::Entry;

    #[test]
    fn a_deletion_that_is_refused_says_so_and_goes_on() {
        let now = Timestamp::UNIX_EPOCH;
        let mut record = StackRecord::new(String::new(), now);
        for (path, action) in [("going", Action::Delete), ("new", Action::Create)] {
            let entry = Entry {
                action,
                ..Entry::default()
            };
            record.entries.insert((path.to_owned(), 1), entry);
        }
        let refused = |path: &str| Refused::from([((path.to_owned(), 1), "403: no".to_owned())]);
        assert_eq!(refuse(&mut record, refused("going"), now), REFUSED_DELETION);
        assert_eq!(refuse(&mut record, refused("new"), now), Duration::ZERO);
        let said = |path: &str| {
            let entry = &record.entries[&(path.to_owned(), 1)];
            (entry.state, entry.reason.clone())
        };
        assert_eq!(said("going"), (State::InProgress, "403: no".to_owned()));
        assert_eq!(said("new"), (State::Failed, "403: no".to_owned()));
    }
}
