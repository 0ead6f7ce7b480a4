//! Reads what exists of an Instance on this host: direct reads, no caches.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::plan::resources::{HostResources, Presence, needs_allocation, needs_capacity};
use super::plan::{DomainState, ImageState, Observed, ObservedDomain, PlacementOwner};
use super::resources::reserve;
use super::{Download, Error, placement_owner_from};
use crate::Agent;
use crate::capacity::{Candidate, not_ready_for};
use pileus_api::instance::{ImportedImage, InstanceSource};
use pileus_api::server::PowerState;
use pileus_api::{Instance, Reason};
use pileus_hypervisor::{Domain, State};
use pileus_kube_ext::finalize;
use pileus_storage::{Content, ImageStore, Request, StoredImage, blocking};

/// What was observed in one pass, for the planner and for the steps.
pub struct Snapshot {
    /// For the planner.
    pub observed: Observed,
    /// The domain.
    pub domain: Option<Domain>,
    /// The disk's image in the store.
    pub image: Option<StoredImage>,
    /// Digests and sizes of the image's parts in the store.
    pub imported: Option<ImportedImage>,
    /// The config drive exists.
    pub has_config_drive: bool,
    /// What of the host the guest gets, or why the host cannot give it; only while there is no
    /// domain.
    pub resources: Option<Result<HostResources, String>>,
}

/// The owner that `object` records on what it makes.
#[must_use]
pub fn placement_owner(object: &Instance, agent: &Agent) -> PlacementOwner {
    PlacementOwner {
        cluster: agent.context.cluster.0.clone(),
        namespace: object.spec.server.namespace.clone(),
        name: object.spec.server.name.clone(),
        uid: object.spec.server.uid.clone(),
        epoch: object.spec.epoch,
    }
}

/// Observes everything.
///
/// # Errors
/// When the hypervisor does not answer.
pub async fn observe(object: &Instance, id: Uuid, agent: &Agent) -> Result<Snapshot, Error> {
    let domain = agent.hypervisor.domain(id).await?;
    let disks = agent.disks.clone();
    let contents = blocking(move || disks.contents(id)).await;
    let status = object.status.as_ref();
    let boot = status.and_then(|s| s.host_boot_id.as_ref());
    let rebooted = boot.is_some_and(|boot_id| *boot_id != agent.boot_id);
    let (store, wanted, has_disk) = (agent.store.clone(), requests(object), contents.disk);
    let has_kernel = object.spec.image.kernel.is_some();
    let found = blocking(move || find_image(&store, &wanted, has_disk, has_kernel)).await;
    let (image, imported) = found.unzip();
    let nics = object.spec.nics.iter();
    let ports: Vec<_> = nics.map(|nic| nic.port_id.clone()).collect();
    let now = Instant::now();
    let timeout = shutdown_timeout(object);
    let epoch = agent.epochs.get(&object.spec.server.uid);
    if let Some(imported) = &imported {
        let virtual_size = Some(imported.virtual_size);
        agent.runtime(id, |runtime| runtime.virtual_size = virtual_size);
    }
    let preempted = not_ready_for(object, Reason::Preempted);
    let presence = Presence {
        domain: domain.is_some(),
        disk: contents.disk,
        deleting: finalize::is_deleting(object),
        preempted,
        highest_epoch: epoch.map(|record| record.epoch),
    };
    let mut no_capacity = if needs_capacity(&object.spec, &presence) {
        no_capacity(object, agent)
    } else {
        None
    };
    let mut resources = None;
    if no_capacity.is_none() && needs_allocation(&object.spec, &presence) {
        let reserved = reserve(object, id, agent).await?;
        no_capacity = reserved.as_ref().err().cloned();
        resources = Some(reserved);
    }
    let port_timeout = agent.config.port_timeout;
    let recorded = contents
        .shutdown_requested
        .map(|at| at.elapsed().unwrap_or_default());
    let found = domain.as_ref().map(observed_domain);
    let observed = agent.runtime(id, |runtime| {
        let state = found.as_ref().map(|domain| domain.state);
        let wanted = object.spec.run_state_in_force();
        runtime.starts.observe(wanted, state, now);
        let starts = &runtime.starts;
        runtime.realized |= contents.disk;
        Observed {
            deleting: finalize::is_deleting(object),
            highest_epoch: epoch.map(|record| record.epoch),
            epoch_closed: epoch.is_some_and(|record| record.closed.is_some()),
            no_capacity,
            preempted,
            domain: found,
            directory: match (&contents.metadata, contents.directory) {
                (Some(metadata), _) => Some(placement_owner_from(&metadata.owner, metadata.epoch)),
                // Made by a pass that was interrupted before it wrote the metadata: the id is ours.
                (None, true) if !contents.disk => Some(placement_owner(object, agent)),
                (None, true) => Some(PlacementOwner::default()),
                (None, false) => None,
            },
            disk: contents.disk,
            config_drive: contents.config_drive
                || object.spec.config_drive == pileus_api::server::ConfigDrive::Disabled
                || object.spec.guest_data.is_none(),
            image: image_state(imported.as_ref(), runtime.download.as_ref(), now),
            realized: status.and_then(|s| s.realized) == Some(true),
            guest_shutdown: runtime
                .guest_shutdown
                .or_else(|| status?.guest_shutdown)
                .unwrap_or(false),
            was_running: status.and_then(|s| s.power_state) == Some(PowerState::Running),
            asked_to_stop: starts.is_asked_to_stop(recorded, timeout),
            rebooted,
            ports_installed: agent.ports.installed(&ports),
            ports_overdue: starts.started.is_some_and(|at| now - at > port_timeout),
            shutdown: starts.shutdown(timeout, now),
            crashes: starts.crashes,
            start_refused: starts.refused.is_some(),
            backing_off: starts.is_backing_off(now),
        }
    });
    Ok(Snapshot {
        observed,
        domain,
        image,
        imported,
        has_config_drive: contents.config_drive,
        resources,
    })
}

fn shutdown_timeout(object: &Instance) -> Duration {
    let seconds = object.spec.shutdown_timeout_seconds.max(0).unsigned_abs();
    Duration::from_secs(seconds.into())
}

/// Why the host has no capacity for `object`; `None` when it has, or that is unknown yet.
fn no_capacity(object: &Instance, agent: &Agent) -> Option<String> {
    let capacity = (*agent
        .capacity
        .lock()
        .unwrap_or_else(PoisonError::into_inner))?;
    let others = others(object, agent).map(|(_, other)| other);
    let own = candidate(object, agent);
    let lacking = capacity.refusal(&own, others)?;
    let by_image = object.spec.claim.disk_gib == 0 && own.claim.disk_gib > 0;
    Some(if by_image {
        format!(
            "{lacking} (its disk is 0, so it is as big as the image's: {} GiB)",
            own.claim.disk_gib
        )
    } else {
        lacking
    })
}

fn others(object: &Instance, agent: &Agent) -> impl Iterator<Item = (Arc<Instance>, Candidate)> {
    let all = agent.known.state().into_iter();
    all.filter(|i| i.metadata.uid != object.metadata.uid && !finalize::is_deleting(&**i))
        .map(|i| {
            let candidate = candidate(&i, agent);
            (i, candidate)
        })
}

/// Instances that have their capacity on the host, or come before `object` for it.
pub(super) fn others_before(
    object: &Instance,
    agent: &Agent,
) -> impl Iterator<Item = Arc<Instance>> {
    let own = candidate(object, agent);
    others(object, agent)
        .filter(move |(_, other)| other.comes_before(&own))
        .map(|(instance, _)| instance)
}

fn candidate(object: &Instance, agent: &Agent) -> Candidate {
    let id = object.spec.instance_id.parse();
    let (realized, virtual_size) = id.map_or((false, None), |id| {
        agent.runtime(id, |runtime| (runtime.realized, runtime.virtual_size))
    });
    Candidate::of(object, realized, virtual_size)
}

fn observed_domain(domain: &Domain) -> ObservedDomain {
    ObservedDomain {
        owner: domain
            .metadata
            .as_ref()
            .map(|m| placement_owner_from(&m.owner, m.epoch)),
        state: match domain.state {
            State::Running => DomainState::Running,
            State::Paused => DomainState::Paused,
            State::ShuttingDown => DomainState::ShuttingDown,
            State::ShutDown => DomainState::ShutDown,
            State::Off => DomainState::Off,
            State::Crashed => DomainState::Crashed,
        },
    }
}

fn image_state(
    imported: Option<&ImportedImage>,
    download: Option<&Download>,
    now: Instant,
) -> ImageState {
    match (imported, download) {
        (Some(imported), _) => ImageState::Cached(imported.clone()),
        (None, Some(Download::Running(_, task))) if !task.is_finished() => ImageState::Fetching,
        (None, Some(Download::Failed { again, .. })) if now < *again => ImageState::Failed,
        _ => ImageState::Absent,
    }
}

/// The image's parts, when all are in the store and the guest may have them.
fn find_image(
    store: &ImageStore,
    requests: &[Request],
    has_disk: bool,
    has_kernel: bool,
) -> Option<(StoredImage, ImportedImage)> {
    let find = |request: &Request| {
        if has_disk {
            store.find_for_disk(request)
        } else {
            store.find(request)
        }
    };
    let found: Vec<_> = requests.iter().map(find).collect::<Option<_>>()?;
    let mut rest = found.iter().skip(1).map(|s| s.digest.clone());
    let disk = found.first()?.clone();
    let imported = ImportedImage {
        digest: disk.digest.clone(),
        size: i64::try_from(disk.size).unwrap_or(i64::MAX),
        virtual_size: i64::try_from(disk.virtual_size).unwrap_or(i64::MAX),
        kernel_digest: if has_kernel { rest.next() } else { None },
        initrd_digest: rest.next(),
    };
    Some((disk, imported))
}

/// What must be fetched: the disk, then the kernel and the initial RAM disk, if any.
///
/// The digest that the manager fixed is not part of the look-up by source, so that bytes
/// that differ from it are recognised and not fetched over and over.
#[must_use]
pub fn requests(object: &Instance) -> Vec<Request> {
    let image = &object.spec.image;
    let namespace = image.name.split_once('/').map_or("", |(at, _)| at);
    let request = |source: &InstanceSource, content| Request {
        namespace: namespace.to_owned(),
        url: source.url.clone(),
        checksum: source.checksum.clone(),
        digest: source.digest.clone(),
        content,
    };
    let disk = request(
        &image.disk,
        Content::Disk(image.disk_format.as_str().to_owned()),
    );
    let blobs = [&image.kernel, &image.initrd].into_iter().flatten();
    std::iter::once(disk)
        .chain(blobs.map(|source| request(source, Content::Blob)))
        .collect()
}
