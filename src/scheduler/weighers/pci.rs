//! Leaves hosts with PCI devices to Servers that need them.

use super::{CycleState, RawWeights, Weigher};

/// More devices than this make no difference, because they are not scarce then.
const MAX_COUNTED: i64 = 99;

/// Nova's `PCIWeigher`: fewer free devices are better. A Server without devices avoids hosts that
/// have some; one with devices fills a host before the next, so that hosts with many free devices
/// are left to Servers that need many.
pub struct PciWeigher;

impl Weigher for PciWeigher {
    fn name(&self) -> &'static str {
        "PCIWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("pci_weight_multiplier")
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        let weights: Vec<_> = cycle
            .snapshot
            .with_pci()
            .iter()
            .map(|slot| {
                let host = cycle.snapshot.host_at(slot);
                let used = host.extended().map_or(0, |e| e.devices.len());
                let left = host.profile().devices.len().saturating_sub(used);
                let left = i64::try_from(left).unwrap_or(MAX_COUNTED).min(MAX_COUNTED);
                let slot = u32::try_from(slot).unwrap_or(u32::MAX);
                (slot, -i32::try_from(left).unwrap_or_default())
            })
            .collect();
        if weights.is_empty() {
            RawWeights::Equal
        } else {
            RawWeights::Sparse(weights)
        }
    }
}
