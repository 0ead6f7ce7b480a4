//! PCI devices that guests are given: which of a host's an administrator offers, and which a
//! Server has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most devices that a Host reports.
pub const MOST_DEVICES: usize = 256;

/// Devices that are offered to guests under one name; Nova's `[pci] device_spec` and `alias`.
/// A device must have all that is given; one without anything given offers none. A device
/// that several offer is the first one's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PciSelector {
    /// The alias that flavors ask for with `pci_passthrough:alias`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Vendor, four hexadecimal digits such as `10de`.
    #[serde(default, rename = "vendorID", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{4}$"))]
    pub vendor_id: Option<String>,
    /// Product, four hexadecimal digits.
    #[serde(default, rename = "productID", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{4}$"))]
    pub product_id: Option<String>,
    /// Addresses, any of which it may have, as `lspci -D` writes them; `*` stands for
    /// anything, as in `0000:81:00.*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub addresses: Vec<String>,
}

/// A device of a Host that is offered to guests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostDevice {
    /// Its address, such as `0000:81:00.0`.
    pub name: String,
    /// The alias that it is offered under.
    pub alias: String,
    /// Vendor, four hexadecimal digits.
    #[serde(rename = "vendorID")]
    pub vendor_id: String,
    /// Product, four hexadecimal digits.
    #[serde(rename = "productID")]
    pub product_id: String,
    /// Number of the NUMA node that it is on; unknown when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<i32>,
}

/// A device of its host that a Server has to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GivenDevice {
    /// Its address on the host, such as `0000:81:00.0`.
    pub name: String,
    /// The alias that was asked for.
    pub alias: String,
}

impl PciSelector {
    fn offers(&self, device: &HostDevice) -> bool {
        let is = |wanted: &Option<String>, has: &str| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(has))
        };
        let anything =
            self.vendor_id.is_some() || self.product_id.is_some() || !self.addresses.is_empty();
        let there = self.addresses.is_empty()
            || self
                .addresses
                .iter()
                .any(|pattern| matches(&pattern.to_ascii_lowercase(), &device.name));
        anything
            && is(&self.vendor_id, &device.vendor_id)
            && is(&self.product_id, &device.product_id)
            && there
    }
}

/// The devices that are offered, with their aliases, in the order of their addresses.
#[must_use]
pub fn offered(
    selectors: &[PciSelector],
    devices: impl IntoIterator<Item = HostDevice>,
) -> Vec<HostDevice> {
    let devices = devices.into_iter().filter_map(|device| {
        let selector = selectors.iter().find(|s| s.offers(&device))?;
        Some(HostDevice {
            alias: selector.name.clone(),
            ..device
        })
    });
    let mut devices: Vec<_> = devices.collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices.truncate(MOST_DEVICES);
    devices
}

/// Whether a text is as a pattern says, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(address: &str, vendor: &str, product: &str) -> HostDevice {
        HostDevice {
            name: address.into(),
            vendor_id: vendor.into(),
            product_id: product.into(),
            ..HostDevice::default()
        }
    }

    #[test]
    fn a_device_must_have_all_that_is_given_and_is_the_first_ones() {
        let selector = |name: &str, vendor: Option<&str>, addresses: &[&str]| PciSelector {
            name: name.into(),
            vendor_id: vendor.map(str::to_owned),
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
            ..PciSelector::default()
        };
        let devices = [
            device("0000:81:00.1", "10de", "20b5"),
            device("0000:81:00.0", "10de", "20b5"),
            device("0000:05:00.0", "10de", "1db4"),
            device("0000:00:02.0", "8086", "1572"),
        ];
        let selectors = [
            selector("nothing", None, &[]),
            selector("first", None, &["0000:81:00.0", "*:05:*"]),
            PciSelector {
                product_id: Some("20B5".into()),
                ..selector("gpu", Some("10DE"), &[])
            },
        ];
        let found = offered(&selectors, devices.clone());
        let found: Vec<_> = found.iter().map(|d| (&*d.name, &*d.alias)).collect();
        assert_eq!(
            found,
            [
                ("0000:05:00.0", "first"),
                ("0000:81:00.0", "first"),
                ("0000:81:00.1", "gpu")
            ]
        );
        assert_eq!(offered(&[], devices), []);
    }

    #[test]
    fn patterns_are_those_of_a_shell() {
        for (pattern, text, expected) in [
            ("0000:81:00.*", "0000:81:00.7", true),
            ("0000:81:00.*", "0000:82:00.7", false),
            ("*", "0000:81:00.7", true),
            ("*:81:*.7", "0000:81:00.7", true),
            ("*:81:*.6", "0000:81:00.7", false),
            ("0000:81:00.7", "0000:81:00.7", true),
            ("0000:81:00", "0000:81:00.7", false),
            ("0000*00.7*7", "0000:81:00.7", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
