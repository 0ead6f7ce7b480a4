//! The Host itself: registration, inventory, heartbeat, orphans, collection of images.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, ObjectMeta, PostParams};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Agent;
use super::load::{self, Times};
use super::room::Room;
use pileus_api::common::Claim;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::host::{Capabilities, Host, HostSpec, HostStatus, NumaNode, Orphan};
use pileus_api::names::{AGENT, host_namespace};
use pileus_api::pci::{HostDevice, offered};
use pileus_api::server::PowerState;
use pileus_api::{Instance, Reason};
use pileus_hypervisor::{HostFacts, Listed, State};
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, chain, find, is_unserved, lease};
use pileus_storage::DirectoryMarks;
use pileus_values::Owner;
use pileus_values::quantity::GIB;

/// The Host's status is looked at this often without any event.
const LOOK: Duration = Duration::from_secs(15);
/// How long an agent that starts waits for what was told of its Host.
const RECALL: Duration = Duration::from_secs(2);
/// QEMU's own memory for each VM in MiB, beside the guest's; measured with this machine
/// type and these devices, rounded up.
const OVERHEAD_MIB: i64 = 160;
/// With fewer usable bytes than this the host's disk counts as full.
const LOW_SPACE: u64 = 1 << 30;
/// Where the kernel tells what the host's processors do; not one container's alone.
const STAT: &str = "/proc/stat";
/// Machine types that are told; older ones than these are not chosen by anybody.
const MACHINE_TYPES: usize = 32;

/// Renews the host's Lease until `stop`.
pub async fn keep_heartbeat(agent: Arc<Agent>, stop: CancellationToken) {
    let namespace = host_namespace(&agent.config.host);
    let mut wait = tokio::time::interval(lease::HEARTBEAT_INTERVAL);
    wait.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = wait.tick() => {}
        }
        let beat = lease::heartbeat(&agent.context.client, &namespace, &agent.config.host);
        match tokio::time::timeout(lease::HEARTBEAT_INTERVAL, beat).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "heartbeat"),
            Err(_) => tracing::warn!("the heartbeat takes too long"),
        }
    }
}

/// Learns what the Host gives out from what was told of it last, so that an agent that has
/// just started turns away what does not fit too. Best effort: the first look follows.
pub async fn recall_room(agent: &Agent) {
    let read = agent.hosts.get_opt(&agent.config.host);
    let Ok(Ok(Some(host))) = tokio::time::timeout(RECALL, read).await else {
        return;
    };
    let spec = host.spec_in_force();
    let capacity = host.status.and_then(|status| status.capacity);
    let room = capacity.map(|capacity| Room::new(&spec, capacity, OVERHEAD_MIB));
    *agent.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
}

/// Keeps the Host's status true until `stop`.
pub async fn keep_status(agent: Arc<Agent>, stop: CancellationToken) {
    loop {
        if let Err(error) = look_and_report(&agent).await {
            tracing::warn!(error = %chain(&error), "the Host's status cannot be reported");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = agent.host_changed.notified() => {
                // A burst of changes is one look.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Collects images that nothing uses until `stop`.
pub async fn keep_images(agent: Arc<Agent>, stop: CancellationToken) {
    loop {
        let often =
            (agent.config.image_grace / 4).clamp(Duration::from_secs(5), Duration::from_secs(600));
        tokio::select! {
            () = stop.cancelled() => return,
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

async fn look_and_report(agent: &Agent) -> Result<(), ApiError> {
    let name = &agent.config.host;
    let facts = agent.hypervisor.host().await;
    // Before the Host, which may be lost itself: the metric tells of orphans all the same.
    let orphans = match agent.hypervisor.domains().await {
        Ok(domains) => orphans(agent, &domains).await,
        Err(_) => None,
    };
    let host = match find(&agent.hosts, name)
        .await
        .map_err(ApiError::doing("read the Host"))?
    {
        Some(host) => host,
        None => register(agent).await?,
    };
    let old = host.status.clone().unwrap_or_default();
    let told = old.capacity.is_some() || facts.is_err();
    let Some(orphans) = orphans.or_else(|| told.then(|| old.orphans.clone())) else {
        // A Host that was never told of may be one that was lost: until its orphans are known,
        // nobody may take it, or another one, for free of a Server that runs here.
        tracing::warn!("not reported before it is known which VMs are here");
        return Ok(());
    };
    let network = agent.ports.trouble().await;
    let devices = pci_devices(agent, &host).await;
    let devices = devices.unwrap_or_else(|| old.pci_devices.clone());
    let mut status = status(agent, &host, &old, facts, network, orphans);
    status.pci_devices = devices;
    status.metrics = metrics(agent, &old);
    let room = status
        .capacity
        .map(|capacity| Room::new(&host.spec_in_force(), capacity, OVERHEAD_MIB));
    *agent.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
    if apply_status(&agent.hosts, AGENT, &host, &status).await? {
        agent.context.metrics.status_written("host");
    }
    Ok(())
}

/// How busy the processors are, as far as anybody asks: without that nothing is looked at.
fn metrics(agent: &Agent, old: &HostStatus) -> BTreeMap<String, i64> {
    let wanted = &old.wanted_metrics;
    let mut last = agent.load.lock().unwrap_or_else(PoisonError::into_inner);
    if wanted.is_empty() {
        *last = None;
        return BTreeMap::new();
    }
    let kept = load::kept(wanted, &old.metrics);
    let now = Instant::now();
    if last.is_some_and(|(at, _)| now - at < load::WINDOW) {
        return kept;
    }
    let Some(times) = std::fs::read_to_string(STAT)
        .ok()
        .and_then(|text| Times::parse(&text))
    else {
        return kept;
    };
    let measured = last.replace((now, times));
    let measured = measured.and_then(|(_, before)| times.since(before));
    measured.map_or(kept, |measured| load::told(wanted, &old.metrics, &measured))
}

/// The devices that the administrator offers, by what there is. `None` when that cannot be
/// told now.
async fn pci_devices(agent: &Agent, host: &Host) -> Option<Vec<HostDevice>> {
    let selectors = &host.spec.pci_devices;
    if selectors.is_empty() {
        return Some(Vec::new());
    }
    let found = agent.hypervisor.pci_devices().await.ok()?;
    let devices = found.into_iter().map(|device| HostDevice {
        name: device.address.to_string(),
        alias: String::new(),
        vendor_id: device.vendor,
        product_id: device.product,
        numa_node: device.numa_node,
    });
    Some(offered(selectors, devices))
}

async fn register(agent: &Agent) -> Result<Host, ApiError> {
    let host = Host {
        metadata: ObjectMeta {
            name: Some(agent.config.host.clone()),
            ..ObjectMeta::default()
        },
        spec: HostSpec {
            schedulable: true,
            reserved: Some(Claim {
                vcpus: 0,
                memory_mib: agent.config.reserved_memory_mib,
                disk_gib: agent.config.reserved_disk_gib,
            }),
            ..HostSpec::default()
        },
        status: None,
    };
    let created = agent.hosts.create(&PostParams::default(), &host).await;
    let created = created.map_err(ApiError::doing("register the Host"))?;
    tracing::info!(host = %agent.config.host, "registered");
    Ok(created)
}

fn status(
    agent: &Agent,
    host: &Host,
    old: &HostStatus,
    facts: Result<HostFacts, pileus_hypervisor::Error>,
    network_trouble: Option<String>,
    orphans: Vec<Orphan>,
) -> HostStatus {
    let mut seen = Vec::new();
    let mut status = HostStatus {
        boot_id: Some(agent.boot_id.clone()),
        overhead_mib: Some(OVERHEAD_MIB),
        images: agent.store.list(),
        orphans,
        // What libvirt cannot tell now stays as it was told last.
        capacity: old.capacity,
        // The scheduler's.
        allocation_ratios: None,
        numa_nodes: old.numa_nodes.clone(),
        pci_devices: Vec::new(),
        metrics: BTreeMap::new(),
        // The scheduler's.
        wanted_metrics: Vec::new(),
        capabilities: old.capabilities.clone(),
        conditions: Vec::new(),
    };
    let space = agent.disks.space();
    match facts {
        Ok(facts) => {
            let total = space.as_ref().map_or(0, |s| s.total);
            inventory(&mut status, facts, total, agent.config.virt_type.as_str());
            let message = "libvirt answers";
            seen.push(Observation::yes(
                ConditionType::HypervisorAvailable,
                Reason::Ok,
                message,
            ));
        }
        Err(error) => seen.push(Observation::no(
            ConditionType::HypervisorAvailable,
            Reason::HypervisorUnavailable,
            format!(
                "{}; running VMs go on, none can be changed until it answers",
                chain(&error)
            ),
        )),
    }
    seen.push(match network_trouble {
        None => Observation::yes(
            ConditionType::NetworkAvailable,
            Reason::Ok,
            "Open vSwitch and ovn-controller answer",
        ),
        Some(trouble) => Observation::no(
            ConditionType::NetworkAvailable,
            Reason::NetworkUnavailable,
            trouble,
        ),
    });
    seen.push(match space {
        Ok(space) if space.usable() >= LOW_SPACE => Observation::yes(
            ConditionType::DiskAvailable,
            Reason::Ok,
            "there is room for disks",
        ),
        Ok(space) => Observation::no(
            ConditionType::DiskAvailable,
            Reason::NoSpace,
            format!(
                "{} bytes are left in {} beside the reserve for running guests, fewer than \
                 {LOW_SPACE}; remove what is not needed, or give it a bigger file system",
                space.usable(),
                agent.config.state_dir.display()
            ),
        ),
        Err(error) => Observation::unknown(
            ConditionType::DiskAvailable,
            Reason::Retrying,
            chain(&error),
        ),
    });
    seen.push(exclusive_control());
    status.conditions = conditions::merge(
        &old.conditions,
        seen,
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
fn exclusive_control() -> Observation {
    let enabled = ["multi-user.target.wants", "default.target.wants"]
        .iter()
        .any(|target| {
            Path::new("/etc/systemd/system")
                .join(target)
                .join("libvirt-guests.service")
                .is_symlink()
        })
        && Path::new("/run/systemd/system").is_dir();
    if enabled {
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

/// Whether the kind Instance is really gone: an API server that has only just started serves
/// none of ours either, and says by itself when it is ready.
async fn is_lost(agent: &Agent) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
        return false;
    };
    if agent.context.client.request_text(request).await.is_err() {
        return false;
    }
    let again = agent.instances.list(&ListParams::default().limit(1)).await;
    again.is_err_and(|error| is_unserved(&error))
}

/// Domains and directories with our marks that no Instance stands for. `None` when that
/// cannot be told now.
async fn orphans(agent: &Agent, domains: &[Listed]) -> Option<Vec<Orphan>> {
    let ours = |owner: &Owner| owner.cluster == agent.context.cluster;
    let mut found: BTreeMap<Uuid, (Owner, i64, PowerState)> = BTreeMap::new();
    for (id, marks) in agent.disks.list() {
        let Some(DirectoryMarks { owner, epoch, .. }) = marks.filter(|m| ours(&m.owner)) else {
            continue;
        };
        found.insert(id, (owner, epoch, PowerState::Stopped));
    }
    for domain in domains {
        let Some(marks) = domain.marks.as_ref().filter(|m| ours(&m.owner)) else {
            continue;
        };
        let state = match domain.state {
            State::Running | State::ShuttingDown => PowerState::Running,
            State::Paused => PowerState::Paused,
            State::Off | State::ShutDown | State::Crashed => PowerState::Stopped,
        };
        found.insert(domain.id, (marks.owner.clone(), marks.epoch, state));
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
        owned = match agent.instances.list(&ListParams::default()).await {
            Ok(list) => known(&mut list.items.iter()),
            // The kind itself is gone, and every owner with it.
            Err(error) if is_unserved(&error) && is_lost(agent).await => HashSet::new(),
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
