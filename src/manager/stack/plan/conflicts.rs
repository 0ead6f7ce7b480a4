//! What has to go, or to change hands, before something is made: no two objects have one
//! name, and there are things that only one object can have at a time.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::decide::permit;
use super::forward::Walk;
use super::{Action, Entry, Key, Pass, Reference, State, is_ours, resource_state};
use pileus_stack::expand::{Tree, holds_a_stack};
use pileus_stack::kinds::{self, How, Makes, Request};
use pileus_stack::tree::{Flat, SEPARATOR};
use pileus_stack::value::Value;
use pileus_stack::{Error, Result, hooks};

/// Whether two references name one object, in whichever version of its kind. `own` is the
/// Stack's namespace, which may be left out.
pub(super) fn is_same(one: &Reference, other: &Reference, own: &str) -> bool {
    let group = |object: &Reference| object.api_version.rfind('/').unwrap_or_default();
    let namespace = |object: &Reference| -> String {
        let given = object.namespace.as_deref().filter(|name| !name.is_empty());
        given.unwrap_or(own).to_owned()
    };
    one.name == other.name
        && one.kind == other.kind
        && one.api_version[..group(one)] == other.api_version[..group(other)]
        && namespace(one) == namespace(other)
}

/// Whether the names that the template gives are to be had.
pub(super) enum Names {
    /// They are.
    Free,
    /// They are those of what goes, or of what is not looked at yet.
    Wait,
    /// What had them is not wanted any more: its object becomes this resource's.
    HandedOver,
}

/// What the template wants, as far as it is known before anything is begun.
pub(super) struct Look {
    /// By path: the incarnation that is kept, changed or made.
    decided: BTreeMap<String, u32>,
    flat: Flat,
}

/// What becomes of an incarnation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Goes,
    /// What it requires is not known yet.
    Open,
}

impl Walk<'_, '_> {
    fn look(&mut self) -> Result<&Look> {
        if self.look.is_none() {
            let Some(goal) = self.pass.goal() else {
                return Err(Error::new("the template is gone"));
            };
            let mut walk = Walk::new(&mut *self.pass, true);
            let flat = walk.walk(&goal)?;
            let decided = std::mem::take(&mut walk.decided);
            self.look = Some(Look { decided, flat });
        }
        self.look
            .as_ref()
            .ok_or_else(|| Error::new("the template is gone"))
    }

    fn fate(&mut self, (path, number): &Key) -> Result<Fate> {
        let look = self.look()?;
        if let Some(decided) = look.decided.get(path) {
            return Ok(if decided == number {
                Fate::Stays
            } else {
                Fate::Goes
            });
        }
        let mut holders = look.flat.unexpanded.iter();
        let hidden = holders.any(|holder| {
            let rest = path.strip_prefix(holder.as_str());
            rest.is_some_and(|rest| rest.starts_with(SEPARATOR))
        });
        Ok(if hidden || look.flat.leaves.contains_key(path) {
            Fate::Open
        } else {
            Fate::Goes
        })
    }

    /// Whether no other resource has the objects that one is about to make.
    pub(super) fn names(&mut self, key: &Key, makes: &Makes) -> Result<Names> {
        let wanted: Vec<Reference> = makes.objects.iter().map(Reference::of).collect();
        let own = self.pass.stack.namespace().unwrap_or_default();
        let Some(main) = wanted.last() else {
            return Ok(Names::Free);
        };
        if main.name == self.name(&key.0, key.1) {
            return Ok(Names::Free);
        }
        let has = |entry: &Entry| {
            let mut objects = entry.objects.iter();
            !entry.external && objects.any(|object| is_same(object, main, &own))
        };
        let entries = self.pass.plan.record.entries.iter();
        let holders = entries.filter(|(other, entry)| other.0 != key.0 && has(entry));
        let holders: Vec<(Key, Action)> = holders
            .map(|(other, entry)| (other.clone(), entry.action))
            .collect();
        let mut names = Names::Free;
        for (holder, action) in holders {
            if action == Action::Delete {
                self.pass.remove(&holder);
                if self.pass.plan.record.entries.contains_key(&holder) {
                    return Ok(Names::Wait);
                }
                continue;
            }
            let waits_for_this = |look: &Look| {
                let leaf = look.flat.leaves.get(&holder.0);
                leaf.is_some_and(|leaf| leaf.requires.contains(&key.0))
            };
            match self.fate(&holder)? {
                Fate::Goes => names = Names::HandedOver,
                Fate::Open if !waits_for_this(self.look()?) => return Ok(Names::Wait),
                Fate::Open | Fate::Stays => {
                    return Err(Error::new(format!(
                        "{} {} is that of the resource {}; give another name",
                        main.kind, main.name, holder.0
                    )));
                }
            }
        }
        Ok(names)
    }

    /// Whether the object of a resource that stays as it is was another's in between: that has
    /// to be taken back; or whether it is owned by the Stack, and is to outlive it now.
    pub(super) fn was_taken(&self, key: &Key, retain: bool) -> bool {
        let uid = self.pass.stack.uid().unwrap_or_default();
        let entry = self.pass.plan.record.entries.get(key);
        let entry = entry.filter(|entry| entry.state == State::Complete);
        let live = entry.and_then(|entry| self.pass.observed.objects.get(entry.objects.last()?));
        live.is_some_and(|live| {
            let owned = retain && resource_state::is_owned(live, &uid);
            is_ours(live, &uid) && (owned || !resource_state::is_of(live, &key.0))
        })
    }

    /// What has the same claim as a resource that is about to be made goes first, and before
    /// that what works with it; whether it is gone.
    pub(super) fn make_room(&mut self, key: &Key, makes: &Makes) -> Result<bool> {
        if self.only_look || self.failing {
            return Ok(false);
        }
        let own = self.pass.stack.namespace().unwrap_or_default();
        let main = makes.objects.last().map(Reference::of).unwrap_or_default();
        let entries = &self.pass.plan.record.entries;
        let in_the_way = entries.iter().filter(|(other, entry)| {
            let mut objects = entry.objects.iter();
            let same = objects.any(|object| is_same(object, &main, &own));
            let claimed = same || !entry.claims.is_disjoint(&makes.claims);
            *other != key && other.0 == key.0 && claimed
        });
        let in_the_way: Vec<Key> = in_the_way.map(|(other, _)| other.clone()).collect();
        for other in &in_the_way {
            let users = self.users(other, &main)?;
            for user in &users {
                let mut others = users.iter();
                if !others.any(|other| self.pass.works_with(other, user)) {
                    self.pass.remove(user);
                }
            }
            let entries = &self.pass.plan.record.entries;
            if users.iter().all(|user| !entries.contains_key(user)) {
                self.pass.remove(other);
            }
        }
        let entries = &self.pass.plan.record.entries;
        Ok(in_the_way.iter().all(|other| !entries.contains_key(other)))
    }

    /// What works with `first`, and with that, and so keeps it from going. All of it names
    /// what it works with, so it is made anew with the new name anyway.
    ///
    /// # Errors
    /// For what is not: destroying it is no part of replacing `first` by `main`.
    fn users(&mut self, first: &Key, main: &Reference) -> Result<Vec<Key>> {
        let mut found: Vec<Key> = Vec::new();
        let mut next = vec![first.clone()];
        while let Some(used) = next.pop() {
            let entry = self.pass.plan.record.entries.get(&used);
            let Some(object) = entry.and_then(|entry| entry.objects.last()).cloned() else {
                continue;
            };
            let renamed = if used == *first {
                object.name != main.name
            } else {
                object.name == self.name(&used.0, used.1)
            };
            let keys: Vec<Key> = self.pass.plan.record.entries.keys().cloned().collect();
            for user in keys {
                if found.contains(&user) || !self.pass.works_with(&user, &used) {
                    continue;
                }
                let Some(entry) = self.pass.plan.record.entries.get(&user).cloned() else {
                    continue;
                };
                let why = if entry.retain {
                    "is kept (deletion_policy Retain)"
                } else if !renamed || !self.pass.names_it(&entry, &object) {
                    "would have to go for that"
                } else {
                    ""
                };
                if entry.action != Action::Delete && self.fate(&user)? != Fate::Goes {
                    let restricted = hooks::of(&self.registry, &user.0).restricted;
                    permit(&restricted, "replace")
                        .map_err(|error| error.below(&format!("resources.{}", user.0)))?;
                    if !why.is_empty() {
                        return Err(Error::new(format!(
                            "{} {} has to go before another takes its place, and {}, which works \
                             with it, {why}; remove that first, or leave this as it is",
                            object.kind, object.name, user.0
                        )));
                    }
                }
                found.push(user.clone());
                next.push(user);
            }
        }
        Ok(found)
    }
}

impl Pass<'_> {
    /// Whether what a user has made keeps the objects of `needed` from going, as the
    /// controllers of Pileus' kinds see it.
    fn works_with(&self, user: &Key, needed: &Key) -> bool {
        let entries = &self.plan.record.entries;
        let (Some(entry), Some(other)) = (entries.get(user), entries.get(needed)) else {
            return false;
        };
        let Some(object) = other.objects.last() else {
            return false;
        };
        let pileus = object.api_version.starts_with(pileus_api::GROUP);
        // What somebody has deleted is in nobody's way.
        let there = self.observed.objects.contains_key(object);
        user != needed
            && pileus
            && there
            && entry.is_with(needed)
            && (self.names_it(entry, object) || self.is_inside(entry, object))
    }

    fn names_it(&self, entry: &Entry, object: &Reference) -> bool {
        let live = entry
            .objects
            .iter()
            .filter_map(|o| self.observed.objects.get(o));
        let mut specs = live.map(|live| &live["spec"]);
        specs.any(|spec| has_text(spec, &object.name))
    }

    /// Whether an entry has an address of a Subnet without naming it.
    fn is_inside(&self, entry: &Entry, object: &Reference) -> bool {
        let Some(subnet) = self.observed.objects.get(object) else {
            return false;
        };
        let network = subnet["spec"]["network"].as_str();
        let Some(network) = network.filter(|_| object.kind == "Subnet") else {
            return false;
        };
        let mut objects = entry.objects.iter();
        objects.any(|other| {
            let live = self.observed.objects.get(other);
            ["Port", "Server"].contains(&other.kind.as_str())
                && live.is_some_and(|live| has_text(&live["spec"], network))
        })
    }

    /// Whether another incarnation, of which nobody wants that it goes, has the same object.
    pub(super) fn is_shared(&self, key: &Key, object: &Reference) -> bool {
        let own = self.stack.namespace().unwrap_or_default();
        let mut entries = self.plan.record.entries.iter();
        entries.any(|(other, entry)| {
            let mut objects = entry.objects.iter();
            other != key
                && entry.action != Action::Delete
                && objects.any(|other| is_same(other, object, &own))
        })
    }
}

fn has_text(value: &Value, text: &str) -> bool {
    match value {
        Value::String(other) => other == text,
        Value::Array(items) => items.iter().any(|item| has_text(item, text)),
        Value::Object(map) => map.values().any(|item| has_text(item, text)),
        _ => false,
    }
}

/// Types whose objects are called as the template says.
const NAMED: [&str; 3] = ["OS::Nova::KeyPair", "OS::Nova::Flavor", kinds::object::NAME];

/// Refuses two resources that would be one object, as far as their names are known.
///
/// # Errors
/// With both paths.
pub(super) fn distinct(tree: &Tree, namespace: &str) -> Result<()> {
    let mut found: Vec<(String, Reference)> = Vec::new();
    gather(tree, "", namespace, &mut found);
    // Sorted by name, what is the same object stands side by side.
    found.sort_by(|(one, a), (other, b)| (&a.name, &a.kind, one).cmp(&(&b.name, &b.kind, other)));
    let mut known: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (index, (path, object)) in found.iter().enumerate() {
        if known.insert((&object.name, &object.kind)) {
            continue;
        }
        let mut before = found[..index].iter().rev();
        if let Some((other, _)) = before.find(|(_, o)| is_same(o, object, namespace)) {
            return Err(Error::at(
                format!("resources.{}", path.replace(SEPARATOR, ".resources.")),
                format!(
                    "{} {} is that of the resource {other}; give another name",
                    object.kind, object.name
                ),
            ));
        }
    }
    Ok(())
}

fn gather(tree: &Tree, prefix: &str, namespace: &str, found: &mut Vec<(String, Reference)>) {
    for (name, resource) in &tree.stack.resources {
        let path = format!("{prefix}{name}");
        if let Some(inner) = tree.nested.get(name) {
            gather(inner, &format!("{path}{SEPARATOR}"), namespace, found);
        }
        let named = NAMED.contains(&resource.resolved.as_str()) && !holds_a_stack(resource);
        let (Some(kind), Ok(properties)) = (kinds::find(&resource.resolved), &resource.typed)
        else {
            continue;
        };
        let How::Objects { map, .. } = kind.how else {
            continue;
        };
        if !named || !resource.external_id.is_null() {
            continue;
        }
        // What is not given a name gets one of its own.
        let none = BTreeMap::new();
        let request = Request {
            name: "",
            namespace,
            properties,
            metadata: &Value::Null,
            suspended: false,
            configs: &none,
            find: &|_, _| None,
            seed: &[],
        };
        let object = map(&request)
            .ok()
            .and_then(|makes| makes.objects.last().map(Reference::of));
        found.extend(object.filter(|o| !o.name.is_empty()).map(|o| (path, o)));
    }
}
