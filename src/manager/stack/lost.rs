//! A Stack whose record is gone: what it had is looked for ([`super::plan::rebuild`]).

use std::collections::BTreeSet;

use super::children::Children;
use super::isolation;
use super::ledger::Ledger;
use super::plan::rebuild::{is_asked, problem, rebuild};
use super::plan::{Problem, Seen};
use crate::Manager;
use pileus_api::{Reason, Stack};
use pileus_kube_ext::{ApiError, finalize};

/// Makes the record again, as far as that is certain or asked for; otherwise why not.
///
/// # Errors
/// When the API server refuses the manager, or does not answer.
pub(super) async fn search(
    stack: &Stack,
    seen: &mut Seen<'_>,
    children: &Children<'_>,
    record: &str,
) -> Result<Option<Problem>, ApiError> {
    let deleting = finalize::is_deleting(stack);
    seen.strays = children.strays(None);
    let mut asked = BTreeSet::new();
    // What objects are made of may follow from other objects.
    let found = loop {
        let found = match isolation::compute(|| rebuild(stack, seen, &asked)) {
            Ok(found) => found,
            Err(fault) => return Ok(Some(fault)),
        };
        let reads = found.reads.iter();
        let reads: Vec<_> = reads.filter(|(o, _)| !asked.contains(o)).cloned().collect();
        if reads.is_empty() {
            break found;
        }
        asked.extend(reads.iter().map(|(object, _)| object.clone()));
        let (objects, denied) = children.read(reads).await?;
        seen.objects.extend(objects);
        seen.denied = seen.denied.take().or(denied);
    };
    if seen.denied.is_some() && deleting && children.is_namespace_going().await? {
        seen.denied = None;
    }
    seen.strays = if deleting {
        children.strays(Some(&found.ledger))
    } else {
        Vec::new()
    };
    if deleting || found.differs.is_empty() || is_asked(stack, record) {
        seen.ledger = Some(found.ledger);
        return Ok(None);
    }
    Ok(Some(problem(seen, record, &found.differs)))
}

/// What is told of a record that is no record.
pub(super) fn unreadable(record: &str) -> Problem {
    Problem {
        reason: Reason::RecordMissing,
        message: format!(
            "the Secret {record} with the record of what the stack has made cannot be read, so \
             nothing is touched: restore it; or delete it, so that what exists is looked for by \
             its marks; or delete the Stack, which removes everything that carries its mark"
        ),
    }
}

/// Tells that a record was made again.
pub(super) fn tell(stack: &Stack, manager: &Manager, ledger: &Ledger) {
    let many = ledger.entries.len();
    let note = format!(
        "the record of what the stack has made was lost; it is made again from what exists, with \
         {many} resources"
    );
    let events = &manager.context.events;
    events.warning(stack, Reason::RecordMissing, "Reconcile", note);
}
