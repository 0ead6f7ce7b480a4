//! Conflicts between resources: two resources cannot have an object of the same name, and there are
//! things that only one object can have at a time ([`Entry::claims`]). Finds out who has a name
//! already, and deletes or takes over conflicting objects.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::decide::check_restricted;
use super::forward::Walk;
use super::{Action, Entry, Key, Pass, Reference, State, is_ours, resource_state};
use pileus_stack::expand::{Tree, has_nested_stack};
use pileus_stack::resource_types::{self, MappedObjects, Mapping, MappingInput};
use pileus_stack::tree::{Flat, SEPARATOR};
use pileus_stack::value::Value;
use pileus_stack::{Error, Result, hooks};

/// Whether two references name the same object, even with different versions of its API. `own` is
/// the Stack's namespace, which references may leave out.
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

/// Whether a resource can have the object name that its template gives.
pub(super) enum NameCheck {
    /// No other resource has it.
    Free,
    /// Another resource has it that is being deleted, or is not evaluated yet.
    Wait,
    /// A resource has it that the template does not contain any more: its object is taken over.
    TakeOver,
}

/// What the whole template wants, as far as that is known before anything is started.
pub(super) struct Forecast {
    /// By path: the incarnation that is kept, updated or created.
    decided: BTreeMap<String, u32>,
    flat: Flat,
}

/// Whether the template still wants an incarnation of a resource.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StillWanted {
    Yes,
    No,
    /// Values that it depends on are not known yet.
    NotKnownYet,
}

impl Walk<'_, '_> {
    fn forecast(&mut self) -> Result<&Forecast> {
        if self.forecast.is_none() {
            let Some(target) = self.pass.target() else {
                return Err(Error::new("the template does not exist any more"));
            };
            let mut walk = Walk::new(&mut *self.pass, true);
            let flat = walk.walk(&target)?;
            let decided = std::mem::take(&mut walk.decided);
            self.forecast = Some(Forecast { decided, flat });
        }
        self.forecast
            .as_ref()
            .ok_or_else(|| Error::new("the template does not exist any more"))
    }

    fn still_wanted(&mut self, (path, number): &Key) -> Result<StillWanted> {
        let forecast = self.forecast()?;
        if let Some(decided) = forecast.decided.get(path) {
            return Ok(if decided == number {
                StillWanted::Yes
            } else {
                StillWanted::No
            });
        }
        let mut unexpanded = forecast.flat.unexpanded.iter();
        let is_inside = unexpanded.any(|outer| {
            let rest = path.strip_prefix(outer.as_str());
            rest.is_some_and(|rest| rest.starts_with(SEPARATOR))
        });
        Ok(if is_inside || forecast.flat.leaves.contains_key(path) {
            StillWanted::NotKnownYet
        } else {
            StillWanted::No
        })
    }

    /// Whether no other resource has the object that this one is about to create.
    pub(super) fn check_name(&mut self, key: &Key, makes: &MappedObjects) -> Result<NameCheck> {
        let wanted: Vec<Reference> = makes.objects.iter().map(Reference::of).collect();
        let own = self.pass.stack.namespace().unwrap_or_default();
        let Some(main) = wanted.last() else {
            return Ok(NameCheck::Free);
        };
        if main.name == self.name(&key.0, key.1) {
            return Ok(NameCheck::Free);
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
        let mut result = NameCheck::Free;
        for (holder, action) in holders {
            if action == Action::Delete {
                self.pass.remove(&holder);
                if self.pass.plan.record.entries.contains_key(&holder) {
                    return Ok(NameCheck::Wait);
                }
                continue;
            }
            let waits_for_this = |forecast: &Forecast| {
                let leaf = forecast.flat.leaves.get(&holder.0);
                leaf.is_some_and(|leaf| leaf.requires.contains(&key.0))
            };
            match self.still_wanted(&holder)? {
                StillWanted::No => result = NameCheck::TakeOver,
                StillWanted::NotKnownYet if !waits_for_this(self.forecast()?) => {
                    return Ok(NameCheck::Wait);
                }
                StillWanted::NotKnownYet | StillWanted::Yes => {
                    return Err(Error::new(format!(
                        "{} {} belongs to the resource {}; give another name",
                        main.kind, main.name, holder.0
                    )));
                }
            }
        }
        Ok(result)
    }

    /// Whether the object of an unchanged resource must be written all the same: another resource
    /// had taken it over, or it has an owner reference to the Stack and is to outlive it now.
    pub(super) fn needs_reclaim(&self, key: &Key, retain: bool) -> bool {
        let uid = self.pass.stack.uid().unwrap_or_default();
        let entry = self.pass.plan.record.entries.get(key);
        let entry = entry.filter(|entry| entry.state == State::Complete);
        let live = entry.and_then(|entry| self.pass.observed.objects.get(entry.objects.last()?));
        live.is_some_and(|live| {
            let owned = retain && resource_state::is_owned(live, &uid);
            is_ours(live, &uid) && (owned || !resource_state::is_for_resource(live, &key.0))
        })
    }

    /// Deletes older incarnations that conflict with one that is about to be created (the same
    /// object or the same claim), and before them what uses them; whether all are gone.
    pub(super) fn remove_conflicting(&mut self, key: &Key, makes: &MappedObjects) -> Result<bool> {
        if self.read_only || self.failing {
            return Ok(false);
        }
        let own = self.pass.stack.namespace().unwrap_or_default();
        let main = makes.objects.last().map(Reference::of).unwrap_or_default();
        let entries = &self.pass.plan.record.entries;
        let conflicting = entries.iter().filter(|(other, entry)| {
            let mut objects = entry.objects.iter();
            let same = objects.any(|object| is_same(object, &main, &own));
            let claimed = same || !entry.claims.is_disjoint(&makes.claims);
            *other != key && other.0 == key.0 && claimed
        });
        let conflicting: Vec<Key> = conflicting.map(|(other, _)| other.clone()).collect();
        // What works goes only when all else about its replacement is known to be possible.
        if !conflicting.is_empty()
            && let Some(missing) = self.missing_of(&makes.objects)
        {
            return Err(Error::new(format!(
                "{missing}, so what has to be deleted before its replacement is created stays; \
                 create that, or name another"
            )));
        }
        for other in &conflicting {
            let users = self.users(other, &main)?;
            for user in &users {
                let mut others = users.iter();
                if !others.any(|other| self.pass.blocks_deletion(other, user)) {
                    self.pass.remove(user);
                }
            }
            let entries = &self.pass.plan.record.entries;
            if users.iter().all(|user| !entries.contains_key(user)) {
                self.pass.note_emptied(other);
                self.pass.remove(other);
            }
        }
        let entries = &self.pass.plan.record.entries;
        Ok(conflicting.iter().all(|other| !entries.contains_key(other)))
    }

    /// Everything that blocks the deletion of `first`, directly or through others. Each of them
    /// names what it uses, so it is replaced anyway when that gets another name.
    ///
    /// # Errors
    /// For a user that would not be replaced anyway: it must not be deleted only because `main`
    /// replaces `first`.
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
                if found.contains(&user) || !self.pass.blocks_deletion(&user, &used) {
                    continue;
                }
                let Some(entry) = self.pass.plan.record.entries.get(&user).cloned() else {
                    continue;
                };
                let why = if entry.retain {
                    "is kept (deletion_policy Retain)"
                } else if !renamed || !self.pass.references_object(&entry, &object) {
                    "would have to be deleted for that"
                } else {
                    ""
                };
                if entry.action != Action::Delete && self.still_wanted(&user)? != StillWanted::No {
                    let restricted = hooks::of(&self.registry, &user.0).restricted;
                    check_restricted(&restricted, "replace")
                        .map_err(|error| error.below(&format!("resources.{}", user.0)))?;
                    if !why.is_empty() {
                        return Err(Error::new(format!(
                            "{} {} has to be deleted before its replacement is created, and {}, \
                             which uses it, {why}; remove that first, or leave this as it is",
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
    /// Notes that a Server which worked is deleted before its replacement works. When that fails, a
    /// rollback makes it anew, without what was on its disk.
    fn note_emptied(&mut self, key: &Key) {
        let record = &mut self.plan.record;
        let entry = record.entries.get(key);
        let is_server = entry.is_some_and(|entry| {
            let main = entry.objects.last();
            main.is_some_and(|object| object.kind == "Server") && entry.state == State::Complete
        });
        if is_server && record.action == Some(Action::Update) {
            record.emptied.insert(key.0.clone());
        }
    }

    /// Whether the objects of `user` block the deletion of the object of `needed`, by the rules of
    /// the controllers of Pileus' kinds.
    fn blocks_deletion(&self, user: &Key, needed: &Key) -> bool {
        let entries = &self.plan.record.entries;
        let (Some(entry), Some(other)) = (entries.get(user), entries.get(needed)) else {
            return false;
        };
        let Some(object) = other.objects.last() else {
            return false;
        };
        let pileus = object.api_version.starts_with(pileus_api::GROUP);
        // An object that does not exist needs no deletion.
        let exists = self.observed.objects.contains_key(object);
        user != needed
            && pileus
            && exists
            && entry.uses(needed)
            && (self.references_object(entry, object) || self.has_address_in(entry, object))
    }

    fn references_object(&self, entry: &Entry, object: &Reference) -> bool {
        let live = entry
            .objects
            .iter()
            .filter_map(|o| self.observed.objects.get(o));
        let mut specs = live.map(|live| &live["spec"]);
        specs.any(|spec| contains_text(spec, &object.name))
    }

    /// Whether an entry has an address of a Subnet without a reference to it.
    fn has_address_in(&self, entry: &Entry, object: &Reference) -> bool {
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
                && live.is_some_and(|live| contains_text(&live["spec"], network))
        })
    }

    /// Whether another incarnation that is not being deleted has the same object.
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

fn contains_text(value: &Value, text: &str) -> bool {
    match value {
        Value::String(other) => other == text,
        Value::Array(items) => items.iter().any(|item| contains_text(item, text)),
        Value::Object(map) => map.values().any(|item| contains_text(item, text)),
        _ => false,
    }
}

/// Resource types whose objects have the name that the template gives.
const TYPES_WITH_GIVEN_NAMES: [&str; 3] = [
    "OS::Nova::KeyPair",
    "OS::Nova::Flavor",
    resource_types::object::NAME,
];

/// Refuses two resources with the same object, as far as the names are known.
///
/// # Errors
/// When there are two; the message names both.
pub(super) fn check_unique_objects(tree: &Tree, namespace: &str) -> Result<()> {
    let mut found: Vec<(String, Reference)> = Vec::new();
    collect_named_objects(tree, "", namespace, &mut found);
    // Sorted by name, references to the same object are neighbours.
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
                    "{} {} belongs to the resource {other}; give another name",
                    object.kind, object.name
                ),
            ));
        }
    }
    Ok(())
}

fn collect_named_objects(
    tree: &Tree,
    prefix: &str,
    namespace: &str,
    found: &mut Vec<(String, Reference)>,
) {
    for (name, resource) in &tree.stack.resources {
        let path = format!("{prefix}{name}");
        if let Some(inner) = tree.nested.get(name) {
            collect_named_objects(inner, &format!("{path}{SEPARATOR}"), namespace, found);
        }
        let named = TYPES_WITH_GIVEN_NAMES.contains(&resource.resource_type.as_str())
            && !has_nested_stack(resource);
        let (Some(supported), Ok(properties)) = (
            resource_types::find(&resource.resource_type),
            &resource.typed,
        ) else {
            continue;
        };
        let Mapping::Objects { map, .. } = supported.mapping else {
            continue;
        };
        if !named || !resource.external_id.is_null() {
            continue;
        }
        // Without a given name the object gets a generated one, which is unique.
        let none = BTreeMap::new();
        let request = MappingInput {
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
