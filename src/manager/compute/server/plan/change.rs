//! Which changes of its spec a built Server takes over, and what it reports of the others.

use kube::ResourceExt;

use super::super::guest;
use super::build::{BUILT_FROM, is_preempted};
use super::ports::port;
use super::{Observed, ObservedNic, Problem};
use pileus_api::common::Claim;
use pileus_api::instance::OnDeletion;
use pileus_api::port::PortSpec;
use pileus_api::{Instance, Reason, Server, validation};
use pileus_kube_ext::finalize;

/// The Instance as it should be now, if it differs: only fields that can be changed in place,
/// and digests that have become known.
pub(super) fn changed_instance(
    server: &Server,
    observed: &Observed,
    instance: &Instance,
) -> Option<Instance> {
    if finalize::is_deleting(instance) {
        return None;
    }
    let mut wanted = instance.clone();
    let spec = &mut wanted.spec;
    spec.run_state = server.spec.run_state;
    spec.preempted = is_preempted(server);
    spec.on_guest_shutdown = server.spec.on_guest_shutdown;
    spec.shutdown_timeout_seconds = server.spec.shutdown_timeout_seconds;
    // Its config drive was made before its domain, once for its life: what the drive was made from,
    // user data and all, need not lie in the host's namespace any longer.
    let is_defined = instance
        .status
        .as_ref()
        .is_some_and(|s| s.hardware.is_some());
    if is_defined {
        spec.guest_data = None;
    }
    // It stays, also if it was to be removed as refused and its host accepted it after all.
    spec.on_deletion = OnDeletion::Release;
    let imported = instance.status.as_ref().and_then(|s| s.image.as_ref());
    if spec.image.disk.digest.is_none() {
        let of_image = observed
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

/// Fields of the spec whose values the running guest does not have, each with both values.
pub(super) fn outdated(
    server: &Server,
    observed: &Observed,
    instance: &Instance,
    claim: &Result<Claim, Problem>,
) -> Vec<String> {
    let mut found = Vec::new();
    let built = &instance.spec;
    // Without a record that can be read nothing is known.
    let record = record(instance);
    let now = guest::BuiltFrom::of(server);
    if let Some((asked, has)) = record.as_ref().and_then(|was| was.other_flavor(&now)) {
        let why = match claim {
            Err(problem) => format!(": {}", problem.message),
            Ok(_) => String::new(),
        };
        found.push(format!("flavor ({asked} asked for, {has} built{why})"));
    }
    if let Err(message) = validation::server(&server.spec) {
        found.push(format!("the spec is not valid ({message})"));
    }
    let of_image = instance.status.as_ref().and_then(|s| s.image.as_ref());
    let of_image = of_image.map(|image| image.virtual_size);
    if let Ok(claim) = claim
        && claim.with_image(of_image) != built.claim.with_image(of_image)
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
    let wanted: Vec<_> = observed
        .nics
        .iter()
        .map(|n| (&n.name, &n.port_name))
        .collect();
    let have: Vec<_> = built.nics.iter().map(|n| (&n.name, &n.port)).collect();
    if wanted != have {
        found.push(format!(
            "networks ({} asked for; {} built)",
            pairs(&wanted),
            pairs(&have)
        ));
    }
    found.extend(observed.nics.iter().filter_map(|nic| moved(server, nic)));
    let (drive, has) = (server.spec.config_drive, built.config_drive);
    if drive != has {
        found.push(format!("configDrive ({drive:?} asked for, {has:?} built)"));
    }
    if let Some(record) = record {
        found.extend(record.changes(&now));
    }
    found
}

/// Why a Server is not up to date, for machines.
pub(super) fn outdated_reason(
    server: &Server,
    instance: &Instance,
    claim: &Result<Claim, Problem>,
) -> Reason {
    let now = guest::BuiltFrom::of(server);
    let moved = record(instance).and_then(|was| was.other_flavor(&now));
    match claim {
        Err(problem) if moved.is_some() && problem.reason == Reason::FlavorNotFound => {
            Reason::FlavorNotFound
        }
        _ => Reason::RebuildRequired,
    }
}

/// What the guest was built from.
fn record(instance: &Instance) -> Option<guest::BuiltFrom> {
    serde_json::from_str(instance.annotations().get(BUILT_FROM)?).ok()
}

/// How an inline network differs from the Port that was created for it.
fn moved(server: &Server, nic: &ObservedNic) -> Option<String> {
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
