//! Which PCI devices guests may have at all, by this host's own configuration, and whether a guest
//! can have those that the scheduler chose for it. Pure.

use std::collections::BTreeSet;
use std::str::FromStr;

use pileus_api::pci::GivenDevice;
use pileus_hypervisor::{PciAddress, PciDevice};

/// A device, or all of a product, that the host's own configuration lets guests have: objects of the
/// API may offer less, and never more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedDevice {
    /// By its address.
    Address(PciAddress),
    /// By vendor and product, four hexadecimal digits each.
    Product(String, String),
}

impl FromStr for AllowedDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let is_id = |id: &str| id.len() == 4 && id.bytes().all(|b| b.is_ascii_hexdigit());
        let ids = text.split_once(':');
        let ids = ids.filter(|(vendor, product)| is_id(vendor) && is_id(product));
        let (vendor, product) = ids.ok_or_else(|| {
            format!(
                "`{text}` is neither a PCI address such as 0000:81:00.0 nor vendor and product such as 10de:20b5"
            )
        })?;
        let id = str::to_ascii_lowercase;
        Ok(Self::Product(id(vendor), id(product)))
    }
}

/// Those of the host's devices that guests may have.
#[must_use]
pub fn allowed(found: Vec<PciDevice>, rules: &[AllowedDevice]) -> Vec<PciDevice> {
    let matches = |device: &PciDevice, rule: &AllowedDevice| match rule {
        AllowedDevice::Address(address) => device.address == *address,
        AllowedDevice::Product(vendor, product) => {
            device.vendor.eq_ignore_ascii_case(vendor)
                && device.product.eq_ignore_ascii_case(product)
        }
    };
    let is_allowed = |device: &PciDevice| rules.iter().any(|rule| matches(device, rule));
    found.into_iter().filter(is_allowed).collect()
}

/// The addresses of the devices that a guest is given; `there` are those that guests may have.
///
/// # Errors
/// Names the device that does not exist, is not allowed, or is another guest's.
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
                "its PCI device {name} ({alias}) is not there, or is none that guests may have; the agent's --allow-pci-device names those that they may"
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
    fn guests_may_have_only_what_the_host_itself_allows() {
        let device = |address: &str, product: &str| PciDevice {
            address: address.parse().unwrap(),
            vendor: "10de".into(),
            product: product.into(),
            numa_node: None,
        };
        let all = vec![
            device("0000:81:00.0", "20b5"),
            device("0000:82:00.0", "20b5"),
            device("0000:00:1f.2", "a102"),
        ];
        let may = |rules: &[&str]| -> Vec<String> {
            let rules: Vec<_> = rules.iter().map(|r| r.parse().unwrap()).collect();
            let devices = allowed(all.clone(), &rules);
            devices.iter().map(|d| d.address.to_string()).collect()
        };
        assert!(may(&[]).is_empty(), "none unless they are named");
        assert_eq!(may(&["0000:82:00.0"]), ["0000:82:00.0"]);
        assert_eq!(may(&["10DE:20B5"]), ["0000:81:00.0", "0000:82:00.0"]);
        for wrong in ["", "*", "10de", "10de:*", "0000:81:00"] {
            assert!(wrong.parse::<AllowedDevice>().is_err(), "{wrong}");
        }
    }

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
