//! What keeps a Server from being built: what is missing, invalid or in use by others.

use kube::ResourceExt;

use super::claim::{Holding, holding};
use super::ports::is_owned_by;
use super::{Observed, ObservedNic, Problem, UserData};
use crate::network::network::sharing::is_open_to;
use pileus_api::common::Claim;
use pileus_api::conditions::{self, ConditionType};
use pileus_api::image::DiskFormat;
use pileus_api::names::{USER_DATA_ROLE, opt_in_command};
use pileus_api::server::ServerNetwork;
use pileus_api::{Image, Reason, Server, validation};
use pileus_guest::MAX_USER_DATA;
use pileus_kube_ext::finalize;
use pileus_values::Bytes;
use pileus_values::quantity::MIB;

/// The size asked for: by flavor, or inline.
pub(super) fn claim(server: &Server, observed: &Observed) -> Result<Claim, Problem> {
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
        (Some(name), None) => {
            let namespace = server.namespace().unwrap_or_default();
            let open = observed.flavor.as_ref().filter(|flavor| {
                let access = flavor.spec.access.as_ref();
                access.is_none_or(|access| access.allows(&namespace))
            });
            let Some(flavor) = open else {
                return Err(problem(
                    Reason::FlavorNotFound,
                    format!(
                        "spec.flavor: there is no Flavor `{name}` that namespace `{namespace}` may use; `kubectl get flavors` lists them"
                    ),
                ));
            };
            (
                flavor.spec.vcpus,
                &flavor.spec.memory,
                &flavor.spec.disk,
                format!("Flavor `{name}`"),
            )
        }
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

pub(super) fn problems(
    server: &Server,
    observed: &Observed,
    claim: &Result<Claim, Problem>,
) -> Vec<Problem> {
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
    // What is missing besides means little as long as the spec itself cannot be used.
    if let Err(message) = validation::server(spec) {
        add(Reason::InvalidSpec, true, message);
        return found;
    }
    if let Err(problem) = claim {
        add(problem.reason, problem.terminal, problem.message.clone());
    }
    let image_name = &spec.image.name;
    match &observed.image {
        None => {
            let at = spec.image.namespace.as_ref().unwrap_or(&namespace);
            let message = missing("Image", image_name, at, &namespace);
            add(
                Reason::ImageNotFound,
                false,
                format!("spec.image: {message}"),
            );
        }
        Some(image) => {
            image_problems(image, &namespace, claim.as_ref().ok(), &mut add);
        }
    }
    for (name, pair) in &observed.key_pairs {
        if pair.is_none() {
            add(
                Reason::KeyPairNotFound,
                false,
                format!("spec.keyPairs: there is no KeyPair `{name}` in namespace `{namespace}`"),
            );
        }
    }
    user_data_problems(server, &observed.user_data, &namespace, &mut add);
    let mut names = std::collections::BTreeSet::new();
    for (index, nic) in observed.nics.iter().enumerate() {
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

/// What is wrong with the user data, in the spec or in a Secret.
fn user_data_problems(
    server: &Server,
    user_data: &UserData,
    namespace: &str,
    add: &mut impl FnMut(Reason, bool, String),
) {
    let spec = &server.spec;
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
    match user_data {
        UserData::NoSecret(name) => add(
            Reason::SecretNotFound,
            false,
            format!("spec.userDataFrom: there is no Secret `{name}` in namespace `{namespace}`"),
        ),
        UserData::NotAllowed => add(
            Reason::NotOptedIn,
            false,
            format!(
                "spec.userDataFrom: the namespace {namespace} does not let Pileus read its Secrets; \
                 an administrator of the namespace allows it with: {}",
                opt_in_command(USER_DATA_ROLE, "manager", namespace)
            ),
        ),
        UserData::NoKey(name, key) => add(
            Reason::SecretKeyNotFound,
            false,
            format!("spec.userDataFrom: Secret `{name}` has no key `{key}`"),
        ),
        UserData::Refused(name, why) => add(
            Reason::SecretNotAllowed,
            false,
            format!(
                "spec.userDataFrom: Secret `{name}` {why}, so no guest is given it; name another"
            ),
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
}

/// That there is no such object. In another namespace the words are the same whether it exists or
/// is not shared: what others have is not for strangers to know.
fn missing(kind: &str, name: &str, of: &str, namespace: &str) -> String {
    if of == namespace {
        return format!("there is no {kind} `{name}` in namespace `{of}`");
    }
    format!(
        "there is no {kind} `{name}` in namespace `{of}` that `{namespace}` may use: it does not exist, or its owner has not listed `{namespace}` in spec.sharedWith"
    )
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
        let message = missing("Image", &name, &owner, namespace);
        add(
            Reason::ImageNotFound,
            false,
            format!("spec.image: {message}"),
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
    nic: &ObservedNic,
    wanted: &ServerNetwork,
    namespace: &str,
    add: &mut impl FnMut(Reason, bool, String),
) {
    let at = format!("spec.networks[{}]", nic.name);
    match (&wanted.network, &wanted.port) {
        (Some(network), None) => {
            let found = nic.network.as_ref();
            if !found.is_some_and(|found| is_open_to(found, namespace)) {
                let of = network.namespace.as_deref().unwrap_or(namespace);
                let message = missing("Network", &network.name, of, namespace);
                add(Reason::NetworkNotFound, false, format!("{at}: {message}"));
                return;
            }
        }
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
    if let Some(Holding::InUse(user)) = holding(server, nic) {
        add(
            Reason::PortInUse,
            false,
            format!(
                "{at}: Port `{}` is in use by Server `{user}`",
                nic.port_name
            ),
        );
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
