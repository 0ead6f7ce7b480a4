//! The status of a Stack, made from its record, without any secret.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sha2::{Digest, Sha256};

use super::plan::{Plan, Problem};
use super::record::{Action, Entry, Key, Reference, StackRecord, State};
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::names::CLEAR_HOOKS_ANNOTATION;
use pileus_api::stack::{StackResource, StackStatus};
use pileus_api::{Reason, Stack};
use pileus_stack::masking::mask_text;

/// Longest reason of a resource in characters: hundreds of resources must fit into one status.
const MAX_REASON_CHARS: usize = 256;

/// The status after a plan was made. `uid_of` returns the uid of an object that exists.
#[must_use]
pub fn status(
    stack: &Stack,
    plan: &Plan,
    record_name: &str,
    uid_of: &dyn Fn(&Reference) -> Option<String>,
    now: Timestamp,
) -> StackStatus {
    let record = &plan.record;
    let before = stack.status.as_ref();
    let masked = |text: &str| mask_text(text, &plan.secrets);
    let resources: Vec<StackResource> = record
        .entries
        .iter()
        .map(|(key, entry)| resource(key, entry, record, uid_of, &masked))
        .collect();
    let complete = record
        .entries
        .values()
        .filter(|e| e.state == State::Complete)
        .count();
    let old = before
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    StackStatus {
        observed_generation: stack.metadata.generation,
        stack_status: record.stack_status(),
        stack_status_reason: record.action.map(|_| masked(&record.reason)),
        action_started_at: record.action.map(|_| Time(record.started)),
        progress: Some(format!("{complete}/{}", record.entries.len())),
        resources,
        outputs: match &plan.outputs {
            Some(outputs) => outputs.clone(),
            // Outputs that cannot be evaluated now keep their last values.
            None if record.target_digest.is_some() => {
                before.map(|b| b.outputs.clone()).unwrap_or_default()
            }
            None => Vec::new(),
        },
        preview: plan.preview.clone(),
        last_good: record
            .last_good_digest
            .as_ref()
            .map(|digest| reported_digest(record, digest)),
        record: record.action.map(|_| record_name.to_owned()),
        notes: plan.notes.clone(),
        conditions: conditions::merge(
            old,
            observations(stack, plan, &masked),
            stack.metadata.generation,
            now,
        ),
    }
}

/// The digest of sources as it is reported: it includes the record's seed, so that passwords
/// cannot be guessed from it.
fn reported_digest(record: &StackRecord, digest: &str) -> String {
    let hash = Sha256::digest(format!("{}/{digest}", record.seed));
    format!("sha256:{}", hex::encode(hash))
}

/// The status while a problem prevents any decision: as before, with conditions that name the
/// problem.
#[must_use]
pub fn blocked(stack: &Stack, problem: &Problem, now: Timestamp) -> StackStatus {
    let stalled = Observation::yes(ConditionType::Stalled, problem.reason, &problem.message);
    with_ready_unknown(stack, problem.reason, &problem.message, stalled, now)
}

/// The same for an error after which the controller retries.
#[must_use]
pub fn retrying(stack: &Stack, why: &str, now: Timestamp) -> StackStatus {
    let message = format!("{why}; the controller retries");
    let stalled = Observation::no(ConditionType::Stalled, Reason::Retrying, &message);
    with_ready_unknown(stack, Reason::Retrying, &message, stalled, now)
}

/// The last status, with `Ready` unknown.
fn with_ready_unknown(
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
    record: &StackRecord,
    uid_of: &dyn Fn(&Reference) -> Option<String>,
    masked: &dyn Fn(&str) -> String,
) -> StackResource {
    let newest = record.incarnations(path).next().map(|(newest, _)| newest);
    let object = entry.objects.last();
    let reason: String = masked(&entry.reason)
        .chars()
        .take(MAX_REASON_CHARS)
        .collect();
    StackResource {
        // During a replacement there are two incarnations of a path.
        name: if newest == Some(*number) {
            path.clone()
        } else {
            format!("{path}#{number}")
        },
        kind: entry.resource_type.clone(),
        object: object.map(|object| format!("{}/{}", object.kind, object.name)),
        physical_id: object.and_then(uid_of),
        status: format!("{}_{}", entry.action.heat_name(), entry.state.heat_name()),
        reason: (!reason.is_empty()).then_some(reason),
        since: Some(Time(entry.since)),
    }
}

/// Ready: the last action is complete, and the spec asks for no other. Stalled: only a user can
/// help.
fn observations(stack: &Stack, plan: &Plan, masked: &dyn Fn(&str) -> String) -> [Observation; 2] {
    let record = &plan.record;
    let no = |reason, message: String| Observation::no(ConditionType::Ready, reason, message);
    let stalled =
        |reason, message: String| Observation::yes(ConditionType::Stalled, reason, message);
    let not_stalled =
        |reason, message: &str| Observation::no(ConditionType::Stalled, reason, message);
    if let Some(problem) = &plan.problem {
        let message = masked(&problem.message);
        return [
            no(problem.reason, message.clone()),
            stalled(problem.reason, message),
        ];
    }
    let message = masked(&record.reason);
    match (record.action, record.state) {
        (None, _) => {
            let message = if stack.spec.preview {
                "spec.preview is set: status.preview shows what would be made"
            } else {
                "nothing has been made yet"
            };
            [
                no(Reason::Previewed, message.to_owned()),
                not_stalled(Reason::Previewed, message),
            ]
        }
        (Some(_), State::InProgress) => {
            let message = message + &waiting_at_hooks(record);
            [
                no(Reason::InProgress, message.clone()),
                not_stalled(Reason::InProgress, &message),
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
                "its Servers are stopped because spec.suspend is set".to_owned(),
            ),
            not_stalled(
                Reason::Suspended,
                "its Servers are stopped because spec.suspend is set",
            ),
        ],
        (Some(_), State::Complete) => [
            Observation::yes(ConditionType::Ready, Reason::Complete, message.clone()),
            not_stalled(Reason::Complete, &message),
        ],
    }
}

/// Says which resources wait at a hook, and how to clear it.
fn waiting_at_hooks(record: &StackRecord) -> String {
    let entries = record.entries.iter();
    let waiting = entries.filter(|(_, entry)| entry.is_waiting_at_hook());
    let names: Vec<String> = waiting
        .map(|((path, _), entry)| {
            format!("{path}:{}", entry.hook_reached.clone().unwrap_or_default())
        })
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let names = crate::list_some(names);
    format!("; waiting at a hook: {names}; the annotation {CLEAR_HOOKS_ANNOTATION} clears it")
}

/// Whether a status differs from the last one only in the progress of the action: the same state,
/// the same conditions, and no more failed resources.
#[must_use]
pub fn is_only_progress(stack: &Stack, status: &StackStatus) -> bool {
    let failed = |status: &StackStatus| {
        let rows = status.resources.iter();
        rows.filter(|row| row.status.ends_with(State::Failed.heat_name()))
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

/// The event for a change of `stack_status`: whether it is a success, its reason and its note.
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
    let (good, reason) = if word.ends_with(State::Failed.heat_name()) {
        (false, Reason::Failed)
    } else if word.ends_with(State::Complete.heat_name()) {
        (true, Reason::Complete)
    } else {
        (true, Reason::InProgress)
    };
    Some((good, reason, format!("{} {word}: {why}", stack.name_any())))
}
