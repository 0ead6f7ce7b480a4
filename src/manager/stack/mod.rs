//! Reconciles Stacks: observes their objects, decides ([`plan`]), stores the record of what will
//! be done ([`record`], [`record_store`]), does it ([`children`]), and reports it ([`status`]).
//!
//! Nested stacks and groups have no objects of their own: the whole tree is one plan
//! ([`pileus_stack::tree`]). So one record names every object, a rollback returns the whole tree,
//! hidden parameters never have to be written into a child's spec, and after a crash an outer and
//! an inner stack cannot disagree.

pub mod caches;
pub mod children;
pub mod isolation;
mod kinds;
mod managed_fields;
pub mod plan;
pub mod read_cache;
pub mod record;
pub mod record_store;
mod recovery;
mod role;
pub mod served_kinds;
mod shared;
mod slots;
pub mod source_watch;
pub mod sources;
pub mod status;
pub mod triggers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use uuid::Uuid;

use crate::{Outcome, crd_deletion};
pub use caches::Caches;
use children::Children;
use isolation::Halt;
use pileus_api::names::{
    CLEAR_HOOKS_ANNOTATION, MANAGER, MANAGER_FINALIZER, REBUILD_RECORD_ANNOTATION,
};
use pileus_api::stack::OnFailure;
use pileus_api::{Reason, Stack, StackStatus};
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, chain, finalize};
use pileus_stack::budget::Stop;
use pileus_stack::masking::mask_text;
use pileus_stack::value::json;
use plan::refusals::Refused;
use plan::{Observed, Plan, Problem, Step};
use record::{Action, Key, Reference, Sources, StackRecord, State};
use record_store::RecordStore;
pub use role::{StackManager, run};
pub use shared::Shared;
pub use triggers::{by_stack, triggers};

/// How often a Stack is reconciled while a problem blocks it whose end is not watched.
const BLOCKED_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How often a Stack is reconciled whose namespace has not opted in.
const OPT_IN_INTERVAL: Duration = Duration::from_secs(10);
/// How many steps of one Stack run at once.
const MAX_CONCURRENT_STEPS: usize = 16;

/// One pass over a Stack. An error that lasts is reported in its status.
///
/// # Errors
/// When the API server refused or did not answer; the next pass continues.
pub async fn reconcile(stack: Arc<Stack>, manager: Arc<StackManager>) -> Outcome {
    let outcome = try_reconcile(stack.clone(), manager.clone()).await;
    let uid = stack.uid().unwrap_or_default();
    let error = outcome.as_ref().err().filter(|error| !error.is_conflict());
    if manager.stacks.fails_for_long(&uid, error.is_some())
        && let Some(error) = error
    {
        let namespace = stack.namespace().unwrap_or_default();
        let api: Api<Stack> = Api::namespaced(manager.context.client.clone(), &namespace);
        let status = status::retrying(&stack, &chain(error), Timestamp::now());
        // This may fail for the same reason; the first error is the one to return.
        let _ = apply_status(&api, MANAGER, &*stack, &status).await;
    }
    outcome
}

async fn try_reconcile(stack: Arc<Stack>, manager: Arc<StackManager>) -> Outcome {
    let client = &manager.context.client;
    let api: Api<Stack> = Api::namespaced(client.clone(), &stack.namespace().unwrap_or_default());
    let deleting = finalize::is_deleting(&*stack);
    let uid = stack.uid().unwrap_or_default();
    let has_no_finalizer = deleting && !finalize::has(&*stack, MANAGER_FINALIZER);
    if has_no_finalizer || manager.stacks.is_released(&uid) {
        return Ok(None);
    }
    if !deleting {
        let stacks = Objects::of(api.clone());
        let added = stacks.add_finalizer(&stack, MANAGER_FINALIZER).await?;
        if added.is_some() {
            return Ok(None);
        }
    }
    if let Some(left) = manager.stacks.remaining_delay(&uid) {
        return Ok(Some(left));
    }
    let store = RecordStore::of(client, &stack);
    let children = Children::of(client, &manager.caches, &manager.stacks, &stack);
    let read = store.read().await;
    if let Some(problem) = role::not_opted_in(read.as_ref().err(), &stack) {
        return refuse_namespace(&api, &stack, &manager, &children, &problem).await;
    }
    let read = match read {
        // Without the record, all objects with the Stack's label are deleted.
        Err(error) if deleting && is_unreadable(&error) => {
            store.delete_record(None).await?;
            None
        }
        Err(error) if is_unreadable(&error) => {
            let problem = recovery::unreadable(&store.name());
            return block(&api, &stack, &manager, &problem).await;
        }
        read => read?,
    };
    let (record, mut version) = read.map_or((None, None), |(l, v)| (Some(l), Some(v)));
    let is_lost = plan::rebuild::is_lost(&stack, record.as_ref());
    let mut observed = observe(&stack, &manager, &store, &children, record).await?;
    manager.stacks.delay_next_pass(
        &uid,
        observed.record.as_ref().map_or(0, |l| l.entries.len()),
    );
    let not_rebuilt = if is_lost {
        let name = store.name();
        match recovery::rebuild_record(&stack, &manager, &mut observed, &children, &name).await? {
            Ok(problem) => problem,
            Err(halt) => return halted(&api, &stack, &manager, halt).await,
        }
    } else {
        None
    };
    if let Some(problem) = plan::refusals::access_problem(&stack, &observed).or(not_rebuilt) {
        return block(&api, &stack, &manager, &problem).await;
    }
    let work = || plan::plan(&stack, &observed);
    let mut plan = match isolation::evaluate(&manager, &stack, &observed.stop, work) {
        Ok(plan) => plan,
        Err(halt) => return halted(&api, &stack, &manager, halt).await,
    };
    if let Some(sources) = &plan.new_sources {
        store.write_sources(sources).await?;
    }
    // A deletion does not need a rebuilt record: the next pass finds the objects again, and no
    // Secret can be created in a namespace that is being deleted.
    let must_write = if is_lost {
        !deleting
    } else {
        Some(&plan.record) != observed.record.as_ref()
    };
    if must_write && plan.record.action.is_some() && !plan.deleted {
        if let (true, Ok(sources)) = (is_lost, &observed.sources) {
            store.write_sources(sources).await?;
        }
        version = Some(store.write(&plan.record, version.as_deref()).await?);
        if is_lost {
            recovery::report_rebuilt(&stack, &manager, &plan.record);
        }
    }
    let results = execute(&children, &plan).await;
    if plan.deleted && results.error.is_none() {
        let record = observed.definition_deleted.then_some(&plan.record);
        release_stack(&api, &stack, &manager, &store, record).await?;
        return Ok(None);
    }
    let mut error = results.error;
    if !results.refused.is_empty() {
        let now = Timestamp::now();
        let requeue = plan::refusals::record_refused(&mut plan.record, results.refused, now);
        plan.requeue_after = Some(requeue);
        if !is_lost || !deleting {
            let written = store.write(&plan.record, version.as_deref()).await;
            error = written.err();
        }
    }
    plan::refusals::report_errors(&mut plan.record, results.retried);
    delete_old_sources(&store, observed.record.as_ref(), &plan.record).await?;
    let requeue = report(&api, &stack, &manager, &plan, &store, &observed).await?;
    remove_annotations(&api, &stack, &plan).await?;
    error.map_or(Ok(requeue), Err)
}

/// Reports a problem that only a person can help, and looks again later.
async fn block(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &StackManager,
    problem: &Problem,
) -> Outcome {
    let status = status::blocked(stack, problem, Timestamp::now());
    write_status(api, stack, manager, &status).await?;
    Ok(Some(BLOCKED_RETRY_INTERVAL))
}

/// Reports that the Stack's namespace has not opted in. One that is being deleted goes all the
/// same if it has made nothing, or if what it has made goes with the namespace.
async fn refuse_namespace(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &StackManager,
    children: &Children<'_>,
    problem: &Problem,
) -> Outcome {
    let has_record = stack.status.as_ref().is_some_and(|s| s.record.is_some());
    if finalize::is_deleting(stack) && (!has_record || children.is_namespace_terminating().await?) {
        let stacks = Objects::of(api.clone());
        stacks.remove_finalizer(stack, MANAGER_FINALIZER).await?;
        manager.stacks.forget(&stack.uid().unwrap_or_default());
        return Ok(None);
    }
    block(api, stack, manager, problem).await?;
    Ok(Some(OPT_IN_INTERVAL))
}

/// Ends a pass without a plan.
async fn halted(api: &Api<Stack>, stack: &Stack, manager: &StackManager, halt: Halt) -> Outcome {
    match halt {
        Halt::Wait(wait) => Ok(Some(wait)),
        Halt::Blocked(problem, wait) => {
            let status = status::blocked(stack, &problem, Timestamp::now());
            write_status(api, stack, manager, &status).await?;
            Ok(Some(wait))
        }
    }
}

/// Deletes the Secrets of a Stack that has no objects any more, and removes its finalizer.
///
/// With `record` (the definition of Stacks was deleted, so objects stay), only the record and the
/// sources that it names are deleted: auxiliary Secrets of objects have the same label, and stay.
async fn release_stack(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &StackManager,
    store: &RecordStore,
    record: Option<&StackRecord>,
) -> Result<(), ApiError> {
    match record {
        Some(record) => store.delete_record(Some(record)).await?,
        None => store.delete_all().await?,
    }
    let stacks = Objects::of(api.clone());
    stacks.remove_finalizer(stack, MANAGER_FINALIZER).await?;
    manager.stacks.forget(&stack.uid().unwrap_or_default());
    Ok(())
}

fn is_unreadable(error: &ApiError) -> bool {
    matches!(&*error.source, kube::Error::SerdeError(_))
}

/// Removes the annotations whose request is done. On a conflict the Stack has changed, which
/// starts another pass, and that removes them.
async fn remove_annotations(api: &Api<Stack>, stack: &Stack, plan: &Plan) -> Result<(), ApiError> {
    let asked = stack.annotations().contains_key(REBUILD_RECORD_ANNOTATION);
    let done = [
        plan.hooks_cleared.then_some(CLEAR_HOOKS_ANNOTATION),
        (asked && !finalize::is_deleting(stack)).then_some(REBUILD_RECORD_ANNOTATION),
    ];
    for annotation in done.into_iter().flatten() {
        match remove_annotation(api, stack, annotation).await {
            Err(error) if error.is_conflict() => {}
            done => done?,
        }
    }
    Ok(())
}

/// Removes an annotation, unless the Stack has changed: its value may be another one now.
async fn remove_annotation(
    api: &Api<Stack>,
    stack: &Stack,
    annotation: &str,
) -> Result<(), ApiError> {
    let patch = Patch::Merge(json!({"metadata": {
        "uid": stack.uid(),
        "resourceVersion": stack.resource_version(),
        "annotations": {annotation: null},
    }}));
    let name = stack.name_any();
    let doing = ApiError::doing(format!(
        "remove the annotation {annotation} from the Stack {name}"
    ));
    let done = api.patch(&name, &PatchParams::default(), &patch).await;
    done.map(drop).map_err(doing)
}

async fn observe<'a>(
    stack: &Stack,
    manager: &StackManager,
    store: &RecordStore,
    children: &'a Children<'a>,
    record: Option<StackRecord>,
) -> Result<Observed<'a>, ApiError> {
    let client = &manager.context.client;
    let deleting = finalize::is_deleting(stack);
    let definition_deleted = deleting && is_definition_deleted(stack, manager).await?;
    let sources = match sources::read(client, stack).await {
        // A deletion does not need them; they only say which values must be masked.
        Err(error) if deleting => Err(Problem {
            reason: Reason::SourceNotFound,
            message: chain(&error),
        }),
        resolved => resolved?,
    };
    let spec_digest = sources.as_ref().ok().map(Sources::digest);
    let named = record
        .as_ref()
        .map(StackRecord::source_digests)
        .unwrap_or_default();
    let needed = named
        .into_iter()
        .filter(|digest| Some(*digest) != spec_digest.as_deref());
    let needed: BTreeSet<String> = needed.map(str::to_owned).collect();
    let stored = match store.read_sources(needed).await {
        Err(_) if deleting => BTreeMap::new(),
        stored => stored?,
    };
    let (objects, mut denied) = match &record {
        Some(record) => {
            let reported = stack.status.as_ref().and_then(|s| s.observed_generation);
            let is_check = record.is_busy() && record.action == Some(Action::Check);
            // An action that is about to begin must know which objects were deleted meanwhile.
            let new = spec_digest.as_ref();
            let new = new.filter(|digest| **digest != record.spec_digest);
            let cache = &manager.stacks.read_cache;
            let uid = stack.uid().unwrap_or_default();
            let is_update = new.is_some_and(|digest| cache.has_new_sources(&uid, digest));
            let is_undo = record.state == State::Failed
                && matches!(record.action, Some(Action::Create | Action::Update))
                && stack.spec.on_failure != OnFailure::Keep
                && !record.failure_kept;
            let changed = reported != stack.metadata.generation;
            let without_cache = is_check || is_update || is_undo || changed;
            let found = children.observe(record, without_cache && !deleting).await?;
            if let Some(digest) = new {
                cache.note_sources(&uid, digest);
            }
            found
        }
        None => (BTreeMap::new(), None),
    };
    // The service account is deleted with its namespace, often before the Stack; so are the
    // objects that it has made in the namespace.
    if denied.is_some() && deleting && children.is_namespace_terminating().await? {
        denied = None;
    }
    let unrecorded = if deleting {
        children.unrecorded(record.as_ref())
    } else {
        Vec::new()
    };
    Ok(Observed {
        now: Timestamp::now(),
        sources,
        stored,
        record,
        seed: Uuid::new_v4().simple().to_string() + &Uuid::new_v4().simple().to_string(),
        objects,
        denied,
        unrecorded,
        lookup: children,
        definition_deleted,
        grace: manager.stacks.grace,
        stop: Stop::default(),
    })
}

/// Whether a Stack is being deleted only because the definition of Stacks is. The API server is
/// asked until the answer is no, which is remembered.
async fn is_definition_deleted(stack: &Stack, manager: &StackManager) -> Result<bool, ApiError> {
    let uid = stack.uid().unwrap_or_default();
    if manager.stacks.is_deletion_requested(&uid) {
        return Ok(false);
    }
    let lost = crd_deletion::is_crd_deleting::<Stack>(&manager.context.client).await?;
    if !lost {
        manager.stacks.note_deletion_requested(&uid);
    }
    Ok(lost)
}

/// Results of steps that failed.
#[derive(Default)]
struct StepResults {
    /// By resource: errors that a retry cannot help.
    refused: Refused,
    /// By resource: errors of steps that the next pass retries.
    retried: Refused,
    /// One of the errors to retry for.
    error: Option<ApiError>,
}

/// Executes the steps; those of one resource in their order, resources concurrently.
async fn execute(children: &Children<'_>, plan: &Plan) -> StepResults {
    let mut by_key: BTreeMap<Key, Vec<Step>> = BTreeMap::new();
    let mut groups = Vec::new();
    for step in plan.steps.iter().cloned() {
        match &step {
            Step::Apply { key, .. } => by_key.entry(key.clone()).or_default().push(step),
            Step::Delete { .. } | Step::Release { .. } => {
                groups.push((resource_of(&step, &plan.record), vec![step]));
            }
        }
    }
    groups.extend(by_key.into_iter().map(|(key, steps)| (Some(key), steps)));
    let mut done = futures::stream::iter(groups)
        .map(|(key, steps)| async move { (key, execute_in_order(children, steps).await) })
        .buffer_unordered(MAX_CONCURRENT_STEPS);
    let mut results = StepResults::default();
    while let Some((key, result)) = done.next().await {
        // The other steps are executed all the same.
        let Err(error) = result else { continue };
        let why = mask_text(&chain(&error), &plan.secrets);
        match key {
            Some(key) if is_final(&error) => drop(results.refused.insert(key, why)),
            key => {
                // The next pass reads the new version: a conflict is not worth a report.
                let key = key.filter(|_| !error.is_conflict());
                results.retried.extend(key.map(|key| (key, why)));
                results.error = Some(masked(error, &plan.secrets));
            }
        }
    }
    results
}

/// The resource whose object a step deletes or releases.
fn resource_of(step: &Step, record: &StackRecord) -> Option<Key> {
    let same = |object: &Reference| match step {
        Step::Delete { object: other, .. } => object == other,
        Step::Release { live, .. } => {
            let other = Reference::of(live);
            let namespace = object.namespace.clone().or(other.namespace.clone());
            other
                == Reference {
                    namespace,
                    ..object.clone()
                }
        }
        Step::Apply { .. } => false,
    };
    let mut entries = record.entries.iter();
    let found =
        entries.find(|(_, entry)| entry.action == Action::Delete && entry.objects.iter().any(same));
    found.map(|(key, _)| key.clone())
}

async fn execute_in_order(children: &Children<'_>, steps: Vec<Step>) -> Result<(), ApiError> {
    for step in steps {
        match step {
            Step::Apply {
                manifest,
                live,
                by_account,
                retain,
                ..
            } => {
                let live = live.as_ref();
                children.apply(&manifest, live, by_account, retain).await?;
            }
            Step::Delete {
                object,
                uid,
                by_account,
            } => children.delete(&object, uid.as_ref(), by_account).await?,
            Step::Release { live, by_account } => children.release(&live, by_account).await?,
        }
    }
    Ok(())
}

/// The error without secrets: it is logged.
fn masked(mut error: ApiError, secrets: &BTreeSet<String>) -> ApiError {
    if let kube::Error::Api(status) = &mut *error.source {
        status.message = mask_text(&status.message, secrets);
        status.details = None;
    }
    error
}

/// Whether a retry cannot help: the object itself, or the rights of its maker, must change.
fn is_final(error: &ApiError) -> bool {
    served_kinds::is_malformed_version(error)
        || matches!(&*error.source, kube::Error::Api(status)
            if matches!(status.code, 400 | 403 | 404 | 405 | 413 | 422))
}

/// Deletes stored sources that the record does not name any more.
async fn delete_old_sources(
    store: &RecordStore,
    before: Option<&StackRecord>,
    now: &StackRecord,
) -> Result<(), ApiError> {
    let kept = now.source_digests();
    let named = before.map(StackRecord::source_digests).unwrap_or_default();
    let old = named.difference(&kept).map(|digest| (*digest).to_owned());
    store.delete_sources(&old.collect()).await
}

async fn report(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &StackManager,
    plan: &Plan,
    store: &RecordStore,
    observed: &Observed<'_>,
) -> Outcome {
    let uid_of = |object: &record::Reference| {
        let live = observed.objects.get(object)?;
        live["metadata"]["uid"].as_str().map(str::to_owned)
    };
    let status = status::status(stack, plan, &store.name(), &uid_of, observed.now);
    if plan.record.is_busy() && status::is_only_progress(stack, &status) {
        let uid = stack.uid().unwrap_or_default();
        let spent = plan::since(plan.record.started, observed.now);
        let delay = manager
            .stacks
            .remaining_report_delay(&uid, status.resources.len(), spent);
        if let Some(left) = delay {
            return Ok(Some(
                plan.requeue_after.map_or(left, |other| other.min(left)),
            ));
        }
    }
    write_status(api, stack, manager, &status).await?;
    Ok(plan.requeue_after)
}

/// Writes the status, and an event if the stack's state has changed.
async fn write_status(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &StackManager,
    status: &StackStatus,
) -> Result<(), ApiError> {
    if !apply_status(api, MANAGER, stack, status).await? {
        return Ok(());
    }
    manager
        .stacks
        .note_reported(&stack.uid().unwrap_or_default());
    manager.context.metrics.status_written("stack");
    if let Some((good, reason, note)) = status::transition(stack, status) {
        let events = &manager.context.events;
        if good {
            events.normal(stack, reason, "Reconcile", note);
        } else {
            events.warning(stack, reason, "Reconcile", note);
        }
    }
    Ok(())
}
