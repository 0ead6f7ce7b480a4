//! Usage of a host beyond vCPUs, memory and disk.

use std::collections::BTreeMap;

use crate::placement::facts::ResourceRequest;

/// Usage of a host beyond vCPUs, memory and disk; stored only for hosts that have any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtendedUsage {
    /// Amounts of other resource classes.
    pub classes: BTreeMap<String, i64>,
    /// Used PCI devices, by address.
    pub devices: BTreeMap<String, i64>,
    /// By NUMA node: pinned CPUs, and memory in MiB without huge pages.
    pub numa_nodes: BTreeMap<u8, (i64, i64)>,
    /// Huge pages by NUMA node and size in KiB.
    pub pages: BTreeMap<(u8, i64), i64>,
}

impl ExtendedUsage {
    pub(super) fn add(&mut self, resources: &ResourceRequest, numa_nodes: [u8; 4], sign: i64) {
        fn add_to<K: Ord>(map: &mut BTreeMap<K, i64>, key: K, by: i64) {
            let sum = map.get(&key).copied().unwrap_or_default().wrapping_add(by);
            if sum == 0 {
                map.remove(&key);
            } else {
                map.insert(key, sum);
            }
        }
        for (class, amount) in &resources.classes {
            add_to(&mut self.classes, class.clone(), amount.wrapping_mul(sign));
        }
        for device in &resources.devices {
            add_to(&mut self.devices, device.clone(), sign);
        }
        let Some(numa) = &resources.numa else { return };
        for (&(vcpus, mib), cell) in numa.nodes.iter().zip(numa_nodes) {
            let (cpus, memory) = self.numa_nodes.entry(cell).or_default();
            if numa.pinned {
                *cpus = cpus.wrapping_add(vcpus.wrapping_mul(sign));
            }
            if let Some(page) = numa.page_kib {
                let pages = pages(mib, page);
                add_to(&mut self.pages, (cell, page), pages.wrapping_mul(sign));
            } else {
                *memory = memory.wrapping_add(mib.wrapping_mul(sign));
            }
            if self.numa_nodes.get(&cell) == Some(&(0, 0)) {
                self.numa_nodes.remove(&cell);
            }
        }
    }
}

/// Number of huge pages of `page_kib` KiB for `mib` MiB of memory.
#[must_use]
pub fn pages(mib: i64, page_kib: i64) -> i64 {
    let page = page_kib.max(1);
    mib.saturating_mul(1024).saturating_add(page - 1) / page
}
