//! Keeps hosts with PCI devices for Servers that want them.

use super::{Ask, Figures, Weigher};

/// Nova's `PCIWeigher`: more devices are better for a Server that wants some, fewer for
/// one that wants none.
pub struct PciWeigher;

impl Weigher for PciWeigher {
    fn name(&self) -> &'static str {
        "PciWeigher"
    }

    fn weigh<'a>(&self, ask: &Ask<'a>) -> Figures<'a> {
        let wants = !ask.request.asks.shape.pci.is_empty();
        let figures: Vec<_> = ask
            .snapshot
            .with_pci()
            .iter()
            .map(|slot| {
                let host = ask.snapshot.at(slot);
                let used = host.extended().map_or(0, |e| e.pci.values().sum());
                let left = host
                    .profile()
                    .pci
                    .values()
                    .sum::<i64>()
                    .saturating_sub(used);
                let left = i32::try_from(left).unwrap_or(i32::MAX).max(0);
                let slot = u32::try_from(slot).unwrap_or(u32::MAX);
                (slot, if wants { left } else { -left })
            })
            .collect();
        if figures.is_empty() {
            Figures::Same
        } else {
            Figures::Some(figures)
        }
    }
}
