//! Groups that change a few members at a time.
//!
//! The record says of each group which batch is under way; nothing is begun before that is
//! decided, and it is decided by what a look at the whole group has shown: which members there
//! are, and which of them are as they should be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::forward::Walk;
use super::{Action, since};
use crate::stack::record::{StackRecord, Rolling};
use pileus_stack::rolling::{self, Policy};
use pileus_stack::tree::{self, Flat};

/// Longest pause between two batches, in seconds: one that is longer than a stack may take
/// would only be a failure.
const LONGEST_PAUSE: f64 = 86_400.0;

/// What a look at a group has shown.
struct Group {
    /// How many members it is to have.
    target: usize,
    create: Option<Policy>,
    update: Option<Policy>,
    /// The members that it has in this batch, and whether each is as it should be.
    members: BTreeMap<String, bool>,
}

impl Walk<'_, '_> {
    /// Whether a member of groups that change a few at a time may begin now.
    pub(super) fn may_join(&self, batches: &[tree::Batch]) -> bool {
        let record = &self.pass.plan.record;
        batches.iter().all(|batch| {
            let name = batch.member.rsplit(tree::SEPARATOR).next();
            match record.rolling.get(&batch.group) {
                Some(Rolling::Free) => true,
                Some(Rolling::Batch { held, .. }) => name.is_some_and(|name| !held.contains(name)),
                Some(Rolling::Pause { .. }) => false,
                // It is looked at as a whole first.
                None => !acts(record),
            }
        })
    }

    /// Begins the batches that are due; whether no group has one to come.
    pub(super) fn next_batches(&mut self, flat: &Flat) -> bool {
        if self.failing || !acts(&self.pass.plan.record) {
            return true;
        }
        let mut all_free = true;
        for (path, group) in self.groups(flat) {
            let before = self.pass.plan.record.rolling.get(&path).cloned();
            let now = self.next_batch(flat, &path, &group, before.as_ref());
            all_free &= before == Some(Rolling::Free);
            if before.as_ref() != Some(&now) {
                self.pass.again_in(Duration::ZERO);
                self.pass.plan.record.rolling.insert(path, now);
            }
        }
        all_free
    }

    fn groups(&self, flat: &Flat) -> BTreeMap<String, Group> {
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for (path, leaf) in &flat.leaves {
            for batch in &leaf.batches {
                let group = groups.entry(batch.group.clone()).or_insert_with(|| Group {
                    target: batch.target,
                    create: batch.create,
                    update: batch.update,
                    members: BTreeMap::new(),
                });
                let inside = format!("{}{}", batch.member, tree::SEPARATOR);
                let whole = || !flat.unexpanded.iter().any(|path| path.starts_with(&inside));
                let fresh = self.settled.contains(path) && whole();
                let name = batch.member.rsplit(tree::SEPARATOR).next();
                let name = name.unwrap_or_default().to_owned();
                *group.members.entry(name).or_insert(true) &= fresh;
            }
        }
        groups
    }

    fn next_batch(
        &mut self,
        flat: &Flat,
        path: &str,
        group: &Group,
        before: Option<&Rolling>,
    ) -> Rolling {
        let now = self.pass.observed.now;
        let unused = flat.removed.get(path).cloned().unwrap_or_default();
        let mut existing = existing(&self.pass.plan.record, path);
        existing.retain(|name| !unused.contains(name));
        let mut names = (0usize..).map(|at| at.to_string());
        let mut names = move |count: usize| -> Vec<String> {
            let left = names.by_ref().filter(|name| !unused.contains(name));
            left.take(count).collect()
        };
        let wanted = names(group.target);
        let is_fresh = |name: &String| group.members.get(name) == Some(&true);
        let (first, rested) = match before {
            Some(Rolling::Free) => return Rolling::Free,
            Some(Rolling::Batch { held, first, .. }) => {
                let mut members = group.members.iter();
                if !members.all(|(name, fresh)| *fresh || held.contains(name)) {
                    return before.cloned().unwrap_or(Rolling::Free);
                }
                (*first, false)
            }
            Some(Rolling::Pause { until, first, .. }) => {
                let left = since(now, *until);
                if !left.is_zero() {
                    self.pass.again_in(left);
                    return before.cloned().unwrap_or(Rolling::Free);
                }
                (*first, true)
            }
            None => (existing.is_empty(), true),
        };
        let stale = |name: &String| existing.contains(name) && !is_fresh(name);
        let policy = if first { group.create } else { group.update };
        // A group that only grows or shrinks does so at once.
        let policy = policy.filter(|_| first || wanted.iter().any(stale));
        let Some(policy) = policy else {
            return Rolling::Free;
        };
        let current = wanted.iter().filter(|name| existing.contains(*name));
        let fresh = wanted.iter().filter(|name| is_fresh(name));
        let next = rolling::next(group.target, current.count(), fresh.count(), &policy);
        let Some(batch) = next.filter(|batch| batch.fresh > 0) else {
            return Rolling::Free;
        };
        let pause = Duration::from_secs_f64(policy.pause.min(LONGEST_PAUSE));
        if !rested
            && !pause.is_zero()
            && let Ok(until) = now.checked_add(pause)
        {
            let capacity = before.and_then(Rolling::capacity).unwrap_or(batch.capacity);
            return Rolling::Pause {
                until,
                capacity,
                first,
            };
        }
        let mut names: Vec<String> = wanted
            .into_iter()
            .chain(names(batch.capacity.saturating_sub(group.target)))
            .collect();
        names.truncate(batch.capacity);
        let known = existing.iter();
        let known: BTreeMap<&str, bool> = known.map(|n| (n.as_str(), is_fresh(n))).collect();
        let changed = rolling::changed(&names, &known, group.target, batch);
        let held = known
            .iter()
            .filter(|(name, fresh)| !**fresh && !changed.contains(*name));
        Rolling::Batch {
            capacity: batch.capacity,
            held: held.map(|(name, _)| (*name).to_owned()).collect(),
            first,
        }
    }
}

/// Whether the action that is under way makes and changes members.
fn acts(record: &StackRecord) -> bool {
    matches!(
        record.action,
        Some(Action::Create | Action::Update | Action::Rollback)
    )
}

/// Names of the members that the group at `path` has.
fn existing(record: &StackRecord, path: &str) -> BTreeSet<String> {
    let prefix = format!("{path}{}", tree::SEPARATOR);
    let entries = record.entries.iter();
    let there = entries.filter(|(_, entry)| entry.action != Action::Delete);
    there
        .filter_map(|((path, _), _)| {
            let inside = path.strip_prefix(&prefix)?;
            inside.split(tree::SEPARATOR).next().map(str::to_owned)
        })
        .collect()
}

/// By the path of what holds a stack: names of its members by the ids that they are referred to
/// by, those that are gone among them. A member that is a stack of its own has its path for one.
pub(super) fn members(record: &StackRecord) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = record.named.clone();
    let entries = record.entries.iter();
    for ((path, _), entry) in entries.filter(|(_, entry)| entry.action != Action::Delete) {
        let parts: Vec<&str> = path.split(tree::SEPARATOR).collect();
        for at in 1..parts.len() {
            let outer = parts[..at].join("/");
            let name = parts[at].to_owned();
            let id = if at + 1 < parts.len() {
                Some(parts[..=at].join("/"))
            } else {
                entry.objects.last().map(|object| object.name.clone())
            };
            if let Some(id) = id {
                found.entry(outer).or_default().insert(id, name);
            }
        }
    }
    found
}
