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

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use hashbrown::HashTable;
use sha2::Digest;

use super::bits::{Bits, ROW};
use super::facts::{Holding, HostFacts, Profile, Shape};
use super::intern::Interner;
use super::request::hash;
use crate::api::common::Claim;

/// "None" where a number of an interned value stands.
const NONE: u32 = u32::MAX;

/// One line of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    host: u32,
    shape: u32,
    group: u32,
    spread: u32,
    cells: [u8; 4],
    busy: bool,
}

/// What is used of a host beside processors, memory and disk; only for hosts where
/// anything is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// Other resource classes.
    pub resources: BTreeMap<String, i64>,
    /// PCI devices.
    pub pci: BTreeMap<String, i64>,
    /// Of each NUMA node: pinned processors, memory in MiB without huge pages.
    pub cells: BTreeMap<u8, (i64, i64)>,
    /// Huge pages of a NUMA node, by size in KiB.
    pub pages: BTreeMap<(u8, i64), i64>,
}

/// Columns, one entry for each slot; those that whole rows are scanned of are padded.
#[derive(Clone, Debug, Default)]
struct Columns {
    name: Vec<Box<str>>,
    name_hash: Vec<u32>,
    profile: Vec<u32>,
    labels: Vec<Box<[u32]>>,
    facts: Vec<u64>,
    capacity: Vec<[i32; 3]>,
    /// Placement's (total − reserved) × allocation ratio.
    limit: Vec<[i32; 3]>,
    used: Vec<[i64; 3]>,
    overhead: Vec<i32>,
    servers: Vec<i32>,
    free: [Vec<i32>; 3],
    busy: Vec<i32>,
    failed: Vec<i32>,
}

impl Columns {
    /// Makes room by an eighth, where a vector by itself would double: hosts come slowly,
    /// and memory is counted by them.
    fn grow(&mut self, slot: usize) {
        if slot < self.name.capacity() {
            return;
        }
        let more = slot / 8 + ROW;
        self.name.reserve_exact(more);
        self.name_hash.reserve_exact(more);
        self.profile.reserve_exact(more);
        self.labels.reserve_exact(more);
        self.facts.reserve_exact(more);
        self.capacity.reserve_exact(more);
        self.limit.reserve_exact(more);
        self.used.reserve_exact(more);
        self.overhead.reserve_exact(more);
        self.servers.reserve_exact(more);
    }
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
    pairs: Interner<(String, String)>,
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
}

/// A host as filters see it.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    snapshot: &'a Snapshot,
    slot: usize,
}

/// A Server's number: its uid, or a hash of what is not one.
fn number(uid: &str) -> u128 {
    uuid::Uuid::try_parse(uid).map_or_else(
        |_| {
            let digest = sha2::Sha256::digest(uid.as_bytes());
            digest[..16].iter().fold(0, |n, b| n << 8 | u128::from(*b))
        },
        |uuid| uuid.as_u128(),
    )
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

    /// Where a Server is placed.
    #[must_use]
    pub fn placed_on(&self, server: &str) -> Option<&str> {
        let entry = self.entries.get(&number(server))?;
        Some(&self.columns.name[entry.host as usize])
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

    /// Slots that hold members of a group or spread set, with how many.
    pub(super) fn members(&self, set: &str) -> &[(u32, u32)] {
        self.names
            .id(&set.to_owned())
            .and_then(|id| self.members.get(&id))
            .map_or(&[], Vec::as_slice)
    }

    /// The slot that a Server is on.
    pub(super) fn slot_of(&self, server: &str) -> Option<u32> {
        self.entries.get(&number(server)).map(|e| e.host)
    }

    /// The number of a label, if any host has it.
    pub(super) fn pair(&self, key: &str, value: &str) -> Option<u32> {
        self.pairs.id(&(key.to_owned(), value.to_owned()))
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
            .find(hash(name), |&slot| &*names[slot as usize] == name)?;
        Some(*found as usize)
    }

    fn slot_or_new(&mut self, name: &str) -> usize {
        if let Some(slot) = self.slot(name) {
            return slot;
        }
        let profile = self.profiles.hold(Profile::default());
        let c = &mut self.columns;
        let slot = c.name.len();
        c.grow(slot);
        c.name.push(name.into());
        let folded = super::request::mix(hash(name), 0) >> 32;
        c.name_hash.push(u32::try_from(folded).unwrap_or_default());
        c.profile.push(profile);
        c.labels.push(Box::default());
        c.facts.push(0);
        c.capacity.push([0; 3]);
        c.limit.push([0; 3]);
        c.used.push([0; 3]);
        c.overhead.push(0);
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
            .insert_unique(hash(name), id, |&s| hash(&names[s as usize]));
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
        self.with_pci.set(slot, !facts.profile.pci.is_empty());
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
        let labels = facts.labels.into_iter().map(|l| self.pairs.hold(l));
        self.columns.labels[slot] = labels.collect();
        self.profiles.release(self.columns.profile[slot]);
        self.columns.profile[slot] = self.profiles.hold(facts.profile);
        let c = &mut self.columns;
        c.facts[slot] = digest;
        // Below zero, so that a multiplier of BuildFailureWeigher means what it does in Nova.
        c.failed[slot] = facts.failed_builds.saturating_neg();
        let given = facts.capacity.given(facts.reserved, facts.ratios);
        c.capacity[slot] = parts(facts.capacity).map(clamp);
        c.limit[slot] = parts(given).map(clamp);
        c.overhead[slot] = clamp(facts.overhead_mib);
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
            self.pairs.release(pair);
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

    /// Enters a placement of three figures; see [`Self::hold`].
    pub fn claim(&mut self, server: &str, host: &str, claim: Claim) -> bool {
        let shape = Shape {
            claim,
            ..Shape::default()
        };
        let host = host.to_owned();
        let holding = Holding {
            host,
            shape,
            ..Holding::default()
        };
        self.hold(server, holding)
    }

    /// Enters what a Server holds, in place of what it held before. Says whether that
    /// made room anywhere.
    pub fn hold(&mut self, server: &str, holding: Holding) -> bool {
        let slot = self.slot_or_new(&holding.host);
        let mut name = |n: Option<String>| n.map_or(NONE, |n| self.names.hold(n));
        let (group, spread) = (name(holding.group), name(holding.spread));
        let entry = Entry {
            host: u32::try_from(slot).unwrap_or(NONE),
            shape: self.shapes.hold(holding.shape),
            group,
            spread,
            cells: holding.cells,
            busy: holding.busy,
        };
        let before = self.entries.insert(number(server), entry);
        if let Some(before) = before {
            if before == entry {
                self.let_go(&entry);
                return false;
            }
            self.apply(&before, -1);
            self.let_go(&before);
        }
        self.apply(&entry, 1);
        before.is_some()
    }

    /// Strikes a Server from the ledger. Says whether it was there.
    pub fn release(&mut self, server: &str) -> bool {
        let Some(entry) = self.entries.remove(&number(server)) else {
            return false;
        };
        self.apply(&entry, -1);
        self.let_go(&entry);
        true
    }

    fn let_go(&mut self, entry: &Entry) {
        self.shapes.release(entry.shape);
        for name in [entry.group, entry.spread] {
            if name != NONE {
                self.names.release(name);
            }
        }
    }

    /// Adds an entry to its host's usage, or takes it off. Wrapping, because adding and
    /// subtracting must undo each other whatever nonsense an object claims.
    fn apply(&mut self, entry: &Entry, sign: i64) {
        let slot = entry.host as usize;
        let one = if sign > 0 { 1 } else { -1 };
        let c = &mut self.columns;
        c.servers[slot] += one;
        c.busy[slot] += if entry.busy { one } else { 0 };
        if let Some(shape) = self.shapes.get(entry.shape) {
            for (used, part) in c.used[slot].iter_mut().zip(parts(shape.claim)) {
                *used = used.wrapping_add(part.wrapping_mul(sign));
            }
            let plain = shape.resources.is_empty() && shape.pci.is_empty() && shape.numa.is_none();
            if !plain {
                let extended = self.extended.entry(entry.host).or_default();
                extended.add(shape, entry.cells, sign);
                if *extended == Extended::default() {
                    self.extended.remove(&entry.host);
                }
            }
        }
        // One set may be both: a Server is a member of it once for each use.
        for set in [entry.group, entry.spread] {
            if set != NONE {
                self.count(set, entry.host, sign > 0);
            }
        }
        self.refresh(slot);
    }

    fn count(&mut self, set: u32, host: u32, more: bool) {
        let members = self.members.entry(set).or_default();
        match members.binary_search_by_key(&host, |(h, _)| *h) {
            Ok(at) if more => members[at].1 += 1,
            Ok(at) if members[at].1 > 1 => members[at].1 -= 1,
            Ok(at) => drop(members.remove(at)),
            Err(at) if more => members.insert(at, (host, 1)),
            Err(_) => {}
        }
        if members.is_empty() {
            self.members.remove(&set);
        }
    }

    fn refresh(&mut self, slot: usize) {
        let c = &mut self.columns;
        let overhead = i64::from(c.overhead[slot]) * (i64::from(c.servers[slot]) + 1);
        for part in 0..3 {
            let kept = if part == 1 { overhead } else { 0 };
            let free = i64::from(c.limit[slot][part]).saturating_sub(c.used[slot][part]);
            c.free[part][slot] = clamp(free.saturating_sub(kept));
        }
        self.note(slot);
    }

    /// Bytes that hosts and Servers take, capacity of all containers counted:
    /// (hosts, Servers).
    #[must_use]
    pub fn bytes(&self) -> (usize, usize) {
        let c = &self.columns;
        let row = size_of::<Box<str>>() + size_of::<Box<[u32]>>() + 4 + 4 + 8 + 12 + 12 + 24 + 8;
        let heap: usize = c.name.iter().map(|n| n.len().next_multiple_of(16)).sum();
        let labels: usize = c.labels.iter().map(|l| l.len() * 4).sum();
        let scanned = (3 + 2) * 4 * c.busy.capacity();
        let images: usize = self.images.values().map(Bits::bytes).sum();
        let index = self.index.capacity() * 8 / 7 * 5;
        let hosts = c.name.capacity() * row
            + heap
            + labels
            + scanned
            + images
            + index
            + self.journal.capacity() * 4;
        let lines = self.entries.capacity() * 8 / 7 * (size_of::<(u128, Entry)>() + 1);
        let sets: usize = self.members.values().map(|m| m.capacity() * 8 + 40).sum();
        (hosts, lines + sets)
    }
}

impl Extended {
    fn add(&mut self, shape: &Shape, cells: [u8; 4], sign: i64) {
        fn enter<K: Ord>(map: &mut BTreeMap<K, i64>, key: K, by: i64) {
            let sum = map.get(&key).copied().unwrap_or_default().wrapping_add(by);
            if sum == 0 {
                map.remove(&key);
            } else {
                map.insert(key, sum);
            }
        }
        for (class, amount) in &shape.resources {
            enter(
                &mut self.resources,
                class.clone(),
                amount.wrapping_mul(sign),
            );
        }
        for (device, amount) in &shape.pci {
            enter(&mut self.pci, device.clone(), amount.wrapping_mul(sign));
        }
        let Some(numa) = &shape.numa else { return };
        for (&(vcpus, mib), cell) in numa.cells.iter().zip(cells) {
            let (cpus, memory) = self.cells.entry(cell).or_default();
            if numa.pinned {
                *cpus = cpus.wrapping_add(vcpus.wrapping_mul(sign));
            }
            if let Some(page) = numa.page_kib {
                let pages = pages(mib, page);
                enter(&mut self.pages, (cell, page), pages.wrapping_mul(sign));
            } else {
                *memory = memory.wrapping_add(mib.wrapping_mul(sign));
            }
            if self.cells.get(&cell) == Some(&(0, 0)) {
                self.cells.remove(&cell);
            }
        }
    }
}

/// How many huge pages of `page_kib` hold `mib` of memory.
#[must_use]
pub fn pages(mib: i64, page_kib: i64) -> i64 {
    let page = page_kib.max(1);
    mib.saturating_mul(1024).saturating_add(page - 1) / page
}

impl<'a> Host<'a> {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'a str {
        &self.snapshot.columns.name[self.slot]
    }

    /// Its slot.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot
    }

    pub(super) fn profile_id(self) -> u32 {
        self.snapshot.columns.profile[self.slot]
    }

    /// What it has in common with others.
    #[must_use]
    pub fn profile(self) -> &'a Profile {
        static NOTHING: std::sync::LazyLock<Profile> = std::sync::LazyLock::new(Profile::default);
        let id = self.profile_id();
        self.snapshot.profiles.get(id).unwrap_or(&NOTHING)
    }

    /// Whether it takes new Servers.
    #[must_use]
    pub fn is_up(self) -> bool {
        self.snapshot.up.has(self.slot)
    }

    /// Whether its Ready condition is True.
    #[must_use]
    pub fn is_ready(self) -> bool {
        self.snapshot.ready.has(self.slot)
    }

    /// Whether it is in maintenance.
    #[must_use]
    pub fn in_maintenance(self) -> bool {
        self.snapshot.maintenance.has(self.slot)
    }

    /// Processors (0), memory in MiB less QEMU's own for one more guest (1) or disk in
    /// GiB (2) that another Server could have.
    #[must_use]
    pub fn free(self, part: usize) -> i64 {
        i64::from(self.snapshot.columns.free[part][self.slot])
    }

    /// The same, but never more than the host has: nothing is overcommitted against
    /// itself.
    #[must_use]
    pub fn available(self, part: usize) -> i64 {
        self.free(part).min(self.capacity(part))
    }

    /// Processors, memory or disk in all.
    #[must_use]
    pub fn capacity(self, part: usize) -> i64 {
        i64::from(self.snapshot.columns.capacity[self.slot][part])
    }

    /// Processors, memory or disk that are given out at most.
    #[must_use]
    pub fn limit(self, part: usize) -> i64 {
        i64::from(self.snapshot.columns.limit[self.slot][part])
    }

    /// Number of Servers on it.
    #[must_use]
    pub fn servers(self) -> i64 {
        i64::from(self.snapshot.columns.servers[self.slot])
    }

    /// Number of Servers on it that are being built, moved or resized.
    #[must_use]
    pub fn busy(self) -> i64 {
        i64::from(self.snapshot.columns.busy[self.slot])
    }

    /// Its address.
    #[must_use]
    pub fn address(self) -> Option<std::net::IpAddr> {
        let slot = u32::try_from(self.slot).ok()?;
        self.snapshot.addresses.get(&slot).copied()
    }

    /// What else is used of it.
    #[must_use]
    pub fn extended(self) -> Option<&'a Extended> {
        let slot = u32::try_from(self.slot).ok()?;
        self.snapshot.extended.get(&slot)
    }

    /// Its labels by number.
    #[must_use]
    pub fn label_ids(self) -> &'a [u32] {
        &self.snapshot.columns.labels[self.slot]
    }

    /// The value of one of its labels.
    #[must_use]
    pub fn label(self, key: &str) -> Option<&'a str> {
        let mut pairs = self.label_ids().iter();
        pairs.find_map(|id| {
            let (k, v) = self.snapshot.pairs.get(*id)?;
            (k == key).then_some(v.as_str())
        })
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
