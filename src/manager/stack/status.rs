//! What a Stack's status says: made from the record, without any secret.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sha2::{Digest, Sha256};

use super::ledger::{Action, Entry, Key, Ledger, Reference, State};
use super::plan::{Plan, Problem};
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::names::CLEAR_HOOKS_ANNOTATION;
use pileus_api::stack::{StackResource, StackStatus};
use pileus_api::{Reason, Stack};
use pileus_stack::hide::mask_text;

/// Longest reason, in characters: a table of hundreds of them must fit.
const LONGEST_REASON: usize = 256;

/// The status by what has been decided. `uid_of` says the uid of an object that exists.
#[must_use]
pub fn status(
    stack: &Stack,
    plan: &Plan,
    record: &str,
    uid_of: &dyn Fn(&Reference) -> Option<String>,
    now: Timestamp,
) -> StackStatus {
    let ledger = &plan.ledger;
    let before = stack.status.as_ref();
    let masked = |text: &str| mask_text(text, &plan.secrets);
    let resources: Vec<StackResource> = ledger
        .entries
        .iter()
        .map(|(key, entry)| resource(key, entry, ledger, uid_of, &masked))
        .collect();
    let complete = ledger
        .entries
        .values()
        .filter(|e| e.state == State::Complete)
        .count();
    let old = before
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    StackStatus {
        observed_generation: stack.metadata.generation,
        stack_status: ledger.word(),
        stack_status_reason: ledger.action.map(|_| masked(&ledger.reason)),
        action_started_at: ledger.action.map(|_| Time(ledger.started)),
        progress: Some(format!("{complete}/{}", ledger.entries.len())),
        resources,
        outputs: match &plan.outputs {
            Some(outputs) => outputs.clone(),
            // What cannot be evaluated now is not for that reason gone.
            None if ledger.goal.is_some() => before.map(|b| b.outputs.clone()).unwrap_or_default(),
            None => Vec::new(),
        },
        preview: plan.preview.clone(),
        last_good: ledger
            .good
            .as_ref()
            .map(|digest| told_digest(ledger, digest)),
        record: ledger.action.map(|_| record.to_owned()),
        notes: plan.notes.clone(),
        conditions: conditions::merge(
            old,
            observations(stack, plan, &masked),
            stack.metadata.generation,
            now,
        ),
    }
}

/// The digest of sources as it is told: without the record's seed nobody can try passwords until
/// one fits.
fn told_digest(ledger: &Ledger, digest: &str) -> String {
    let hash = Sha256::digest(format!("{}/{digest}", ledger.seed));
    format!("sha256:{}", hex::encode(hash))
}

/// What is said as long as something stands in the way: all that was said, and why it may not
/// be true any more.
#[must_use]
pub fn stuck(stack: &Stack, problem: &Problem, now: Timestamp) -> StackStatus {
    let stalled = Observation::yes(ConditionType::Stalled, problem.reason, &problem.message);
    unknown(stack, problem.reason, &problem.message, stalled, now)
}

/// The same for what is tried again by itself.
#[must_use]
pub fn retrying(stack: &Stack, why: &str, now: Timestamp) -> StackStatus {
    let message = format!("{why}; it is tried again");
    let stalled = Observation::no(ConditionType::Stalled, Reason::Retrying, &message);
    unknown(stack, Reason::Retrying, &message, stalled, now)
}

fn unknown(
    stack: &Stack,
    reason: Reason,
    message: &str,
    stalled: Observation,
    now: Timestamp,
) -> StackStatus {
    let mut status = stack.status.clone().unwrap_or_default();
    let ready = Observation::unknown(ConditionType::Ready, reason, message);
    let generation = stack.metadata.generation;
    let observations = [ready, stalled];
    status.conditions = conditions::merge(&status.conditions, observations, generation, now);
    status
}

fn resource(
    (path, number): &Key,
    entry: &Entry,
    ledger: &Ledger,
    uid_of: &dyn Fn(&Reference) -> Option<String>,
    masked: &dyn Fn(&str) -> String,
) -> StackResource {
    let newest = ledger.incarnations(path).next().map(|(newest, _)| newest);
    let object = entry.objects.last();
    let reason: String = masked(&entry.reason).chars().take(LONGEST_REASON).collect();
    StackResource {
        // While one takes the place of another there are two of a name.
        name: if newest == Some(*number) {
            path.clone()
        } else {
            format!("{path}#{number}")
        },
        kind: entry.kind.clone(),
        object: object.map(|object| format!("{}/{}", object.kind, object.name)),
        physical_id: object.and_then(uid_of),
        status: format!("{}_{}", entry.action.word(), entry.state.word()),
        reason: (!reason.is_empty()).then_some(reason),
        since: Some(Time(entry.since)),
    }
}

/// Ready: the last action was done, and the spec says nothing else. Stalled: only a person
/// can help.
fn observations(stack: &Stack, plan: &Plan, masked: &dyn Fn(&str) -> String) -> [Observation; 2] {
    let ledger = &plan.ledger;
    let no = |reason, message: String| Observation::no(ConditionType::Ready, reason, message);
    let stalled =
        |reason, message: String| Observation::yes(ConditionType::Stalled, reason, message);
    let fine = |reason, message: &str| Observation::no(ConditionType::Stalled, reason, message);
    if let Some(problem) = &plan.problem {
        let message = masked(&problem.message);
        return [
            no(problem.reason, message.clone()),
            stalled(problem.reason, message),
        ];
    }
    let message = masked(&ledger.reason);
    match (ledger.action, ledger.state) {
        (None, _) => {
            let message = if stack.spec.preview {
                "spec.preview is set: status.preview shows what would be made"
            } else {
                "nothing has been made yet"
            };
            [
                no(Reason::Previewed, message.to_owned()),
                fine(Reason::Previewed, message),
            ]
        }
        (Some(_), State::InProgress) => {
            let message = message + &waiting(ledger);
            [
                no(Reason::InProgress, message.clone()),
                fine(Reason::InProgress, &message),
            ]
        }
        (Some(_), State::Failed) => [
            no(Reason::Failed, message.clone()),
            stalled(Reason::Failed, message),
        ],
        (Some(Action::Rollback | Action::Delete), State::Complete) => [
            no(
                Reason::Failed,
                format!("{message}; change the spec to try again"),
            ),
            stalled(Reason::Failed, message),
        ],
        (Some(Action::Suspend), State::Complete) => [
            no(
                Reason::Suspended,
                "its Servers are stopped as asked".to_owned(),
            ),
            fine(Reason::Suspended, "its Servers are stopped as asked"),
        ],
        (Some(_), State::Complete) => [
            Observation::yes(ConditionType::Ready, Reason::Complete, message.clone()),
            fine(Reason::Complete, &message),
        ],
    }
}

/// Which resources wait at a hook, and how they go on.
fn waiting(ledger: &Ledger) -> String {
    let entries = ledger.entries.iter();
    let waiting = entries.filter(|(_, entry)| entry.is_waiting());
    let names: Vec<String> = waiting
        .map(|((path, _), entry)| format!("{path}:{}", entry.waits.clone().unwrap_or_default()))
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let names = crate::list_names(names);
    format!("; waits at a hook: {names}; the annotation {CLEAR_HOOKS_ANNOTATION} clears it")
}

/// Whether a status says nothing but how far an action is: no other state, no other condition, and
/// nothing more that has failed.
#[must_use]
pub fn is_progress(stack: &Stack, status: &StackStatus) -> bool {
    let failed = |status: &StackStatus| {
        let rows = status.resources.iter();
        rows.filter(|row| row.status.ends_with(State::Failed.word()))
            .count()
    };
    let said = |status: &StackStatus| -> Vec<(String, String, String, Option<i64>)> {
        let conditions = status.conditions.iter().cloned();
        conditions
            .map(|c| (c.type_, c.status, c.message, c.observed_generation))
            .collect()
    };
    stack.status.as_ref().is_some_and(|before| {
        before.stack_status == status.stack_status
            && before.observed_generation == status.observed_generation
            && before.preview == status.preview
            && before.notes == status.notes
            && said(before) == said(status)
            && failed(before) == failed(status)
    })
}

/// What an event says of a transition: from what the status said to what it says now.
#[must_use]
pub fn transition(stack: &Stack, status: &StackStatus) -> Option<(bool, Reason, String)> {
    let before = stack
        .status
        .as_ref()
        .and_then(|status| status.stack_status.as_ref());
    let word = status.stack_status.as_ref()?;
    if before == Some(word) {
        return None;
    }
    let why = status.stack_status_reason.clone().unwrap_or_default();
    let (good, reason) = if word.ends_with(State::Failed.word()) {
        (false, Reason::Failed)
    } else if word.ends_with(State::Complete.word()) {
        (true, Reason::Complete)
    } else {
        (true, Reason::InProgress)
    };
    Some((good, reason, format!("{} {word}: {why}", stack.name_any())))
}
