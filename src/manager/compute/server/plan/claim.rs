//! Who has a Port. A Port is one Server's at a time, and `status.server` of the Port says whose:
//! it is claimed and given back by writes that count only for the version that was seen. A Server
//! is built with Ports that it has, and with no others.
//!
//! A Server that is not built never waits for a Port while it has one that comes later by name:
//! so no two Servers wait for each other.

use kube::ResourceExt;

use super::ports::{is_owned_by, is_port_ready};
use super::{Observed, ObservedNic, Step};
use pileus_api::common::Resolved;
use pileus_api::{Instance, Port, Server};
use pileus_kube_ext::finalize;

/// Whose a Port is, as a Server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The Server has it.
    Own,
    /// Nobody has it.
    Free,
    /// A Server has it that is gone, as far as is known.
    Abandoned(Resolved),
    /// Another Server has it.
    InUse(String),
}

/// Whose the Port of an interface is; none while there is no Port.
#[must_use]
pub fn holding(server: &Server, nic: &ObservedNic) -> Option<Holding> {
    let port = nic.port.as_ref()?;
    if let Some(user) = &nic.used_by {
        return Some(Holding::InUse(user.clone()));
    }
    Some(match holder(port) {
        None => Holding::Free,
        Some(holder) if Some(&holder.uid) == server.uid().as_ref() => Holding::Own,
        Some(holder) => Holding::Abandoned(holder.clone()),
    })
}

/// The Server that has a Port, by the Port's own word.
#[must_use]
pub fn holder(port: &Port) -> Option<&Resolved> {
    port.status.as_ref()?.server.as_ref()
}

/// Whether the Server has the Port of an interface, so that it can be built with it.
pub(super) fn is_own(server: &Server, nic: &ObservedNic) -> bool {
    holding(server, nic) == Some(Holding::Own)
}

/// The Ports to claim for a Server that can be built, in the order of their names up to one that
/// another has. A Port that is made for the Server gets it as holder together with its addresses.
pub(super) fn claims(server: &Server, nics: &[ObservedNic]) -> Vec<Step> {
    let mut sorted: Vec<_> = nics.iter().collect();
    sorted.sort_by_key(|nic| &nic.port_name);
    let mut steps = Vec::new();
    for nic in sorted {
        let (Some(port), Some(holding)) = (&nic.port, holding(server, nic)) else {
            continue;
        };
        if finalize::is_deleting(port) || nic.made && !is_port_ready(nic) {
            continue;
        }
        let from = match holding {
            Holding::Own => continue,
            Holding::InUse(_) => break,
            Holding::Free => None,
            Holding::Abandoned(holder) => Some(holder),
        };
        steps.push(Step::ClaimPort {
            port: Box::new(port.clone()),
            from,
        });
    }
    steps
}

/// The Ports that a running guest has and that name no holder: whose status was lost, or that
/// are of a time when none was written.
pub(super) fn missing_claims(
    server: &Server,
    nics: &[ObservedNic],
    instance: &Instance,
) -> Vec<Step> {
    let plugged: Vec<_> = nics
        .iter()
        .filter(|nic| has_nic(instance, &nic.port_name))
        .cloned()
        .collect();
    claims(server, &plugged)
}

/// The Ports that a Server has and does not need, as far as its spec says: its Instances may have
/// them all the same.
#[must_use]
pub fn not_needed<'o>(server: &Server, observed: &'o Observed) -> Vec<&'o Port> {
    let in_use = observed.nics.iter().filter(|nic| nic.used_by.is_some());
    let waits_for = in_use.map(|nic| nic.port_name.as_str()).min();
    let is_needed = |name: &str| {
        let named = observed.nics.iter().any(|nic| nic.port_name == name);
        named && waits_for.is_none_or(|first| name < first)
    };
    let plugged = |name: &str| observed.instances.iter().any(|i| has_nic(i, name));
    observed
        .held_ports
        .iter()
        .filter(|port| !is_owned_by(port, server))
        .filter(|port| !is_needed(&port.name_any()) && !plugged(&port.name_any()))
        .collect()
}

/// The Ports to give back, once it is known which Instances there are.
pub(super) fn releases(server: &Server, observed: &Observed) -> Vec<Step> {
    let Some(instances) = &observed.all_instances else {
        return Vec::new();
    };
    not_needed(server, observed)
        .into_iter()
        .filter(|port| !instances.iter().any(|i| has_nic(i, &port.name_any())))
        .map(release)
        .collect()
}

pub(super) fn release(port: &Port) -> Step {
    Step::ReleasePort(Box::new(port.clone()))
}

/// What is looked at once more right before the Instance is made: a cache may be behind, and
/// nothing takes an Instance back. Ports that were made for the Server go with it.
pub(super) fn confirmation(nics: &[ObservedNic]) -> Option<Step> {
    let named = nics.iter().filter(|nic| !nic.made);
    let ports: Vec<_> = named
        .filter_map(|nic| Some((nic.port_name.clone(), nic.port.as_ref()?.uid()?)))
        .collect();
    (!ports.is_empty()).then_some(Step::ConfirmPorts(ports))
}

fn has_nic(instance: &Instance, port: &str) -> bool {
    instance.spec.nics.iter().any(|nic| nic.port == port)
}
