//! The ledger: one allocation for each Server.

use sha2::Digest;

use super::{ExtendedUsage, NONE, Snapshot, parts};
use crate::placement::facts::{Allocation, ResourceRequest};
use pileus_api::common::Claim;

/// An allocation in compact form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    host: u32,
    resources: u32,
    group: u32,
    spread: u32,
    numa_nodes: [u8; 4],
    busy: bool,
    preempted: bool,
}

/// The key of a Server: its uid, or a hash of any other text.
fn entry_key(uid: &str) -> u128 {
    uuid::Uuid::try_parse(uid).map_or_else(
        |_| {
            let digest = sha2::Sha256::digest(uid.as_bytes());
            digest[..16].iter().fold(0, |n, b| n << 8 | u128::from(*b))
        },
        |uuid| uuid.as_u128(),
    )
}

impl Snapshot {
    /// The host that a Server is allocated on.
    #[must_use]
    pub fn placed_on(&self, server: &str) -> Option<&str> {
        let entry = self.entries.get(&entry_key(server))?;
        Some(self.columns.name.get(entry.host as usize))
    }

    /// The resources that a Server uses.
    pub(crate) fn resources_of(&self, server: &str) -> Option<&ResourceRequest> {
        let entry = self.entries.get(&entry_key(server))?;
        self.resource_requests.get(entry.resources)
    }

    /// Slots with members of a group or spread set, and their number.
    pub(crate) fn members(&self, set: &str) -> &[(u32, u32)] {
        self.names
            .id(&set.to_owned())
            .and_then(|id| self.members.get(&id))
            .map_or(&[], Vec::as_slice)
    }

    /// The slot that a Server is on.
    pub(crate) fn slot_of(&self, server: &str) -> Option<u32> {
        self.entries.get(&entry_key(server)).map(|e| e.host)
    }

    /// Allocates only vCPUs, memory and disk; see [`Self::allocate`].
    pub fn allocate_claim(&mut self, server: &str, host: &str, claim: Claim) -> bool {
        let resources = ResourceRequest {
            claim,
            ..ResourceRequest::default()
        };
        let host = host.to_owned();
        let allocation = Allocation {
            host,
            resources,
            ..Allocation::default()
        };
        self.allocate(server, allocation)
    }

    /// Sets the allocation of a Server. Returns whether it replaced another one, so that
    /// resources may have become free.
    pub fn allocate(&mut self, server: &str, allocation: Allocation) -> bool {
        let slot = self.slot_or_new(&allocation.host);
        let mut name = |n: Option<String>| n.map_or(NONE, |n| self.names.intern(n));
        let (group, spread) = (name(allocation.group), name(allocation.spread));
        let entry = Entry {
            host: u32::try_from(slot).unwrap_or(NONE),
            resources: self.resource_requests.intern(allocation.resources),
            group,
            spread,
            numa_nodes: allocation.numa_nodes,
            busy: allocation.busy,
            preempted: allocation.preempted,
        };
        let before = self.entries.insert(entry_key(server), entry);
        if let Some(before) = before {
            if before == entry {
                self.release_interned(&entry);
                return false;
            }
            self.apply(&before, -1);
            self.release_interned(&before);
        }
        self.apply(&entry, 1);
        before.is_some()
    }

    /// Removes the allocation of a Server. Returns whether there was one.
    pub fn release(&mut self, server: &str) -> bool {
        let Some(entry) = self.entries.remove(&entry_key(server)) else {
            return false;
        };
        self.apply(&entry, -1);
        self.release_interned(&entry);
        true
    }

    fn release_interned(&mut self, entry: &Entry) {
        self.resource_requests.release(entry.resources);
        for name in [entry.group, entry.spread] {
            if name != NONE {
                self.names.release(name);
            }
        }
    }

    /// Adds an entry to the usage of its host, or subtracts it. Wrapping, because both must undo
    /// each other even with absurd values.
    fn apply(&mut self, entry: &Entry, sign: i64) {
        let slot = entry.host as usize;
        let one = if sign > 0 { 1 } else { -1 };
        let c = &mut self.columns;
        c.servers[slot] += if entry.preempted { 0 } else { one };
        c.busy[slot] += if entry.busy { one } else { 0 };
        if let Some(resources) = self.resource_requests.get(entry.resources) {
            for (used, part) in c.used[slot].iter_mut().zip(parts(resources.claim)) {
                *used = used.wrapping_add(part.wrapping_mul(sign));
            }
            let plain = resources.classes.is_empty()
                && resources.devices.is_empty()
                && resources.numa.is_none();
            if !plain {
                let extended = self.extended.entry(entry.host).or_default();
                extended.add(resources, entry.numa_nodes, sign);
                if *extended == ExtendedUsage::default() {
                    self.extended.remove(&entry.host);
                }
            }
        }
        // If group and spread set are the same, the Server counts twice.
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
}
