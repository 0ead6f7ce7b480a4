//! What a Stack has made, and what it is doing: its record, kept in a Secret of the Stack's
//! namespace, because what follows from parameters may be secret.
//!
//! It is written before anything is made, so that after a crash nothing exists that it does
//! not name. Templates are kept apart from it, by their digests: they are big and seldom
//! change, the record changes with every step.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use pileus_stack::tree::SEPARATOR;
use pileus_stack::value::{Map, Value};

/// What a stack or a resource is put through; Heat's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It is made.
    #[default]
    Create,
    /// It is changed, in place or by another.
    Update,
    /// It goes.
    Delete,
    /// It returns to what it was.
    Rollback,
    /// It is looked at.
    Check,
    /// It is stopped.
    Suspend,
    /// It is started again.
    Resume,
}

impl Action {
    /// Heat's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Rollback => "ROLLBACK",
            Self::Check => "CHECK",
            Self::Suspend => "SUSPEND",
            Self::Resume => "RESUME",
        }
    }
}

/// How far an action is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Under way.
    #[default]
    InProgress,
    /// Done.
    Complete,
    /// Given up.
    Failed,
}

impl State {
    /// Heat's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::InProgress => "IN_PROGRESS",
            Self::Complete => "COMPLETE",
            Self::Failed => "FAILED",
        }
    }
}

/// An object by what the API server calls it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace, where it is another than the stack's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

impl Reference {
    /// The object that a manifest describes.
    #[must_use]
    pub fn of(manifest: &Value) -> Self {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            api_version: word(&manifest["apiVersion"]),
            kind: word(&manifest["kind"]),
            namespace: manifest["metadata"]["namespace"]
                .as_str()
                .map(str::to_owned),
            name: word(&manifest["metadata"]["name"]),
        }
    }
}

/// One incarnation of a resource: its path, and a number that grows with each replacement.
pub type Key = (String, u32);

/// What is recorded of an incarnation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its type.
    pub kind: String,
    /// Digests of the properties that it was made or last changed with.
    pub properties: BTreeMap<String, String>,
    /// Which incarnation of each required resource it works with. What requires all of a group
    /// or of a nested stack has its path with a separator at the end, and a sum over the
    /// incarnations: each of hundreds naming each of hundreds, no Secret would hold the record.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requires: BTreeMap<String, u32>,
    /// Its objects; the last one is the resource.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<Reference>,
    /// Digest of what the objects should be.
    #[serde(default)]
    pub digest: String,
    /// What only one object can have at a time.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub claims: BTreeSet<String>,
    /// What is done with it.
    pub action: Action,
    /// How far that is.
    pub state: State,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// Kept when the stack lets go of it.
    #[serde(default)]
    pub retain: bool,
    /// Made with the rights of the stack's service account.
    #[serde(default)]
    pub by_account: bool,
    /// It existed before and is not the stack's.
    #[serde(default)]
    pub external: bool,
    /// Failed or lost before the action that is under way: another takes its place.
    #[serde(default)]
    pub replace: bool,
    /// It works, whatever has failed: it is applied again where it is. After a check: it is
    /// only not ready, which is no reason to do anything with it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub again: bool,
    /// Its hooks when it was last looked at; those of its deletion must outlive the template.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hooks: BTreeSet<String>,
    /// The hook that it has come to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Hooks that were cleared in the action that is under way.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub passed: BTreeSet<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The hook before a resource is made: an entry that waits at it stands for nothing yet.
pub const PRE_CREATE: &str = "pre-create";

impl Entry {
    /// Whether it has failed in the action that is under way.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed && !self.replace && !self.again
    }

    /// Whether it works with an incarnation.
    #[must_use]
    pub fn is_with(&self, (path, number): &Key) -> bool {
        let mut all = self.requires.keys();
        self.requires.get(path) == Some(number)
            || all.any(|name| name.ends_with(SEPARATOR) && path.starts_with(name))
    }

    /// Whether it waits at a hook that is not cleared.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        let hook = self.waits.as_ref();
        hook.is_some_and(|hook| !self.passed.contains(hook))
    }

    /// Notes what becomes of it; the time moves only with the state.
    pub fn set(&mut self, action: Action, state: State, reason: impl Into<String>, now: Timestamp) {
        if (self.action, self.state) != (action, state) {
            self.since = now;
        }
        self.action = action;
        self.state = state;
        self.reason = reason.into();
    }
}

/// What a stack is made of. May hold secrets.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sources {
    /// The template's text.
    pub template: String,
    /// Files by name.
    pub files: BTreeMap<String, String>,
    /// Environments' texts, in order.
    pub environments: Vec<String>,
    /// Parameters' values.
    pub parameters: Map,
    /// Names of parameters that are never shown, whatever the template says.
    pub secret: BTreeSet<String>,
    /// What else came from Secrets, and is not shown either.
    #[serde(default, skip_serializing_if = "Hidden::is_empty")]
    pub hidden: Hidden,
}

/// Parts of a stack's sources that came from Secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden {
    /// The template.
    #[serde(default)]
    pub template: bool,
    /// Names of files.
    #[serde(default)]
    pub files: BTreeSet<String>,
    /// Places of environments among them.
    #[serde(default)]
    pub environments: BTreeSet<usize>,
}

impl Hidden {
    /// Whether nothing is hidden.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Debug for Sources {
    /// Says nothing of what is in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sources({})", self.digest())
    }
}

impl Sources {
    /// Digest of all of it, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        // The order of maps in parameters says nothing: the API server does not keep it.
        let mut sorted = self.clone();
        sorted.parameters.sort_keys();
        sorted
            .parameters
            .values_mut()
            .for_each(Value::sort_all_objects);
        let text = serde_json::to_string(&sorted).unwrap_or_default();
        hex::encode(Sha256::digest(text))
    }
}

/// How far a group is that changes a few members at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Rolling {
    /// A batch is under way.
    Batch {
        /// How many members the group has in it.
        capacity: usize,
        /// Names of members that must not be changed yet.
        held: BTreeSet<String>,
        /// These are the group's first members.
        first: bool,
    },
    /// Between two batches.
    Pause {
        /// The next one begins then.
        until: Timestamp,
        /// How many members the group has.
        capacity: usize,
        /// These are the group's first members.
        first: bool,
    },
    /// Nothing is held back, or not any more.
    Free,
}

impl Rolling {
    /// How many members the group has now; as many as it is to have when absent.
    #[must_use]
    pub fn capacity(&self) -> Option<usize> {
        match self {
            Self::Batch { capacity, .. } | Self::Pause { capacity, .. } => Some(*capacity),
            Self::Free => None,
        }
    }
}

/// A stack's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StackRecord {
    /// What random strings are made from, in hexadecimal.
    pub seed: String,
    /// What the stack is put through; nothing yet when absent.
    pub action: Option<Action>,
    /// How far that is.
    pub state: State,
    /// Why.
    pub reason: String,
    /// When the action began.
    pub started: Timestamp,
    /// It failed, and what there is was left for people to look at.
    #[serde(default, skip_serializing_if = "is_false")]
    pub kept: bool,
    /// When the first resource failed in it.
    #[serde(default)]
    pub failing_since: Option<Timestamp>,
    /// Digest of the sources that the spec had when they were last taken on.
    #[serde(default)]
    pub wanted: String,
    /// Digest of the sources that are applied; nothing is to be left when absent.
    #[serde(default)]
    pub goal: Option<String>,
    /// Digest of the sources that were last applied to the end.
    #[serde(default)]
    pub good: Option<String>,
    /// The request for a check that was last followed.
    #[serde(default)]
    pub checked: Option<String>,
    /// The request for healing that was last followed.
    #[serde(default)]
    pub healed: Option<String>,
    /// Its Servers are to be stopped.
    #[serde(default)]
    pub suspended: bool,
    /// By the path of a group: names that it does not use any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed: BTreeMap<String, BTreeSet<String>>,
    /// By the path of a group: names of members that it is told to let go of by the ids that they
    /// are referred to by. Once a member is gone nothing else says which it was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub named: BTreeMap<String, BTreeMap<String, String>>,
    /// By the path of a group that changes a few members at a time: how far it is in the action
    /// that is under way.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rolling: BTreeMap<String, Rolling>,
    /// What exists, or is about to.
    #[serde(with = "entries")]
    pub entries: BTreeMap<Key, Entry>,
}

impl StackRecord {
    /// The record of a stack that has made nothing.
    #[must_use]
    pub fn new(seed: String, now: Timestamp) -> Self {
        Self {
            seed,
            action: None,
            state: State::Complete,
            reason: String::new(),
            started: now,
            kept: false,
            failing_since: None,
            wanted: String::new(),
            goal: None,
            good: None,
            checked: None,
            healed: None,
            suspended: false,
            removed: BTreeMap::new(),
            named: BTreeMap::new(),
            rolling: BTreeMap::new(),
            entries: BTreeMap::new(),
        }
    }

    /// Heat's word for where the stack is.
    #[must_use]
    pub fn word(&self) -> Option<String> {
        self.action
            .map(|action| format!("{}_{}", action.word(), self.state.word()))
    }

    /// An action is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.action.is_some() && self.state == State::InProgress
    }

    /// Begins an action.
    pub fn begin(&mut self, action: Action, goal: Option<String>, now: Timestamp) {
        self.action = Some(action);
        self.state = State::InProgress;
        self.reason = format!("Stack {} started", action.word());
        self.started = now;
        self.kept = false;
        self.failing_since = None;
        self.rolling.clear();
        self.goal = goal;
        // Each action comes to each hook anew.
        self.entries
            .retain(|_, entry| entry.waits.as_deref() != Some(PRE_CREATE));
        for entry in self.entries.values_mut() {
            entry.passed.clear();
            if entry.waits.take().as_deref() == Some("pre-update") {
                entry.set(Action::Update, State::Complete, "", now);
                entry.again = false;
            }
        }
    }

    /// Ends the action.
    pub fn end(&mut self, state: State, reason: impl Into<String>) {
        self.state = state;
        self.reason = reason.into();
    }

    /// Incarnations of the resource at `path`, the newest first.
    pub fn incarnations(&self, path: &str) -> impl Iterator<Item = (u32, &Entry)> {
        self.entries
            .range((path.to_owned(), 0)..=(path.to_owned(), u32::MAX))
            .rev()
            .map(|((_, number), entry)| (*number, entry))
    }

    /// Digests of the sources that must be kept.
    #[must_use]
    pub fn sources(&self) -> BTreeSet<&str> {
        [&self.goal, &self.good]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }
}

/// Keys as `path#1`: JSON has only texts for keys.
mod entries {
    use std::collections::BTreeMap;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Entry, Key};

    pub(super) fn serialize<S: Serializer>(
        entries: &BTreeMap<Key, Entry>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let texts: BTreeMap<String, &Entry> = entries
            .iter()
            .map(|((path, number), entry)| (format!("{path}#{number}"), entry))
            .collect();
        texts.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Key, Entry>, D::Error> {
        BTreeMap::<String, Entry>::deserialize(from)?
            .into_iter()
            .map(|(text, entry)| {
                let key = text
                    .rsplit_once('#')
                    .and_then(|(path, number)| Some((path.to_owned(), number.parse().ok()?)));
                let key = key.ok_or_else(|| D::Error::custom("a key without a number"))?;
                Ok((key, entry))
            })
            .collect()
    }
}
