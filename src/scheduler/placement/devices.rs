//! The PCI devices and NUMA nodes of a host that a Server gets.

use crate::placement::facts::{Device, PciAffinity, ResourceRequest};
use crate::placement::numa;
use crate::placement::snapshot::Host;
use pileus_api::pci::GivenDevice;
use pileus_api::server::Placement;

/// The free devices of an alias.
pub fn free<'a>(host: Host<'a>, alias: &'a str) -> impl Iterator<Item = &'a Device> {
    let used = host.extended().map(|e| &e.devices);
    let devices = host.profile().devices.iter();
    devices.filter(move |d| d.alias == alias && used.is_none_or(|u| !u.contains_key(&d.address)))
}

/// Devices for a guest on these NUMA nodes of the host, the ones on its nodes first, then by
/// address; on any node if the guest has no NUMA nodes. `None` if there are too few.
///
/// The affinity policies are Nova's: a device whose node is unknown is allowed except with
/// `required`.
#[must_use]
pub fn pick<'a>(
    host: Host<'a>,
    resources: &'a ResourceRequest,
    nodes: &[u8],
) -> Option<Vec<&'a Device>> {
    let host_cidr = |device: &Device| device.node.is_some_and(|node| nodes.contains(&node));
    let allowed = |device: &&Device| match resources.affinity {
        _ if nodes.is_empty() => true,
        PciAffinity::Preferred => true,
        PciAffinity::Legacy => device.node.is_none() || host_cidr(device),
        PciAffinity::Required => host_cidr(device),
    };
    let mut picked = Vec::new();
    for (alias, count) in &resources.pci {
        let mut some: Vec<_> = free(host, alias).filter(allowed).collect();
        some.sort_by_key(|device| (!host_cidr(device), &device.address));
        let count = usize::try_from(*count).unwrap_or(usize::MAX);
        if some.len() < count {
            return None;
        }
        picked.extend(some.into_iter().take(count));
    }
    Some(picked)
}

/// The placement on a host, with the NUMA nodes and devices that the Server gets there.
#[must_use]
pub fn placement(host: Host<'_>, resources: &ResourceRequest) -> Placement {
    let nodes = numa::fit(host, resources);
    let nodes = nodes
        .iter()
        .flatten()
        .zip(resources.numa.iter().flat_map(|n| &n.nodes));
    let nodes: Vec<u8> = nodes.map(|(node, _)| *node).collect();
    let devices = pick(host, resources, &nodes).unwrap_or_default();
    Placement {
        host: host.name().to_owned(),
        claim: resources.claim,
        numa_nodes: nodes.into_iter().map(i32::from).collect(),
        pci_devices: devices
            .into_iter()
            .map(|device| GivenDevice {
                name: device.address.clone(),
                alias: device.alias.clone(),
            })
            .collect(),
        ..Placement::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::fixtures::{after, bound, host, image, now, server, settle, state};
    use crate::state::{Outcome, State};
    use pileus_api::host::NumaNode;
    use pileus_api::pci::HostDevice;
    use pileus_api::{Flavor, FlavorSpec, Host, Server, ServerGroup, ServerGroupSpec};

    /// Two nodes with a device on each, and a device whose node is unknown.
    fn with_devices() -> Host {
        let device = |address: &str, numa_node| HostDevice {
            name: address.into(),
            alias: "gpu".into(),
            numa_node,
            ..HostDevice::default()
        };
        let node = |name: &str| NumaNode {
            name: name.into(),
            cpus: vec![0, 1, 2, 3],
            memory_mib: 1024,
            ..NumaNode::default()
        };
        let mut host = host("h", 4096);
        let status = host.status.as_mut().unwrap();
        status.numa_nodes = vec![node("0"), node("1")];
        status.pci_devices = vec![
            device("0000:05:00.0", None),
            device("0000:81:00.0", Some(1)),
            device("0000:02:00.0", Some(0)),
        ];
        host
    }

    fn flavor(extra_specs: &[(&str, &str)]) -> Flavor {
        let spec = FlavorSpec {
            vcpus: 1,
            memory: "256Mi".into(),
            disk: "1Gi".into(),
            extra_specs: extra_specs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..FlavorSpec::default()
        };
        Flavor::new("gpu", spec)
    }

    fn state_with_flavor(extra_specs: &[(&str, &str)]) -> State {
        let mut state = state(&[with_devices()]);
        state.flavor_applied(flavor(extra_specs));
        state
    }

    fn asking(name: &str, version: u64) -> Server {
        let mut server = server(name, version, "");
        server.spec.resources = None;
        server.spec.flavor = Some("gpu".into());
        server
    }

    /// Places a Server; returns its NUMA nodes and the addresses of its devices.
    fn place(state: &mut State, name: &str) -> Option<(Server, Vec<i32>, Vec<String>)> {
        state.server_applied(asking(name, 1));
        let write = state.decide(now(1)).remove(0);
        let placed = after(&write, 2);
        state.write_finished(&write, Outcome::Written(Arc::new(placed.clone())), now(1));
        let placement = write.status.placement?;
        let devices = placement.pci_devices.into_iter().map(|d| d.name);
        Some((placed, placement.numa_nodes, devices.collect()))
    }

    #[test]
    fn a_device_is_given_to_one_server_only_also_after_a_restart() {
        let extra_specs = [("pci_passthrough:alias", "gpu:1")];
        let mut first = state_with_flavor(&extra_specs);
        let mut devices_given = Vec::new();
        let mut placed = Vec::new();
        for name in ["a", "b"] {
            let (server, nodes, devices) = place(&mut first, name).unwrap();
            assert_eq!((nodes.len(), devices.len()), (0, 1));
            devices_given.extend(devices);
            placed.push(server);
        }
        let mut late = State::default();
        late.image_applied(image());
        for server in placed {
            late.server_applied(server);
        }
        late.host_applied(&with_devices());
        late.flavor_applied(flavor(&extra_specs));
        let (_, _, last) = place(&mut late, "c").unwrap();
        devices_given.extend(last);
        devices_given.sort();
        assert_eq!(
            devices_given,
            ["0000:02:00.0", "0000:05:00.0", "0000:81:00.0"]
        );
        assert!(place(&mut late, "d").is_none());
        late.server_deleted(&("ns".to_owned(), "a".to_owned()));
        assert_eq!(
            settle(&mut late, 2),
            [("d".to_owned(), Some("h".to_owned()))]
        );
    }

    #[test]
    fn devices_follow_the_numa_affinity_policy() {
        for (policy, first, second, third) in [
            (
                "legacy",
                "0000:02:00.0",
                Some("0000:05:00.0"),
                Some("0000:81:00.0"),
            ),
            ("required", "0000:02:00.0", Some("0000:81:00.0"), None),
            (
                "preferred",
                "0000:02:00.0",
                Some("0000:05:00.0"),
                Some("0000:81:00.0"),
            ),
        ] {
            let mut state = state_with_flavor(&[
                ("pci_passthrough:alias", "gpu"),
                ("hw:numa_nodes", "1"),
                ("hw:pci_numa_affinity_policy", policy),
            ]);
            let mut next = |name: &str| {
                let (_, nodes, devices) = place(&mut state, name)?;
                Some((nodes[0], devices[0].clone()))
            };
            assert_eq!(next("a"), Some((0, first.to_owned())), "{policy}");
            let (node, device) = next("b").unwrap();
            assert_eq!(Some(device.as_str()), second, "{policy}");
            assert_eq!(node, i32::from(policy == "required"), "{policy}");
            let last = next("c");
            assert_eq!(last.as_ref().map(|(_, d)| d.as_str()), third, "{policy}");
            if policy == "legacy" {
                assert_eq!(last.unwrap().0, 1, "the node of the last device");
            }
        }
    }

    #[test]
    fn members_of_a_gang_get_different_devices() {
        let mut state = state_with_flavor(&[("pci_passthrough:alias", "gpu:2")]);
        let spec = ServerGroupSpec {
            min_members: Some(2),
            ..ServerGroupSpec::default()
        };
        let mut group = ServerGroup::new("both", spec);
        group.metadata.namespace = Some("ns".into());
        state.group_applied(group);
        for name in ["a", "b"] {
            let mut server = asking(name, 1);
            server.spec.placement.get_or_insert_default().server_group = Some("both".into());
            state.server_applied(server);
        }
        // Each of them alone would fit.
        let writes = state.decide(now(1));
        assert!(writes.iter().all(|w| w.status.placement.is_none()));
        let mut alone = state_with_flavor(&[("pci_passthrough:alias", "gpu:2")]);
        alone.server_applied(asking("a", 1));
        assert_eq!(bound(&alone.decide(now(1))[0]), ("h", 1));
    }
}
