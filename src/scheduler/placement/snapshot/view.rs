//! Read access to one host, for filters, weighers and questions.

use super::{ExtendedUsage, Snapshot};
use crate::placement::facts::Profile;
use pileus_api::common::{Claim, Exhausted};

/// One host of a snapshot.
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

    /// What it has in common with other hosts.
    #[must_use]
    pub fn profile(self) -> &'a Profile {
        static NOTHING: std::sync::LazyLock<Profile> = std::sync::LazyLock::new(Profile::default);
        let id = self.profile_id();
        self.snapshot.profiles.get(id).unwrap_or(&NOTHING)
    }

    /// Whether new Servers may be placed on it.
    #[must_use]
    pub fn is_up(self) -> bool {
        self.snapshot.up.contains(self.slot)
    }

    /// Whether its Ready condition is True.
    #[must_use]
    pub fn is_ready(self) -> bool {
        self.snapshot.ready.contains(self.slot)
    }

    /// Whether it is in maintenance.
    #[must_use]
    pub fn in_maintenance(self) -> bool {
        self.snapshot.maintenance.contains(self.slot)
    }

    /// Free vCPUs (0), memory in MiB less QEMU's overhead for one more guest (1) or disk in GiB
    /// (2).
    #[must_use]
    pub fn free(self, part: usize) -> i64 {
        i64::from(self.snapshot.columns.free[part][self.slot])
    }

    /// The same, but at most the host's capacity: one Server is never overcommitted against
    /// itself.
    #[must_use]
    pub fn available(self, part: usize) -> i64 {
        self.free(part).min(self.capacity(part))
    }

    /// Total vCPUs, memory or disk.
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

    /// vCPUs, memory or disk that may be allocated: (total − reserved) × ratio.
    #[must_use]
    pub fn limit(self, part: usize) -> i64 {
        i64::from(self.snapshot.size(self.slot).limit[part])
    }

    /// QEMU's memory overhead for each guest, in MiB.
    #[must_use]
    pub fn overhead(self) -> i64 {
        i64::from(self.snapshot.size(self.slot).overhead)
    }

    /// Number of Servers on it, without those stopped for Servers of higher priority.
    #[must_use]
    pub fn servers(self) -> i64 {
        i64::from(self.snapshot.columns.servers[self.slot])
    }

    /// Number of Servers on it that are being built, migrated or resized.
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

    /// Usage of devices, NUMA nodes and other resource classes, if any.
    #[must_use]
    pub fn extended(self) -> Option<&'a ExtendedUsage> {
        let slot = u32::try_from(self.slot).ok()?;
        self.snapshot.extended.get(&slot)
    }

    /// Ids of its labels.
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
