//! Objects for tests.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::state::{Outcome, State, StatusWrite};
use pileus_api::common::{Claim, ObjectName, Resources};
use pileus_api::instance::ServerIdentity;
use pileus_api::names::{MANAGER_FINALIZER, host_namespace, instance_name};
use pileus_api::{
    Host, HostSpec, HostStatus, Image, ImageSpec, Instance, InstanceSpec, InstanceStatus, Reason,
    Server, ServerSpec, ServerStatus,
};

/// The time at this second.
pub fn now(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A Server of one vCPU.
pub fn server(name: &str, version: u64, memory: &str) -> Server {
    let mut server = Server::new(
        name,
        ServerSpec {
            resources: Some(Resources {
                vcpus: 1,
                memory: memory.into(),
                disk: "1Gi".into(),
            }),
            image: ObjectName {
                name: "image".into(),
                namespace: None,
            },
            ..ServerSpec::default()
        },
    );
    server.metadata.namespace = Some("ns".into());
    server.metadata.uid = Some(format!("uid-{name}"));
    server.metadata.resource_version = Some(version.to_string());
    server.metadata.finalizers = Some(vec![MANAGER_FINALIZER.into()]);
    server
}

/// A Host that is ready and schedulable.
pub fn host(name: &str, memory_mib: i64) -> Host {
    let mut host = Host::new(
        name,
        HostSpec {
            schedulable: true,
            ..HostSpec::default()
        },
    );
    host.status = Some(HostStatus {
        capacity: Some(Claim {
            vcpus: 8,
            memory_mib,
            disk_gib: 100,
        }),
        conditions: vec![Condition {
            type_: "Ready".into(),
            status: "True".into(),
            reason: "Heartbeat".into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(now(0)),
        }],
        ..HostStatus::default()
    });
    host
}

/// The image of these Servers.
pub fn image() -> Image {
    let mut image = Image::new("image", ImageSpec::default());
    image.metadata.namespace = Some("ns".into());
    image
}

/// A state with these Hosts and the image.
pub fn state(hosts: &[Host]) -> State {
    let mut state = State::default();
    state.image_applied(image());
    for host in hosts {
        state.host_applied(host);
    }
    state
}

/// The Server after `write`.
pub fn after(write: &StatusWrite, version: u64) -> Server {
    let mut server = (*write.server).clone();
    server.metadata.resource_version = Some(version.to_string());
    server.status = Some(ServerStatus {
        placement: write.status.placement.clone(),
        refusals: write.status.refusals.clone(),
        nomination: write.status.nomination.clone(),
        preemption: write.status.preemption.clone(),
        conditions: write.status.conditions.clone(),
        ..ServerStatus::default()
    });
    server
}

/// Host and epoch of a placement.
pub fn bound(write: &StatusWrite) -> (&str, i64) {
    let placement = write.status.placement.as_ref().unwrap();
    (&placement.host, placement.epoch)
}

/// The Instance of a placed Server.
pub fn instance(server: &Server, version: u64) -> Instance {
    let placement = server.status.as_ref().unwrap().placement.clone().unwrap();
    let uid = server.metadata.uid.clone().unwrap();
    let spec = InstanceSpec {
        server: ServerIdentity {
            namespace: "ns".into(),
            name: server.metadata.name.clone().unwrap(),
            uid: uid.clone(),
        },
        host: placement.host.clone(),
        epoch: placement.epoch,
        claim: placement.claim,
        ..InstanceSpec::default()
    };
    let name = instance_name(&uid, placement.epoch);
    let mut instance = Instance::new(&name, spec);
    instance.metadata.uid = Some(format!("uid-{name}"));
    instance.metadata.namespace = Some(host_namespace(&placement.host));
    instance.metadata.resource_version = Some(version.to_string());
    instance
}

/// The Instance after its host has accepted (`realized`) or refused it, with the reason of its
/// condition Ready.
pub fn with_condition(mut instance: Instance, realized: bool, reason: Reason) -> Instance {
    instance.status = Some(InstanceStatus {
        realized: Some(realized),
        conditions: vec![Condition {
            type_: "Ready".into(),
            status: "False".into(),
            reason: reason.as_str().into(),
            message: "no room for it".into(),
            observed_generation: None,
            last_transition_time: Time(now(0)),
        }],
        ..InstanceStatus::default()
    });
    instance
}

/// Decides until nothing changes, as an API server that accepts every write. Returns the host of
/// each decided Server.
pub fn settle(state: &mut State, second: i64) -> Vec<(String, Option<String>)> {
    let mut decided = Vec::new();
    for round in 0..10 {
        let writes = state.decide(now(second));
        if writes.is_empty() {
            break;
        }
        for (i, write) in writes.into_iter().enumerate() {
            let version = 1_000_000 + second.unsigned_abs() * 1000 + round * 100 + i as u64;
            let answer = Arc::new(after(&write, version));
            state.write_finished(&write, Outcome::Written(answer), now(second));
            let host = write.status.placement.map(|p| p.host);
            decided.push((write.key.1, host));
        }
    }
    decided
}
