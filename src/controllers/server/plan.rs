//! Decides what a Server needs. Pure: what was seen comes in, steps and a standing go out.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};

use super::guest;
use crate::api::common::Claim;
use crate::api::conditions::{self, ConditionType};
use crate::api::image::{DiskFormat, Source};
use crate::api::instance::{
    InstanceImage, InstanceSource, InstanceSpec, Nic, OnDeletion, Role, ServerIdentity,
};
use crate::api::names::{
    AGENT_FINALIZER, GUEST_DATA_KEY, MANAGER_FINALIZER, SERVER_UID_LABEL, host_namespace,
    instance_name,
};
use crate::api::port::{FixedIp, PortSpec};
use crate::api::server::Placement;
use crate::api::validation;
use crate::api::{
    Flavor, Image, Instance, KeyPair, Network, ObjectName, Port, Reason, Server, Subnet,
};
use crate::guest::MAX_USER_DATA;
use crate::kube_ext::finalize;
use crate::model::quantity::MIB;
use crate::model::{Bytes, ClusterId, stable_id};

/// Annotation of an Instance: what of the spec only reaches a guest when it is built.
pub const BUILT_FROM: &str = "pileus.dev/built-from";

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// The Flavor named, if it exists.
    pub flavor: Option<Flavor>,
    /// The Image named, if it exists.
    pub image: Option<Image>,
    /// The KeyPairs named, those that exist.
    pub key_pairs: BTreeMap<String, Option<KeyPair>>,
    /// Interfaces.
    pub nics: Vec<NicSeen>,
    /// User data.
    pub user_data: UserData,
    /// The Instances: the placed one, or all when the Server is being deleted.
    pub instances: Vec<Instance>,
    /// The Ports made for it; only looked for when it is being deleted.
    pub owned_ports: Vec<Port>,
    /// Why its host counts as lost, if so.
    pub host_lost: Option<String>,
    /// It is being deleted only because the kind itself is: nobody has asked for that.
    pub kind_lost: bool,
}

/// What was seen of an interface.
#[derive(Clone, Debug, Default)]
pub struct NicSeen {
    /// Name of the interface.
    pub name: String,
    /// Name of its Port.
    pub port_name: String,
    /// The Port is made for the Server.
    pub made: bool,
    /// The Port, if it exists.
    pub port: Option<Port>,
    /// The Network, if it exists.
    pub network: Option<Network>,
    /// Subnets of the Port's addresses.
    pub subnets: Vec<Subnet>,
    /// Another Server that uses the Port.
    pub used_by: Option<String>,
}

/// User data, as far as it is needed now.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum UserData {
    /// None asked for, or not needed now.
    #[default]
    NotNeeded,
    /// The bytes.
    Is(Vec<u8>),
    /// The Secret does not exist.
    NoSecret(String),
    /// The Secret has no such key.
    NoKey(String, String),
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNeeded => f.write_str("NotNeeded"),
            Self::Is(bytes) => write!(f, "Is({} bytes)", bytes.len()),
            Self::NoSecret(name) => write!(f, "NoSecret({name})"),
            Self::NoKey(name, key) => write!(f, "NoKey({name}, {key})"),
        }
    }
}

/// One small, repeatable effect.
#[derive(Clone, Debug)]
pub enum Step {
    /// Keep the Server until its host has let it go.
    AddFinalizer,
    /// Make a Port for an inline network.
    CreatePort(Box<Port>),
    /// Write what the guest is told.
    CreateGuestData(Box<Secret>),
    /// Make the Instance.
    CreateInstance(Box<Instance>),
    /// Change the Instance.
    UpdateInstance(Box<Instance>),
    /// Delete an Instance.
    DeleteInstance {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Delete what the guest was told.
    DeleteGuestData {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Delete a Port that was made for the Server.
    DeletePort {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Let the Server go.
    RemoveFinalizer,
}

impl fmt::Display for Step {
    /// Names the step without what is in it, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddFinalizer => f.write_str("add finalizer"),
            Self::CreatePort(port) => write!(f, "create port {}", port.name_any()),
            Self::CreateGuestData(secret) => write!(f, "create guest data {}", secret.name_any()),
            Self::CreateInstance(i) => write!(f, "create instance {}", i.name_any()),
            Self::UpdateInstance(i) => write!(f, "update instance {}", i.name_any()),
            Self::DeleteInstance { name, .. } => write!(f, "delete instance {name}"),
            Self::DeleteGuestData { name, .. } => write!(f, "delete guest data {name}"),
            Self::DeletePort { name, .. } => write!(f, "delete port {name}"),
            Self::RemoveFinalizer => f.write_str("remove finalizer"),
        }
    }
}

/// Something that keeps a Server from being built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For machines.
    pub reason: Reason,
    /// Names the field, the value, the culprit and the way out.
    pub message: String,
    /// Only a change of the spec can help.
    pub terminal: bool,
}

/// Where a Server stands after the steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Something it needs is missing or wrong.
    Problems(Vec<Problem>),
    /// The scheduler has not placed it yet.
    Unplaced,
    /// Its Ports have no addresses yet.
    AwaitingPorts(Vec<String>),
    /// Its Instance says how it is.
    Realised,
    /// Its Instance has been made, and its host has not said anything of it yet.
    Building,
    /// It is being deleted, and waits for these.
    Deleting(String),
}

impl Standing {
    /// Whether it is normal, and soon over.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unplaced | Self::AwaitingPorts(_) | Self::Building
        )
    }

    /// Whether a Secret may appear or change, which nothing tells.
    #[must_use]
    pub fn waits_for_secret(&self) -> bool {
        let Self::Problems(problems) = self else {
            return false;
        };
        problems.iter().any(|p| match p.reason {
            Reason::SecretNotFound | Reason::SecretKeyNotFound => true,
            Reason::UserDataTooLarge => !p.terminal,
            _ => false,
        })
    }
}

/// What to do, and where that leaves the Server.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Effects, in order; the first that fails ends the pass.
    pub steps: Vec<Step>,
    /// Where that leaves the Server.
    pub standing: Standing,
    /// Size that the spec asks for now.
    pub claim: Option<Claim>,
    /// What differs from the spec until a rebuild.
    pub outdated: Vec<String>,
}

/// Decides for one Server.
#[must_use]
pub fn plan(server: &Server, seen: &Seen) -> Plan {
    let claim = claim(server, seen);
    let made = |steps, standing| Plan {
        steps,
        standing,
        claim: claim.as_ref().ok().copied(),
        outdated: vec![],
    };
    if finalize::is_deleting(server) {
        let (steps, waiting) = delete(server, seen);
        return made(steps, Standing::Deleting(waiting));
    }
    let mut steps = Vec::new();
    if !finalize::has(server, MANAGER_FINALIZER) {
        steps.push(Step::AddFinalizer);
    }
    if let Some(instance) = seen.instances.first() {
        let standing = if has_report(instance) || seen.host_lost.is_some() {
            Standing::Realised
        } else {
            Standing::Building
        };
        let mut plan = made(steps, standing);
        if let Some(changed) = changed_instance(server, seen, instance) {
            plan.steps.push(Step::UpdateInstance(Box::new(changed)));
        }
        plan.outdated = outdated(server, seen, instance, claim.as_ref().ok());
        return plan;
    }
    for nic in seen
        .nics
        .iter()
        .filter(|nic| is_to_be_made_anew(server, nic))
    {
        steps.extend(nic.port.as_ref().map(|port| Step::DeletePort {
            name: port.name_any(),
            uid: port.uid().unwrap_or_default(),
        }));
    }
    let problems = problems(server, seen, &claim);
    if !problems.is_empty() {
        // Nothing is made for what cannot be built; what was made stays.
        return made(steps, Standing::Problems(problems));
    }
    for nic in seen
        .nics
        .iter()
        .filter(|nic| nic.made && nic.port.is_none())
    {
        steps.push(Step::CreatePort(Box::new(port(server, nic))));
    }
    let placement = server.status.as_ref().and_then(|s| s.placement.as_ref());
    let Some(placement) = placement else {
        return made(steps, Standing::Unplaced);
    };
    let waiting: Vec<_> = seen
        .nics
        .iter()
        .filter(|nic| !is_port_ready(nic))
        .map(|nic| nic.port_name.clone())
        .collect();
    if !waiting.is_empty() {
        return made(steps, Standing::AwaitingPorts(waiting));
    }
    let Some(image) = &seen.image else {
        return made(steps, Standing::Unplaced);
    };
    let (secret, instance) = instance(server, seen, image, placement);
    steps.push(Step::CreateGuestData(Box::new(secret)));
    steps.push(Step::CreateInstance(Box::new(instance)));
    made(steps, Standing::Building)
}

/// The size asked for: by flavor, or inline.
fn claim(server: &Server, seen: &Seen) -> Result<Claim, Problem> {
    let problem = |reason, message: String| Problem {
        reason,
        message,
        terminal: reason == Reason::InvalidSpec,
    };
    let (vcpus, memory, disk, field) = match (&server.spec.flavor, &server.spec.resources) {
        (Some(_), Some(_)) | (None, None) => {
            return Err(problem(
                Reason::InvalidSpec,
                "give either spec.flavor or spec.resources".into(),
            ));
        }
        (None, Some(r)) => (r.vcpus, &r.memory, &r.disk, "spec.resources".to_owned()),
        (Some(name), None) => match &seen.flavor {
            None => {
                return Err(problem(
                    Reason::FlavorNotFound,
                    format!(
                        "spec.flavor: there is no Flavor `{name}`; `kubectl get flavors` lists them"
                    ),
                ));
            }
            Some(flavor) => {
                let namespace = server.namespace().unwrap_or_default();
                if flavor
                    .spec
                    .access
                    .as_ref()
                    .is_some_and(|access| !access.allows(&namespace))
                {
                    return Err(problem(
                        Reason::FlavorNotFound,
                        format!(
                            "spec.flavor: Flavor `{name}` is not open to namespace `{namespace}`"
                        ),
                    ));
                }
                (
                    flavor.spec.vcpus,
                    &flavor.spec.memory,
                    &flavor.spec.disk,
                    format!("Flavor `{name}`"),
                )
            }
        },
    };
    let read = |name: &str, text: &str| {
        Bytes::parse(text)
            .map_err(|e| problem(Reason::InvalidSpec, format!("{field}: {name}: {e}")))
    };
    let memory = read("memory", memory)?;
    if memory.0 < 16 * MIB {
        return Err(problem(
            Reason::InvalidSpec,
            format!("{field}: memory: `{memory}` is less than 16Mi"),
        ));
    }
    Ok(Claim {
        vcpus: vcpus.into(),
        memory_mib: memory.mib(),
        disk_gib: read("disk", disk)?.gib(),
    })
}

fn problems(server: &Server, seen: &Seen, claim: &Result<Claim, Problem>) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |reason, terminal, message: String| {
        found.push(Problem {
            reason,
            message,
            terminal,
        });
    };
    let namespace = server.namespace().unwrap_or_default();
    let spec = &server.spec;
    // Old API servers do not hold to the rules of the definition. What is missing besides
    // means little as long as the spec contradicts itself.
    if let Err(message) = validation::server(spec) {
        add(Reason::InvalidSpec, true, message);
        return found;
    }
    if let Err(problem) = claim {
        add(problem.reason, problem.terminal, problem.message.clone());
    }
    let image_name = &spec.image.name;
    match &seen.image {
        None => {
            let at = spec.image.namespace.as_ref().unwrap_or(&namespace);
            add(
                Reason::ImageNotFound,
                false,
                format!("spec.image: there is no Image `{image_name}` in namespace `{at}`"),
            );
        }
        Some(image) => {
            image_problems(image, &namespace, claim.as_ref().ok(), &mut add);
        }
    }
    for (name, pair) in &seen.key_pairs {
        if pair.is_none() {
            add(
                Reason::KeyPairNotFound,
                false,
                format!("spec.keyPairs: there is no KeyPair `{name}` in namespace `{namespace}`"),
            );
        }
    }
    if let Some(data) = &spec.user_data
        && data.len() > MAX_USER_DATA
    {
        add(
            Reason::UserDataTooLarge,
            true,
            format!(
                "spec.userData has {} bytes; the most is {MAX_USER_DATA}. Let it fetch the rest by itself",
                data.len()
            ),
        );
    }
    match &seen.user_data {
        UserData::NoSecret(name) => add(
            Reason::SecretNotFound,
            false,
            format!("spec.userDataFrom: there is no Secret `{name}` in namespace `{namespace}`"),
        ),
        UserData::NoKey(name, key) => add(
            Reason::SecretKeyNotFound,
            false,
            format!("spec.userDataFrom: Secret `{name}` has no key `{key}`"),
        ),
        UserData::Is(bytes) if spec.user_data.is_none() && bytes.len() > MAX_USER_DATA => add(
            Reason::UserDataTooLarge,
            false,
            format!(
                "spec.userDataFrom: {} has {} bytes; the most is {MAX_USER_DATA}. Let it fetch the rest by itself",
                secret_key(server),
                bytes.len()
            ),
        ),
        UserData::Is(_) | UserData::NotNeeded => {}
    }
    let mut names = std::collections::BTreeSet::new();
    for (index, nic) in seen.nics.iter().enumerate() {
        if !names.insert(&nic.port_name) {
            add(
                Reason::InvalidSpec,
                true,
                format!("spec.networks: Port `{}` is used twice", nic.port_name),
            );
        }
        if let Some(wanted) = spec.networks.get(index) {
            nic_problems(server, nic, wanted, &namespace, &mut add);
        }
    }
    found
}

/// Which key of which Secret the user data are in.
fn secret_key(server: &Server) -> String {
    match &server.spec.user_data_from {
        Some(from) => format!("key `{}` of Secret `{}`", from.key, from.name),
        None => "the Secret".to_owned(),
    }
}

fn image_problems(
    image: &Image,
    namespace: &str,
    claim: Option<&Claim>,
    add: &mut impl FnMut(Reason, bool, String),
) {
    let name = image.name_any();
    let owner = image.namespace().unwrap_or_default();
    if owner != namespace
        && !image
            .spec
            .shared_with
            .as_ref()
            .is_some_and(|s| s.allows(namespace))
    {
        add(
            Reason::ImageNotShared,
            false,
            format!(
                "spec.image: Image `{name}` of namespace `{owner}` is not shared with `{namespace}`; its owner can add it to spec.sharedWith"
            ),
        );
        return;
    }
    if finalize::is_deleting(image) {
        add(
            Reason::ImageNotReady,
            false,
            format!("spec.image: Image `{name}` is being deleted"),
        );
    }
    if !matches!(image.spec.disk_format, DiskFormat::Qcow2 | DiskFormat::Raw) {
        add(
            Reason::UnsupportedFormat,
            false,
            format!(
                "spec.image: Image `{name}` is {}, which cannot be used yet; convert it with `qemu-img convert -O qcow2`",
                image.spec.disk_format.as_str()
            ),
        );
    }
    let Some(claim) = claim else { return };
    let least = |text: &Option<String>| text.as_ref().and_then(|t| Bytes::parse(t).ok());
    if let Some(min) = least(&image.spec.min_memory)
        && claim.memory_mib < min.mib()
    {
        add(
            Reason::FlavorTooSmall,
            true,
            format!(
                "memory of {} MiB is below the {min} that Image `{name}` asks for; use a bigger flavor",
                claim.memory_mib
            ),
        );
    }
    if let Some(min) = least(&image.spec.min_disk)
        && claim.disk_gib > 0
        && claim.disk_gib < min.gib()
    {
        add(
            Reason::FlavorTooSmall,
            true,
            format!(
                "a disk of {} GiB is below the {min} that Image `{name}` asks for; use a bigger flavor",
                claim.disk_gib
            ),
        );
    }
}

fn nic_problems(
    server: &Server,
    nic: &NicSeen,
    wanted: &crate::api::server::ServerNetwork,
    namespace: &str,
    add: &mut impl FnMut(Reason, bool, String),
) {
    let at = format!("spec.networks[{}]", nic.name);
    match (&wanted.network, &wanted.port) {
        (Some(network), None) => match &nic.network {
            None => {
                let of = network.namespace.as_deref().unwrap_or(namespace);
                add(
                    Reason::NetworkNotFound,
                    false,
                    format!(
                        "{at}: there is no Network `{}` in namespace `{of}`",
                        network.name
                    ),
                );
                return;
            }
            Some(found) => {
                let owner = found.namespace().unwrap_or_default();
                if owner != namespace
                    && !found
                        .spec
                        .shared_with
                        .as_ref()
                        .is_some_and(|s| s.allows(namespace))
                {
                    add(
                        Reason::NetworkNotShared,
                        false,
                        format!(
                            "{at}: Network `{}` of namespace `{owner}` is not shared with `{namespace}`; its owner can add it to spec.sharedWith",
                            network.name
                        ),
                    );
                    return;
                }
            }
        },
        (None, Some(name)) => {
            if nic.port.is_none() {
                add(
                    Reason::PortNotFound,
                    false,
                    format!("{at}: there is no Port `{name}` in namespace `{namespace}`"),
                );
                return;
            }
        }
        _ => {
            add(
                Reason::InvalidSpec,
                true,
                format!("{at}: give either network or port"),
            );
            return;
        }
    }
    if let Some(user) = &nic.used_by {
        add(
            Reason::PortInUse,
            false,
            format!(
                "{at}: Port `{}` is in use by Server `{user}`",
                nic.port_name
            ),
        );
    }
    let Some(port) = &nic.port else { return };
    if nic.made && !is_owned_by(port, server) {
        add(
            Reason::PortInUse,
            false,
            format!(
                "{at}: there is already a Port `{}`, which does not belong to this Server; rename one of them",
                nic.port_name
            ),
        );
        return;
    }
    if finalize::is_deleting(port) {
        add(
            Reason::PortNotReady,
            false,
            format!("{at}: Port `{}` is being deleted", nic.port_name),
        );
    }
    let conditions = port
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    if let Some(ready) = conditions::find(conditions, ConditionType::Ready)
        && ready.status == "False"
    {
        add(
            Reason::PortNotReady,
            false,
            format!("{at}: Port `{}`: {}", nic.port_name, ready.message),
        );
    }
}

/// Whether its host has said anything of the Instance yet.
fn has_report(instance: &Instance) -> bool {
    instance
        .status
        .as_ref()
        .and_then(|s| conditions::find(&s.conditions, ConditionType::Ready))
        .is_some_and(|ready| ready.reason != Reason::Pending.as_str())
}

fn is_owned_by(port: &Port, server: &Server) -> bool {
    port.owner_references()
        .iter()
        .any(|o| Some(&o.uid) == server.uid().as_ref())
}

/// Whether a made Port could not be given what it asks for, and the Server, which was never
/// built, asks for something else by now.
fn is_to_be_made_anew(server: &Server, nic: &NicSeen) -> bool {
    let Some(made) = nic.port.as_ref().filter(|_| nic.made) else {
        return false;
    };
    let was_built = server.status.as_ref().is_some_and(|s| s.instance.is_some());
    if was_built || is_port_ready(nic) || finalize::is_deleting(made) || !is_owned_by(made, server)
    {
        return false;
    }
    let (has, wanted) = (&made.spec, port(server, nic).spec);
    (&has.network, &has.fixed_ips, &has.security_groups)
        != (&wanted.network, &wanted.fixed_ips, &wanted.security_groups)
}

fn is_port_ready(nic: &NicSeen) -> bool {
    let Some(status) = nic.port.as_ref().and_then(|p| p.status.as_ref()) else {
        return false;
    };
    conditions::is_true(&status.conditions, ConditionType::Ready)
        && status.port_id.is_some()
        && status.mac_address.is_some()
        && nic
            .network
            .as_ref()
            .and_then(|n| n.status.as_ref())
            .is_some_and(|s| s.mtu.is_some())
}

/// The Port for an inline network.
fn port(server: &Server, nic: &NicSeen) -> Port {
    let wanted = server.spec.networks.iter().find(|n| n.name == nic.name);
    let network = wanted.and_then(|n| n.network.clone()).unwrap_or_default();
    let fixed = wanted.and_then(|n| n.fixed_ip.clone());
    let mut port = Port::new(
        &nic.port_name,
        PortSpec {
            network: ObjectName {
                name: network.name,
                namespace: network.namespace,
            },
            fixed_ips: fixed
                .map(|address| FixedIp {
                    name: "fixed".into(),
                    subnet: None,
                    address: Some(address),
                })
                .into_iter()
                .collect(),
            security_groups: wanted.and_then(|n| n.security_groups.clone()),
            ..PortSpec::default()
        },
    );
    port.metadata.namespace = server.namespace();
    port.metadata.finalizers = Some(vec![MANAGER_FINALIZER.to_owned()]);
    port.metadata.labels = Some(
        [(
            SERVER_UID_LABEL.to_owned(),
            server.uid().unwrap_or_default(),
        )]
        .into(),
    );
    port.metadata.owner_references = server.controller_owner_ref(&()).map(|owner| {
        // The Server's own finalizer deletes its Ports in order; the garbage collector
        // need not hold the Server back for them.
        vec![OwnerReference {
            block_owner_deletion: None,
            ..owner
        }]
    });
    port
}

fn source(source: &Source, digest: Option<&String>) -> InstanceSource {
    let checksum = source.checksum.as_ref().map(|c| c.to_ascii_lowercase());
    let known = checksum.clone().filter(|c| c.starts_with("sha256:"));
    InstanceSource {
        url: source.url.clone(),
        checksum,
        digest: known.or_else(|| digest.cloned()),
    }
}

fn instance(
    server: &Server,
    seen: &Seen,
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
        instance_id: stable_id(&seen.cluster, "Server", &namespace, &server.name_any()).to_string(),
        claim: placement.claim,
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
        nics: seen.nics.iter().filter_map(nic).collect(),
        guest_data: Some(name.clone()),
        config_drive: server.spec.config_drive,
        run_state: server.spec.run_state,
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
    let data = guest::guest_data(server, seen);
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

fn built_from(server: &Server) -> String {
    // Strings always serialise.
    serde_json::to_string(&guest::BuiltFrom::of(server)).unwrap_or_default()
}

fn nic(seen: &NicSeen) -> Option<Nic> {
    let status = seen.port.as_ref()?.status.as_ref()?;
    Some(Nic {
        name: seen.name.clone(),
        port: seen.port_name.clone(),
        port_id: status.port_id.clone()?,
        mac_address: status.mac_address.clone()?,
        mtu: seen.network.as_ref()?.status.as_ref()?.mtu?,
        ips: status
            .fixed_ips
            .iter()
            .map(|ip| ip.address.clone())
            .collect(),
    })
}

/// The Instance as it should be now, when that is not as it is: only what can be changed
/// in place, and digests that have become known.
fn changed_instance(server: &Server, seen: &Seen, instance: &Instance) -> Option<Instance> {
    if finalize::is_deleting(instance) {
        return None;
    }
    let mut wanted = instance.clone();
    let spec = &mut wanted.spec;
    spec.run_state = server.spec.run_state;
    spec.on_guest_shutdown = server.spec.on_guest_shutdown;
    spec.shutdown_timeout_seconds = server.spec.shutdown_timeout_seconds;
    let imported = instance.status.as_ref().and_then(|s| s.image.as_ref());
    if spec.image.disk.digest.is_none() {
        let of_image = seen
            .image
            .as_ref()
            .filter(|i| i.uid().as_ref() == Some(&spec.image.uid));
        spec.image.disk.digest = of_image
            .and_then(|i| i.status.as_ref())
            .and_then(|s| s.digest.clone());
    }
    if let (Some(kernel), Some(imported)) = (&mut spec.image.kernel, imported)
        && kernel.digest.is_none()
    {
        kernel.digest.clone_from(&imported.kernel_digest);
    }
    if let (Some(initrd), Some(imported)) = (&mut spec.image.initrd, imported)
        && initrd.digest.is_none()
    {
        initrd.digest.clone_from(&imported.initrd_digest);
    }
    (wanted.spec != instance.spec).then_some(wanted)
}

/// What the spec says and the running guest does not have.
fn outdated(
    server: &Server,
    seen: &Seen,
    instance: &Instance,
    claim: Option<&Claim>,
) -> Vec<String> {
    let mut found = Vec::new();
    let built = &instance.spec;
    if let Err(message) = validation::server(&server.spec) {
        found.push(format!("the spec is not valid ({message})"));
    }
    if let Some(claim) = claim
        && *claim != built.claim
    {
        found.push(format!(
            "size ({} vCPUs, {} MiB, {} GiB asked for; {} vCPUs, {} MiB, {} GiB built)",
            claim.vcpus,
            claim.memory_mib,
            claim.disk_gib,
            built.claim.vcpus,
            built.claim.memory_mib,
            built.claim.disk_gib
        ));
    }
    let namespace = server.namespace().unwrap_or_default();
    let image = &server.spec.image;
    let image = format!(
        "{}/{}",
        image.namespace.as_ref().unwrap_or(&namespace),
        image.name
    );
    if image != built.image.name {
        found.push(format!(
            "image ({image} asked for, {} built)",
            built.image.name
        ));
    }
    let pairs = |nics: &[(&String, &String)]| {
        let words: Vec<_> = nics
            .iter()
            .map(|(n, p)| format!("{n} on Port {p}"))
            .collect();
        if words.is_empty() {
            "none".to_owned()
        } else {
            words.join(", ")
        }
    };
    let wanted: Vec<_> = seen.nics.iter().map(|n| (&n.name, &n.port_name)).collect();
    let have: Vec<_> = built.nics.iter().map(|n| (&n.name, &n.port)).collect();
    if wanted != have {
        found.push(format!(
            "networks ({} asked for; {} built)",
            pairs(&wanted),
            pairs(&have)
        ));
    }
    found.extend(seen.nics.iter().filter_map(|nic| moved(server, nic)));
    let (drive, has) = (server.spec.config_drive, built.config_drive);
    if drive != has {
        found.push(format!("configDrive ({drive:?} asked for, {has:?} built)"));
    }
    // A record that is not there or cannot be read says nothing.
    if let Some(record) = instance.annotations().get(BUILT_FROM)
        && let Ok(record) = serde_json::from_str::<guest::BuiltFrom>(record)
    {
        found.extend(record.changes(&guest::BuiltFrom::of(server)));
    }
    found
}

/// How an inline network asks for something else than the Port that was made for it has.
fn moved(server: &Server, nic: &NicSeen) -> Option<String> {
    let made = nic.port.as_ref().filter(|_| nic.made)?;
    let wanted = port(server, nic).spec;
    let words = |spec: &PortSpec| {
        let ips = spec.fixed_ips.iter().filter_map(|ip| ip.address.as_deref());
        let network = &spec.network;
        let namespace = network
            .namespace
            .as_deref()
            .or(made.metadata.namespace.as_deref());
        let at = format!("{}/{}", namespace.unwrap_or_default(), network.name);
        [at.as_str()]
            .into_iter()
            .chain(ips)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let (asked, has) = (words(&wanted), words(&made.spec));
    (asked != has).then(|| format!("networks[{}] ({asked} asked for, {has} built)", nic.name))
}

/// Host first, then what it needed: an Instance that is still there may still run.
///
/// A Server that goes only because the definition of its kind does is let go, and nothing
/// that was made for it is removed.
fn delete(server: &Server, seen: &Seen) -> (Vec<Step>, String) {
    if !finalize::has(server, MANAGER_FINALIZER) {
        return (vec![], String::new());
    }
    let mut steps = Vec::new();
    // Anyone may write a label; only the spec and the owner say whose a thing is.
    let mut instances = seen
        .instances
        .iter()
        .filter(|i| Some(&i.spec.server.uid) == server.uid().as_ref())
        .peekable();
    let first = instances.peek().copied();
    for instance in instances {
        if !seen.kind_lost && instance.spec.on_deletion != OnDeletion::Remove {
            let mut ordered = instance.clone();
            ordered.spec.on_deletion = OnDeletion::Remove;
            steps.push(Step::UpdateInstance(Box::new(ordered)));
        }
        if !finalize::is_deleting(instance) {
            steps.push(Step::DeleteInstance {
                namespace: instance.namespace().unwrap_or_default(),
                name: instance.name_any(),
                uid: instance.uid().unwrap_or_default(),
            });
        }
    }
    if let Some(instance) = first {
        let done = if seen.kind_lost { "release" } else { "remove" };
        let waiting = format!("waiting for host {} to {done} the VM", instance.spec.host);
        return (steps, waiting);
    }
    if let Some(placement) = server.status.as_ref().and_then(|s| s.placement.as_ref()) {
        steps.push(Step::DeleteGuestData {
            namespace: host_namespace(&placement.host),
            name: instance_name(&server.uid().unwrap_or_default(), placement.epoch),
        });
    }
    if seen.kind_lost {
        // The VM runs on, and so does its network as long as its Ports are there.
        steps.push(Step::RemoveFinalizer);
        return (steps, String::new());
    }
    let owned: Vec<_> = seen
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
