//! On which NUMA nodes of a host the NUMA nodes of a guest are.

use crate::placement::devices::pick;
use crate::placement::facts::{NumaNode, NumaRequest, ResourceRequest};
use crate::placement::snapshot::{Host, pages};

/// The host's NUMA node for each of the guest's, each on a different one and with the required
/// affinity to its PCI devices; `None` if they do not fit. Tries all combinations in the host's
/// order and returns the first that fits; a guest has at most four nodes.
#[must_use]
pub fn fit(host: Host<'_>, resources: &ResourceRequest) -> Option<[u8; 4]> {
    let wanted = resources.numa.as_ref()?;
    if wanted.nodes.len() > 4 {
        return None;
    }
    let mut numa_nodes = [u8::MAX; 4];
    place(host, resources, wanted, 0, &mut numa_nodes).then_some(numa_nodes)
}

fn place(
    host: Host<'_>,
    resources: &ResourceRequest,
    wanted: &NumaRequest,
    at: usize,
    numa_nodes: &mut [u8; 4],
) -> bool {
    let Some(&(vcpus, mib)) = wanted.nodes.get(at) else {
        return resources.pci.is_empty() || pick(host, resources, &numa_nodes[..at]).is_some();
    };
    for node in &host.profile().numa_nodes {
        if numa_nodes[..at].contains(&node.id) || !fits_on(host, node, wanted, vcpus, mib) {
            continue;
        }
        numa_nodes[at] = node.id;
        if place(host, resources, wanted, at + 1, numa_nodes) {
            return true;
        }
    }
    numa_nodes[at] = u8::MAX;
    false
}

fn fits_on(host: Host<'_>, node: &NumaNode, wanted: &NumaRequest, vcpus: i64, mib: i64) -> bool {
    let used = host.extended();
    let (pinned, memory) = used
        .and_then(|e| e.numa_nodes.get(&node.id).copied())
        .unwrap_or_default();
    let left = node.cpus.saturating_sub(pinned);
    let cpus_fit = if wanted.pinned {
        vcpus <= left
    } else {
        // As in Nova, at most as many as the node has; they share the CPUs that are not pinned.
        vcpus <= node.cpus && (left > 0 || vcpus == 0)
    };
    let memory_fits = match wanted.page_kib {
        None => mib <= node.memory_mib.saturating_sub(memory),
        Some(page) => {
            let total = node.pages.get(&page).copied().unwrap_or_default();
            let used_pages = used.and_then(|e| e.pages.get(&(node.id, page))).copied();
            pages(mib, page) <= total.saturating_sub(used_pages.unwrap_or_default())
        }
    };
    cpus_fit && memory_fits
}

#[cfg(test)]
mod tests {
    use crate::fixtures::{after, host, server, settle, state};
    use crate::state::State;
    use pileus_api::host::NumaNode;
    use pileus_api::{Flavor, FlavorSpec, Host, Server};

    fn two_nodes() -> Host {
        let node = |name: &str, cpus: &[i32]| NumaNode {
            name: name.into(),
            cpus: cpus.to_vec(),
            memory_mib: 1024,
            huge_pages: [("2048".to_owned(), 128)].into(),
        };
        let mut host = host("h", 2048);
        let status = host.status.as_mut().unwrap();
        status.numa_nodes = vec![node("1", &[0, 2]), node("4", &[1, 3])];
        host
    }

    fn state_with_flavor(extra_specs: &[(&str, &str)]) -> State {
        let mut state = state(&[two_nodes()]);
        let flavor = FlavorSpec {
            vcpus: 2,
            memory: "256Mi".into(),
            disk: "1Gi".into(),
            extra_specs: extra_specs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..FlavorSpec::default()
        };
        state.flavor_applied(Flavor::new("numa", flavor));
        state
    }

    fn asking(name: &str, version: u64) -> Server {
        let mut server = server(name, version, "");
        server.spec.resources = None;
        server.spec.flavor = Some("numa".into());
        server
    }

    /// Two Servers fit, one on each node, and a third does not: neither for the scheduler that
    /// placed them nor for one that has just started and reads their placements.
    fn two_fit(extra_specs: &[(&str, &str)]) {
        let mut first = state_with_flavor(extra_specs);
        let mut placed = Vec::new();
        for (name, nodes) in [("a", [1]), ("b", [4])] {
            first.server_applied(asking(name, 1));
            let write = first.decide(crate::fixtures::now(1)).remove(0);
            let server = after(&write, 2);
            let placement = write.status.placement.as_ref().unwrap();
            assert_eq!(placement.numa_nodes, nodes, "{extra_specs:?}");
            first.server_applied(server.clone());
            placed.push(server);
        }
        let mut late = State::default();
        late.image_applied(crate::fixtures::image());
        for server in placed {
            late.server_applied(server);
        }
        late.host_applied(&two_nodes());
        let flavor = state_with_flavor(extra_specs)
            .catalogue
            .flavors
            .remove("numa")
            .unwrap();
        late.flavor_applied(flavor);
        for mut state in [first, late] {
            state.server_applied(asking("c", 3));
            assert_eq!(
                settle(&mut state, 2),
                [("c".to_owned(), None)],
                "{extra_specs:?}"
            );
            state.server_deleted(&("ns".to_owned(), "a".to_owned()));
            let went = settle(&mut state, 3);
            assert_eq!(
                went,
                [("c".to_owned(), Some("h".to_owned()))],
                "{extra_specs:?}"
            );
        }
    }

    #[test]
    fn cpus_and_huge_pages_are_counted_by_node_also_after_a_restart() {
        two_fit(&[("hw:cpu_policy", "dedicated")]);
        two_fit(&[("hw:mem_page_size", "2MB")]);
    }
}
