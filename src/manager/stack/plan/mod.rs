//! Decides what a Stack does next. Pure: what was seen comes in; a new record, steps, and
//! what is to be told go out.
//!
//! There is no list of steps that is worked off. Each pass looks at the template, at the
//! record and at what exists, and does what can be done now: a resource whose requirements
//! are there is made, changed or replaced, what nothing needs any more goes once everything
//! new is there. So a pass that was cut off at any point is simply continued by the next,
//! and a template that changes in between is one more look.
//!
//! | file | what it decides |
//! |---|---|
//! | `turn` | which action begins |
//! | `forward` | what is made, changed, kept |
//! | `hooks` | what waits until somebody says that it may go on |
//! | `decide` | what becomes of one resource: kept, changed, made anew |
//! | `batch` | how many members of a group at once |
//! | `required` | what a resource requires, as it is recorded |
//! | `room` | what must go, or is handed over, before something is made |
//! | `spec` | whether an object is what a manifest says |
//! | `suspend` | what is stopped and started |
//! | `leaf` | what one resource should be, and whether it is |
//! | `removal` | what goes, and in which order |
//! | `look` | outputs, previews and checks: nothing is touched |
//! | `conceal` | what must never be shown |
//! | `limits` | how much is told |
//! | `rebuild` | what a lost record said |

mod batch;
mod conceal;
mod decide;
mod forward;
mod hooks;
mod leaf;
mod limits;
mod look;
pub mod rebuild;
mod removal;
mod required;
mod room;
mod spec;
mod suspend;
pub mod trouble;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::ledger::{Action, Entry, Key, Ledger, Reference, Sources, State};
use pileus_api::stack::{StackOutput, StackPreview};
use pileus_api::{Reason, Stack};
use pileus_kube_ext::finalize;
use pileus_stack::files::Files;
use pileus_stack::parameters::Identity;
use pileus_stack::render::Input;
use pileus_stack::value::Value;
use pileus_stack::yaml;

/// What is under way is looked at this often without any event.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often what a service account makes, which is not watched, is looked at at most.
const UNWATCHED: Duration = Duration::from_secs(2);
/// And how much longer that is for each such object: one Stack asks for 20 in a second.
const UNWATCHED_EACH: Duration = Duration::from_millis(50);

/// Something only a person can change, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// For machines.
    pub reason: Reason,
    /// Names the place, the culprit and the way out.
    pub message: String,
}

impl Problem {
    /// What is wrong with a template.
    #[must_use]
    pub fn template(error: &pileus_stack::Error) -> Self {
        Self {
            reason: Reason::InvalidTemplate,
            message: error.to_string(),
        }
    }
}

/// What was seen.
pub struct Seen<'a> {
    /// The time.
    pub now: Timestamp,
    /// What the spec names, or why it cannot be had.
    pub sources: Result<Sources, Problem>,
    /// Sources that the record names, by digest.
    pub stored: BTreeMap<String, Sources>,
    /// The record, if there is one.
    pub ledger: Option<Ledger>,
    /// Unguessable; for a new record.
    pub seed: String,
    /// The objects that the record names; those that are gone, by the API server's own word,
    /// are not here.
    pub objects: BTreeMap<Reference, Value>,
    /// Why some of them could not be read: the service account has no right to.
    pub denied: Option<String>,
    /// Objects that carry the Stack's mark and are not in the record, and their uids.
    pub strays: Vec<(Reference, String)>,
    /// Finds an object of the namespace by kind and name.
    pub find: &'a (dyn Lookup + Sync),
    /// It is being deleted only because the kind itself is: nobody has asked for that.
    pub crd_deleting: bool,
    /// How long what a resource names from outside the stack may be missing.
    pub grace: Duration,
}

/// Knows the objects that are watched.
pub trait Lookup {
    /// An object of the Stack's namespace by kind and name.
    fn find(&self, kind: &str, name: &str) -> Option<Value>;
}

/// One small, repeatable effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make or change an object.
    Apply {
        /// The resource that it belongs to.
        key: Key,
        /// What it should be.
        manifest: Value,
        /// What it is; it is made when absent.
        live: Option<Value>,
        /// With the rights of the service account.
        by_account: bool,
        /// It may outlive the Stack, and is not owned by it: what Kubernetes deletes with its
        /// owner, in the foreground, nobody could let go of in time.
        retain: bool,
    },
    /// Delete an object.
    Delete {
        /// Which.
        object: Reference,
        /// Its uid; any when absent.
        uid: Option<String>,
        /// With the rights of the service account.
        by_account: bool,
    },
    /// Take the Stack's marks from an object, which stays.
    Release {
        /// The object as it is.
        live: Value,
        /// With the rights of the service account.
        by_account: bool,
    },
}

/// What to do, and what to tell.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The record as it should be, before any step.
    pub ledger: Ledger,
    /// Sources to keep before the record names them.
    pub store: Option<Sources>,
    /// Effects; they do not depend on each other.
    pub steps: Vec<Step>,
    /// Outputs, if they are known.
    pub outputs: Option<Vec<StackOutput>>,
    /// What would be done.
    pub preview: Option<StackPreview>,
    /// What has no effect.
    pub notes: Vec<String>,
    /// Why the spec is not followed.
    pub problem: Option<Problem>,
    /// When to look again without any event.
    pub again: Option<Duration>,
    /// Hooks were cleared by the Stack's annotation, which has done its work.
    pub cleared: bool,
    /// Nothing is left: the Stack may go.
    pub gone: bool,
    /// Texts that must never be shown.
    pub secrets: BTreeSet<String>,
}

impl Plan {
    /// Nothing is to be done.
    fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            store: None,
            steps: Vec::new(),
            outputs: None,
            preview: None,
            notes: Vec::new(),
            problem: None,
            again: None,
            cleared: false,
            gone: false,
            secrets: BTreeSet::new(),
        }
    }
}

/// Decides for one Stack.
#[must_use]
pub fn plan(stack: &Stack, seen: &Seen<'_>) -> Plan {
    let fresh = || Ledger::new(seen.seed.clone(), seen.now);
    let mut pass = Pass {
        stack,
        seen,
        plan: Plan::new(seen.ledger.clone().unwrap_or_else(fresh)),
    };
    pass.clear_hooks();
    if finalize::is_deleting(stack) {
        pass.delete();
    } else {
        pass.turn();
        pass.work();
    }
    let mut plan = pass.plan;
    limits::record(seen, &mut plan);
    conceal::conceal(seen, &mut plan);
    limits::limit(plan.outputs.as_deref_mut().unwrap_or_default());
    plan
}

/// One pass over one Stack.
struct Pass<'a> {
    stack: &'a Stack,
    seen: &'a Seen<'a>,
    plan: Plan,
}

impl Pass<'_> {
    /// Goes on with the action that is under way, and shows what there is.
    fn work(&mut self) {
        let Some(action) = self.plan.ledger.action else {
            return;
        };
        let busy = self.plan.ledger.is_busy();
        match (&self.plan.ledger.goal, self.goal()) {
            // That a template cannot be read is no reason to remove what was made by it.
            (Some(digest), None) => {
                let message = format!(
                    "the Secret with the template {digest} is gone; change the spec, so that \
                     another is taken, or delete the Stack"
                );
                // Nothing is undone for that, and a change of the spec can be followed.
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
            (Some(_), Some(goal)) => match action {
                _ if !busy => self.outputs(&goal),
                // It looks at what was read for it, which is more than is read otherwise.
                Action::Check if self.was_busy() => self.check(&goal),
                Action::Check => self.again_in(Duration::ZERO),
                _ => self.forward(&goal),
            },
        }
        self.time_out();
        self.settle_undo();
    }

    /// Whether what was seen was seen for the action that is under way.
    fn was_busy(&self) -> bool {
        let before = self.seen.ledger.as_ref();
        before.is_some_and(|ledger| ledger.is_busy() && ledger.action == self.plan.ledger.action)
    }

    fn goal(&self) -> Option<Sources> {
        self.source(self.plan.ledger.goal.as_deref()?)
    }

    fn source(&self, digest: &str) -> Option<Sources> {
        let stored = self.seen.stored.get(digest).cloned();
        stored.or_else(|| {
            let spec = self.seen.sources.as_ref().ok()?;
            (spec.digest() == digest).then(|| spec.clone())
        })
    }

    fn again_in(&mut self, wait: Duration) {
        let wait = wait.min(LONGEST_WAIT);
        let sooner = self.plan.again.map_or(wait, |other| other.min(wait));
        self.plan.again = Some(sooner);
    }

    fn limit(&self) -> Duration {
        let minutes = u64::try_from(self.stack.spec.timeout_minutes).unwrap_or(60);
        Duration::from_secs(minutes * 60)
    }

    fn time_out(&mut self) {
        let limit = self.limit();
        let ledger = &mut self.plan.ledger;
        if !ledger.is_busy() {
            return;
        }
        let spent = since(ledger.started, self.seen.now);
        if spent < limit {
            self.again_in(limit.saturating_sub(spent));
            return;
        }
        let waiting = waiting(&ledger.entries);
        give_up(&mut ledger.entries, "the stack timed out", self.seen.now);
        let word = ledger.action.unwrap_or_default().word();
        ledger.end(
            State::Failed,
            format!(
                "{word} timed out after {} minutes{waiting}",
                limit.as_secs() / 60
            ),
        );
    }

    /// Everything goes, and then the Stack.
    fn delete(&mut self) {
        if self.seen.crd_deleting {
            self.release_all();
            return;
        }
        let ledger = &mut self.plan.ledger;
        if ledger.action != Some(Action::Delete) {
            ledger.begin(Action::Delete, None, self.seen.now);
        } else if ledger.state == State::Failed {
            // It took too long; it is being deleted all the same.
            ledger.state = State::InProgress;
        }
        self.remove_all();
        let strays = self.seen.strays.iter().map(|(object, uid)| Step::Delete {
            object: object.clone(),
            uid: Some(uid.clone()),
            by_account: false,
        });
        let entries = &self.plan.ledger.entries;
        if entries.is_empty() {
            self.plan.steps.extend(strays);
        }
        self.plan.gone = entries.is_empty() && self.seen.strays.is_empty();
        if !self.plan.gone {
            self.again_in(Duration::from_secs(10));
        }
        let spent = since(self.plan.ledger.started, self.seen.now);
        if !self.plan.gone && spent > self.limit() {
            let waiting = waiting(&self.plan.ledger.entries);
            let ledger = &mut self.plan.ledger;
            ledger.end(
                State::Failed,
                format!("DELETE takes long and goes on{waiting}"),
            );
        }
    }

    /// The definition of Stacks is being deleted: nobody has asked for what they made to go.
    fn release_all(&mut self) {
        let uid = self.stack.uid().unwrap_or_default();
        let live = |entry: &Entry| -> Vec<Value> {
            let objects = entry.objects.iter();
            objects
                .filter_map(|object| self.seen.objects.get(object).cloned())
                .collect()
        };
        for entry in self.plan.ledger.entries.values() {
            for live in live(entry).into_iter().filter(|live| is_ours(live, &uid)) {
                self.plan.steps.push(Step::Release {
                    live,
                    by_account: entry.by_account,
                });
            }
        }
        self.plan.gone = self.plan.steps.is_empty();
    }
}

/// What is rendered, for sources that are the spec's or were.
///
/// # Errors
/// When the template or an environment is no YAML, or no environment.
pub fn input(stack: &Stack, sources: &Sources) -> pileus_stack::Result<Input> {
    let template = yaml::parse(&sources.template).map_err(|error| error.below("template"))?;
    let mut environment = conceal::environment(sources)?;
    let mut secret = sources.secret.clone();
    secret.extend(conceal::named_by_secrets(sources));
    environment.parameters.extend(sources.parameters.clone());
    Ok(Input {
        template: template.into(),
        files: Files::from(sources.files.clone()).hiding(sources.hidden.files.clone()),
        environment,
        identity: Identity {
            name: stack.name_any(),
            id: stack.uid().unwrap_or_default(),
            project: stack.namespace().unwrap_or_default(),
            region: String::new(),
        },
        secret,
        ..Input::default()
    })
}

/// How long ago something was; no time for what is yet to come.
#[must_use]
pub fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// How many of what service accounts make is under way.
#[must_use]
pub fn under_way(ledger: &Ledger) -> u32 {
    let entries = ledger.entries.values();
    let busy = entries.filter(|entry| entry.by_account && entry.state == State::InProgress);
    u32::try_from(busy.count()).unwrap_or(u32::MAX)
}

/// How long after one look at what is not watched the next one is due: the longer, the more
/// there is of it and the longer it has taken already.
#[must_use]
pub fn pace(under_way: u32, entry: &Entry, now: Timestamp) -> Duration {
    let longest = UNWATCHED.max(UNWATCHED_EACH.saturating_mul(under_way));
    longest.max(since(entry.since, now) / 8).min(LONGEST_WAIT)
}

/// Whether an object carries the mark of the Stack with this uid.
#[must_use]
pub fn is_ours(object: &Value, uid: &str) -> bool {
    object["metadata"]["labels"][pileus_api::names::STACK_UID_LABEL] == uid
}

/// Names what is still under way, for messages.
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
        format!("; waiting for {}", crate::list_names(names))
    }
}

/// What is under way is not waited for any more.
fn give_up(entries: &mut BTreeMap<Key, Entry>, why: &str, now: Timestamp) {
    for entry in entries
        .values_mut()
        .filter(|entry| entry.state == State::InProgress)
    {
        let reason = match entry.reason.as_str() {
            "" => format!("cancelled: {why}"),
            reason => format!("cancelled: {why}; {reason}"),
        };
        entry.set(entry.action, State::Failed, reason, now);
    }
}

/// Whether the objects that serve an entry's are to be read: while they are made, when they
/// go, and when they are looked at. `whole` says whether its object is what the entry says.
#[must_use]
pub fn needs_serving(ledger: &Ledger, entry: &Entry, whole: bool, deleting: bool) -> bool {
    let checks = ledger.is_busy() && ledger.action == Some(Action::Check);
    !whole || checks || deleting || entry.action == Action::Delete
}

/// Whether an entry's object was last made or changed to be what the entry says.
#[must_use]
pub fn is_whole(live: &Value, entry: &Entry) -> bool {
    leaf::is_applied(live, &entry.digest)
}
