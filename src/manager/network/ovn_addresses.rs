//! Which addresses OVN's rows have: guests may be using them although their objects have yet to
//! be applied again. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use pileus_network::ovsdb::{Datum, Replica};
use pileus_network::topology::REQUESTED_CHASSIS;
use pileus_values::{ClusterId, Mac};

/// Addresses of the logical ports in OVN.
#[derive(Clone, Debug, Default)]
pub struct OvnAddresses {
    /// Ethernet addresses by port id.
    pub macs: HashMap<String, Mac>,
    /// The chassis that a port is tied to, by port id; nothing for one that is tied to none.
    pub chassis: HashMap<String, Option<String>>,
    /// IP addresses by the switch's name, each with its port id.
    pub addresses: HashMap<String, HashMap<IpAddr, String>>,
}

/// Reads the addresses of our logical ports.
#[must_use]
pub fn read(replica: &Replica, cluster: &ClusterId) -> OvnAddresses {
    let mut found = OvnAddresses::default();
    for (_, switch) in replica.rows("Logical_Switch") {
        let ids = switch.get("external_ids");
        if ids.and_then(|ids| ids.get("pileus.dev/cluster")) != Some(&cluster.0) {
            continue;
        }
        let Some(name) = switch.get("name").and_then(Datum::as_str) else {
            continue;
        };
        let ports = switch.get("ports").into_iter().flat_map(Datum::row_ids);
        for row in ports.filter_map(|id| replica.row("Logical_Switch_Port", id)) {
            let Some(port) = row.get("name").and_then(Datum::as_str) else {
                continue;
            };
            let options = row.get("options");
            let chassis = options.and_then(|options| options.get(REQUESTED_CHASSIS));
            let chassis = chassis.map(str::to_owned);
            found.chassis.insert(port.to_owned(), chassis);
            for text in row.get("addresses").map(texts).unwrap_or_default() {
                let mut words = text.split_whitespace();
                let Some(mac) = words.next().and_then(|word| word.parse().ok()) else {
                    continue;
                };
                found.macs.insert(port.to_owned(), mac);
                let by_address = found.addresses.entry(name.to_owned()).or_default();
                for address in words.filter_map(|word| word.parse().ok()) {
                    by_address.insert(address, port.to_owned());
                }
            }
        }
    }
    found
}

fn texts(datum: &Datum) -> Vec<String> {
    match datum {
        Datum::Set(atoms) => atoms
            .iter()
            .filter_map(|atom| atom.as_str().map(str::to_owned))
            .collect(),
        other => other.as_str().map(str::to_owned).into_iter().collect(),
    }
}
