//! Decides what a Stack does next. Pure: from what was observed it makes a new record, steps, and
//! what the status reports.
//!
//! There is no stored list of steps. Each pass compares the template, the record and the existing
//! objects, and does what can be done now: a resource whose requirements are ready is created,
//! updated or replaced; what is not needed any more is deleted once everything new is ready. So
//! the next pass continues wherever a pass was interrupted, and a template that changes meanwhile
//! is simply another input.
//!
//! | file | what it decides |
//! |---|---|
//! | `start` | which action begins |
//! | `forward` | what is created, updated and kept |
//! | `values` | resources without objects of their own |
//! | `hooks` | what waits at a hook until a user clears it |
//! | `decide` | whether one resource is kept, updated or replaced |
//! | `batch` | which members of a group are updated at once |
//! | `requirements` | how the requirements of a resource are recorded |
//! | `conflicts` | names and claims that another resource has already |
//! | `spec_diff` | whether the spec of an object is that of its manifest |
//! | `references` | what an update names, which must be there before it begins |
//! | `suspend` | what is stopped and started |
//! | `resource_state` | what the objects of one resource should be, and whether they are |
//! | `removal` | what is deleted, and in which order |
//! | `inspect` | outputs, previews and checks, which change nothing |
//! | `masking` | which values are masked |
//! | `limits` | how big a status and a record may be |
//! | `refusals` | what cannot be observed, and what the API server refuses |
//! | `rebuild` | what a lost record contained |

mod batch;
mod conflicts;
mod decide;
mod forward;
mod hooks;
mod inspect;
mod limits;
mod masking;
pub mod rebuild;
mod references;
pub mod refusals;
mod removal;
mod requirements;
mod resource_state;
mod spec_diff;
mod start;
mod suspend;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::record::{Action, Entry, Key, Reference, Sources, StackRecord, State};
use pileus_api::stack::{StackOutput, StackPreview};
use pileus_api::{Reason, Stack};
use pileus_kube_ext::finalize;
use pileus_stack::budget::{Budget, Stop};
use pileus_stack::files::Files;
use pileus_stack::parameters::Identity;
use pileus_stack::render::Input;
use pileus_stack::value::Value;
use pileus_stack::yaml;

/// The longest time between two passes while an action is in progress.
const MAX_REQUEUE_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest time between two reads of an object that is not watched, because a service account
/// made it.
const UNWATCHED_INTERVAL: Duration = Duration::from_secs(2);
/// What each such object adds to it: one Stack reads 20 objects in a second.
const UNWATCHED_INTERVAL_PER_OBJECT: Duration = Duration::from_millis(50);

/// A problem that only a user can solve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The reason of the conditions.
    pub reason: Reason,
    /// Names the field, the cause and the solution.
    pub message: String,
}

impl Problem {
    /// The problem of a template with an error.
    #[must_use]
    pub fn template(error: &pileus_stack::Error) -> Self {
        Self {
            reason: Reason::InvalidTemplate,
            message: error.to_string(),
        }
    }
}

/// Everything that a decision depends on, as it was observed.
pub struct Observed<'a> {
    /// The time.
    pub now: Timestamp,
    /// The sources that the spec names, or why they cannot be used.
    pub sources: Result<Sources, Problem>,
    /// Stored sources that the record names, by digest.
    pub stored: BTreeMap<String, Sources>,
    /// The record, if there is one.
    pub record: Option<StackRecord>,
    /// A random text for a new record.
    pub seed: String,
    /// The objects that the record names. An object that is missing here does not exist: the API
    /// server itself said so, not only a store.
    pub objects: BTreeMap<Reference, Value>,
    /// Why some of them could not be read: the service account lacks the right.
    pub denied: Option<String>,
    /// Objects with the Stack's label that are not in the record, and their uids.
    pub unrecorded: Vec<(Reference, String)>,
    /// Finds an object of the namespace by kind and name.
    pub lookup: &'a (dyn Lookup + Sync),
    /// The Stack is being deleted only because the definition of Stacks is: nobody has asked for
    /// the deletion of its objects.
    pub definition_deleted: bool,
    /// How long an object outside of the stack that a resource refers to may be missing.
    pub grace: Duration,
    /// Ends the evaluation when its result is not wanted any more.
    pub stop: Stop,
}

/// Finds objects that are watched.
pub trait Lookup {
    /// An object of the Stack's namespace by kind and name.
    fn find(&self, kind: &str, name: &str) -> Option<Value>;

    /// Whether there is an object that the Stack's namespace may use: of another namespace (`None`
    /// is the Stack's own) only if that shares it. For kinds that Servers and Ports name.
    fn may_use(&self, kind: &str, namespace: Option<&str>, name: &str) -> bool;
}

/// One small change that can be repeated.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Create or update an object.
    Apply {
        /// The resource that it belongs to.
        key: Key,
        /// The wanted object.
        manifest: Value,
        /// The existing object; it is created if `None`.
        live: Option<Value>,
        /// With the rights of the service account.
        by_account: bool,
        /// It may outlive the Stack, so it has no owner reference to the Stack: garbage collection
        /// would delete it before it can be released.
        retain: bool,
    },
    /// Delete an object.
    Delete {
        /// The object.
        object: Reference,
        /// Its uid, as a precondition.
        uid: Option<String>,
        /// With the rights of the service account.
        by_account: bool,
    },
    /// Remove the Stack's label and owner reference from an object, which stays.
    Release {
        /// The object as it is.
        live: Value,
        /// With the rights of the service account.
        by_account: bool,
    },
}

/// What to do, and what to report.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The record to write before any step.
    pub record: StackRecord,
    /// Sources to store before the record names them.
    pub new_sources: Option<Sources>,
    /// Steps, which do not depend on each other.
    pub steps: Vec<Step>,
    /// Outputs, if they are known.
    pub outputs: Option<Vec<StackOutput>>,
    /// What the sources of the spec would change, if `spec.preview` is set.
    pub preview: Option<StackPreview>,
    /// Properties of the template that have no effect.
    pub notes: Vec<String>,
    /// Why the spec is not applied.
    pub problem: Option<Problem>,
    /// When to reconcile again without any event.
    pub requeue_after: Option<Duration>,
    /// The Stack's annotation has cleared hooks, and can be removed.
    pub hooks_cleared: bool,
    /// Nothing is left: the Stack's finalizer can be removed.
    pub deleted: bool,
    /// Texts to mask.
    pub secrets: BTreeSet<String>,
}

impl Plan {
    /// A plan that does nothing.
    fn new(record: StackRecord) -> Self {
        Self {
            record,
            new_sources: None,
            steps: Vec::new(),
            outputs: None,
            preview: None,
            notes: Vec::new(),
            problem: None,
            requeue_after: None,
            hooks_cleared: false,
            deleted: false,
            secrets: BTreeSet::new(),
        }
    }
}

/// Decides what one Stack does next.
#[must_use]
pub fn plan(stack: &Stack, observed: &Observed<'_>) -> Plan {
    let fresh = || StackRecord::new(observed.seed.clone(), observed.now);
    let mut pass = Pass {
        stack,
        observed,
        plan: Plan::new(observed.record.clone().unwrap_or_else(fresh)),
    };
    pass.clear_hooks();
    if finalize::is_deleting(stack) {
        pass.delete();
    } else {
        pass.start_action();
        pass.continue_action();
    }
    let mut plan = pass.plan;
    limits::limit_record(observed, &mut plan);
    masking::mask_secrets(observed, &mut plan);
    limits::limit_outputs(plan.outputs.as_deref_mut().unwrap_or_default());
    plan
}

/// One pass over one Stack.
struct Pass<'a> {
    stack: &'a Stack,
    observed: &'a Observed<'a>,
    plan: Plan,
}

impl Pass<'_> {
    /// Continues the current action, and reports outputs.
    fn continue_action(&mut self) {
        let Some(action) = self.plan.record.action else {
            return;
        };
        let busy = self.plan.record.is_busy();
        match (&self.plan.record.target_digest, self.target()) {
            // A missing template is no reason to delete what was made from it.
            (Some(digest), None) => {
                let message = format!(
                    "the Secret with the template {digest} does not exist; change the spec, so \
                     that another template is used, or delete the Stack"
                );
                // A create or update is not failed: that could undo it, and a changed spec
                // replaces it anyway.
                if busy && !matches!(action, Action::Create | Action::Update) {
                    self.fail_action(&message);
                }
                self.plan.problem = Some(Problem {
                    reason: Reason::RecordMissing,
                    message,
                });
            }
            (None, _) if busy => self.remove_all(),
            (None, _) => {}
            (Some(_), Some(target)) => match action {
                _ if !busy => self.set_outputs(&target),
                // A check needs more objects than other passes read: it begins one pass later.
                Action::Check if self.was_observed_for_action() => self.check(&target),
                Action::Check => self.requeue_in(Duration::ZERO),
                _ => self.forward(&target),
            },
        }
        self.check_timeout();
        self.apply_on_failure();
    }

    /// Whether the objects were observed after the current action began.
    fn was_observed_for_action(&self) -> bool {
        let before = self.observed.record.as_ref();
        before.is_some_and(|record| record.is_busy() && record.action == self.plan.record.action)
    }

    /// The sources that the action applies.
    fn target(&self) -> Option<Sources> {
        self.source(self.plan.record.target_digest.as_deref()?)
    }

    fn source(&self, digest: &str) -> Option<Sources> {
        let stored = self.observed.stored.get(digest).cloned();
        stored.or_else(|| {
            let spec = self.observed.sources.as_ref().ok()?;
            (spec.digest() == digest).then(|| spec.clone())
        })
    }

    fn requeue_in(&mut self, wait: Duration) {
        let wait = wait.min(MAX_REQUEUE_INTERVAL);
        let earliest = self
            .plan
            .requeue_after
            .map_or(wait, |other| other.min(wait));
        self.plan.requeue_after = Some(earliest);
    }

    fn timeout(&self) -> Duration {
        let minutes = u64::try_from(self.stack.spec.timeout_minutes).unwrap_or(60);
        Duration::from_secs(minutes * 60)
    }

    fn check_timeout(&mut self) {
        let limit = self.timeout();
        let record = &mut self.plan.record;
        if !record.is_busy() {
            return;
        }
        let spent = since(record.started, self.observed.now);
        if spent < limit {
            self.requeue_in(limit.saturating_sub(spent));
            return;
        }
        let waiting = waiting(&record.entries);
        cancel_in_progress(
            &mut record.entries,
            "the stack timed out",
            self.observed.now,
        );
        let word = record.action.unwrap_or_default().heat_name();
        record.end(
            State::Failed,
            format!(
                "{word} timed out after {} minutes{waiting}",
                limit.as_secs() / 60
            ),
        );
    }

    /// Deletes all objects, and then the Stack.
    fn delete(&mut self) {
        if self.observed.definition_deleted {
            self.release_all();
            return;
        }
        let record = &mut self.plan.record;
        if record.action != Some(Action::Delete) {
            record.begin(Action::Delete, None, self.observed.now);
        } else if record.state == State::Failed {
            // It has timed out, which is reported; the deletion continues.
            record.state = State::InProgress;
        }
        self.remove_all();
        let unrecorded = self
            .observed
            .unrecorded
            .iter()
            .map(|(object, uid)| Step::Delete {
                object: object.clone(),
                uid: Some(uid.clone()),
                by_account: false,
            });
        let entries = &self.plan.record.entries;
        if entries.is_empty() {
            self.plan.steps.extend(unrecorded);
        }
        self.plan.deleted = entries.is_empty() && self.observed.unrecorded.is_empty();
        if !self.plan.deleted {
            self.requeue_in(Duration::from_secs(10));
        }
        let spent = since(self.plan.record.started, self.observed.now);
        if !self.plan.deleted && spent > self.timeout() {
            let waiting = waiting(&self.plan.record.entries);
            let record = &mut self.plan.record;
            record.end(
                State::Failed,
                format!("DELETE takes longer than the timeout and continues{waiting}"),
            );
        }
    }

    /// Releases all objects: the definition of Stacks is being deleted, and nobody has asked for the
    /// deletion of the objects.
    fn release_all(&mut self) {
        let uid = self.stack.uid().unwrap_or_default();
        let live = |entry: &Entry| -> Vec<Value> {
            let objects = entry.objects.iter();
            objects
                .filter_map(|object| self.observed.objects.get(object).cloned())
                .collect()
        };
        for entry in self.plan.record.entries.values() {
            for live in live(entry).into_iter().filter(|live| is_ours(live, &uid)) {
                self.plan.steps.push(Step::Release {
                    live,
                    by_account: entry.by_account,
                });
            }
        }
        self.plan.deleted = self.plan.steps.is_empty();
    }
}

/// The input of the engine for some sources.
///
/// # Errors
/// When the template or an environment is not valid YAML, or an environment has a wrong section.
pub fn input(stack: &Stack, sources: &Sources, stop: &Stop) -> pileus_stack::Result<Input> {
    let template = yaml::parse(&sources.template).map_err(|error| error.below("template"))?;
    let mut environment = masking::environment(sources)?;
    let mut secret = sources.secret.clone();
    secret.extend(masking::parameters_from_secrets(sources));
    environment.parameters.extend(sources.parameters.clone());
    Ok(Input {
        template: template.into(),
        files: Files::from(sources.files.clone()).with_hidden(sources.hidden.files.clone()),
        environment,
        identity: Identity {
            name: stack.name_any(),
            id: stack.uid().unwrap_or_default(),
            project: stack.namespace().unwrap_or_default(),
            region: String::new(),
        },
        secret,
        budget: Budget::stopped_by(stop.clone()),
        ..Input::default()
    })
}

/// How long ago `then` was; zero if it is in the future.
#[must_use]
pub fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// How many resources are in progress whose objects are not watched.
#[must_use]
pub fn unwatched_in_progress(record: &StackRecord) -> u32 {
    let entries = record.entries.values();
    let busy = entries.filter(|entry| entry.by_account && entry.state == State::InProgress);
    u32::try_from(busy.count()).unwrap_or(u32::MAX)
}

/// The time between two reads of an entry's object that is not watched. It grows with the number of
/// such objects and with the time that this one has taken already.
#[must_use]
pub fn poll_interval(unwatched_in_progress: u32, entry: &Entry, now: Timestamp) -> Duration {
    let interval = UNWATCHED_INTERVAL_PER_OBJECT.saturating_mul(unwatched_in_progress);
    let interval = UNWATCHED_INTERVAL.max(interval);
    interval
        .max(since(entry.since, now) / 8)
        .min(MAX_REQUEUE_INTERVAL)
}

/// Whether an object has the label of the Stack with this uid.
#[must_use]
pub fn is_ours(object: &Value, uid: &str) -> bool {
    object["metadata"]["labels"][pileus_api::names::STACK_UID_LABEL] == uid
}

/// Names the resources that are in progress, for messages.
fn waiting(entries: &BTreeMap<Key, Entry>) -> String {
    let busy = entries
        .iter()
        .filter(|(_, entry)| entry.state == State::InProgress);
    let names: Vec<String> = busy
        .map(|((path, _), entry)| match entry.reason.as_str() {
            "" => path.clone(),
            reason => format!("{path} ({reason})"),
        })
        .collect();
    if names.is_empty() {
        String::new()
    } else {
        format!("; waiting for {}", crate::list_some(names))
    }
}

/// Fails everything that is in progress.
fn cancel_in_progress(entries: &mut BTreeMap<Key, Entry>, why: &str, now: Timestamp) {
    for entry in entries
        .values_mut()
        .filter(|entry| entry.state == State::InProgress)
    {
        let reason = match entry.reason.as_str() {
            "" => format!("cancelled: {why}"),
            reason => format!("cancelled: {why}; {reason}"),
        };
        entry.set_state(entry.action, State::Failed, reason, now);
    }
}

/// Whether the auxiliary objects of an entry must be read: while they are made, when they are
/// deleted, and for a check. `up_to_date` says whether its main object is.
#[must_use]
pub fn reads_auxiliary(
    record: &StackRecord,
    entry: &Entry,
    up_to_date: bool,
    deleting: bool,
) -> bool {
    let is_check = record.is_busy() && record.action == Some(Action::Check);
    !up_to_date || is_check || deleting || entry.action == Action::Delete
}

/// Whether an entry's object was last written from the manifest that the entry has the digest of.
#[must_use]
pub fn is_up_to_date(live: &Value, entry: &Entry) -> bool {
    resource_state::has_digest(live, &entry.digest)
}
