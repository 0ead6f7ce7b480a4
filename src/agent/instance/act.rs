//! Carries out steps. No decisions: those are in `plan`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::reflector::ObjectRef;
use uuid::Uuid;

use super::observe::{LONGEST_PAUSE, Observed, requests};
use super::plan::{Mark, Step};
use super::taking::{Taken, is_asked};
use super::{Download, Error, INLINE_WAIT, marks_of, owner_of};
use crate::Agent;
use pileus_api::Instance;
use pileus_api::names::{AGENT_FINALIZER, GUEST_DATA_KEY, host_namespace};
use pileus_api::server::{ConfigDrive, Hardware};
use pileus_guest::GuestData;
use pileus_hypervisor::{Boot, Disk, DomainSpec, Nic, VirtType};
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::{ApiError, chain};
use pileus_storage::{DirectoryMarks, Progress};
use pileus_values::quantity::GIB;

/// Command line of a kernel that is booted directly, when the image gives none; Nova's.
const COMMAND_LINE: &str = "root=/dev/vda console=tty0 console=ttyS0";

/// Carries out one step.
///
/// # Errors
/// When it did not succeed; it can be repeated.
pub async fn act(
    step: &Step,
    object: &Arc<Instance>,
    id: Uuid,
    own: &Mark,
    seen: &Observed,
    agent: &Arc<Agent>,
) -> Result<(), Error> {
    let hypervisor = &agent.hypervisor;
    match step {
        Step::RecordEpoch => agent
            .epochs
            .record(&own.uid, own.epoch)
            .map_err(Error::Epoch)?,
        Step::Adopt => adopt(id, own, seen, agent).await?,
        Step::FetchImage => fetch(object, id, agent),
        Step::MakeDisk => {
            let Some(image) = &seen.image else {
                return Ok(());
            };
            let size = object
                .spec
                .claim
                .disk_gib
                .saturating_mul(GIB)
                .max(0)
                .unsigned_abs();
            let marks = directory_marks(own, seen);
            agent
                .disks
                .create(&agent.store, id, &marks, image, size)
                .await?;
        }
        Step::WriteConfigDrive => {
            let data = guest_data(object, agent).await?;
            let bytes = pileus_guest::config_drive(&data).map_err(Error::Guest)?;
            agent.disks.write_config_drive(id, &bytes)?;
        }
        Step::Define => {
            let facts = hypervisor.host().await?;
            hypervisor
                .define(&domain_spec(object, id, own, seen, agent, &facts)?)
                .await?;
        }
        Step::StartPaused => start(object, id, seen, agent).await?,
        Step::Resume => hypervisor.resume(id).await?,
        Step::ShutDown => {
            // On disk first: who comes after this agent must not take the guest's answer for
            // its own wish. A full disk is no reason not to ask.
            if let Err(error) = agent.disks.note_shutdown(id) {
                tracing::warn!(%id, error = %chain(&error), "shutdown not recorded");
            }
            agent.runtime(id, |runtime| runtime.shutdown = Some(Instant::now()));
            hypervisor.shut_down(id).await?;
        }
        Step::PowerOff => hypervisor.power_off(id).await?,
        Step::Undefine => hypervisor.undefine(id).await?,
        Step::RemovePorts => agent.ports.remove(id, INLINE_WAIT).await?,
        Step::RemoveFiles => {
            agent.runtime(id, |runtime| {
                if let Some(Download::Running(_, task)) = &runtime.download {
                    task.abort();
                }
            });
            agent.disks.remove(id)?;
        }
        Step::CloseEpoch => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            agent
                .epochs
                .close(&own.uid, own.epoch, now.map_or(0, |now| now.as_secs()))
                .map_err(Error::Epoch)?;
        }
        Step::DropFinalizer => {
            Objects::of(agent.instances.clone())
                .remove_finalizer(object, AGENT_FINALIZER)
                .await?;
        }
    }
    Ok(())
}

/// Starts the guest. A refusal is no crash: what counts as a crash has run.
async fn start(object: &Instance, id: Uuid, seen: &Observed, agent: &Agent) -> Result<(), Error> {
    agent.disks.forget_shutdown(id)?;
    let begun = Instant::now();
    let result = agent.hypervisor.start_paused(id).await;
    agent.runtime(id, |runtime| match &result {
        Ok(()) => {
            runtime.started = Some(begun);
            runtime.shutdown = None;
            runtime.refused = None;
            if object.status.is_some() && seen.plan.was_running {
                runtime.restarts += 1;
            }
        }
        // libvirt's event of the refused start triggers the Instance at once, so the pause
        // must be remembered here.
        Err(error) => {
            let times = runtime.refused.take().map_or(0, |(_, times)| times) + 1;
            let pause = Duration::from_secs(1 << times.min(10)).min(LONGEST_PAUSE);
            runtime.not_before = Some(begun + pause);
            runtime.refused = Some((chain(error), times));
        }
    });
    Ok(result?)
}

fn directory_marks(own: &Mark, seen: &Observed) -> DirectoryMarks {
    let uses = seen
        .imported
        .iter()
        .flat_map(|i| [i.kernel_digest.clone(), i.initrd_digest.clone()])
        .flatten()
        .collect();
    DirectoryMarks {
        owner: owner_of(own),
        epoch: own.epoch,
        uses,
    }
}

async fn adopt(id: Uuid, own: &Mark, seen: &Observed, agent: &Agent) -> Result<(), Error> {
    if let Some(domain) = &seen.domain {
        // What it has to itself is its own still.
        let marks = pileus_hypervisor::Marks {
            owner: owner_of(own),
            epoch: own.epoch,
            ..domain.marks.clone().unwrap_or_default()
        };
        agent.hypervisor.mark(id, &marks).await?;
    }
    if let Some(marks) = agent.disks.look(id).marks {
        let marks = DirectoryMarks {
            owner: owner_of(own),
            epoch: own.epoch,
            ..marks
        };
        agent.disks.mark(id, &marks)?;
    }
    tracing::info!(%id, server = %own.name, namespace = %own.namespace, "adopted");
    Ok(())
}

/// Starts the download in the background; its end triggers the Instance.
fn fetch(object: &Arc<Instance>, id: Uuid, agent: &Arc<Agent>) {
    let progress = Arc::new(Progress::default());
    let task = tokio::spawn({
        let (agent, object, progress) = (agent.clone(), object.clone(), progress.clone());
        async move {
            let mut result = Ok(());
            for request in requests(&object) {
                if let Err(error) = agent.store.import(&request, &progress).await {
                    result = Err(error);
                    break;
                }
            }
            agent.runtime(id, |runtime| match result {
                Ok(()) => {
                    runtime.download = None;
                    runtime.fetch_failures = 0;
                }
                Err(error) => {
                    tracing::warn!(image = %object.spec.image.name, %error, "image not fetched");
                    runtime.fetch_failures += 1;
                    // Even what looks final is looked at again, rarely: the server's bytes
                    // may have been mended.
                    let seconds = if error.is_terminal() {
                        300
                    } else {
                        (2 << runtime.fetch_failures.min(5)).min(60)
                    };
                    let again = Instant::now() + Duration::from_secs(seconds);
                    runtime.download = Some(Download::Failed { error, again });
                }
            });
            agent.host_changed.notify_one();
            let _ = agent.trigger.send(ObjectRef::from_obj(&*object));
        }
    });
    agent.runtime(id, |runtime| {
        // A very quick download has left its result already.
        if !task.is_finished() && !matches!(runtime.download, Some(Download::Failed { again, .. }) if again > Instant::now()) {
            runtime.download = Some(Download::Running(progress, task.abort_handle()));
        }
    });
}

async fn guest_data(object: &Instance, agent: &Agent) -> Result<GuestData, Error> {
    let Some(name) = &object.spec.guest_data else {
        return Err(Error::GuestData("(none named)".to_owned()));
    };
    let secrets: Api<Secret> = Api::namespaced(
        agent.context.client.clone(),
        &host_namespace(&agent.config.host),
    );
    let secret = secrets.get(name).await.map_err(ApiError::doing(format!(
        "read the Secret {name} with the guest's data"
    )))?;
    secret
        .data
        .and_then(|data| serde_json::from_slice(&data.get(GUEST_DATA_KEY)?.0).ok())
        .ok_or_else(|| Error::GuestData(name.clone()))
}

/// The hardware of a guest: what an earlier boot fixed, else what this host gives.
#[must_use]
pub fn hardware(
    object: &Instance,
    agent: &Agent,
    facts: &pileus_hypervisor::HostFacts,
) -> Hardware {
    let fixed = object.spec.hardware.clone();
    fixed
        .or_else(|| object.status.as_ref()?.hardware.clone())
        .unwrap_or_else(|| Hardware {
            machine_type: facts
                .machines
                .first()
                .cloned()
                .unwrap_or_else(|| "q35".to_owned()),
            cpu_model: agent.config.cpu_model.clone(),
            virt_type: agent.config.virt_type.as_str().to_owned(),
            firmware: "bios".to_owned(),
        })
}

fn domain_spec(
    object: &Instance,
    id: Uuid,
    own: &Mark,
    seen: &Observed,
    agent: &Agent,
    facts: &pileus_hypervisor::HostFacts,
) -> Result<DomainSpec, Error> {
    let spec = &object.spec;
    let hardware = hardware(object, agent, facts);
    let imported = seen.imported.as_ref();
    let stored = |digest: &String| agent.store.path(digest).display().to_string();
    let boot = match imported.and_then(|i| i.kernel_digest.as_ref()) {
        Some(kernel) => Boot::Kernel {
            kernel: stored(kernel),
            initrd: imported.and_then(|i| i.initrd_digest.as_ref()).map(stored),
            command_line: spec
                .image
                .kernel_command_line
                .clone()
                .unwrap_or_else(|| COMMAND_LINE.to_owned()),
        },
        None => Boot::Disk,
    };
    let mut nics = Vec::with_capacity(spec.nics.len());
    for nic in &spec.nics {
        nics.push(Nic {
            port_id: nic.port_id.parse().map_err(|e| Error::Spec {
                field: "nics[].portID",
                why: format!("`{}` of interface {}: {e}", nic.port_id, nic.name),
            })?,
            mac: nic.mac_address.parse().map_err(|e| Error::Spec {
                field: "nics[].macAddress",
                why: format!("of interface {}: {e}", nic.name),
            })?,
            mtu: nic.mtu,
            offload: !agent.ports.in_userspace(),
        });
    }
    let taken = match &seen.taken {
        Some(Ok(taken)) => taken.clone(),
        Some(Err(why)) => return Err(Error::Taken(why.clone())),
        None if is_asked(spec) => return Err(Error::Taken("not looked at yet".to_owned())),
        None => Taken::default(),
    };
    let directory = agent.disks.directory(id);
    let has_drive = spec.config_drive == ConfigDrive::Enabled && spec.guest_data.is_some();
    Ok(DomainSpec {
        id,
        marks: pileus_hypervisor::Marks {
            pinned: taken.pinned,
            devices: taken.devices.iter().copied().collect(),
            ..marks_of(own)
        },
        vcpus: spec.claim.vcpus,
        memory_mib: spec.claim.memory_mib,
        topology: taken.topology,
        machine: hardware.machine_type,
        cpu_model: hardware.cpu_model,
        virt_type: if hardware.virt_type == "kvm" {
            VirtType::Kvm
        } else {
            VirtType::Qemu
        },
        boot,
        root: Disk {
            path: agent.disks.root_disk(id).display().to_string(),
            format: "qcow2".to_owned(),
            serial: id.simple().to_string(),
        },
        config_drive: has_drive.then(|| agent.disks.config_drive(id).display().to_string()),
        nics,
        devices: taken.devices,
        console_log: directory.join("console.log").display().to_string(),
    })
}
