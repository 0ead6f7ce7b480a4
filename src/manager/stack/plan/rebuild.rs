//! Rebuilds a lost record from the existing objects.
//!
//! The seed of all digests is lost with the record, so digests do not show which objects are up to
//! date. But each object has a label with the Stack's uid and an annotation with its resource, its
//! name shows which incarnation it is, and its spec can be compared with the manifest of the
//! template. Objects without differences are recorded as they are, without a write. If anything
//! differs, nothing is changed until a user has confirmed it.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use sha2::{Digest, Sha256};

use super::forward::Walk;
use super::resource_state::{self, difference};
use super::{
    Action, Entry, Key, Observed, Pass, Plan, Problem, Reference, StackRecord, State, is_ours,
};
use pileus_api::names::{REBUILD_RECORD_ANNOTATION, STACK_RESOURCE_ANNOTATION};
use pileus_api::{Reason, Stack};
use pileus_kube_ext::finalize;
use pileus_stack::functions::Known;
use pileus_stack::resource_types::{self, MappedValue, Mapping, MappingInput, SupportedType};
use pileus_stack::tree::Leaf;
use pileus_stack::value::{Map, Value};

/// Incarnations are searched for up to this number.
const MAX_INCARNATION: u32 = 1000;
/// How many differences a message names.
const MAX_REPORTED: usize = 5;

/// A rebuilt record.
#[derive(Debug)]
pub struct Rebuilt {
    /// The record.
    pub record: StackRecord,
    /// Objects that must be read before it is complete, and whether with the rights of the service
    /// account.
    pub to_read: BTreeSet<(Reference, bool)>,
    /// What differs from the template.
    pub differences: Vec<String>,
}

/// State of the search for objects during one evaluation of the template.
pub(super) struct Search {
    /// Objects that were read already, whether they exist or not.
    already_read: BTreeSet<Reference>,
    /// Names of objects with the Stack's label, by the resource that their annotation names.
    labelled: BTreeMap<String, Vec<String>>,
    to_read: BTreeSet<(Reference, bool)>,
    differences: Vec<String>,
}

/// Whether a record was written and does not exist any more.
#[must_use]
pub fn is_lost(stack: &Stack, record: Option<&StackRecord>) -> bool {
    let status = stack.status.as_ref();
    record.is_none() && status.is_some_and(|status| status.record.is_some())
}

/// Rebuilds the record as far as possible. `already_read` are the objects that were read; those
/// that exist are in `observed`.
#[must_use]
pub fn rebuild(
    stack: &Stack,
    observed: &Observed<'_>,
    already_read: &BTreeSet<Reference>,
) -> Rebuilt {
    let mut pass = Pass {
        stack,
        observed,
        plan: Plan::new(StackRecord::new(observed.seed.clone(), observed.now)),
    };
    let sources = match &observed.sources {
        Ok(sources) => sources.clone(),
        Err(problem) => return nothing_rebuilt(pass.plan.record, problem.message.clone()),
    };
    let digest = Some(sources.digest());
    let status = stack.status.as_ref();
    let stack_status = status.and_then(|status| status.stack_status.as_deref());
    let record = &mut pass.plan.record;
    record.suspended =
        stack_status.is_some_and(|status| status.starts_with(Action::Suspend.heat_name()));
    record.spec_digest = digest.clone().unwrap_or_default();
    // A rollback returns to these sources: without any it would delete everything.
    record.last_good_digest.clone_from(&digest);
    record
        .handled_check_request
        .clone_from(&stack.spec.check_requested_at);
    record
        .handled_heal_request
        .clone_from(&stack.spec.heal_requested_at);
    record.begin(Action::Update, digest, observed.now);
    "Stack UPDATE started: its record was lost, and is rebuilt from the existing objects"
        .clone_into(&mut record.reason);
    // A failure of this update is not undone.
    record.failure_kept = true;
    let mut walk = Walk::new(&mut pass, false);
    walk.search = Some(Search {
        already_read: already_read.clone(),
        labelled: labelled_objects(observed),
        to_read: BTreeSet::new(),
        differences: Vec::new(),
    });
    let walked = walk.walk(&sources);
    let search = walk.search.take();
    let search = search.map(|s| (s.to_read, s.differences));
    let (to_read, mut differences) = search.unwrap_or_default();
    let mut leaves = BTreeMap::new();
    match walked {
        Ok(flat) => {
            let unexpanded = flat.unexpanded.iter();
            differences
                .extend(unexpanded.map(|path| format!("{path}: its resources are not known yet")));
            pass.plan.record.removed_members = flat.removed;
            pass.plan.record.members_by_id = flat.named;
            leaves = flat.leaves;
        }
        Err(error) => differences.insert(0, error.to_string()),
    }
    pass.adopt_unrecorded(&leaves, &mut differences);
    Rebuilt {
        record: pass.plan.record,
        to_read,
        differences,
    }
}

fn nothing_rebuilt(record: StackRecord, why: String) -> Rebuilt {
    Rebuilt {
        record,
        to_read: BTreeSet::new(),
        differences: vec![why],
    }
}

/// Whether a user has confirmed by the annotation that the record is to be rebuilt in spite of
/// differences.
#[must_use]
pub fn is_confirmed(stack: &Stack, record_name: &str) -> bool {
    let annotation = stack.annotations().get(REBUILD_RECORD_ANNOTATION);
    annotation.is_some_and(|name| name == record_name)
}

/// Why a lost record is not rebuilt automatically, and what a user can do.
#[must_use]
pub fn problem(observed: &Observed<'_>, record_name: &str, differences: &[String]) -> Problem {
    let reported = differences.iter().take(MAX_REPORTED);
    let mut reported: Vec<&str> = reported.map(String::as_str).collect();
    let more = differences.len().saturating_sub(MAX_REPORTED);
    let others = format!("{more} more");
    if more > 0 {
        reported.push(&others);
    }
    let message = format!(
        "the Secret {record_name} with the record of the stack's objects does not exist, and the \
         existing objects are not what the spec says, so nothing is changed: {}. Restore the \
         Secret; or restore the spec; or confirm to continue with the existing objects by the \
         annotation {REBUILD_RECORD_ANNOTATION}={record_name}: what differs is updated or \
         replaced, objects that the template does not have stay without the Stack; or delete the \
         Stack, which removes every object with its label",
        reported.join("; ")
    );
    Problem {
        reason: Reason::RecordMissing,
        message: super::masking::mask_message(observed, &message),
    }
}

/// By resource path: names of watched objects with the Stack's label.
fn labelled_objects(observed: &Observed<'_>) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (object, _) in &observed.unrecorded {
        if let Some(path) = annotated_path(observed, object) {
            found.entry(path).or_default().push(object.name.clone());
        }
    }
    found
}

/// The resource path in the annotation of an object.
fn annotated_path(observed: &Observed<'_>, object: &Reference) -> Option<String> {
    let live = observed.lookup.find(&object.kind, &object.name)?;
    let path = &live["metadata"]["annotations"][STACK_RESOURCE_ANNOTATION];
    path.as_str().map(str::to_owned)
}

impl Walk<'_, '_> {
    /// Searches for the objects of a resource, and records them.
    pub(super) fn rebuild_resource(
        &mut self,
        path: &str,
        leaf: &Leaf,
        supported: &SupportedType,
    ) -> pileus_stack::Result<Option<Known>> {
        let properties = leaf.properties.clone()?;
        match supported.mapping {
            Mapping::Values(map) => self.rebuild_value(path, leaf, &properties, map).map(Some),
            Mapping::Objects { .. } => self.rebuild_object(path, leaf, supported, &properties),
        }
    }

    pub(super) fn add_difference(&mut self, path: &str, what: &str) {
        if let Some(search) = &mut self.search {
            search.differences.push(format!("{path}: {what}"));
        }
    }

    /// A value is computed from its properties, unless it is random: then it is lost.
    fn rebuild_value(
        &mut self,
        path: &str,
        leaf: &Leaf,
        properties: &Map,
        map: fn(&MappingInput<'_>) -> pileus_stack::Result<MappedValue>,
    ) -> pileus_stack::Result<Known> {
        let seed = self.pass.plan.record.seed.clone();
        let own = Sha256::digest(format!("{seed}/{path}#1"));
        let name = self.name(path, 1);
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let lookup = self.pass.observed.lookup;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let settle = |seed: &[u8]| {
            map(&self.request(&name, &namespace, properties, &leaf.metadata, seed, &find))
        };
        let (value, other) = (settle(&own)?, settle(&[])?);
        if value.attributes != other.attributes || value.refid != other.refid {
            self.add_difference(path, "its value was random, and is another one now");
        }
        let entry = Entry {
            properties: resource_state::digests(leaf, properties, &seed, None),
            ..Entry::default()
        };
        self.adopt(path, 1, leaf, entry);
        Ok(self.known_value(value))
    }

    fn rebuild_object(
        &mut self,
        path: &str,
        leaf: &Leaf,
        supported: &SupportedType,
        properties: &Map,
    ) -> pileus_stack::Result<Option<Known>> {
        let Mapping::Objects { map, .. } = supported.mapping else {
            return Ok(None);
        };
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let lookup = self.pass.observed.lookup;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let number = self.existing_number(path);
        let (first, name) = (self.name(path, 1), self.name(path, number));
        let make = |name: &str| {
            map(&self.request(name, &namespace, properties, &leaf.metadata, &[], &find))
        };
        let seed = self.pass.plan.record.seed.clone();
        let digests =
            resource_state::digests(leaf, properties, &seed, Some((&make(&first)?, &first)));
        let makes = make(&name)?;
        let objects: Vec<Reference> = makes.objects.iter().map(Reference::of).collect();
        if !self.are_read(&objects, supported.by_account) {
            return Ok(None);
        }
        let Some(main) = objects.last() else {
            return Ok(None);
        };
        let label = format!("{} {}", main.kind, main.name);
        let Some(live) = self.pass.observed.objects.get(main).cloned() else {
            self.add_difference(path, &format!("{label} does not exist"));
            return Ok(None);
        };
        let uid = self.pass.stack.uid().unwrap_or_default();
        if !is_ours(&live, &uid) || !resource_state::is_for_resource(&live, path) {
            let why = format!("{label} does not have the label and annotation of this resource");
            self.add_difference(path, &why);
            return Ok(None);
        }
        let difference = self.difference(&makes.objects, &objects, &uid);
        if let Some(why) = &difference {
            self.add_difference(path, why);
        }
        let exists = |object: &Reference| self.pass.observed.objects.contains_key(object);
        let digest = live["metadata"]["annotations"][pileus_api::names::STACK_DIGEST_ANNOTATION]
            .as_str()
            .unwrap_or_default();
        let entry = Entry {
            // An object that differs was made with unknown properties.
            properties: if difference.is_none() {
                digests
            } else {
                BTreeMap::new()
            },
            digest: digest.to_owned(),
            claims: makes.claims,
            by_account: supported.by_account,
            // Objects of other kinds cannot be compared, and auxiliary objects may be missing.
            reapply: supported.by_account || !objects.iter().all(exists),
            objects,
            ..Entry::default()
        };
        self.adopt(path, number, leaf, entry);
        Ok(Some(resource_types::known(
            &leaf.resource_type,
            &live,
            &find,
        )))
    }

    /// Whether all of these were read; if not, they are added to those to read.
    fn are_read(&mut self, objects: &[Reference], by_account: bool) -> bool {
        let Some(search) = &mut self.search else {
            return false;
        };
        let are_read = objects
            .iter()
            .all(|object| search.already_read.contains(object));
        if !are_read {
            let more = objects.iter().map(|object| (object.clone(), by_account));
            search.to_read.extend(more);
        }
        are_read
    }

    /// The first difference between existing objects and their manifests.
    fn difference(&self, manifests: &[Value], objects: &[Reference], uid: &str) -> Option<String> {
        let mut pairs = manifests.iter().zip(objects);
        pairs.find_map(|(manifest, object)| {
            let label = format!("{} {}", object.kind, object.name);
            // A missing auxiliary object is created again.
            let live = self.pass.observed.objects.get(object)?;
            if !live["metadata"]["deletionTimestamp"].is_null() {
                return Some(format!("{label} is being deleted"));
            }
            if !is_ours(live, uid) {
                return Some(format!("{label} does not have this stack's label"));
            }
            // The API server may normalize specs of other kinds.
            let field = if object.kind == "Secret" && object.api_version == "v1" {
                difference(&live["data"], &manifest["data"], "data")
            } else if object.api_version.starts_with(pileus_api::GROUP) {
                super::spec_diff::first_difference(live, manifest)
            } else {
                None
            };
            Some(format!("{label}: {} is not what the template says", field?))
        })
    }

    /// The existing incarnation of a resource: the newest one whose object name is that of a
    /// labelled object, or is in the status.
    fn existing_number(&self, path: &str) -> u32 {
        let labelled = self.search.as_ref().and_then(|s| s.labelled.get(path));
        let status = self.pass.stack.status.as_ref();
        let rows = status.iter().flat_map(|status| &status.resources);
        let rows = rows.filter(|row| row.name == path || row.name.starts_with(&format!("{path}#")));
        let reported =
            rows.filter_map(|row| Some(row.object.as_ref()?.split_once('/')?.1.to_owned()));
        let names = labelled.into_iter().flatten().cloned().chain(reported);
        let names: BTreeSet<String> = names.collect();
        // Most resources have only the first.
        let numbers =
            (1..=MAX_INCARNATION).filter(|number| names.contains(&self.name(path, *number)));
        numbers.take(names.len()).last().unwrap_or(1)
    }

    /// Records an existing incarnation.
    fn adopt(&mut self, path: &str, number: u32, leaf: &Leaf, entry: Entry) {
        let now = self.pass.observed.now;
        let key = (path.to_owned(), number);
        self.targets.insert(path.to_owned(), number);
        let entry = Entry {
            resource_type: leaf.resource_type.clone(),
            since: now,
            state: State::Complete,
            ..entry
        };
        self.pass.plan.record.entries.insert(key.clone(), entry);
        self.update_requirements(&key, leaf);
    }
}

impl Pass<'_> {
    /// Records objects with the Stack's label that the template does not lead to. An object that may
    /// belong to a resource of the template is recorded there, without its properties. Any other is
    /// recorded to be released, since nobody knows whether it was to be kept. If the Stack is being
    /// deleted, they are deleted, too.
    fn adopt_unrecorded(&mut self, leaves: &BTreeMap<String, Leaf>, differences: &mut Vec<String>) {
        let deleting = finalize::is_deleting(self.stack);
        let entries = self.plan.record.entries.values();
        let known: BTreeSet<(String, String)> = entries
            .flat_map(|entry| &entry.objects)
            .map(|object| (object.kind.clone(), object.name.clone()))
            .collect();
        for (object, _) in &self.observed.unrecorded {
            if known.contains(&(object.kind.clone(), object.name.clone())) {
                continue;
            }
            let path = annotated_path(self.observed, object).unwrap_or_default();
            let label = format!("{} {}", object.kind, object.name);
            let leaf = leaves.get(&path);
            let newest = self.plan.record.incarnations(&path).next();
            let key: Key = match newest {
                Some((newest, _)) => (path.clone(), newest.saturating_add(1)),
                None => (path.clone(), self.number_of(&path, &object.name)),
            };
            let wanted = leaf.filter(|_| newest.is_none());
            differences.push(match wanted {
                Some(_) => {
                    format!("{path}: {label} cannot be compared: what it requires does not exist")
                }
                None => format!("{path}: {label} is not in the template"),
            });
            let entry = Entry {
                resource_type: wanted
                    .map_or(object.kind.clone(), |leaf| leaf.resource_type.clone()),
                objects: vec![object.clone()],
                state: State::Complete,
                since: self.observed.now,
                retain: if deleting {
                    leaf.is_some_and(|leaf| leaf.retain)
                } else {
                    wanted.is_none_or(|leaf| leaf.retain)
                },
                ..Entry::default()
            };
            self.plan.record.entries.insert(key, entry);
        }
    }

    /// The number of the incarnation of a resource that has this object name.
    fn number_of(&self, path: &str, name: &str) -> u32 {
        let uid = self.stack.uid().unwrap_or_default();
        let stack = self.stack.name_any();
        let mut numbers = 1..=MAX_INCARNATION;
        let found =
            numbers.find(|number| resource_types::object_name(&stack, &uid, path, *number) == name);
        found.unwrap_or(1)
    }
}
