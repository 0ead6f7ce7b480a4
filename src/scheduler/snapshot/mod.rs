//! What the scheduler decides from: hosts in columns, and the ledger of what Servers take
//! of them.
//!
//! Usage is never stored anywhere but derived from placements, so claims cannot leak: a
//! snapshot that was updated in any order equals one built from scratch. A placement on
//! a host that is not registered (yet, or any more) counts as soon as the host is: its
//! slot is there, switched off.
//!
//! Each change of a host is noted in a journal, so that a decision looks again only at
//! the hosts that have changed since the last one like it.
//!
//! | part | what it does |
//! |---|---|
//! | this file | hosts: what they are, what is left of them |
//! | [`ledger`] | what Servers take |
//! | [`extended`] | of that, what only few take: devices, NUMA nodes, other classes |
//! | [`view`] | one host, as it is looked at |

mod extended;
mod ledger;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use hashbrown::HashTable;

use super::bits::{Bits, ROW};
use super::facts::{HostFacts, Profile, Shape};
use super::intern::Interner;
use super::labels::Labels;
use super::request::hash;
pub use extended::{Extended, pages};
use ledger::Entry;
use pileus_api::common::Claim;
pub use view::Host;

/// "None" where a number of an interned value stands.
const NONE: u32 = u32::MAX;

/// Columns, one entry for each slot; those that whole rows are scanned of are padded.
#[derive(Clone, Debug, Default)]
struct Columns {
    name: Names,
    name_hash: Vec<u32>,
    profile: Vec<u32>,
    labels: Vec<Box<[u32]>>,
    facts: Vec<u64>,
    size: Vec<u32>,
    used: Vec<[i64; 3]>,
    servers: Vec<i32>,
    free: [Vec<i32>; 3],
    busy: Vec<i32>,
    failed: Vec<i32>,
}

impl Columns {
    /// Makes room by a sixteenth, where a vector by itself would double: hosts come slowly,
    /// and memory is counted by them.
    fn grow(&mut self, slot: usize) {
        if slot < self.profile.capacity() {
            return;
        }
        let more = slot / 16 + ROW;
        self.name_hash.reserve_exact(more);
        self.profile.reserve_exact(more);
        self.labels.reserve_exact(more);
        self.facts.reserve_exact(more);
        self.size.reserve_exact(more);
        self.used.reserve_exact(more);
        self.servers.reserve_exact(more);
    }
}

/// Names of all slots, end to end.
#[derive(Clone, Debug, Default)]
struct Names {
    text: String,
    ends: Vec<u32>,
}

impl Names {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, slot: usize) -> &str {
        let end = |slot: usize| self.ends[slot] as usize;
        let start = slot.checked_sub(1).map_or(0, end);
        &self.text[start..end(slot)]
    }

    fn push(&mut self, name: &str) {
        if self.text.capacity() - self.text.len() < name.len() {
            self.text.reserve_exact(self.text.len() / 16 + name.len());
        }
        if self.ends.len() == self.ends.capacity() {
            self.ends.reserve_exact(self.ends.len() / 16 + ROW);
        }
        self.text.push_str(name);
        let end = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        self.ends.push(end);
    }
}

/// What hosts of one model have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Size {
    capacity: [i32; 3],
    /// What is kept back for the host itself.
    reserved: [i32; 3],
    /// Placement's (total − reserved) × allocation ratio.
    limit: [i32; 3],
    /// QEMU's own memory for each guest, in MiB.
    overhead: i32,
}

/// Hosts and ledger.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    columns: Columns,
    index: HashTable<u32>,
    registered: Bits,
    /// Registered, ready, schedulable and not in maintenance.
    up: Bits,
    ready: Bits,
    maintenance: Bits,
    with_pci: Bits,
    /// With a taint PreferNoSchedule.
    discouraging: Bits,
    profiles: Interner<Profile>,
    sizes: Interner<Size>,
    labels: Labels,
    shapes: Interner<Shape>,
    names: Interner<String>,
    images: HashMap<String, Bits>,
    addresses: HashMap<u32, std::net::IpAddr>,
    metrics: HashMap<u32, BTreeMap<String, i64>>,
    extended: HashMap<u32, Extended>,
    entries: HashMap<u128, Entry>,
    /// Members of a group or spread set: how many on which slot.
    members: HashMap<u32, Vec<(u32, u32)>>,
    journal: Vec<u32>,
    journal_start: u64,
    /// Hosts that are kept for some namespaces.
    isolating: usize,
    /// Whose aggregates give multipliers of their own.
    multiplying: Bits,
}

fn clamp(value: i64) -> i32 {
    i32::try_from(value.clamp(i64::from(i32::MIN), i64::from(i32::MAX))).unwrap_or(i32::MAX)
}

fn parts(claim: Claim) -> [i64; 3] {
    [claim.vcpus, claim.memory_mib, claim.disk_gib]
}

fn digest(facts: &HostFacts) -> u64 {
    // Without a key of its own this hasher is the same in every run.
    let mut hasher = DefaultHasher::new();
    facts.hash(&mut hasher);
    hasher.finish()
}

impl Snapshot {
    /// The registered hosts.
    pub fn hosts(&self) -> impl Iterator<Item = Host<'_>> {
        self.registered.iter().map(|slot| self.at(slot))
    }

    /// One registered host.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<Host<'_>> {
        let slot = self.slot(name)?;
        self.registered.has(slot).then(|| self.at(slot))
    }

    pub(super) fn at(&self, slot: usize) -> Host<'_> {
        Host {
            snapshot: self,
            slot,
        }
    }

    pub(super) fn registered(&self) -> &Bits {
        &self.registered
    }

    pub(super) fn with_pci(&self) -> &Bits {
        &self.with_pci
    }

    pub(super) fn discouraging(&self) -> &Bits {
        &self.discouraging
    }

    pub(super) fn multiplying(&self) -> &Bits {
        &self.multiplying
    }

    pub(super) fn isolates(&self) -> bool {
        self.isolating > 0
    }

    pub(super) fn profile_span(&self) -> usize {
        self.profiles.span()
    }

    /// Free processors, memory or disk of all slots, padded to whole rows.
    pub(super) fn free_column(&self, part: usize) -> &[i32] {
        &self.columns.free[part]
    }

    pub(super) fn busy_column(&self) -> &[i32] {
        &self.columns.busy
    }

    pub(super) fn failed_column(&self) -> &[i32] {
        &self.columns.failed
    }

    pub(super) fn image(&self, digest: &str) -> Option<&Bits> {
        self.images.get(digest)
    }

    pub(super) fn metrics(&self) -> &HashMap<u32, BTreeMap<String, i64>> {
        &self.metrics
    }

    pub(super) fn name_hash(&self, slot: usize) -> u64 {
        u64::from(self.columns.name_hash[slot])
    }

    /// The number of a label, if any host has it.
    pub(super) fn pair(&self, key: &str, value: &str) -> Option<u32> {
        self.labels.id(key, value)
    }

    /// Labels of all hosts.
    pub(super) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The journal's end, and what it holds since `seen`; `None` when it does not reach
    /// back so far.
    pub(super) fn since(&self, seen: u64) -> (u64, Option<&[u32]>) {
        let end = self.journal_start + self.journal.len() as u64;
        let from = seen.checked_sub(self.journal_start);
        let from = from.and_then(|n| usize::try_from(n).ok());
        (end, from.and_then(|n| self.journal.get(n..)))
    }

    fn note(&mut self, slot: usize) {
        let most = (self.columns.name.len() / 4).max(1024);
        if self.journal.len() >= most {
            self.journal.drain(..most / 2);
            self.journal_start += most as u64 / 2;
        }
        self.journal.push(u32::try_from(slot).unwrap_or(NONE));
    }

    fn slot(&self, name: &str) -> Option<usize> {
        let names = &self.columns.name;
        let found = self
            .index
            .find(hash(name), |&slot| names.get(slot as usize) == name)?;
        Some(*found as usize)
    }

    fn slot_or_new(&mut self, name: &str) -> usize {
        if let Some(slot) = self.slot(name) {
            return slot;
        }
        let profile = self.profiles.hold(Profile::default());
        let size = self.sizes.hold(Size::default());
        let c = &mut self.columns;
        let slot = c.name.len();
        c.grow(slot);
        c.name.push(name);
        let folded = super::request::mix(hash(name), 0) >> 32;
        c.name_hash.push(u32::try_from(folded).unwrap_or_default());
        c.profile.push(profile);
        c.labels.push(Box::default());
        c.facts.push(0);
        c.size.push(size);
        c.used.push([0; 3]);
        c.servers.push(0);
        if slot.is_multiple_of(ROW) {
            for column in c.free.iter_mut().chain([&mut c.busy, &mut c.failed]) {
                column.reserve_exact(ROW);
                column.resize(slot + ROW, 0);
            }
        }
        let names = &self.columns.name;
        let id = u32::try_from(slot).unwrap_or(NONE);
        self.index
            .insert_unique(hash(name), id, |&s| hash(names.get(s as usize)));
        slot
    }

    /// Takes in a host, new or changed. Says whether anything changed.
    pub fn set_host(&mut self, facts: HostFacts) -> bool {
        let slot = self.slot_or_new(&facts.name);
        let digest = digest(&facts);
        if self.registered.has(slot) && self.columns.facts[slot] == digest {
            return false;
        }
        self.forget(slot);
        let id = u32::try_from(slot).unwrap_or(NONE);
        self.registered.set(slot, true);
        let problem = facts.profile.problem.is_some();
        let up = facts.ready && facts.schedulable && !facts.maintenance && !problem;
        self.up.set(slot, up);
        self.ready.set(slot, facts.ready);
        self.maintenance.set(slot, facts.maintenance);
        self.with_pci.set(slot, !facts.profile.devices.is_empty());
        let multiplies = !facts.profile.multipliers.is_empty();
        self.multiplying.set(slot, multiplies);
        let mut taints = facts.profile.taints.iter();
        let discourages = taints.any(|t| t.effect == "PreferNoSchedule");
        self.discouraging.set(slot, discourages);
        for image in facts.images {
            self.images.entry(image).or_default().set(slot, true);
        }
        if let Some(address) = facts.address {
            self.addresses.insert(id, address);
        }
        if !facts.metrics.is_empty() {
            self.metrics.insert(id, facts.metrics);
        }
        let isolates = |p: &Profile| p.aggregates.iter().any(|a| !a.namespaces.is_empty());
        self.isolating += usize::from(isolates(&facts.profile));
        let labels = facts.labels.into_iter();
        let labels = labels.map(|(key, value)| self.labels.hold(key, &value));
        self.columns.labels[slot] = labels.collect();
        self.profiles.release(self.columns.profile[slot]);
        self.columns.profile[slot] = self.profiles.hold(facts.profile);
        let c = &mut self.columns;
        c.facts[slot] = digest;
        // Below zero, so that a multiplier of BuildFailureWeigher means what it does in Nova.
        c.failed[slot] = facts.failed_builds.saturating_neg();
        let given = facts.capacity.given(facts.reserved, facts.ratios);
        self.sizes.release(c.size[slot]);
        c.size[slot] = self.sizes.hold(Size {
            capacity: parts(facts.capacity).map(clamp),
            reserved: parts(facts.reserved).map(clamp),
            limit: parts(given).map(clamp),
            overhead: clamp(facts.overhead_mib),
        });
        self.refresh(slot);
        true
    }

    /// Takes back what [`Self::set_host`] entered.
    fn forget(&mut self, slot: usize) {
        if !self.registered.has(slot) {
            return;
        }
        let id = u32::try_from(slot).unwrap_or(NONE);
        for bits in [
            &mut self.registered,
            &mut self.up,
            &mut self.ready,
            &mut self.maintenance,
            &mut self.with_pci,
            &mut self.discouraging,
            &mut self.multiplying,
        ] {
            bits.set(slot, false);
        }
        self.images.retain(|_, hosts| {
            hosts.set(slot, false);
            !hosts.is_empty()
        });
        self.addresses.remove(&id);
        self.metrics.remove(&id);
        for pair in std::mem::take(&mut self.columns.labels[slot]) {
            self.labels.release(pair);
        }
        let old = self.columns.profile[slot];
        if let Some(p) = self.profiles.get(old) {
            let isolates = p.aggregates.iter().any(|a| !a.namespaces.is_empty());
            self.isolating -= usize::from(isolates);
        }
    }

    /// Forgets a host; its Servers stay in the ledger.
    pub fn remove_host(&mut self, name: &str) {
        if let Some(slot) = self.slot(name) {
            self.forget(slot);
            self.note(slot);
        }
    }

    fn size(&self, slot: usize) -> &Size {
        static NONE: Size = Size {
            capacity: [0; 3],
            reserved: [0; 3],
            limit: [0; 3],
            overhead: 0,
        };
        self.sizes.get(self.columns.size[slot]).unwrap_or(&NONE)
    }

    fn refresh(&mut self, slot: usize) {
        let Size {
            limit, overhead, ..
        } = *self.size(slot);
        let c = &mut self.columns;
        let overhead = i64::from(overhead) * (i64::from(c.servers[slot]) + 1);
        for (part, limit) in limit.into_iter().enumerate() {
            let kept = if part == 1 { overhead } else { 0 };
            let free = i64::from(limit).saturating_sub(c.used[slot][part]);
            c.free[part][slot] = clamp(free.saturating_sub(kept));
        }
        self.note(slot);
    }
}

#[cfg(test)]
mod tests;
