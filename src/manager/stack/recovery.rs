//! Recovery of a Stack whose record is lost: its objects are searched for, and the record is
//! rebuilt from them ([`super::plan::rebuild`]).

use std::collections::BTreeSet;

use super::StackManager;
use super::children::Children;
use super::isolation::{self, Halt};
use super::plan::rebuild::{is_confirmed, problem, rebuild};
use super::plan::{Observed, Problem};
use super::record::StackRecord;
use pileus_api::{Reason, Stack};
use pileus_kube_ext::{ApiError, finalize};

/// Rebuilds the record where the objects are what the spec says, or where the user has confirmed
/// it; otherwise returns why not.
///
/// # Errors
/// When the API server refuses the manager, or does not answer.
pub(super) async fn rebuild_record(
    stack: &Stack,
    manager: &StackManager,
    observed: &mut Observed<'_>,
    children: &Children<'_>,
    record_name: &str,
) -> Result<Result<Option<Problem>, Halt>, ApiError> {
    let deleting = finalize::is_deleting(stack);
    observed.unrecorded = children.unrecorded(None);
    let mut already_read = BTreeSet::new();
    // Names and contents of objects may depend on other objects, so this may take several rounds.
    let rebuilt = loop {
        let work = || rebuild(stack, observed, &already_read);
        let rebuilt = match isolation::evaluate(manager, stack, &observed.stop, work) {
            Ok(rebuilt) => rebuilt,
            Err(halt) => return Ok(Err(halt)),
        };
        let reads = rebuilt.to_read.iter();
        let reads = reads.filter(|(object, _)| !already_read.contains(object));
        let reads: Vec<_> = reads.cloned().collect();
        if reads.is_empty() {
            break rebuilt;
        }
        already_read.extend(reads.iter().map(|(object, _)| object.clone()));
        let (objects, denied) = children.read(reads).await?;
        observed.objects.extend(objects);
        observed.denied = observed.denied.take().or(denied);
    };
    if observed.denied.is_some() && deleting && children.is_namespace_terminating().await? {
        observed.denied = None;
    }
    observed.unrecorded = if deleting {
        children.unrecorded(Some(&rebuilt.record))
    } else {
        Vec::new()
    };
    if deleting || rebuilt.differences.is_empty() || is_confirmed(stack, record_name) {
        observed.record = Some(rebuilt.record);
        return Ok(Ok(None));
    }
    let differs = problem(observed, record_name, &rebuilt.differences);
    Ok(Ok(Some(differs)))
}

/// The problem of a record whose Secret cannot be parsed.
pub(super) fn unreadable(record_name: &str) -> Problem {
    Problem {
        reason: Reason::RecordMissing,
        message: format!(
            "the Secret {record_name} with the record of the stack's objects cannot be read, so \
             nothing is changed: restore it; or delete it, so that the record is rebuilt from the \
             objects with the Stack's label; or delete the Stack, which removes every object with \
             its label"
        ),
    }
}

/// Reports in an event that the record was rebuilt.
pub(super) fn report_rebuilt(stack: &Stack, manager: &StackManager, record: &StackRecord) {
    let many = record.entries.len();
    let note = format!(
        "the record of the stack's objects was lost; it is rebuilt from the existing objects, with \
         {many} resources"
    );
    let events = &manager.context.events;
    events.warning(stack, Reason::RecordMissing, "Reconcile", note);
}
