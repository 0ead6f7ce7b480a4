//! A host as filters, weighers and questions see it.

use super::{Extended, Snapshot};
use crate::facts::Profile;
use pileus_api::common::{Claim, Exhausted};

/// A host as filters see it.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) slot: usize,
}

impl<'a> Host<'a> {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'a str {
        self.snapshot.columns.name.get(self.slot)
    }

    /// Its slot.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot
    }

    pub(crate) fn profile_id(self) -> u32 {
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
        i64::from(self.snapshot.size(self.slot).capacity[part])
    }

    /// Of which of processors, memory and disk its reservation leaves nothing.
    #[must_use]
    pub fn exhausted(self) -> Vec<Exhausted> {
        let size = self.snapshot.size(self.slot);
        let claim = |[vcpus, memory_mib, disk_gib]: [i32; 3]| Claim {
            vcpus: vcpus.into(),
            memory_mib: memory_mib.into(),
            disk_gib: disk_gib.into(),
        };
        claim(size.reserved).exhausts(claim(size.capacity))
    }

    /// Processors, memory or disk that are given out at most.
    #[must_use]
    pub fn limit(self, part: usize) -> i64 {
        i64::from(self.snapshot.size(self.slot).limit[part])
    }

    /// QEMU's own memory for each guest, in MiB.
    #[must_use]
    pub fn overhead(self) -> i64 {
        i64::from(self.snapshot.size(self.slot).overhead)
    }

    /// Number of Servers on it, without those that are off for others.
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
        pairs.find_map(|id| self.snapshot.labels.value(*id, key))
    }
}
