//! What becomes of a resource: kept, changed, or made anew.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::forward::Walk;
use super::conflicts::is_same;
use super::{Action, Entry, Reference, State};
use crate::stack::record::PRE_CREATE;
use pileus_stack::plan::Change;
use pileus_stack::tree::Leaf;
use pileus_stack::{hooks, kinds};

/// What is decided for a resource.
pub(super) enum Decision {
    /// This incarnation is what is wanted.
    Keep(u32),
    /// This incarnation is changed.
    Change(u32),
    /// A new one is made.
    Make(u32),
}

impl Walk<'_, '_> {
    /// Keep, change or make: the least that brings what is wanted.
    pub(super) fn decide(
        &self,
        path: &str,
        leaf: &Leaf,
        digests: &BTreeMap<String, String>,
        object: Option<&Reference>,
    ) -> pileus_stack::Result<Decision> {
        let record = &self.pass.plan.record;
        let usable = |entry: &Entry| is_usable(entry, &leaf.kind);
        let newest = record.incarnations(path).next();
        let mut usable = record
            .incarnations(path)
            .filter(|(_, entry)| usable(entry))
            .peekable();
        let candidate = usable.peek().copied();
        // A rollback finds what the replacement has not taken the place of yet.
        if let Some((number, entry)) = usable.find(|(_, entry)| entry.properties == *digests) {
            return Ok(if entry.again {
                Decision::Change(number)
            } else {
                Decision::Keep(number)
            });
        }
        let next = match newest {
            Some((number, entry)) if entry.waits.as_deref() == Some(PRE_CREATE) => number,
            Some((number, _)) => number.saturating_add(1),
            None => 1,
        };
        let restricted = hooks::of(&self.registry, path).restricted;
        let Some((number, have)) = candidate else {
            if record.incarnations(path).any(|(_, entry)| is_worth(entry)) {
                permit(&restricted, "replace")?;
            }
            return Ok(Decision::Make(next));
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
            match change(leaf, property) {
                Change::InPlace => {}
                // Another version of its kind, or its own namespace written out.
                Change::Replace if property == kinds::IDENTITY && stays() => {}
                Change::Replace => replace = true,
                Change::Refuse => {
                    return Err(pileus_stack::Error::at(
                        format!("properties.{property}"),
                        "may not change once made; use another resource name",
                    ));
                }
            }
        }
        permit(&restricted, if replace { "replace" } else { "update" })?;
        Ok(if replace {
            Decision::Make(next)
        } else {
            Decision::Change(number)
        })
    }
}

/// Whether an incarnation can be what is wanted of a type, as it is or changed; what cannot is
/// made anew.
pub(super) fn is_usable(entry: &Entry, kind: &str) -> bool {
    entry.kind == kind
        && !entry.replace
        && !entry.external
        && entry.action != Action::Delete
        && entry.waits.as_deref() != Some(PRE_CREATE)
}

/// Whether a restriction protects an incarnation: something was made, and nobody has asked for
/// it to go.
fn is_worth(entry: &Entry) -> bool {
    let there = !entry.objects.is_empty() || entry.state == State::Complete;
    there && !entry.external && entry.action != Action::Delete
}

/// Refuses what the environment's `restricted_actions` forbid.
pub(super) fn permit(restricted: &BTreeSet<String>, action: &str) -> pileus_stack::Result<()> {
    if !restricted.contains(action) {
        return Ok(());
    }
    // Heat's words, and the way out.
    Err(pileus_stack::Error::new(format!(
        "{action} is restricted for resource: the environment's restricted_actions forbid it; take \
         it out of them, or leave the resource as it is"
    )))
}

/// How a resource takes a change of a property: as its type does, but for user data, whose
/// change may be ignored by a Server that has started with it.
fn change(leaf: &Leaf, property: &str) -> Change {
    let policy = |properties: &pileus_stack::value::Map| {
        properties.get("user_data_update_policy") == Some(&"IGNORE".into())
    };
    if property == "user_data" && leaf.properties.as_ref().is_ok_and(policy) {
        return Change::InPlace;
    }
    kinds::change(&leaf.kind, property)
}
