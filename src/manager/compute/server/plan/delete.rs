//! In which order a Server and what was created for it are deleted.

use kube::ResourceExt;

use super::claim;
use super::ports::is_owned_by;
use super::{Observed, Step};
use pileus_api::Server;
use pileus_api::instance::OnDeletion;
use pileus_api::names::{MANAGER_FINALIZER, host_namespace, instance_name};
use pileus_kube_ext::finalize;

/// Host first, then what it needed: an Instance that is still there may still run.
///
/// A Server that is deleted only because its CustomResourceDefinition is: it is released, and
/// nothing that was created for it is removed.
pub(super) fn delete(server: &Server, observed: &Observed) -> (Vec<Step>, String) {
    if !finalize::has(server, MANAGER_FINALIZER) {
        return (vec![], String::new());
    }
    let mut steps = Vec::new();
    // Anyone may write a label; only the spec and the owner references say to whom it belongs, and
    // only where Pileus makes them.
    let mut instances = observed
        .instances
        .iter()
        .filter(|i| i.is_genuine() && Some(&i.spec.server.uid) == server.uid().as_ref())
        .peekable();
    let first = instances.peek().copied();
    for instance in instances {
        if !observed.crd_deleting && instance.spec.on_deletion != OnDeletion::Remove {
            let mut ordered = instance.clone();
            ordered.spec.on_deletion = OnDeletion::Remove;
            steps.push(Step::UpdateInstance(Box::new(ordered)));
        }
        if !finalize::is_deleting(instance) {
            steps.push(Step::DeleteInstance {
                namespace: instance.namespace().unwrap_or_default(),
                name: instance.name_any(),
                uid: instance.uid().unwrap_or_default(),
                version: None,
            });
        }
    }
    if let Some(instance) = first {
        let done = if observed.crd_deleting {
            "release"
        } else {
            "remove"
        };
        let waiting = format!("waiting for host {} to {done} the VM", instance.spec.host);
        return (steps, waiting);
    }
    if let Some(placement) = server.status.as_ref().and_then(|s| s.placement.as_ref()) {
        steps.push(Step::DeleteGuestData {
            namespace: host_namespace(&placement.host),
            name: instance_name(&server.uid().unwrap_or_default(), placement.epoch),
        });
    }
    if observed.crd_deleting {
        // The VM runs on, and so does its network as long as its Ports are there.
        steps.push(Step::RemoveFinalizer);
        return (steps, String::new());
    }
    // No Instance of it is left: whoever waits for a Port may have it.
    let held = observed.held_ports.iter();
    let named = held.filter(|port| !is_owned_by(port, server));
    steps.extend(named.map(claim::release));
    let owned: Vec<_> = observed
        .owned_ports
        .iter()
        .filter(|port| is_owned_by(port, server))
        .collect();
    for port in &owned {
        if !finalize::is_deleting(*port) {
            steps.push(Step::DeletePort {
                name: port.name_any(),
                uid: port.uid().unwrap_or_default(),
            });
        }
    }
    if owned.is_empty() {
        steps.push(Step::RemoveFinalizer);
        return (steps, String::new());
    }
    (steps, "waiting for its Ports to be removed".to_owned())
}
