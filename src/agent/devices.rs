//! Whether a guest can have the PCI devices that the scheduler chose for it. Pure.

use std::collections::BTreeSet;

use pileus_api::pci::GivenDevice;
use pileus_hypervisor::{PciAddress, PciDevice};

/// The addresses of the devices that a guest is given.
///
/// # Errors
/// Names the device that does not exist, or is another guest's.
pub fn allocate(
    wanted: &[GivenDevice],
    there: &[PciDevice],
    held: &BTreeSet<PciAddress>,
) -> Result<Vec<PciAddress>, String> {
    let allocate = |device: &GivenDevice| {
        let GivenDevice { name, alias } = device;
        let address: PciAddress = name.parse()?;
        if !there.iter().any(|device| device.address == address) {
            return Err(format!(
                "its PCI device {name} ({alias}) is not there, or is none that a guest can have"
            ));
        }
        if held.contains(&address) {
            return Err(format!(
                "its PCI device {name} ({alias}) is another guest's"
            ));
        }
        Ok(address)
    };
    wanted.iter().map(allocate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_one_guests_and_must_be_there() {
        let device = |address: &str| PciDevice {
            address: address.parse().unwrap(),
            ..PciDevice::default()
        };
        let wanted = |address: &str| {
            vec![GivenDevice {
                name: address.into(),
                alias: "gpu".into(),
            }]
        };
        let there = [device("0000:81:00.0"), device("0000:82:00.0")];
        let held = ["0000:82:00.0".parse().unwrap()].into();
        let one = allocate(&wanted("0000:81:00.0"), &there, &held);
        assert_eq!(one, Ok(vec![there[0].address]));
        for (address, says) in [
            ("0000:82:00.0", "another guest's"),
            ("0000:83:00.0", "not there"),
            ("nonsense", "no PCI address"),
        ] {
            let refused = allocate(&wanted(address), &there, &held).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
        assert_eq!(allocate(&[], &[], &held), Ok(Vec::new()));
    }
}
