//! Decides whether a resource is kept, updated or replaced.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::conflicts::is_same;
use super::forward::Walk;
use super::{Action, Entry, Reference, State};
use crate::stack::record::PRE_CREATE;
use pileus_stack::plan::Change;
use pileus_stack::tree::Leaf;
use pileus_stack::{hooks, resource_types};

/// What to do with a resource, with the number of the incarnation.
pub(super) enum Decision {
    /// Keep this incarnation as it is.
    Keep(u32),
    /// Update this incarnation in place.
    Update(u32),
    /// Create this new incarnation.
    Create(u32),
}

impl Walk<'_, '_> {
    /// The smallest change that makes the resource what the template says.
    pub(super) fn decide(
        &self,
        path: &str,
        leaf: &Leaf,
        digests: &BTreeMap<String, String>,
        object: Option<&Reference>,
    ) -> pileus_stack::Result<Decision> {
        let record = &self.pass.plan.record;
        let usable = |entry: &Entry| is_usable(entry, &leaf.resource_type);
        let newest = record.incarnations(path).next();
        let mut usable = record
            .incarnations(path)
            .filter(|(_, entry)| usable(entry))
            .peekable();
        let candidate = usable.peek().copied();
        // A rollback may find the older incarnation, which its replacement has not replaced yet.
        if let Some((number, entry)) = usable.find(|(_, entry)| entry.properties == *digests) {
            return Ok(if entry.reapply {
                Decision::Update(number)
            } else {
                Decision::Keep(number)
            });
        }
        let next = match newest {
            Some((number, entry)) if entry.hook_reached.as_deref() == Some(PRE_CREATE) => number,
            Some((number, _)) => number.saturating_add(1),
            None => 1,
        };
        let restricted = hooks::of(&self.registry, path).restricted;
        let Some((number, have)) = candidate else {
            if record
                .incarnations(path)
                .any(|(_, entry)| is_protected(entry))
            {
                check_restricted(&restricted, "replace")?;
            }
            return Ok(Decision::Create(next));
        };
        let names: BTreeSet<&String> = digests.keys().chain(have.properties.keys()).collect();
        let changed = names
            .into_iter()
            .filter(|n| digests.get(*n) != have.properties.get(*n));
        let own = self.pass.stack.namespace().unwrap_or_default();
        let stays = || {
            let same = |object| {
                have.objects
                    .last()
                    .is_some_and(|o| is_same(o, object, &own))
            };
            object.is_some_and(same)
        };
        let mut replace = false;
        for property in changed {
            match change_of(leaf, property) {
                Change::InPlace => {}
                // Still the same object: another API version, or the namespace is written out.
                Change::Replace if property == resource_types::IDENTITY && stays() => {}
                Change::Replace => replace = true,
                Change::Refuse => {
                    return Err(pileus_stack::Error::at(
                        format!("properties.{property}"),
                        "may not change once made; use another resource name",
                    ));
                }
            }
        }
        check_restricted(&restricted, if replace { "replace" } else { "update" })?;
        Ok(if replace {
            Decision::Create(next)
        } else {
            Decision::Update(number)
        })
    }
}

/// Whether an incarnation can be kept or updated for a resource of this type; otherwise it must be
/// replaced.
pub(super) fn is_usable(entry: &Entry, kind: &str) -> bool {
    entry.resource_type == kind
        && !entry.replace
        && !entry.external
        && entry.action != Action::Delete
        && entry.hook_reached.as_deref() != Some(PRE_CREATE)
}

/// Whether restricted actions protect an incarnation: it exists, and is not being deleted.
fn is_protected(entry: &Entry) -> bool {
    let there = !entry.objects.is_empty() || entry.state == State::Complete;
    there && !entry.external && entry.action != Action::Delete
}

/// Refuses what the environment's `restricted_actions` forbid.
pub(super) fn check_restricted(
    restricted: &BTreeSet<String>,
    action: &str,
) -> pileus_stack::Result<()> {
    if !restricted.contains(action) {
        return Ok(());
    }
    // Heat's message, and the solution.
    Err(pileus_stack::Error::new(format!(
        "{action} is restricted for resource: the environment's restricted_actions forbid it; \
         remove it there, or leave the resource as it is"
    )))
}

/// How a resource handles a change of a property: as its type says, except that a Server may ignore
/// a change of its user data (`user_data_update_policy`).
fn change_of(leaf: &Leaf, property: &str) -> Change {
    let policy = |properties: &pileus_stack::value::Map| {
        properties.get("user_data_update_policy") == Some(&"IGNORE".into())
    };
    if property == "user_data" && leaf.properties.as_ref().is_ok_and(policy) {
        return Change::InPlace;
    }
    resource_types::change(&leaf.resource_type, property)
}
