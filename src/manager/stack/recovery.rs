//! A Stack whose record is gone: what it had is looked for ([`super::plan::rebuild`]).

use std::collections::BTreeSet;

use super::apart;
use super::children::Children;
use super::record::StackRecord;
use super::plan::rebuild::{is_asked, problem, rebuild};
use super::plan::{Problem, Observed};
use crate::Manager;
use pileus_api::{Reason, Stack};
use pileus_kube_ext::{ApiError, finalize};

/// Makes the record again, as far as that is certain or asked for; otherwise why not.
///
/// # Errors
/// When the API server refuses the manager, or does not answer.
pub(super) async fn search(
    stack: &Stack,
    observed: &mut Observed<'_>,
    children: &Children<'_>,
    record_name: &str,
) -> Result<Option<Problem>, ApiError> {
    let deleting = finalize::is_deleting(stack);
    observed.strays = children.strays(None);
    let mut asked = BTreeSet::new();
    // What objects are made of may follow from other objects.
    let found = loop {
        let found = match apart::compute(|| rebuild(stack, observed, &asked)) {
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
        observed.objects.extend(objects);
        observed.denied = observed.denied.take().or(denied);
    };
    if observed.denied.is_some() && deleting && children.is_namespace_going().await? {
        observed.denied = None;
    }
    observed.strays = if deleting {
        children.strays(Some(&found.record))
    } else {
        Vec::new()
    };
    if deleting || found.differs.is_empty() || is_asked(stack, record_name) {
        observed.record = Some(found.record);
        return Ok(None);
    }
    Ok(Some(problem(observed, record_name, &found.differs)))
}

/// What is told of a record that is no record.
pub(super) fn unreadable(record_name: &str) -> Problem {
    Problem {
        reason: Reason::RecordMissing,
        message: format!(
            "the Secret {record_name} with the record of what the stack has made cannot be read, so \
             nothing is touched: restore it; or delete it, so that what exists is looked for by \
             its marks; or delete the Stack, which removes everything that carries its mark"
        ),
    }
}

/// Tells that a record was made again.
pub(super) fn tell(stack: &Stack, manager: &Manager, record: &StackRecord) {
    let many = record.entries.len();
    let note = format!(
        "the record of what the stack has made was lost; it is made again from what exists, with \
         {many} resources"
    );
    let events = &manager.context.events;
    events.warning(stack, Reason::RecordMissing, "Reconcile", note);
}
