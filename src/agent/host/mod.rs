//! The Host itself, which administrators register: inventory, heartbeat, orphans, collection of images.

pub mod plan;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Agent;
use crate::capacity::Capacity;
use crate::devices::allowed;
use crate::load::{self, Times};
use pileus_api::common::Claim;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::host::{Capabilities, Host, HostSpec, HostStatus, NumaNode, Orphan};
use pileus_api::names::{AGENT, host_namespace};
use pileus_api::pci::{HostDevice, offered};
use pileus_api::server::PowerState;
use pileus_api::{Instance, Reason};
use pileus_hypervisor::{HostFacts, ListedDomain, State};
use pileus_kube_ext::decode::Decoded;
use pileus_kube_ext::readiness::Check;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, chain, find, is_unserved, lease};
use pileus_storage::disk::Space;
use pileus_storage::{DirectoryMetadata, blocking};
use pileus_values::Owner;
use pileus_values::quantity::GIB;

/// The Host is observed this often without any event.
const STATUS_INTERVAL: Duration = Duration::from_secs(15);
/// An observation of the Host that takes longer shows in the agent's readiness.
const REPORT_LIMIT: Duration = Duration::from_secs(300);
/// How long an agent that starts waits for the last reported status of its Host.
const CACHED_STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// QEMU's own memory for each VM in MiB, beside the guest's; measured with this machine
/// type and these devices, rounded up.
const OVERHEAD_MIB: i64 = 160;
/// With fewer usable bytes than this the host's disk counts as full.
const MIN_FREE_BYTES: u64 = 1 << 30;
/// The kernel's figures of what the whole machine's processors do.
const STAT: &str = "/proc/stat";
/// Number of machine types that are reported, newest first; nobody chooses older ones.
const MACHINE_TYPES: usize = 32;

/// Renews the host's Lease until `stop`.
pub async fn run_heartbeat(agent: Arc<Agent>, stop: CancellationToken, check: Check) {
    let namespace = host_namespace(&agent.config.host);
    let mut wait = tokio::time::interval(lease::HEARTBEAT_INTERVAL);
    wait.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return check.done(),
            _ = wait.tick() => {}
        }
        check.sign_of_life(lease::HEARTBEAT_INTERVAL * 3);
        let beat = lease::heartbeat(&agent.context.client, &namespace, &agent.config.host);
        match tokio::time::timeout(lease::HEARTBEAT_INTERVAL, beat).await {
            Ok(Ok(())) => check.ok(),
            Ok(Err(error)) => {
                let error = chain(&error);
                tracing::warn!(error, "heartbeat");
                check.failed(error);
            }
            Err(_) => {
                tracing::warn!("the heartbeat takes too long");
                check.failed("the API server does not answer");
            }
        }
    }
}

/// Takes the capacity from the last reported status, so that an agent that has just started
/// refuses Instances that do not fit too. Best effort: the first observation follows.
pub async fn read_cached_capacity(agent: &Agent) {
    let read = find(&agent.hosts, &agent.config.host);
    let Ok(Ok(Some(host))) = tokio::time::timeout(CACHED_STATUS_TIMEOUT, read).await else {
        return;
    };
    let spec = host.spec_in_force();
    let capacity = host.status.and_then(|status| status.capacity);
    let capacity = capacity.map(|capacity| Capacity::new(&spec, capacity, OVERHEAD_MIB));
    *agent
        .capacity
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = capacity;
}

/// Keeps the Host's status up to date until `stop`; the agent is ready once its Host is
/// registered.
pub async fn run_status_reports(agent: Arc<Agent>, stop: CancellationToken, check: Check) {
    loop {
        check.busy(REPORT_LIMIT);
        if let Err(error) = observe_and_report(&agent).await {
            tracing::warn!(error = %chain(&error), "the Host's status cannot be reported");
        }
        check.ok();
        tokio::select! {
            () = stop.cancelled() => return check.done(),
            () = agent.host_changed.notified() => {
                // A burst of changes is one observation.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            () = tokio::time::sleep(STATUS_INTERVAL) => {}
        }
    }
}

/// Collects images that nothing uses until `stop`.
pub async fn run_image_collection(agent: Arc<Agent>, stop: CancellationToken, check: Check) {
    loop {
        let often =
            (agent.config.image_grace / 4).clamp(Duration::from_secs(5), Duration::from_secs(600));
        tokio::select! {
            () = stop.cancelled() => return check.done(),
            () = tokio::time::sleep(often) => {}
        }
        match agent.store.collect(agent.config.image_grace).await {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => {
                tracing::info!(?removed, "images that nothing uses collected");
                agent.host_changed.notify_one();
            }
            Err(error) => tracing::warn!(error = %chain(&error), "images cannot be collected"),
        }
    }
}

async fn observe_and_report(agent: &Agent) -> Result<(), ApiError> {
    let name = &agent.config.host;
    let facts = agent.hypervisor.host().await;
    // Before the Host, which may be lost itself: the metric counts orphans all the same.
    let orphans = match agent.hypervisor.domains().await {
        Ok(domains) => orphans(agent, &domains).await,
        Err(_) => None,
    };
    let host = find(&agent.hosts, name).await;
    let host = host.map_err(ApiError::doing("read the Host"))?;
    agent.context.ready.set(host.is_some());
    let Some(host) = host else {
        tracing::warn!("{}", plan::not_registered(name));
        return Ok(());
    };
    let old = host.status.clone().unwrap_or_default();
    let is_reported = old.capacity.is_some() || facts.is_err();
    let Some(orphans) = orphans.or_else(|| is_reported.then(|| old.orphans.clone())) else {
        // A Host without a status may have been deleted and made again: until its orphans are
        // known, the scheduler must not place a Server that runs here a second time.
        tracing::warn!("the Host is not reported before its orphans are known");
        return Ok(());
    };
    let network = agent.ports.problem().await;
    let devices = pci_devices(agent, &host).await;
    let devices = devices.unwrap_or_else(|| old.pci_devices.clone());
    let files = files(agent).await;
    let mut status = status(agent, &host, &old, facts, network, orphans, files);
    status.pci_devices = devices;
    status.metrics = metrics(agent, &old).await;
    let spec = HostSpec {
        reserved: host.spec.reserved.or(status.reserved),
        ..host.spec_in_force()
    };
    let capacity = status
        .capacity
        .map(|capacity| Capacity::new(&spec, capacity, OVERHEAD_MIB));
    *agent
        .capacity
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = capacity;
    if apply_status(&agent.hosts, AGENT, &host, &status).await? {
        agent.context.metrics.status_written("host");
        publish_capacity(agent, &host, &old, &status);
    }
    Ok(())
}

/// Publishes an event when the reservation begins or ceases to leave nothing.
fn publish_capacity(agent: &Agent, host: &Host, old: &HostStatus, new: &HostStatus) {
    let of = |status: &HostStatus| {
        let found = conditions::find(&status.conditions, ConditionType::CapacityAvailable);
        found.map(|c| (c.status == "False", c.message.clone()))
    };
    let Some((exhausted, message)) = of(new) else {
        return;
    };
    let was = of(old).is_some_and(|(exhausted, _)| exhausted);
    let events = &agent.context.events;
    if exhausted && !was {
        events.warning(host, Reason::NothingLeft, "Report", message);
    } else if was && !exhausted {
        events.normal(host, Reason::Ok, "Report", message);
    }
}

/// What the host's file systems show.
struct Files {
    /// Digests of the images that are here.
    images: Vec<String>,
    /// Space for disks.
    space: Result<Space, pileus_storage::Error>,
    /// Whether something else starts and stops VMs.
    has_rival: bool,
}

async fn files(agent: &Agent) -> Files {
    let (store, disks) = (agent.store.clone(), agent.disks.clone());
    blocking(move || Files {
        images: store.list(),
        space: disks.space(),
        has_rival: is_libvirt_guests_enabled(),
    })
    .await
}

/// How busy the processors are, for the metrics that are wanted; nothing is read without any.
async fn metrics(agent: &Agent, old: &HostStatus) -> BTreeMap<String, i64> {
    let wanted = &old.wanted_metrics;
    let lock = || agent.load.lock().unwrap_or_else(PoisonError::into_inner);
    if wanted.is_empty() {
        *lock() = None;
        return BTreeMap::new();
    }
    let kept = load::still_wanted(wanted, &old.metrics);
    let now = Instant::now();
    if lock().is_some_and(|(at, _)| now - at < load::WINDOW) {
        return kept;
    }
    let Some(times) = tokio::fs::read_to_string(STAT)
        .await
        .ok()
        .and_then(|text| Times::parse(&text))
    else {
        return kept;
    };
    let measured = lock().replace((now, times));
    let measured = measured.and_then(|(_, before)| times.since(before));
    measured.map_or(kept, |measured| {
        load::reported(wanted, &old.metrics, &measured)
    })
}

/// The PCI devices that exist, that this host's configuration allows and the Host's spec offers. `None` when that is unknown now.
async fn pci_devices(agent: &Agent, host: &Host) -> Option<Vec<HostDevice>> {
    let selectors = &host.spec.pci_devices;
    if selectors.is_empty() {
        return Some(Vec::new());
    }
    let found = agent.hypervisor.pci_devices().await.ok()?;
    let found = allowed(found, &agent.config.allow_pci_devices);
    let devices = found.into_iter().map(|device| HostDevice {
        name: device.address.to_string(),
        alias: String::new(),
        vendor_id: device.vendor,
        product_id: device.product,
        numa_node: device.numa_node,
    });
    Some(offered(selectors, devices))
}

/// Whether the host's Open vSwitch and ovn-controller answer.
fn network_available(problem: Option<String>) -> Observation {
    match problem {
        None => Observation::yes(
            ConditionType::NetworkAvailable,
            Reason::Ok,
            "Open vSwitch and ovn-controller answer",
        ),
        Some(problem) => Observation::no(
            ConditionType::NetworkAvailable,
            Reason::NetworkUnavailable,
            problem,
        ),
    }
}

/// Whether there is space for images and disks.
fn disk_available(agent: &Agent, space: Result<Space, pileus_storage::Error>) -> Observation {
    match space {
        Ok(space) if space.usable() >= MIN_FREE_BYTES => Observation::yes(
            ConditionType::DiskAvailable,
            Reason::Ok,
            "there is space for disks",
        ),
        Ok(space) => Observation::no(
            ConditionType::DiskAvailable,
            Reason::NoSpace,
            format!(
                "{} bytes are left in {} beside the reserve for running guests, fewer than \
                 {MIN_FREE_BYTES}; remove what is not needed, or give it a bigger file system",
                space.usable(),
                agent.config.state_dir.display()
            ),
        ),
        Err(error) => Observation::unknown(
            ConditionType::DiskAvailable,
            Reason::Retrying,
            chain(&error),
        ),
    }
}

fn status(
    agent: &Agent,
    host: &Host,
    old: &HostStatus,
    facts: Result<HostFacts, pileus_hypervisor::Error>,
    network_problem: Option<String>,
    orphans: Vec<Orphan>,
    files: Files,
) -> HostStatus {
    let Files {
        images,
        space,
        has_rival,
    } = files;
    let mut observations = Vec::new();
    let mut status = HostStatus {
        boot_id: Some(agent.boot_id.clone()),
        chassis: agent.ports.chassis().or_else(|| old.chassis.clone()),
        overhead_mib: Some(OVERHEAD_MIB),
        images,
        orphans,
        // What libvirt does not report now stays as it was reported last.
        capacity: old.capacity,
        reserved: None,
        // Written by the scheduler.
        allocation_ratios: None,
        numa_nodes: old.numa_nodes.clone(),
        pci_devices: Vec::new(),
        metrics: BTreeMap::new(),
        // Written by the scheduler.
        wanted_metrics: Vec::new(),
        capabilities: old.capabilities.clone(),
        conditions: Vec::new(),
    };
    match facts {
        Ok(facts) => {
            let total = space.as_ref().map_or(0, |s| s.total);
            let confined = plan::guests_confined(&facts.security_models);
            inventory(&mut status, facts, total, agent.config.virt_type.as_str());
            observations.push(confined);
            let message = "libvirt answers";
            observations.push(Observation::yes(
                ConditionType::HypervisorAvailable,
                Reason::Ok,
                message,
            ));
        }
        Err(error) => {
            observations.push(Observation::unknown(
                ConditionType::GuestsConfined,
                Reason::HypervisorUnavailable,
                "libvirt does not answer",
            ));
            observations.push(Observation::no(
                ConditionType::HypervisorAvailable,
                Reason::HypervisorUnavailable,
                format!(
                    "{}; running VMs go on, none can be changed until it answers",
                    chain(&error)
                ),
            ));
        }
    }
    observations.push(network_available(network_problem));
    observations.push(disk_available(agent, space));
    status.reserved = status
        .capacity
        .map(|capacity| agent.config.reservation.of(capacity));
    observations.push(plan::capacity_available(
        status.capacity,
        host.spec.reserved,
        status.reserved,
    ));
    observations.push(exclusive_control(has_rival));
    status.conditions = conditions::merge(
        &old.conditions,
        observations,
        host.metadata.generation,
        Timestamp::now(),
    );
    status
}

fn inventory(status: &mut HostStatus, facts: HostFacts, disk: u64, virt_type: &str) {
    let cpus: usize = facts.cells.iter().map(|cell| cell.cpus.len()).sum();
    status.capacity = Some(Claim {
        vcpus: i64::try_from(cpus).unwrap_or(i64::MAX),
        memory_mib: facts.cells.iter().map(|cell| cell.memory_mib).sum(),
        disk_gib: i64::try_from(disk).unwrap_or(i64::MAX) / GIB,
    });
    status.numa_nodes = facts
        .cells
        .into_iter()
        .map(|cell| NumaNode {
            name: cell.id.to_string(),
            cpus: cell.cpus,
            memory_mib: cell.memory_mib,
            huge_pages: cell
                .pages
                .into_iter()
                .map(|(size, total)| (size.to_string(), total))
                .collect(),
        })
        .collect();
    status.capabilities = Some(Capabilities {
        architecture: facts.architecture,
        virt_type: virt_type.to_owned(),
        machine_types: facts.machines.into_iter().take(MACHINE_TYPES).collect(),
        libvirt_version: facts.libvirt,
        qemu_version: facts.qemu,
    });
}

/// `libvirt-guests` would stop and start VMs by itself at a reboot of the host.
fn is_libvirt_guests_enabled() -> bool {
    let is_wanted = |target: &str| {
        Path::new("/etc/systemd/system")
            .join(target)
            .join("libvirt-guests.service")
            .is_symlink()
    };
    let targets = ["multi-user.target.wants", "default.target.wants"];
    targets.into_iter().any(is_wanted) && Path::new("/run/systemd/system").is_dir()
}

fn exclusive_control(has_rival: bool) -> Observation {
    if has_rival {
        Observation::no(
            ConditionType::ExclusiveControl,
            Reason::LibvirtGuestsEnabled,
            "libvirt-guests starts and stops VMs beside Pileus; run `systemctl disable --now libvirt-guests` on the host",
        )
    } else {
        Observation::yes(
            ConditionType::ExclusiveControl,
            Reason::Ok,
            "nothing else starts or stops VMs",
        )
    }
}

/// Whether the definition of the kind Instance is deleted. An API server that has just started
/// serves none of our kinds either until it is ready.
async fn is_definition_deleted(agent: &Agent) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
        return false;
    };
    if agent.context.client.request_text(request).await.is_err() {
        return false;
    }
    let again = all_instances(agent)
        .list(&ListParams::default().limit(1))
        .await;
    again.is_err_and(|error| is_unserved(&error))
}

/// The Instances of this host, each decoded for itself.
fn all_instances(agent: &Agent) -> Api<Decoded<Instance>> {
    let namespace = host_namespace(&agent.config.host);
    Api::namespaced(agent.context.client.clone(), &namespace)
}

/// Domains and directories with our metadata that belong to no Instance. `None` when that is
/// unknown now.
async fn orphans(agent: &Agent, domains: &[ListedDomain]) -> Option<Vec<Orphan>> {
    let ours = |owner: &Owner| owner.cluster == agent.context.cluster;
    let mut found: BTreeMap<Uuid, (Owner, i64, PowerState)> = BTreeMap::new();
    let disks = agent.disks.clone();
    for (id, metadata) in blocking(move || disks.list()).await {
        let Some(DirectoryMetadata { owner, epoch, .. }) = metadata.filter(|m| ours(&m.owner))
        else {
            continue;
        };
        found.insert(id, (owner, epoch, PowerState::Stopped));
    }
    for domain in domains {
        let Some(metadata) = domain.metadata.as_ref().filter(|m| ours(&m.owner)) else {
            continue;
        };
        let state = match domain.state {
            State::Running | State::ShuttingDown => PowerState::Running,
            State::Paused => PowerState::Paused,
            State::Off | State::ShutDown | State::Crashed => PowerState::Stopped,
        };
        found.insert(domain.id, (metadata.owner.clone(), metadata.epoch, state));
    }
    if found.is_empty() {
        return Some(Vec::new());
    }
    let known = |instances: &mut dyn Iterator<Item = &Instance>| -> HashSet<Uuid> {
        instances
            .filter_map(|i| i.spec.instance_id.parse().ok())
            .collect()
    };
    let cached = agent.known.state();
    let mut owned = known(&mut cached.iter().map(AsRef::as_ref));
    if found.keys().any(|id| !owned.contains(id)) {
        // The cache may be behind: only a direct read shows that an owner is missing.
        owned = match all_instances(agent).list(&ListParams::default()).await {
            Ok(list) => {
                let read: Option<Vec<_>> = list.items.into_iter().map(Decoded::ok).collect();
                // Whose Instance cannot be read is unknown, and not absent.
                known(&mut read?.iter())
            }
            // The definition is deleted, and every owner with it.
            Err(error) if is_unserved(&error) && is_definition_deleted(agent).await => {
                HashSet::new()
            }
            Err(_) => return None,
        };
    }
    let orphans: Vec<_> = found
        .into_iter()
        .filter(|(id, _)| !owned.contains(id))
        .map(|(id, (owner, epoch, power_state))| Orphan {
            name: id.to_string(),
            server_namespace: owner.namespace,
            server_name: owner.name,
            server_uid: owner.uid,
            epoch,
            power_state,
        })
        .collect();
    agent
        .orphan_count
        .set(i64::try_from(orphans.len()).unwrap_or(i64::MAX));
    Some(orphans)
}
