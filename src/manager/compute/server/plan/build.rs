//! The Instance of a Server, and the data of its guest.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::super::guest;
use super::{Observed, ObservedNic};
use pileus_api::image::Source;
use pileus_api::instance::{
    InstanceImage, InstanceSource, InstanceSpec, Nic, OnDeletion, Role, ServerIdentity,
};
use pileus_api::names::{
    AGENT_FINALIZER, GUEST_DATA_KEY, SERVER_UID_LABEL, host_namespace, instance_name,
};
use pileus_api::server::Placement;
use pileus_api::topology::{GuestTopology, NumaConstraints};
use pileus_api::{Image, Instance, Server};
use pileus_values::stable_id;

/// Annotation of an Instance: the parts of the spec that only reach a guest when it is built.
pub const BUILT_FROM: &str = "pileus.dev/built-from";

fn source(source: &Source, digest: Option<&String>) -> InstanceSource {
    let checksum = source.checksum.as_ref().map(|c| c.to_ascii_lowercase());
    let known = checksum.clone().filter(|c| c.starts_with("sha256:"));
    InstanceSource {
        url: source.url.clone(),
        checksum,
        digest: known.or_else(|| digest.cloned()),
    }
}

pub(super) fn instance(
    server: &Server,
    observed: &Observed,
    image: &Image,
    placement: &Placement,
) -> (Secret, Instance) {
    let uid = server.uid().unwrap_or_default();
    let namespace = server.namespace().unwrap_or_default();
    let name = instance_name(&uid, placement.epoch);
    let at = host_namespace(&placement.host);
    let labels: BTreeMap<_, _> = [(SERVER_UID_LABEL.to_owned(), uid.clone())].into();
    let digest = image.status.as_ref().and_then(|s| s.digest.as_ref());
    let spec = InstanceSpec {
        server: ServerIdentity {
            namespace: namespace.clone(),
            name: server.name_any(),
            uid,
        },
        host: placement.host.clone(),
        epoch: placement.epoch,
        role: Role::Primary,
        instance_id: stable_id(&observed.cluster, "Server", &namespace, &server.name_any())
            .to_string(),
        claim: placement.claim,
        topology: topology(observed, image, placement),
        pci_devices: placement.pci_devices.clone(),
        hardware: server.status.as_ref().and_then(|s| s.hardware.clone()),
        image: InstanceImage {
            name: format!(
                "{}/{}",
                image.namespace().unwrap_or_default(),
                image.name_any()
            ),
            uid: image.uid().unwrap_or_default(),
            disk_format: image.spec.disk_format,
            disk: source(&image.spec.source, digest),
            kernel: image.spec.kernel.as_ref().map(|s| source(s, None)),
            initrd: image.spec.initrd.as_ref().map(|s| source(s, None)),
            kernel_command_line: image.spec.kernel_command_line.clone(),
            properties: image.spec.properties.clone(),
        },
        nics: observed.nics.iter().filter_map(nic).collect(),
        guest_data: Some(name.clone()),
        config_drive: server.spec.config_drive,
        run_state: server.spec.run_state,
        preempted: is_preempted(server),
        on_guest_shutdown: server.spec.on_guest_shutdown,
        shutdown_timeout_seconds: server.spec.shutdown_timeout_seconds,
        on_deletion: OnDeletion::Release,
    };
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: Some(at),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    let data = guest::guest_data(server, observed);
    // Strings and numbers always serialise.
    let data = ByteString(serde_json::to_vec(&data).unwrap_or_default());
    let secret = Secret {
        metadata: metadata.clone(),
        data: Some([(GUEST_DATA_KEY.to_owned(), data)].into()),
        ..Secret::default()
    };
    let instance = Instance {
        metadata: ObjectMeta {
            finalizers: Some(vec![AGENT_FINALIZER.to_owned()]),
            annotations: Some([(BUILT_FROM.to_owned(), built_from(server))].into()),
            ..metadata
        },
        spec,
        status: None,
    };
    (secret, instance)
}

/// The guest's NUMA nodes on those that the scheduler chose. None for a Server that was
/// placed before it was known which: then nothing is counted on any either.
fn topology(observed: &Observed, image: &Image, placement: &Placement) -> Option<GuestTopology> {
    let flavor = observed.flavor.as_ref().map(|f| f.spec.extra_specs.clone());
    let flavor = flavor.unwrap_or_default();
    // What cannot be read is not placed at all.
    let constraints =
        NumaConstraints::read(placement.claim, &flavor, &image.spec.properties).ok()??;
    constraints.on(&placement.numa_nodes)
}

/// Whether the scheduler has given its processors and memory to another Server.
pub(super) fn is_preempted(server: &Server) -> bool {
    let status = server.status.as_ref();
    status.is_some_and(|s| s.preemption.is_some())
}

fn built_from(server: &Server) -> String {
    // Strings always serialise.
    serde_json::to_string(&guest::BuiltFrom::of(server)).unwrap_or_default()
}

fn nic(observed: &ObservedNic) -> Option<Nic> {
    let status = observed.port.as_ref()?.status.as_ref()?;
    Some(Nic {
        name: observed.name.clone(),
        port: observed.port_name.clone(),
        port_id: status.port_id.clone()?,
        mac_address: status.mac_address.clone()?,
        mtu: observed.network.as_ref()?.status.as_ref()?.mtu?,
        ips: status
            .fixed_ips
            .iter()
            .map(|ip| ip.address.clone())
            .collect(),
    })
}
