//! A record that was lost is made again from what exists, as far as that is certain.
//!
//! The secret from which digests are made is lost with it, so it cannot be said from them what is
//! as the template wants it. But each object says whose it is and which resource it stands for,
//! its name says which incarnation it is, and what it is can be compared with what the template
//! makes of it. What is the same is taken as it is, without a write. Where anything is not, only
//! a person can say what is to become of it, and nothing is touched before that.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use sha2::{Digest, Sha256};

use super::forward::Walk;
use super::resource_state::{self, difference};
use super::{Action, Entry, Key, StackRecord, Pass, Plan, Problem, Reference, Observed, State, is_ours};
use pileus_api::names::{REBUILD_RECORD_ANNOTATION, STACK_RESOURCE_ANNOTATION};
use pileus_api::{Reason, Stack};
use pileus_kube_ext::finalize;
use pileus_stack::functions::Known;
use pileus_stack::kinds::{self, How, Kind, Settles};
use pileus_stack::tree::Leaf;
use pileus_stack::value::{Map, Value};

/// Incarnations are looked for up to this number.
const LAST: u32 = 1000;
/// So many differences are told.
const TOLD: usize = 5;

/// A record that was made again.
#[derive(Debug)]
pub struct Rebuilt {
    /// What it would be.
    pub record: StackRecord,
    /// Objects that have to be read before it is certain, and whether with the rights of the
    /// service account.
    pub reads: BTreeSet<(Reference, bool)>,
    /// What is not as the template says.
    pub differs: Vec<String>,
}

/// What is found on the way through the template.
pub(super) struct Search {
    /// What has been asked for.
    asked: BTreeSet<Reference>,
    /// Names of objects that carry the Stack's marks, by the resource that they say.
    marked: BTreeMap<String, Vec<String>>,
    reads: BTreeSet<(Reference, bool)>,
    differs: Vec<String>,
}

/// Whether a record was written and is gone.
#[must_use]
pub fn is_lost(stack: &Stack, record: Option<&StackRecord>) -> bool {
    let status = stack.status.as_ref();
    record.is_none() && status.is_some_and(|status| status.record.is_some())
}

/// The record as far as it can be made again. `asked` are the objects that were asked for;
/// those of them that exist are in `seen`.
#[must_use]
pub fn rebuild(stack: &Stack, observed: &Observed<'_>, asked: &BTreeSet<Reference>) -> Rebuilt {
    let mut pass = Pass {
        stack,
        observed,
        plan: Plan::new(StackRecord::new(observed.seed.clone(), observed.now)),
    };
    let sources = match &observed.sources {
        Ok(sources) => sources.clone(),
        Err(problem) => return nothing(pass.plan.record, problem.message.clone()),
    };
    let digest = Some(sources.digest());
    let status = stack.status.as_ref();
    let word = status.and_then(|status| status.stack_status.as_deref());
    let record = &mut pass.plan.record;
    record.suspended = word.is_some_and(|word| word.starts_with(Action::Suspend.word()));
    record.wanted = digest.clone().unwrap_or_default();
    // What fails next returns to this: to nothing would be the end of what works.
    record.good.clone_from(&digest);
    record.checked.clone_from(&stack.spec.check_requested_at);
    record.healed.clone_from(&stack.spec.heal_requested_at);
    record.begin(Action::Update, digest, observed.now);
    "Stack UPDATE started: its record was lost, and is made again from what exists"
        .clone_into(&mut record.reason);
    // Nor is anything undone if this fails.
    record.kept = true;
    let mut walk = Walk::new(&mut pass, false);
    walk.search = Some(Search {
        asked: asked.clone(),
        marked: marked(observed),
        reads: BTreeSet::new(),
        differs: Vec::new(),
    });
    let walked = walk.walk(&sources);
    let search = walk.search.take();
    let (reads, mut differs) = search.map(|s| (s.reads, s.differs)).unwrap_or_default();
    let mut leaves = BTreeMap::new();
    match walked {
        Ok(flat) => {
            let later = flat.unexpanded.iter();
            differs.extend(later.map(|path| format!("{path}: what is in it is not known")));
            pass.plan.record.removed = flat.removed;
            pass.plan.record.named = flat.named;
            leaves = flat.leaves;
        }
        Err(error) => differs.insert(0, error.to_string()),
    }
    pass.take_others(&leaves, &mut differs);
    Rebuilt {
        record: pass.plan.record,
        reads,
        differs,
    }
}

fn nothing(record: StackRecord, why: String) -> Rebuilt {
    Rebuilt {
        record,
        reads: BTreeSet::new(),
        differs: vec![why],
    }
}

/// Whether somebody has said that what exists is to be gone on with, whatever it is.
#[must_use]
pub fn is_asked(stack: &Stack, record_name: &str) -> bool {
    let asked = stack.annotations().get(REBUILD_RECORD_ANNOTATION);
    asked.is_some_and(|name| name == record_name)
}

/// Why a lost record is not made again by itself, and the ways out.
#[must_use]
pub fn problem(observed: &Observed<'_>, record_name: &str, differs: &[String]) -> Problem {
    let mut told: Vec<&str> = differs.iter().take(TOLD).map(String::as_str).collect();
    let more = differs.len().saturating_sub(TOLD);
    let others = format!("{more} more");
    if more > 0 {
        told.push(&others);
    }
    let message = format!(
        "the Secret {record_name} with the record of what the stack has made is gone, and what exists \
         is not what the spec says, so nothing is touched: {}. Restore the Secret; or make the \
         spec what it was; or go on with what exists by the annotation \
         {REBUILD_RECORD_ANNOTATION}={record_name}: what differs is changed or made anew, what the \
         template does not have stays without the Stack; or delete the Stack, which removes \
         everything that carries its mark",
        told.join("; ")
    );
    Problem {
        reason: Reason::RecordMissing,
        message: super::masking::masked(observed, &message),
    }
}

/// By resource: names of watched objects that carry its mark.
fn marked(observed: &Observed<'_>) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (object, _) in &observed.strays {
        if let Some(path) = path_of(observed, object) {
            found.entry(path).or_default().push(object.name.clone());
        }
    }
    found
}

fn path_of(observed: &Observed<'_>, object: &Reference) -> Option<String> {
    let live = observed.find.find(&object.kind, &object.name)?;
    let path = &live["metadata"]["annotations"][STACK_RESOURCE_ANNOTATION];
    path.as_str().map(str::to_owned)
}

impl Walk<'_, '_> {
    /// What is known of a resource that the lost record had, as it is found.
    pub(super) fn find_again(
        &mut self,
        path: &str,
        leaf: &Leaf,
        kind: &Kind,
    ) -> pileus_stack::Result<Option<Known>> {
        let properties = leaf.properties.clone()?;
        match kind.how {
            How::Values(map) => self.value_again(path, leaf, &properties, map).map(Some),
            How::Objects { .. } => self.object_again(path, leaf, kind, &properties),
        }
    }

    pub(super) fn differs(&mut self, path: &str, what: &str) {
        if let Some(search) = &mut self.search {
            search.differs.push(format!("{path}: {what}"));
        }
    }

    /// A value follows from its properties, unless it is made by chance: then it was nowhere but
    /// in what followed from the record.
    fn value_again(
        &mut self,
        path: &str,
        leaf: &Leaf,
        properties: &Map,
        map: fn(&kinds::Request<'_>) -> pileus_stack::Result<Settles>,
    ) -> pileus_stack::Result<Known> {
        let seed = self.pass.plan.record.seed.clone();
        let own = Sha256::digest(format!("{seed}/{path}#1"));
        let name = self.name(path, 1);
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let lookup = self.pass.observed.find;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let settle = |seed: &[u8]| {
            map(&self.request(&name, &namespace, properties, &leaf.metadata, seed, &find))
        };
        let (settles, other) = (settle(&own)?, settle(&[])?);
        if settles.attributes != other.attributes || settles.refid != other.refid {
            self.differs(path, "its value was made by chance, and another is now");
        }
        let entry = Entry {
            properties: resource_state::digests(leaf, properties, &seed, None),
            ..Entry::default()
        };
        self.take(path, 1, leaf, entry);
        Ok(self.settled_value(settles))
    }

    fn object_again(
        &mut self,
        path: &str,
        leaf: &Leaf,
        kind: &Kind,
        properties: &Map,
    ) -> pileus_stack::Result<Option<Known>> {
        let How::Objects { map, .. } = kind.how else {
            return Ok(None);
        };
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let lookup = self.pass.observed.find;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let number = self.number(path);
        let (first, name) = (self.name(path, 1), self.name(path, number));
        let make = |name: &str| {
            map(&self.request(name, &namespace, properties, &leaf.metadata, &[], &find))
        };
        let seed = self.pass.plan.record.seed.clone();
        let digests = resource_state::digests(leaf, properties, &seed, Some((&make(&first)?, &first)));
        let makes = make(&name)?;
        let objects: Vec<Reference> = makes.objects.iter().map(Reference::of).collect();
        if !self.is_asked(&objects, kind.by_account) {
            return Ok(None);
        }
        let Some(main) = objects.last() else {
            return Ok(None);
        };
        let told = format!("{} {}", main.kind, main.name);
        let Some(live) = self.pass.observed.objects.get(main).cloned() else {
            self.differs(path, &format!("{told} is gone"));
            return Ok(None);
        };
        let uid = self.pass.stack.uid().unwrap_or_default();
        if !is_ours(&live, &uid) || !resource_state::is_of(&live, path) {
            let why = format!("{told} does not carry the marks of this stack's resource");
            self.differs(path, &why);
            return Ok(None);
        }
        let fault = self.fault(&makes.objects, &objects, &uid);
        if let Some(why) = &fault {
            self.differs(path, why);
        }
        let there = |object: &Reference| self.pass.observed.objects.contains_key(object);
        let digest = live["metadata"]["annotations"][pileus_api::names::STACK_DIGEST_ANNOTATION]
            .as_str()
            .unwrap_or_default();
        let entry = Entry {
            // What differs is not known to be of any properties.
            properties: if fault.is_none() {
                digests
            } else {
                BTreeMap::new()
            },
            digest: digest.to_owned(),
            claims: makes.claims,
            by_account: kind.by_account,
            // What cannot be compared, and what lacks something that serves it, is applied again.
            again: kind.by_account || !objects.iter().all(there),
            objects,
            ..Entry::default()
        };
        self.take(path, number, leaf, entry);
        Ok(Some(kinds::known(&leaf.kind, &live, &find)))
    }

    /// Whether all of these have been asked for; they are, if not.
    fn is_asked(&mut self, objects: &[Reference], by_account: bool) -> bool {
        let Some(search) = &mut self.search else {
            return false;
        };
        let asked = objects.iter().all(|object| search.asked.contains(object));
        if !asked {
            let more = objects.iter().map(|object| (object.clone(), by_account));
            search.reads.extend(more);
        }
        asked
    }

    /// What is otherwise than the template says, if anything is.
    fn fault(&self, manifests: &[Value], objects: &[Reference], uid: &str) -> Option<String> {
        let mut pairs = manifests.iter().zip(objects);
        pairs.find_map(|(manifest, object)| {
            let told = format!("{} {}", object.kind, object.name);
            // What serves a resource is made anew where it is gone.
            let live = self.pass.observed.objects.get(object)?;
            if !live["metadata"]["deletionTimestamp"].is_null() {
                return Some(format!("{told} is being deleted"));
            }
            if !is_ours(live, uid) {
                return Some(format!("{told} does not carry this stack's mark"));
            }
            // Other kinds are not kept as they were written.
            let field = if object.kind == "Secret" && object.api_version == "v1" {
                difference(&live["data"], &manifest["data"], "data")
            } else if object.api_version.starts_with(pileus_api::GROUP) {
                super::spec_diff::changed(live, manifest)
            } else {
                None
            };
            Some(format!("{told}: {} is not what the template says", field?))
        })
    }

    /// Which incarnation of a resource there is: the newest whose name is found among those that
    /// carry its mark, or that the status tells of.
    fn number(&self, path: &str) -> u32 {
        let marked = self.search.as_ref().and_then(|s| s.marked.get(path));
        let status = self.pass.stack.status.as_ref();
        let rows = status.iter().flat_map(|status| &status.resources);
        let rows = rows.filter(|row| row.name == path || row.name.starts_with(&format!("{path}#")));
        let told = rows.filter_map(|row| Some(row.object.as_ref()?.split_once('/')?.1.to_owned()));
        let names: BTreeSet<String> = marked.into_iter().flatten().cloned().chain(told).collect();
        // Most have one, which is the first.
        let numbers = (1..=LAST).filter(|number| names.contains(&self.name(path, *number)));
        numbers.take(names.len()).last().unwrap_or(1)
    }

    fn take(&mut self, path: &str, number: u32, leaf: &Leaf, entry: Entry) {
        let now = self.pass.observed.now;
        let key = (path.to_owned(), number);
        self.targets.insert(path.to_owned(), number);
        let entry = Entry {
            kind: leaf.kind.clone(),
            since: now,
            state: State::Complete,
            ..entry
        };
        self.pass.plan.record.entries.insert(key.clone(), entry);
        self.refresh(&key, leaf);
    }
}

impl Pass<'_> {
    /// What carries the Stack's marks and was not found by way of the template. What the template
    /// may have is kept under its resource, though nothing is known of it; everything else stays
    /// and is let go of, since nobody knows whether it was to be kept. Where the Stack goes, it
    /// goes too.
    fn take_others(&mut self, leaves: &BTreeMap<String, Leaf>, differs: &mut Vec<String>) {
        let deleting = finalize::is_deleting(self.stack);
        let entries = self.plan.record.entries.values();
        let known: BTreeSet<(String, String)> = entries
            .flat_map(|entry| &entry.objects)
            .map(|object| (object.kind.clone(), object.name.clone()))
            .collect();
        for (object, _) in &self.observed.strays {
            if known.contains(&(object.kind.clone(), object.name.clone())) {
                continue;
            }
            let path = path_of(self.observed, object).unwrap_or_default();
            let told = format!("{} {}", object.kind, object.name);
            let leaf = leaves.get(&path);
            let newest = self.plan.record.incarnations(&path).next();
            let key: Key = match newest {
                Some((newest, _)) => (path.clone(), newest.saturating_add(1)),
                None => (path.clone(), self.number_of(&path, &object.name)),
            };
            let wanted = leaf.filter(|_| newest.is_none());
            differs.push(match wanted {
                Some(_) => format!("{path}: {told} cannot be compared: what it needs is not there"),
                None => format!("{path}: {told} is nothing that the template has"),
            });
            let entry = Entry {
                kind: wanted.map_or(object.kind.clone(), |leaf| leaf.kind.clone()),
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

    /// Which incarnation of a resource has a name.
    fn number_of(&self, path: &str, name: &str) -> u32 {
        let uid = self.stack.uid().unwrap_or_default();
        let stack = self.stack.name_any();
        let mut numbers = 1..=LAST;
        let found = numbers.find(|number| kinds::object_name(&stack, &uid, path, *number) == name);
        found.unwrap_or(1)
    }
}
