//! Objects that cannot be read, and requests that the API server refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::{Action, Key, Observed, Problem, StackRecord, State};
use pileus_api::{Reason, Stack};

/// By resource: why the API server refused a request.
pub type Refused = BTreeMap<Key, String>;

/// The problem if objects cannot be read: then nothing can be decided, because they may exist or
/// not.
#[must_use]
pub fn access_problem(stack: &Stack, observed: &Observed<'_>) -> Option<Problem> {
    let why = observed.denied.as_ref()?;
    let message = match stack.spec.service_account_name.as_deref() {
        Some(account) => format!(
            "the ServiceAccount `{account}` may not read what was made with its rights: {why}; \
             give it the right to get, create, patch and delete it"
        ),
        None => format!(
            "spec.serviceAccountName is not set, so what was made with an account's rights cannot \
             be read: {why}; set it to the account that has made it"
        ),
    };
    Some(Problem {
        reason: Reason::AccountDenied,
        message,
    })
}

/// How soon a refused delete request is repeated.
const REFUSED_DELETE_RETRY: Duration = Duration::from_secs(10);

/// Records refused requests: these resources have failed, except those that are being deleted, which
/// report why they still exist. Returns when to reconcile again.
pub fn record_refused(record: &mut StackRecord, refused: Refused, now: Timestamp) -> Duration {
    let mut requeue = REFUSED_DELETE_RETRY;
    for (key, why) in refused {
        if let Some(entry) = record.entries.get_mut(&key) {
            if entry.action == Action::Delete {
                entry.reason = why;
                continue;
            }
            // Nothing was created. Whoever may not create it can often not read it either, so it
            // is not read in later passes.
            if entry.action == Action::Create && entry.by_account {
                entry.objects.clear();
            }
            entry.set_state(entry.action, State::Failed, why, now);
            requeue = Duration::ZERO;
        }
    }
    requeue
}

/// Reports the errors of requests that the next pass repeats. They are not stored in the record.
pub fn report_errors(record: &mut StackRecord, errors: Refused) {
    for (key, why) in errors {
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
    fn a_refused_deletion_is_reported_and_continues() {
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
        assert_eq!(
            record_refused(&mut record, refused("going"), now),
            REFUSED_DELETE_RETRY
        );
        assert_eq!(
            record_refused(&mut record, refused("new"), now),
            Duration::ZERO
        );
        let reported = |path: &str| {
            let entry = &record.entries[&(path.to_owned(), 1)];
            (entry.state, entry.reason.clone())
        };
        assert_eq!(reported("going"), (State::InProgress, "403: no".to_owned()));
        assert_eq!(reported("new"), (State::Failed, "403: no".to_owned()));
    }
}
