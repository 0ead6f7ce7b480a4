//! The NUMA nodes of a guest reach its host.

use serde_json::json;

use super::super::plan::{Step, plan};
use super::{address, observed, placed, read, server};
use crate::compute::server::plan::Observed;
use pileus_api::Instance;
use pileus_api::topology::CpuPolicy;

/// The Instance of a Server of a flavor with these extra specs, placed on these nodes.
fn instance(extra_specs: &serde_json::Value, nodes: &[i32]) -> Box<Instance> {
    let mut server = placed(server());
    let placement = server.status.as_mut().unwrap().placement.as_mut().unwrap();
    placement.numa_nodes = nodes.to_vec();
    placement.claim.vcpus = 3;
    placement.claim.memory_mib = 96;
    let mut observed = Observed {
        flavor: Some(read(json!({"metadata": {"name": "small"}, "spec": {
            "vcpus": 3, "memory": "96Mi", "disk": "1Gi", "extraSpecs": extra_specs}}))),
        ..observed()
    };
    for step in plan(&server, &observed).steps {
        if let Step::CreatePort(mut port) = step {
            address(&mut port);
            observed.nics[0].port = Some(*port);
        }
    }
    let made = plan(&server, &observed)
        .steps
        .into_iter()
        .find_map(|s| match s {
            Step::CreateInstance(instance) => Some(instance),
            _ => None,
        });
    made.unwrap()
}

#[test]
fn nodes_of_the_guest_are_told_with_those_of_the_host() {
    let words = json!({"hw:numa_nodes": "2", "hw:cpu_policy": "dedicated",
        "hw:mem_page_size": "2MB", "hw:numa_cpus.0": "0,2", "hw:numa_mem.0": "64",
        "hw:numa_cpus.1": "1", "hw:numa_mem.1": "32"});
    let topology = instance(&words, &[1, 0]).spec.topology.unwrap();
    assert_eq!(topology.cpu_policy, CpuPolicy::Dedicated);
    assert_eq!(topology.page_size_kib, Some(2048));
    let nodes = topology.nodes.iter();
    let nodes: Vec<_> = nodes
        .map(|n| {
            (
                n.name.as_str(),
                n.cpus.as_slice(),
                n.memory_mib,
                n.host_node,
            )
        })
        .collect();
    let expected: [(&str, &[i32], i64, i32); 2] = [("0", &[0, 2], 64, 1), ("1", &[1], 32, 0)];
    assert_eq!(nodes, expected);
}

#[test]
fn a_guest_without_wishes_or_without_nodes_is_as_before() {
    assert_eq!(instance(&json!({}), &[]).spec.topology, None);
    // Placed by a scheduler that chose none.
    let words = json!({"hw:numa_nodes": "1"});
    assert_eq!(instance(&words, &[]).spec.topology, None);
}
