//! The data that decisions are made from: hosts in columns, and the ledger of allocations.
//!
//! Usage is never stored in the API but derived from placements, so that allocations cannot
//! leak: a snapshot that was updated in any order equals one that was built from scratch. A
//! placement on a host that is not registered (not yet or no longer) has a slot as well and
//! counts as soon as the host is registered.
//!
//! Each change of a host is recorded in a journal, so that cached filter results are updated
//! only for the hosts that have changed.
//!
//! | part | what it does |
//! |---|---|
//! | this file | hosts and their free resources |
//! | `ledger` | allocations of Servers |
//! | `extended` | usage of devices, NUMA nodes and other resource classes |
//! | `view` | read access to one host |

mod extended;
mod ledger;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use hashbrown::HashTable;

use crate::placement::facts::{HostFacts, Profile, ResourceRequest};
use crate::placement::host_set::{HostSet, ROW};
use crate::placement::intern::Interner;
use crate::placement::labels::Labels;
use crate::placement::request::hash;
pub use extended::{ExtendedUsage, pages};
use ledger::Entry;
use pileus_api::common::Claim;
pub use view::Host;

/// No interned value.
const NONE: u32 = u32::MAX;

/// Columns with one entry for each slot; those that are read in whole rows are padded.
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
    /// Grows by a sixteenth instead of doubling: hosts are added slowly, and these columns are
    /// most of the memory.
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

/// The names of all slots in one string.
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

/// Sizes, which hosts of one model share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Size {
    capacity: [i32; 3],
    /// What is kept back for the host itself.
    reserved: [i32; 3],
    /// Placement's (total − reserved) × allocation ratio.
    limit: [i32; 3],
    /// QEMU's memory overhead for each guest, in MiB.
    overhead: i32,
}

/// Hosts and the ledger.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    columns: Columns,
    index: HashTable<u32>,
    registered: HostSet,
    /// Registered, ready, schedulable and not in maintenance.
    up: HostSet,
    ready: HostSet,
    maintenance: HostSet,
    with_pci: HostSet,
    /// Hosts with a taint PreferNoSchedule.
    prefer_no_schedule: HostSet,
    profiles: Interner<Profile>,
    sizes: Interner<Size>,
    labels: Labels,
    resource_requests: Interner<ResourceRequest>,
    names: Interner<String>,
    images: HashMap<String, HostSet>,
    addresses: HashMap<u32, std::net::IpAddr>,
    metrics: HashMap<u32, BTreeMap<String, i64>>,
    extended: HashMap<u32, ExtendedUsage>,
    entries: HashMap<u128, Entry>,
    /// Members of each ServerGroup or spread set: number by slot.
    members: HashMap<u32, Vec<(u32, u32)>>,
    journal: Vec<u32>,
    journal_start: u64,
    /// Number of hosts that only some namespaces may use.
    tenant_isolated: usize,
    /// Hosts with multipliers set by aggregates.
    with_multipliers: HostSet,
}

fn clamp(value: i64) -> i32 {
    i32::try_from(value.clamp(i64::from(i32::MIN), i64::from(i32::MAX))).unwrap_or(i32::MAX)
}

fn parts(claim: Claim) -> [i64; 3] {
    [claim.vcpus, claim.memory_mib, claim.disk_gib]
}

fn digest(facts: &HostFacts) -> u64 {
    // This hasher has a fixed key, so that results are the same in every run.
    let mut hasher = DefaultHasher::new();
    facts.hash(&mut hasher);
    hasher.finish()
}

impl Snapshot {
    /// The registered hosts.
    pub fn hosts(&self) -> impl Iterator<Item = Host<'_>> {
        self.registered.iter().map(|slot| self.host_at(slot))
    }

    /// One registered host.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<Host<'_>> {
        let slot = self.slot(name)?;
        self.registered.contains(slot).then(|| self.host_at(slot))
    }

    pub(crate) fn host_at(&self, slot: usize) -> Host<'_> {
        Host {
            snapshot: self,
            slot,
        }
    }

    pub(crate) fn registered(&self) -> &HostSet {
        &self.registered
    }

    pub(crate) fn with_pci(&self) -> &HostSet {
        &self.with_pci
    }

    pub(crate) fn prefer_no_schedule(&self) -> &HostSet {
        &self.prefer_no_schedule
    }

    pub(crate) fn with_multipliers(&self) -> &HostSet {
        &self.with_multipliers
    }

    pub(crate) fn has_tenant_isolation(&self) -> bool {
        self.tenant_isolated > 0
    }

    pub(crate) fn profile_id_bound(&self) -> usize {
        self.profiles.id_bound()
    }

    /// Free vCPUs, memory or disk of all slots, padded to whole rows.
    pub(crate) fn free_column(&self, part: usize) -> &[i32] {
        &self.columns.free[part]
    }

    pub(crate) fn busy_column(&self) -> &[i32] {
        &self.columns.busy
    }

    pub(crate) fn failed_column(&self) -> &[i32] {
        &self.columns.failed
    }

    pub(crate) fn image(&self, digest: &str) -> Option<&HostSet> {
        self.images.get(digest)
    }

    pub(crate) fn metrics(&self) -> &HashMap<u32, BTreeMap<String, i64>> {
        &self.metrics
    }

    pub(crate) fn name_hash(&self, slot: usize) -> u64 {
        u64::from(self.columns.name_hash[slot])
    }

    /// The id of a label, if any host has it.
    pub(crate) fn label_id(&self, key: &str, value: &str) -> Option<u32> {
        self.labels.id(key, value)
    }

    /// Labels of all hosts.
    pub(crate) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The end of the journal, and the slots changed since `position`; `None` if the journal does
    /// not reach back that far.
    pub(crate) fn changes_since(&self, position: u64) -> (u64, Option<&[u32]>) {
        let end = self.journal_start + self.journal.len() as u64;
        let from = position.checked_sub(self.journal_start);
        let from = from.and_then(|n| usize::try_from(n).ok());
        (end, from.and_then(|n| self.journal.get(n..)))
    }

    fn record_change(&mut self, slot: usize) {
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
        let profile = self.profiles.intern(Profile::default());
        let size = self.sizes.intern(Size::default());
        let c = &mut self.columns;
        let slot = c.name.len();
        c.grow(slot);
        c.name.push(name);
        let name_hash = crate::placement::request::mix(hash(name), 0) >> 32;
        c.name_hash
            .push(u32::try_from(name_hash).unwrap_or_default());
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

    /// Adds or updates a host. Returns whether anything changed.
    pub fn set_host(&mut self, facts: HostFacts) -> bool {
        let slot = self.slot_or_new(&facts.name);
        let digest = digest(&facts);
        if self.registered.contains(slot) && self.columns.facts[slot] == digest {
            return false;
        }
        self.clear_host(slot);
        let id = u32::try_from(slot).unwrap_or(NONE);
        self.registered.set(slot, true);
        let problem = facts.profile.problem.is_some();
        let up = facts.ready && facts.schedulable && !facts.maintenance && !problem;
        self.up.set(slot, up);
        self.ready.set(slot, facts.ready);
        self.maintenance.set(slot, facts.maintenance);
        self.with_pci.set(slot, !facts.profile.devices.is_empty());
        let multiplies = !facts.profile.multipliers.is_empty();
        self.with_multipliers.set(slot, multiplies);
        let mut taints = facts.profile.taints.iter();
        let discourages = taints.any(|t| t.effect == "PreferNoSchedule");
        self.prefer_no_schedule.set(slot, discourages);
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
        self.tenant_isolated += usize::from(isolates(&facts.profile));
        let labels = facts.labels.into_iter();
        let labels = labels.map(|(key, value)| self.labels.intern(key, &value));
        self.columns.labels[slot] = labels.collect();
        self.profiles.release(self.columns.profile[slot]);
        self.columns.profile[slot] = self.profiles.intern(facts.profile);
        let c = &mut self.columns;
        c.facts[slot] = digest;
        // Negative, so that the multiplier of BuildFailureWeigher has the same sign as in Nova.
        c.failed[slot] = facts.failed_builds.saturating_neg();
        let given = facts.capacity.given(facts.reserved, facts.ratios);
        self.sizes.release(c.size[slot]);
        c.size[slot] = self.sizes.intern(Size {
            capacity: parts(facts.capacity).map(clamp),
            reserved: parts(facts.reserved).map(clamp),
            limit: parts(given).map(clamp),
            overhead: clamp(facts.overhead_mib),
        });
        self.refresh(slot);
        true
    }

    /// Undoes [`Self::set_host`].
    fn clear_host(&mut self, slot: usize) {
        if !self.registered.contains(slot) {
            return;
        }
        let id = u32::try_from(slot).unwrap_or(NONE);
        for bits in [
            &mut self.registered,
            &mut self.up,
            &mut self.ready,
            &mut self.maintenance,
            &mut self.with_pci,
            &mut self.prefer_no_schedule,
            &mut self.with_multipliers,
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
            self.tenant_isolated -= usize::from(isolates);
        }
    }

    /// Removes a host; the allocations on it stay in the ledger.
    pub fn remove_host(&mut self, name: &str) {
        if let Some(slot) = self.slot(name) {
            self.clear_host(slot);
            self.record_change(slot);
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
            let overhead = if part == 1 { overhead } else { 0 };
            let free = i64::from(limit).saturating_sub(c.used[slot][part]);
            c.free[part][slot] = clamp(free.saturating_sub(overhead));
        }
        self.record_change(slot);
    }
}

#[cfg(test)]
mod tests;
