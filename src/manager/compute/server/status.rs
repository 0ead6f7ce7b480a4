//! The status of a Server: mirrored from its Instance, or why it has none. Pure.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::plan::{Observed, ObservedNic, Plan, Problem, Progress};
use crate::network::network::sharing::is_foreign;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::server::{
    PowerState, ResolvedFlavor, ResolvedImage, RunState, ServerAddress, ServerStatus,
};
use pileus_api::{Instance, Reason, Server};

/// The whole of the manager's part of a status.
#[must_use]
pub fn status(server: &Server, observed: &Observed, plan: &Plan, now: Timestamp) -> ServerStatus {
    let old = server.status.clone().unwrap_or_default();
    let instance = observed.instances.first();
    let (ready, stalled, phase) = progress(server, observed, plan);
    let up_to_date = if plan.outdated.is_empty() {
        Observation::yes(ConditionType::UpToDate, Reason::UpToDate, "")
    } else {
        Observation::no(
            ConditionType::UpToDate,
            plan.outdated_reason,
            format!(
                "cannot be changed in place: {}; the guest goes on as it was built. Delete the Server and make it again for the new values",
                plan.outdated.join("; ")
            ),
        )
    };
    let addresses: Vec<_> = match instance {
        Some(instance) => instance
            .spec
            .nics
            .iter()
            .map(|nic| ServerAddress {
                name: nic.name.clone(),
                port: nic.port.clone(),
                mac_address: nic.mac_address.clone(),
                ips: nic.ips.clone(),
            })
            .collect(),
        None => old.addresses.clone(),
    };
    let list: Vec<_> = addresses
        .iter()
        .flat_map(|a| a.ips.iter().map(String::as_str))
        .collect();
    let address_list = (!list.is_empty()).then(|| list.join(","));
    let image = instance.map(|i| ResolvedImage {
        name: i.spec.image.name.clone(),
        uid: i.spec.image.uid.clone(),
        digest: i
            .spec
            .image
            .disk
            .digest
            .clone()
            .or_else(|| Some(i.status.as_ref()?.image.as_ref()?.digest.clone())),
    });
    let flavor = instance
        .map(|i| ResolvedFlavor {
            name: server.spec.flavor.clone(),
            claim: i.spec.claim,
        })
        .or_else(|| old.flavor.clone());
    ServerStatus {
        observed_generation: server.metadata.generation,
        phase: Some(phase.to_owned()),
        // The scheduler's.
        placement: None,
        refusals: Vec::new(),
        nomination: None,
        preemption: None,
        instance: instance.map(ResourceExt::name_any),
        power_state: if observed.host_lost.is_some() {
            Some(PowerState::Unknown)
        } else {
            instance
                .and_then(|i| i.status.as_ref())
                .and_then(|s| s.power_state)
        },
        addresses,
        address_list,
        flavor,
        image: image.or(old.image),
        instance_id: instance
            .map(|i| i.spec.instance_id.clone())
            .or(old.instance_id),
        hardware: instance
            .and_then(|i| i.status.as_ref()?.hardware.clone())
            .or(old.hardware),
        conditions: conditions::merge(
            &old.conditions,
            [ready, stalled, up_to_date],
            server.metadata.generation,
            now,
        ),
    }
}

fn progress(
    server: &Server,
    observed: &Observed,
    plan: &Plan,
) -> (Observation, Observation, &'static str) {
    use ConditionType::{Ready, Stalled};
    let not_stalled = |reason| Observation::no(Stalled, reason, "");
    let waiting = |reason, message: String, phase| {
        (
            Observation::no(Ready, reason, message),
            not_stalled(reason),
            phase,
        )
    };
    match &plan.progress {
        Progress::Problems(problems) => {
            let reason = problems.first().map_or(Reason::InvalidSpec, |p| p.reason);
            let message = problems
                .iter()
                .map(|p| p.message.as_str())
                .collect::<Vec<_>>()
                .join("; ");
            let terminal: Vec<&Problem> = problems.iter().filter(|p| p.terminal).collect();
            let stalled = match terminal.first() {
                Some(first) => Observation::yes(Stalled, first.reason, first.message.clone()),
                None => not_stalled(reason),
            };
            let phase = if terminal.is_empty() {
                "Pending"
            } else {
                "Error"
            };
            (Observation::no(Ready, reason, message), stalled, phase)
        }
        Progress::Unplaced => {
            let scheduled = server
                .status
                .as_ref()
                .and_then(|s| conditions::find(&s.conditions, ConditionType::Scheduled))
                .filter(|c| c.status == "False");
            match scheduled {
                Some(why) => waiting(Reason::NoHostFits, why.message.clone(), "Scheduling"),
                None => waiting(
                    Reason::Pending,
                    "waiting for the scheduler".into(),
                    "Scheduling",
                ),
            }
        }
        Progress::AwaitingPorts(ports) => waiting(
            Reason::PortNotReady,
            format!("waiting for the addresses of Port {}", ports.join(", ")),
            "Building",
        ),
        Progress::Building => waiting(Reason::Building, "being built".into(), "Building"),
        Progress::Deleting(message) => waiting(Reason::Deleting, message.clone(), "Deleting"),
        Progress::Realised => match (&observed.host_lost, observed.instances.first()) {
            (Some(why), instance) => {
                let host = instance.map(|i| i.spec.host.as_str()).unwrap_or_default();
                let message = format!(
                    "host {host} is lost: {why}. The VM may still run, so it is not started elsewhere"
                );
                let ready = Observation::unknown(Ready, Reason::HostUnreachable, message);
                (ready, not_stalled(Reason::HostUnreachable), "Unknown")
            }
            (None, Some(instance)) => {
                let (ready, stalled, phase) = mirrored(server, instance);
                let unplugged: Vec<_> = observed.nics.iter().filter_map(unplugged).collect();
                if ready.status == Some(true) && !unplugged.is_empty() {
                    let ready = Observation::no(Ready, Reason::PortNotReady, unplugged.join("; "));
                    return (ready, stalled, phase);
                }
                (ready, stalled, phase)
            }
            (None, None) => waiting(Reason::Building, "being built".into(), "Building"),
        },
    }
}

/// Why the Port of an interface is unplugged, if it is: the guest runs on without that network.
fn unplugged(nic: &ObservedNic) -> Option<String> {
    let port = nic.port.as_ref().filter(|port| is_foreign(port))?;
    let conditions = &port.status.as_ref()?.conditions;
    let ready = conditions::find(conditions, ConditionType::Ready)?;
    let reasons = [Reason::NetworkNotFound, Reason::NoSubnet, Reason::Forbidden];
    let is_unplugged = ready.status == "False" && reasons.contains(&reason_of(&ready.reason));
    is_unplugged.then(|| {
        format!(
            "spec.networks[{}]: Port `{}`: {}",
            nic.name, nic.port_name, ready.message
        )
    })
}

fn mirrored(server: &Server, instance: &Instance) -> (Observation, Observation, &'static str) {
    use ConditionType::{Ready, Stalled};
    let said = instance
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let of = |type_: ConditionType| {
        conditions::find(said, type_).map(|c| Observation {
            type_,
            status: match c.status.as_str() {
                "True" => Some(true),
                "False" => Some(false),
                _ => None,
            },
            reason: reason_of(&c.reason),
            message: c.message.clone(),
        })
    };
    let mut ready = of(Ready)
        .filter(|r| r.reason != Reason::Pending)
        .unwrap_or_else(|| Observation::no(Ready, Reason::Building, "being built"));
    let stalled = of(Stalled).unwrap_or_else(|| Observation::no(Stalled, ready.reason, ""));
    // A report on an older spec does not answer the present one.
    let preempted = server
        .status
        .as_ref()
        .is_some_and(|s| s.preemption.is_some());
    let (asked, reason, message) = match server.spec.run_state {
        RunState::Running if !preempted => (Reason::Active, Reason::Starting, "being started"),
        _ => (Reason::Stopped, Reason::Stopping, "being stopped"),
    };
    if ready.status == Some(true) && (preempted || ready.reason != asked) {
        ready = Observation::no(Ready, reason, message);
    }
    // The scheduler's message says for which Server.
    if preempted && ready.reason == Reason::Preempted {
        ready.message = scheduled(server).unwrap_or(ready.message);
    }
    let phase = match (ready.status, ready.reason) {
        (Some(true), Reason::Active) => "Active",
        (Some(true), _) | (_, Reason::GuestShutdown) => "Stopped",
        (_, Reason::Stopping) => "Stopping",
        (_, Reason::Preempted) => "Preempted",
        (None, _) => "Unknown",
        _ if stalled.status == Some(true) => "Error",
        _ => "Building",
    };
    (ready, stalled, phase)
}

/// The scheduler's message about the Server's placement.
fn scheduled(server: &Server) -> Option<String> {
    let said = server.status.as_ref().map(|s| s.conditions.as_slice());
    let said = conditions::find(said.unwrap_or_default(), ConditionType::Scheduled);
    said.map(|c| c.message.clone())
}

/// The reason of a condition; Retrying for one that is not ours.
#[must_use]
pub fn reason_of(text: &str) -> Reason {
    Reason::parse(text).unwrap_or(Reason::Retrying)
}
