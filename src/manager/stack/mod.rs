//! Reconciles Stacks: reads what there is, decides ([`plan`]), writes down what will be done
//! ([`ledger`], [`records`]), does it ([`children`]), and reports ([`status`]).
//!
//! Nested stacks and groups have no objects of their own: the whole tree is one plan
//! ([`pileus_stack::tree`]), because then one record says everything that exists, a rollback
//! returns all of it, hidden parameters never have to be written into a child's spec, and
//! no crash can leave an outer and an inner stack of two minds.

pub mod children;
mod fields;
pub mod isolation;
pub mod ledger;
mod lost;
pub mod plan;
pub mod recall;
pub mod records;
pub mod served;
mod shared;
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

use crate::{Manager, Outcome, crd_deletion};
use children::Children;
use ledger::{Action, Key, Ledger, Reference, Sources, State};
use pileus_api::names::{
    CLEAR_HOOKS_ANNOTATION, MANAGER, MANAGER_FINALIZER, REBUILD_RECORD_ANNOTATION,
};
use pileus_api::stack::OnFailure;
use pileus_api::{Reason, Stack, StackStatus};
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, chain, finalize};
use pileus_stack::hide::mask_text;
use pileus_stack::value::json;
use plan::trouble::Refused;
use plan::{Plan, Problem, Seen, Step};
use records::Records;
pub use shared::Shared;
pub use triggers::{by_stack, triggers};

/// How often it is checked whether an obstacle is gone that is not watched.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How many effects of one Stack are under way at once.
const AT_ONCE: usize = 16;

/// One pass. An error that lasts is reported.
///
/// # Errors
/// When the API server refused or did not answer; nothing is lost by it.
pub async fn reconcile(stack: Arc<Stack>, manager: Arc<Manager>) -> Outcome {
    let outcome = attempt(stack.clone(), manager.clone()).await;
    let uid = stack.uid().unwrap_or_default();
    let error = outcome.as_ref().err().filter(|error| !error.is_conflict());
    if manager.stacks.fails_for_long(&uid, error.is_some())
        && let Some(error) = error
    {
        let namespace = stack.namespace().unwrap_or_default();
        let api: Api<Stack> = Api::namespaced(manager.context.client.clone(), &namespace);
        let status = status::retrying(&stack, &chain(error), Timestamp::now());
        // It is the API server that fails: the error itself is what matters.
        let _ = apply_status(&api, MANAGER, &*stack, &status).await;
    }
    outcome
}

async fn attempt(stack: Arc<Stack>, manager: Arc<Manager>) -> Outcome {
    let client = &manager.context.client;
    let api: Api<Stack> = Api::namespaced(client.clone(), &stack.namespace().unwrap_or_default());
    let deleting = finalize::is_deleting(&*stack);
    let uid = stack.uid().unwrap_or_default();
    let is_free = deleting && !finalize::has(&*stack, MANAGER_FINALIZER);
    if is_free || manager.stacks.is_gone(&uid) {
        return Ok(None);
    }
    if !deleting {
        let stacks = Objects::of(api.clone());
        let added = stacks.add_finalizer(&stack, MANAGER_FINALIZER).await?;
        if added.is_some() {
            return Ok(None);
        }
    }
    if let Some(left) = manager.stacks.throttled_for(&uid) {
        return Ok(Some(left));
    }
    let records = Records::of(client, &stack);
    let read = match records.read().await {
        // Without what it says, what carries the Stack's mark is removed.
        Err(error) if deleting && is_unreadable(&error) => {
            records.forget_own(None).await?;
            None
        }
        Err(error) if is_unreadable(&error) => {
            let problem = lost::unreadable(&records.name());
            let status = status::stuck(&stack, &problem, Timestamp::now());
            write_status(&api, &stack, &manager, &status).await?;
            return Ok(Some(RETRY_INTERVAL));
        }
        read => read?,
    };
    let (ledger, mut version) = read.map_or((None, None), |(l, v)| (Some(l), Some(v)));
    let children = Children::of(client, &manager.caches, &manager.stacks, &stack);
    let is_lost = plan::rebuild::is_lost(&stack, ledger.as_ref());
    let mut seen = observe(&stack, &manager, &records, &children, ledger).await?;
    manager
        .stacks
        .throttle(&uid, seen.ledger.as_ref().map_or(0, |l| l.entries.len()));
    let lost = if is_lost {
        lost::search(&stack, &mut seen, &children, &records.name()).await?
    } else {
        None
    };
    if let Some(problem) = plan::trouble::obstacle(&stack, &seen).or(lost) {
        let status = status::stuck(&stack, &problem, seen.now);
        write_status(&api, &stack, &manager, &status).await?;
        return Ok(Some(RETRY_INTERVAL));
    }
    let mut plan = match isolation::compute(|| plan::plan(&stack, &seen)) {
        Ok(plan) => plan,
        Err(fault) => {
            let status = status::stuck(&stack, &fault, seen.now);
            write_status(&api, &stack, &manager, &status).await?;
            return Ok(Some(isolation::PANIC_RETRY_INTERVAL));
        }
    };
    if let Some(sources) = &plan.store {
        records.keep(sources).await?;
    }
    // What goes without a record is found again by the next pass, and its namespace may take
    // nothing new any more.
    let is_news = if is_lost {
        !deleting
    } else {
        Some(&plan.ledger) != seen.ledger.as_ref()
    };
    if is_news && plan.ledger.action.is_some() && !plan.gone {
        if let (true, Ok(sources)) = (is_lost, &seen.sources) {
            records.keep(sources).await?;
        }
        version = Some(records.write(&plan.ledger, version.as_deref()).await?);
        if is_lost {
            lost::tell(&stack, &manager, &plan.ledger);
        }
    }
    let acted = act(&children, &plan).await;
    if plan.gone && acted.failed.is_none() {
        let named = seen.crd_deleting.then_some(&plan.ledger);
        leave(&api, &stack, &manager, &records, named).await?;
        return Ok(None);
    }
    let mut failed = acted.failed;
    if !acted.refused.is_empty() {
        let again = plan::trouble::refuse(&mut plan.ledger, acted.refused, Timestamp::now());
        plan.again = Some(again);
        if !is_lost || !deleting {
            let written = records.write(&plan.ledger, version.as_deref()).await;
            failed = written.err();
        }
    }
    plan::trouble::tell(&mut plan.ledger, acted.told);
    forget_sources(&records, seen.ledger.as_ref(), &plan.ledger).await?;
    let again = report(&api, &stack, &manager, &plan, &records, &seen).await?;
    take_annotations(&api, &stack, &plan).await?;
    failed.map_or(Ok(again), Err)
}

/// Lets a Stack go that has nothing any more. What it serves others with carries the same mark
/// as its record and stays with them where its kind is lost: only what `named` names goes then.
async fn leave(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &Manager,
    records: &Records,
    named: Option<&Ledger>,
) -> Result<(), ApiError> {
    match named {
        Some(ledger) => records.forget_own(Some(ledger)).await?,
        None => records.forget_all().await?,
    }
    let stacks = Objects::of(api.clone());
    stacks.remove_finalizer(stack, MANAGER_FINALIZER).await?;
    manager.stacks.forget(&stack.uid().unwrap_or_default());
    Ok(())
}

fn is_unreadable(error: &ApiError) -> bool {
    matches!(&*error.source, kube::Error::SerdeError(_))
}

/// Takes away the annotations that have done their work. A status that was written is a version
/// that wakes us; they go then.
async fn take_annotations(api: &Api<Stack>, stack: &Stack, plan: &Plan) -> Result<(), ApiError> {
    let asked = stack.annotations().contains_key(REBUILD_RECORD_ANNOTATION);
    let done = [
        plan.cleared.then_some(CLEAR_HOOKS_ANNOTATION),
        (asked && !finalize::is_deleting(stack)).then_some(REBUILD_RECORD_ANNOTATION),
    ];
    for annotation in done.into_iter().flatten() {
        match take_annotation(api, stack, annotation).await {
            Err(error) if error.is_conflict() => {}
            done => done?,
        }
    }
    Ok(())
}

/// Takes away an annotation that has done its work, unless the Stack has changed: the next pass
/// sees what it says then.
async fn take_annotation(
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
        "take the annotation {annotation} from the Stack {name}"
    ));
    let done = api.patch(&name, &PatchParams::default(), &patch).await;
    done.map(drop).map_err(doing)
}

async fn observe<'a>(
    stack: &Stack,
    manager: &Manager,
    records: &Records,
    children: &'a Children<'a>,
    ledger: Option<Ledger>,
) -> Result<Seen<'a>, ApiError> {
    let client = &manager.context.client;
    let deleting = finalize::is_deleting(stack);
    let crd_deleting = deleting && is_crd_deleting(stack, manager).await?;
    let sources = match sources::resolve(client, stack).await {
        // What goes needs none of them; they only tell what must not be shown.
        Err(error) if deleting => Err(Problem {
            reason: Reason::SourceNotFound,
            message: chain(&error),
        }),
        resolved => resolved?,
    };
    let have = sources.as_ref().ok().map(Sources::digest);
    let named = ledger.as_ref().map(Ledger::sources).unwrap_or_default();
    let needed = named
        .into_iter()
        .filter(|digest| Some(*digest) != have.as_deref());
    let needed: BTreeSet<String> = needed.map(str::to_owned).collect();
    let stored = match records.sources(needed).await {
        Err(_) if deleting => BTreeMap::new(),
        stored => stored?,
    };
    let (objects, mut denied) = match &ledger {
        Some(ledger) => {
            let said = stack.status.as_ref().and_then(|s| s.observed_generation);
            let checks = ledger.is_busy() && ledger.action == Some(Action::Check);
            // An action that is about to begin must know what has gone meanwhile.
            let new = have.as_ref().filter(|have| **have != ledger.wanted);
            let recall = &manager.stacks.recall;
            let uid = stack.uid().unwrap_or_default();
            let turns = new.is_some_and(|digest| recall.is_new(&uid, digest));
            let undoes = ledger.state == State::Failed
                && matches!(ledger.action, Some(Action::Create | Action::Update))
                && stack.spec.on_failure != OnFailure::Keep
                && !ledger.kept;
            let anew = checks || turns || undoes || said != stack.metadata.generation;
            let found = children.observe(ledger, anew && !deleting).await?;
            if let Some(digest) = new {
                recall.note_new(&uid, digest);
            }
            found
        }
        None => (BTreeMap::new(), None),
    };
    // With its namespace the account goes, often before the Stack; what it has made in the
    // namespace goes too.
    if denied.is_some() && deleting && children.is_namespace_going().await? {
        denied = None;
    }
    let strays = if deleting {
        children.strays(ledger.as_ref())
    } else {
        Vec::new()
    };
    Ok(Seen {
        now: Timestamp::now(),
        sources,
        stored,
        ledger,
        seed: Uuid::new_v4().simple().to_string() + &Uuid::new_v4().simple().to_string(),
        objects,
        denied,
        strays,
        find: children,
        crd_deleting,
        grace: manager.stacks.grace,
    })
}

/// Whether a Stack that goes does so only because its kind does, which is asked once: its mark
/// was seen before.
async fn is_crd_deleting(stack: &Stack, manager: &Manager) -> Result<bool, ApiError> {
    let uid = stack.uid().unwrap_or_default();
    if manager.stacks.was_asked_to_go(&uid) {
        return Ok(false);
    }
    let lost = crd_deletion::is_crd_deleting::<Stack>(&manager.context.client).await?;
    if !lost {
        manager.stacks.note_asked_to_go(&uid);
    }
    Ok(lost)
}

/// What became of steps.
#[derive(Default)]
struct Acted {
    /// What is of no use to try again, and why.
    refused: Refused,
    /// Why what is tried again was not done.
    told: Refused,
    /// One of the errors to try again for.
    failed: Option<ApiError>,
}

/// Does the steps; those of one resource in their order, resources at once.
async fn act(children: &Children<'_>, plan: &Plan) -> Acted {
    let mut by_key: BTreeMap<Key, Vec<Step>> = BTreeMap::new();
    let mut groups = Vec::new();
    for step in plan.steps.iter().cloned() {
        match &step {
            Step::Apply { key, .. } => by_key.entry(key.clone()).or_default().push(step),
            Step::Delete { .. } | Step::Release { .. } => {
                groups.push((removed_with(&step, &plan.ledger), vec![step]));
            }
        }
    }
    groups.extend(by_key.into_iter().map(|(key, steps)| (Some(key), steps)));
    let mut done = futures::stream::iter(groups)
        .map(|(key, steps)| async move { (key, each(children, steps).await) })
        .buffer_unordered(AT_ONCE);
    let mut acted = Acted::default();
    while let Some((key, result)) = done.next().await {
        // The others are done all the same.
        let Err(error) = result else { continue };
        let why = mask_text(&chain(&error), &plan.secrets);
        match key {
            Some(key) if is_final(&error) => drop(acted.refused.insert(key, why)),
            key => {
                // A conflict passes by itself.
                let key = key.filter(|_| !error.is_conflict());
                acted.told.extend(key.map(|key| (key, why)));
                acted.failed = Some(masked(error, &plan.secrets));
            }
        }
    }
    acted
}

/// The resource that a step removes an object of.
fn removed_with(step: &Step, ledger: &Ledger) -> Option<Key> {
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
    let mut entries = ledger.entries.iter();
    let found =
        entries.find(|(_, entry)| entry.action == Action::Delete && entry.objects.iter().any(same));
    found.map(|(key, _)| key.clone())
}

async fn each(children: &Children<'_>, steps: Vec<Step>) -> Result<(), ApiError> {
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

/// The error without what must not be shown: it is logged.
fn masked(mut error: ApiError, secrets: &BTreeSet<String>) -> ApiError {
    if let kube::Error::Api(status) = &mut *error.source {
        status.message = mask_text(&status.message, secrets);
        status.details = None;
    }
    error
}

/// Whether trying again is of no use: the object itself, or who makes it, is at fault.
fn is_final(error: &ApiError) -> bool {
    served::is_no_version(error)
        || matches!(&*error.source, kube::Error::Api(status)
            if matches!(status.code, 400 | 403 | 404 | 405 | 413 | 422))
}

/// Templates that the record does not name any more.
async fn forget_sources(
    records: &Records,
    before: Option<&Ledger>,
    now: &Ledger,
) -> Result<(), ApiError> {
    let kept = now.sources();
    let named = before.map(Ledger::sources).unwrap_or_default();
    let old = named.difference(&kept).map(|digest| (*digest).to_owned());
    records.forget(&old.collect()).await
}

async fn report(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &Manager,
    plan: &Plan,
    records: &Records,
    seen: &Seen<'_>,
) -> Outcome {
    let uid_of = |object: &ledger::Reference| {
        let live = seen.objects.get(object)?;
        live["metadata"]["uid"].as_str().map(str::to_owned)
    };
    let status = status::status(stack, plan, &records.name(), &uid_of, seen.now);
    if plan.ledger.is_busy() && status::is_progress(stack, &status) {
        let uid = stack.uid().unwrap_or_default();
        let spent = plan::since(plan.ledger.started, seen.now);
        let deferred = manager
            .stacks
            .defer_status(&uid, status.resources.len(), spent);
        if let Some(left) = deferred {
            return Ok(Some(plan.again.map_or(left, |again| again.min(left))));
        }
    }
    write_status(api, stack, manager, &status).await?;
    Ok(plan.again)
}

async fn write_status(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &Manager,
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
