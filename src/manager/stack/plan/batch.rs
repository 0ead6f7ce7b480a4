//! Groups that create or update their members in batches.
//!
//! The record contains the current batch of each group ([`Rolling`]). The next batch is decided when
//! the whole group was evaluated, by the members that exist and the members that are up to date. No
//! member is started before that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::forward::Walk;
use super::{Action, since};
use crate::stack::record::{Rolling, StackRecord};
use pileus_stack::rolling::{self, Policy};
use pileus_stack::tree::{self, Flat};

/// Longest pause between two batches, in seconds: a longer one would exceed any timeout.
const MAX_PAUSE: f64 = 86_400.0;

/// An evaluated group.
struct Group {
    /// How many members the template wants.
    target: usize,
    create: Option<Policy>,
    update: Option<Policy>,
    /// The members in this batch, and whether each is up to date.
    members: BTreeMap<String, bool>,
}

impl Walk<'_, '_> {
    /// Whether a member of groups with batches may be started now.
    pub(super) fn may_start_in_batch(&self, batches: &[tree::Batch]) -> bool {
        let record = &self.pass.plan.record;
        batches.iter().all(|batch| {
            let name = batch.member.rsplit(tree::SEPARATOR).next();
            match record.rolling.get(&batch.group) {
                Some(Rolling::Free) => true,
                Some(Rolling::Batch { held, .. }) => name.is_some_and(|name| !held.contains(name)),
                Some(Rolling::Pause { .. }) => false,
                // Its first batch is decided at the end of this pass.
                None => !changes_members(record),
            }
        })
    }

    /// Starts the batches that are due; whether no group has another one.
    pub(super) fn start_next_batches(&mut self, flat: &Flat) -> bool {
        if self.failing || !changes_members(&self.pass.plan.record) {
            return true;
        }
        let mut all_free = true;
        for (path, group) in self.groups(flat) {
            let before = self.pass.plan.record.rolling.get(&path).cloned();
            let now = self.next_batch(flat, &path, &group, before.as_ref());
            all_free &= before == Some(Rolling::Free);
            if before.as_ref() != Some(&now) {
                self.pass.requeue_in(Duration::ZERO);
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
                let up_to_date = self.ready.contains(path) && whole();
                let name = batch.member.rsplit(tree::SEPARATOR).next();
                let name = name.unwrap_or_default().to_owned();
                *group.members.entry(name).or_insert(true) &= up_to_date;
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
        let is_up_to_date = |name: &String| group.members.get(name) == Some(&true);
        let (first, has_paused) = match before {
            Some(Rolling::Free) => return Rolling::Free,
            Some(Rolling::Batch { held, first, .. }) => {
                let mut members = group.members.iter();
                if !members.all(|(name, up_to_date)| *up_to_date || held.contains(name)) {
                    return before.cloned().unwrap_or(Rolling::Free);
                }
                (*first, false)
            }
            Some(Rolling::Pause { until, first, .. }) => {
                let left = since(now, *until);
                if !left.is_zero() {
                    self.pass.requeue_in(left);
                    return before.cloned().unwrap_or(Rolling::Free);
                }
                (*first, true)
            }
            None => (existing.is_empty(), true),
        };
        let outdated = |name: &String| existing.contains(name) && !is_up_to_date(name);
        let policy = if first { group.create } else { group.update };
        // A group of which only the size changes is not updated in batches.
        let policy = policy.filter(|_| first || wanted.iter().any(outdated));
        let Some(policy) = policy else {
            return Rolling::Free;
        };
        let current = wanted.iter().filter(|name| existing.contains(*name));
        let up_to_date = wanted.iter().filter(|name| is_up_to_date(name));
        let next = rolling::next(group.target, current.count(), up_to_date.count(), &policy);
        let Some(batch) = next.filter(|batch| batch.updated > 0) else {
            return Rolling::Free;
        };
        let pause = Duration::from_secs_f64(policy.pause.min(MAX_PAUSE));
        if !has_paused
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
        let known: BTreeMap<&str, bool> = known.map(|n| (n.as_str(), is_up_to_date(n))).collect();
        let changed = rolling::members_to_update(&names, &known, group.target, batch);
        let held = known
            .iter()
            .filter(|(name, up_to_date)| !**up_to_date && !changed.contains(*name));
        Rolling::Batch {
            capacity: batch.capacity,
            held: held.map(|(name, _)| (*name).to_owned()).collect(),
            first,
        }
    }
}

/// Whether the current action creates and updates members.
fn changes_members(record: &StackRecord) -> bool {
    matches!(
        record.action,
        Some(Action::Create | Action::Update | Action::Rollback)
    )
}

/// Names of the existing members of the group at `path`.
fn existing(record: &StackRecord, path: &str) -> BTreeSet<String> {
    let prefix = format!("{path}{}", tree::SEPARATOR);
    let entries = record.entries.iter();
    let present = entries.filter(|(_, entry)| entry.action != Action::Delete);
    present
        .filter_map(|((path, _), _)| {
            let inside = path.strip_prefix(&prefix)?;
            inside.split(tree::SEPARATOR).next().map(str::to_owned)
        })
        .collect()
}

/// By the path of a group or nested stack: names of its members by reference id, also of members
/// that were deleted. The id of a member that is a nested stack is its path.
pub(super) fn members(record: &StackRecord) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = record.members_by_id.clone();
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
