//! The record of a Stack: which objects it has made, and which action is in progress. It is stored
//! in a Secret of the Stack's namespace ([`super::record_store`]), because values that are computed
//! from parameters may be secret.
//!
//! The record is written before an object is made, so that after a crash no object exists that the
//! record does not name. Templates are stored in Secrets of their own, by their digests: they are
//! big and seldom change, while the record changes with every step.
//!
//! Some fields have another name in the stored record than here: stored records stay readable.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use pileus_stack::tree::SEPARATOR;
use pileus_stack::value::{Map, Value};

/// An action on a stack or on a resource, as in Heat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Create it.
    #[default]
    Create,
    /// Update it in place, or replace it.
    Update,
    /// Delete it.
    Delete,
    /// Return to the last good template.
    Rollback,
    /// Compare it with the template.
    Check,
    /// Stop its Servers.
    Suspend,
    /// Start its Servers again.
    Resume,
}

impl Action {
    /// Its name in Heat's API.
    #[must_use]
    pub fn heat_name(self) -> &'static str {
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

/// State of an action, as in Heat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// In progress.
    #[default]
    InProgress,
    /// Complete.
    Complete,
    /// Failed, or cancelled.
    Failed,
}

impl State {
    /// Its name in Heat's API.
    #[must_use]
    pub fn heat_name(self) -> &'static str {
        match self {
            Self::InProgress => "IN_PROGRESS",
            Self::Complete => "COMPLETE",
            Self::Failed => "FAILED",
        }
    }
}

/// A reference to an object by API version, kind, namespace and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace, if it is not the stack's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

impl Reference {
    /// The object that a manifest describes.
    #[must_use]
    pub fn of(manifest: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            api_version: text(&manifest["apiVersion"]),
            kind: text(&manifest["kind"]),
            namespace: manifest["metadata"]["namespace"]
                .as_str()
                .map(str::to_owned),
            name: text(&manifest["metadata"]["name"]),
        }
    }
}

/// One incarnation of a resource: its path, and a number that grows by one with each replacement.
pub type Key = (String, u32);

/// What is recorded about one incarnation of a resource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its resource type.
    #[serde(rename = "kind")]
    pub resource_type: String,
    /// Digests of the properties that it was created or last updated with.
    pub properties: BTreeMap<String, String>,
    /// Which incarnation of each required resource it uses. Where it requires all resources of a
    /// group or of a nested stack, there is one key for all: the path with a separator at the end,
    /// with a checksum over the incarnations. If each of hundreds of resources named each of
    /// hundreds of others, the record would not fit into a Secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requires: BTreeMap<String, u32>,
    /// Its objects. The last one is the resource itself, the others are auxiliary, such as a
    /// Secret with user data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<Reference>,
    /// Digest of the wanted manifests.
    #[serde(default)]
    pub digest: String,
    /// Things that only one object can have at a time, such as an address.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub claims: BTreeSet<String>,
    /// The last action on it.
    pub action: Action,
    /// State of that action.
    pub state: State,
    /// Why it is in that state.
    #[serde(default)]
    pub reason: String,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// Its objects are kept when the stack no longer has it (`deletion_policy: Retain`).
    #[serde(default)]
    pub retain: bool,
    /// Its objects are made with the rights of the stack's service account.
    #[serde(default)]
    pub by_account: bool,
    /// It has an `external_id`: it existed before, and is never changed.
    #[serde(default)]
    pub external: bool,
    /// It failed or was deleted before the current action, which replaces it.
    #[serde(default)]
    pub replace: bool,
    /// An action on it has failed, but its object works: it is updated in place. After a check:
    /// its object is not ready now, which is no reason to replace it.
    #[serde(rename = "again", default, skip_serializing_if = "is_false")]
    pub reapply: bool,
    /// Its hooks in the last template that had it: those of its deletion are needed later.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hooks: BTreeSet<String>,
    /// The hook that it has reached.
    #[serde(rename = "waits", default, skip_serializing_if = "Option::is_none")]
    pub hook_reached: Option<String>,
    /// Hooks that were cleared in the current action.
    #[serde(rename = "passed", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hooks_cleared: BTreeSet<String>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

/// The hook before a resource is created: an entry that waits at it has no object yet.
pub const PRE_CREATE: &str = "pre-create";

impl Entry {
    /// Whether it has failed in the current action.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed && !self.replace && !self.reapply
    }

    /// Whether it requires this incarnation of another resource.
    #[must_use]
    pub fn uses(&self, (path, number): &Key) -> bool {
        let mut all = self.requires.keys();
        self.requires.get(path) == Some(number)
            || all.any(|name| name.ends_with(SEPARATOR) && path.starts_with(name))
    }

    /// Whether it waits at a hook that is not cleared.
    #[must_use]
    pub fn is_waiting_at_hook(&self) -> bool {
        let hook = self.hook_reached.as_ref();
        hook.is_some_and(|hook| !self.hooks_cleared.contains(hook))
    }

    /// Sets action, state and reason; `since` changes only when action or state do.
    pub fn set_state(
        &mut self,
        action: Action,
        state: State,
        reason: impl Into<String>,
        now: Timestamp,
    ) {
        if (self.action, self.state) != (action, state) {
            self.since = now;
        }
        self.action = action;
        self.state = state;
        self.reason = reason.into();
    }
}

/// Everything that a stack is made from: template, files, environments and parameters. May contain
/// secrets.
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
    /// Names of parameters that come from Secrets: they are hidden, whatever the template says.
    pub secret: BTreeSet<String>,
    /// What else comes from Secrets and is never shown.
    #[serde(default, skip_serializing_if = "Hidden::is_empty")]
    pub hidden: Hidden,
}

/// Parts of a stack's sources that come from Secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden {
    /// The template.
    #[serde(default)]
    pub template: bool,
    /// Names of files.
    #[serde(default)]
    pub files: BTreeSet<String>,
    /// Indexes of environments.
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
    /// Shows nothing of the content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sources({})", self.digest())
    }
}

impl Sources {
    /// Digest of all of it, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        // The order of maps in parameters has no meaning: the API server does not keep it.
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

/// Progress of a group that updates its members in batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Rolling {
    /// A batch is in progress.
    Batch {
        /// How many members the group has in it.
        capacity: usize,
        /// Names of members that must not be updated yet.
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
    /// All members may be updated (now).
    Free,
}

impl Rolling {
    /// How many members the group has now; `None` for as many as the template says.
    #[must_use]
    pub fn capacity(&self) -> Option<usize> {
        match self {
            Self::Batch { capacity, .. } | Self::Pause { capacity, .. } => Some(*capacity),
            Self::Free => None,
        }
    }
}

/// The record of a Stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StackRecord {
    /// The seed of random strings and digests, in hexadecimal.
    pub seed: String,
    /// The current or last action; `None` before the first one.
    pub action: Option<Action>,
    /// State of that action.
    pub state: State,
    /// Why it is in that state.
    pub reason: String,
    /// When the action began.
    pub started: Timestamp,
    /// It failed, and is not undone: its objects stay for inspection.
    #[serde(rename = "kept", default, skip_serializing_if = "is_false")]
    pub failure_kept: bool,
    /// When the first resource failed in it.
    #[serde(default)]
    pub failing_since: Option<Timestamp>,
    /// Digest of the spec's sources for which an action was last begun.
    #[serde(rename = "wanted", default)]
    pub spec_digest: String,
    /// Digest of the sources that the action applies; `None` when everything is to be deleted.
    #[serde(rename = "goal", default)]
    pub target_digest: Option<String>,
    /// Digest of the sources that were last applied completely.
    #[serde(rename = "good", default)]
    pub last_good_digest: Option<String>,
    /// The value of `spec.checkRequestedAt` that was last handled.
    #[serde(rename = "checked", default)]
    pub handled_check_request: Option<String>,
    /// The value of `spec.healRequestedAt` that was last handled.
    #[serde(rename = "healed", default)]
    pub handled_heal_request: Option<String>,
    /// Its Servers are to be stopped.
    #[serde(default)]
    pub suspended: bool,
    /// By the path of a group: member names that it does not use any more.
    #[serde(
        rename = "removed",
        default,
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub removed_members: BTreeMap<String, BTreeSet<String>>,
    /// By the path of a group: names of members by reference id, for members that its removal
    /// policies name by id. When a member is deleted nothing else maps its id to its name.
    #[serde(rename = "named", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members_by_id: BTreeMap<String, BTreeMap<String, String>>,
    /// By the path of a group that updates its members in batches: its progress in the current
    /// action.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rolling: BTreeMap<String, Rolling>,
    /// Paths of Servers that an update has deleted although they worked, because their replacements
    /// need what only one can have. Until an update is complete.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub emptied: BTreeSet<String>,
    /// All incarnations of resources that exist, or are about to be created.
    #[serde(with = "entries")]
    pub entries: BTreeMap<Key, Entry>,
}

impl StackRecord {
    /// The record of a stack that has made nothing yet.
    #[must_use]
    pub fn new(seed: String, now: Timestamp) -> Self {
        Self {
            seed,
            action: None,
            state: State::Complete,
            reason: String::new(),
            started: now,
            failure_kept: false,
            failing_since: None,
            spec_digest: String::new(),
            target_digest: None,
            last_good_digest: None,
            handled_check_request: None,
            handled_heal_request: None,
            suspended: false,
            removed_members: BTreeMap::new(),
            members_by_id: BTreeMap::new(),
            rolling: BTreeMap::new(),
            emptied: BTreeSet::new(),
            entries: BTreeMap::new(),
        }
    }

    /// Heat's `stack_status`, such as `CREATE_COMPLETE`.
    #[must_use]
    pub fn stack_status(&self) -> Option<String> {
        self.action
            .map(|action| format!("{}_{}", action.heat_name(), self.state.heat_name()))
    }

    /// Whether an action is in progress.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.action.is_some() && self.state == State::InProgress
    }

    /// Begins an action that applies the sources with this digest; `None` deletes everything.
    pub fn begin(&mut self, action: Action, target_digest: Option<String>, now: Timestamp) {
        self.action = Some(action);
        self.state = State::InProgress;
        self.reason = format!("Stack {} started", action.heat_name());
        self.started = now;
        self.failure_kept = false;
        self.failing_since = None;
        self.rolling.clear();
        self.target_digest = target_digest;
        // Every action waits at each hook again.
        self.entries
            .retain(|_, entry| entry.hook_reached.as_deref() != Some(PRE_CREATE));
        for entry in self.entries.values_mut() {
            entry.hooks_cleared.clear();
            if entry.hook_reached.take().as_deref() == Some("pre-update") {
                entry.set_state(Action::Update, State::Complete, "", now);
                entry.reapply = false;
            }
        }
    }

    /// Ends the action.
    pub fn end(&mut self, state: State, reason: impl Into<String>) {
        self.state = state;
        self.reason = reason.into();
    }

    /// All incarnations of the resource at `path`, the newest first.
    pub fn incarnations(&self, path: &str) -> impl Iterator<Item = (u32, &Entry)> {
        self.entries
            .range((path.to_owned(), 0)..=(path.to_owned(), u32::MAX))
            .rev()
            .map(|((_, number), entry)| (*number, entry))
    }

    /// Digests of the sources that must stay stored.
    #[must_use]
    pub fn source_digests(&self) -> BTreeSet<&str> {
        [&self.target_digest, &self.last_good_digest]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }
}

/// Writes keys as `path#1`: keys are strings in JSON.
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
                let key =
                    key.ok_or_else(|| D::Error::custom("a key without an incarnation number"))?;
                Ok((key, entry))
            })
            .collect()
    }
}
