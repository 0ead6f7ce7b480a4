//! Reconciles Stacks: reads what there is, decides ([`plan`]), writes down what will be done
//! ([`ledger`], [`records`]), does it ([`children`]), and reports ([`status`]).
//!
//! Nested stacks and groups have no objects of their own: the whole tree is one plan
//! ([`crate::stack::tree`]), because then one record says everything that exists, a rollback
//! returns all of it, hidden parameters never have to be written into a child's spec, and
//! no crash can leave an outer and an inner stack of two minds.

pub mod apart;
pub mod children;
mod fields;
pub mod follow;
pub mod ledger;
pub mod plan;
pub mod recall;
pub mod records;
pub mod served;
pub mod sources;
pub mod status;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{Manager, Outcome, loss};
use crate::api::names::{CLEAR_HOOKS_ANNOTATION, MANAGER, MANAGER_FINALIZER};
use crate::api::stack::OnFailure;
use crate::api::{Reason, Stack, StackStatus};
use crate::kube_ext::report::apply_status;
use crate::kube_ext::{ApiError, chain, finalize};
use crate::stack::hide::mask_text;
use crate::stack::value::json;
use children::Children;
use ledger::{Action, Key, Ledger, Reference, Sources, State};
use plan::trouble::Refused;
use plan::{Plan, Problem, Seen, Step};
use recall::Recall;
use records::Records;
use served::Kinds;

/// Shortest time between two passes over a Stack.
const PACE: Duration = Duration::from_millis(100);
/// What each resource adds to it: children that become ready one by one are looked at
/// together, so that a big stack costs no more than a small one.
const PACE_EACH: Duration = Duration::from_millis(2);
/// How often it is looked whether what stands in the way is gone, which nothing tells.
const UNWATCHED: Duration = Duration::from_secs(30);
/// How many effects of one Stack are under way at once.
const AT_ONCE: usize = 16;
/// How many reads of what service accounts have made are under way at once, of all Stacks.
const READS: usize = 32;

/// How long what a resource names may be missing: what is applied together comes in any order.
const GRACE: Duration = Duration::from_secs(60);

/// What the passes over all Stacks share.
pub struct Shared {
    /// How long what a resource names from outside the stack may be missing before that is its
    /// failure.
    grace: Duration,
    kinds: Kinds,
    recall: Recall,
    /// Reads with the rights of service accounts, which nothing else bounds.
    reads: Semaphore,
    /// When each Stack, by uid, may be looked at again.
    rested: Mutex<HashMap<String, Instant>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            grace: GRACE,
            kinds: Kinds::default(),
            recall: Recall::default(),
            reads: Semaphore::new(READS),
            rested: Mutex::default(),
        }
    }
}

impl Shared {
    /// With another time of grace for what resources name.
    #[must_use]
    pub fn with_grace(grace: Duration) -> Self {
        Self {
            grace,
            ..Self::default()
        }
    }

    /// How long a Stack still has to rest.
    fn rest(&self, uid: &str) -> Option<Duration> {
        let rested = self.rested.lock().unwrap_or_else(PoisonError::into_inner);
        let left = rested.get(uid)?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }

    fn tire(&self, uid: &str, resources: usize) {
        let each = PACE_EACH.saturating_mul(u32::try_from(resources).unwrap_or(u32::MAX));
        let mut rested = self.rested.lock().unwrap_or_else(PoisonError::into_inner);
        rested.insert(uid.to_owned(), Instant::now() + PACE + each);
    }

    fn forget(&self, uid: &str) {
        self.rested
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
        self.recall.forget_all(uid);
    }
}

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer; nothing is lost by it.
pub async fn reconcile(stack: Arc<Stack>, manager: Arc<Manager>) -> Outcome {
    let client = &manager.context.client;
    let api: Api<Stack> = Api::namespaced(client.clone(), &stack.namespace().unwrap_or_default());
    let deleting = finalize::is_deleting(&*stack);
    if deleting && !finalize::has(&*stack, MANAGER_FINALIZER) {
        return Ok(None);
    }
    if !deleting && finalize::add(&api, &stack, MANAGER_FINALIZER).await? {
        return Ok(None);
    }
    let uid = stack.uid().unwrap_or_default();
    if let Some(left) = manager.stacks.rest(&uid) {
        return Ok(Some(left));
    }
    let records = Records::of(client, &stack);
    let read = match records.read().await {
        // Without what it says, what carries the Stack's mark is removed.
        Err(error) if deleting && matches!(&*error.source, kube::Error::SerdeError(_)) => {
            records.forget_own(None).await?;
            None
        }
        read => read?,
    };
    let (ledger, mut version) = read.map_or((None, None), |(l, v)| (Some(l), Some(v)));
    let children = Children::of(client, &manager.stores, &manager.stacks, &stack);
    let seen = observe(&stack, &manager, &records, &children, ledger).await?;
    manager
        .stacks
        .tire(&uid, seen.ledger.as_ref().map_or(0, |l| l.entries.len()));
    if let Some(problem) = plan::trouble::obstacle(&stack, &seen, &records.name()) {
        let status = status::stuck(&stack, &problem, seen.now);
        tell(&api, &stack, &manager, &status).await?;
        return Ok(Some(UNWATCHED));
    }
    let mut plan = match apart::compute(|| plan::plan(&stack, &seen)) {
        Ok(plan) => plan,
        Err(fault) => {
            let status = status::stuck(&stack, &fault, seen.now);
            tell(&api, &stack, &manager, &status).await?;
            return Ok(Some(apart::AFTER_FAULT));
        }
    };
    if let Some(sources) = &plan.store {
        records.keep(sources).await?;
    }
    if Some(&plan.ledger) != seen.ledger.as_ref() && plan.ledger.action.is_some() && !plan.gone {
        version = Some(records.write(&plan.ledger, version.as_deref()).await?);
    }
    let refused = act(&children, &plan).await;
    if plan.gone && refused.is_ok() {
        if seen.kind_lost {
            // What serves the resources carries the same mark, and stays with them.
            records.forget_own(Some(&plan.ledger)).await?;
        } else {
            records.forget_all().await?;
        }
        finalize::remove(&api, &stack, MANAGER_FINALIZER).await?;
        manager.stacks.forget(&uid);
        return Ok(None);
    }
    let acted = match refused {
        Ok(refused) if refused.is_empty() => Ok(()),
        Ok(refused) => {
            let again = plan::trouble::refuse(&mut plan.ledger, refused, Timestamp::now());
            plan.again = Some(again);
            records
                .write(&plan.ledger, version.as_deref())
                .await
                .map(drop)
        }
        Err(error) => Err(error),
    };
    forget_sources(&records, seen.ledger.as_ref(), &plan.ledger).await?;
    let again = report(&api, &stack, &manager, &plan, &records, &seen).await?;
    if plan.cleared {
        // A status that was written is a version that wakes us; it goes then.
        match take_annotation(&api, &stack).await {
            Err(error) if error.is_conflict() => {}
            done => done?,
        }
    }
    acted?;
    Ok(again)
}

/// Takes away the annotation that has cleared hooks, unless the Stack has changed: the next
/// pass sees what it says then.
async fn take_annotation(api: &Api<Stack>, stack: &Stack) -> Result<(), ApiError> {
    let patch = Patch::Merge(json!({"metadata": {
        "uid": stack.uid(),
        "resourceVersion": stack.resource_version(),
        "annotations": {CLEAR_HOOKS_ANNOTATION: null},
    }}));
    let name = stack.name_any();
    let doing = ApiError::doing(format!("take the cleared hooks from the Stack {name}"));
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
    let kind_lost = deleting && loss::of_kind::<Stack>(client).await?;
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
                && stack.spec.on_failure != OnFailure::Keep;
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
        kind_lost,
        grace: manager.stacks.grace,
    })
}

/// Does the steps; those of one resource in their order, resources at once.
async fn act(children: &Children<'_>, plan: &Plan) -> Result<Refused, ApiError> {
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
    let mut refused = Refused::new();
    let mut failed = None;
    while let Some((key, result)) = done.next().await {
        match (key, result) {
            (_, Ok(())) => {}
            (Some(key), Err(error)) if is_final(&error) => {
                refused.insert(key, mask_text(&chain(&error), &plan.secrets));
            }
            // The others are done all the same.
            (_, Err(error)) => failed = Some(masked(error, &plan.secrets)),
        }
    }
    match failed {
        Some(error) if refused.is_empty() => Err(error),
        _ => Ok(refused),
    }
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
                ..
            } => children.apply(&manifest, live.as_ref(), by_account).await?,
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
    tell(api, stack, manager, &status).await?;
    Ok(plan.again)
}

async fn tell(
    api: &Api<Stack>,
    stack: &Stack,
    manager: &Manager,
    status: &StackStatus,
) -> Result<(), ApiError> {
    if !apply_status(api, MANAGER, stack, status).await? {
        return Ok(());
    }
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
