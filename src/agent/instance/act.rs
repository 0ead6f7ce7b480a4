//! Carries out steps. No decisions: those are in `plan`.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::reflector::ObjectRef;
use uuid::Uuid;

use super::observe::{Snapshot, requests};
use super::plan::domain::{HostSide, domain_spec};
use super::plan::timing::{FetchFailure, fetch_delay};
use super::plan::{PlacementOwner, Step};
use super::{Download, Error, INLINE_TIMEOUT, owner_of};
use crate::Agent;
use pileus_api::Instance;
use pileus_api::names::{AGENT_FINALIZER, GUEST_DATA_KEY, host_namespace};
use pileus_guest::GuestData;
use pileus_hypervisor::HostFacts;
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::{ApiError, chain};
use pileus_storage::{DirectoryMetadata, DownloadProgress, blocking};
use pileus_values::quantity::GIB;

/// Carries out one step.
///
/// # Errors
/// When it did not succeed; it can be repeated.
pub async fn act(
    step: &Step,
    object: &Arc<Instance>,
    id: Uuid,
    own: &PlacementOwner,
    snapshot: &Snapshot,
    agent: &Arc<Agent>,
) -> Result<(), Error> {
    let hypervisor = &agent.hypervisor;
    match step {
        Step::RecordEpoch => {
            let (agent, uid, epoch) = (agent.clone(), own.uid.clone(), own.epoch);
            let recorded = blocking(move || agent.epochs.record(&uid, epoch)).await;
            recorded.map_err(Error::Epoch)?;
        }
        Step::Adopt => adopt(id, own, snapshot, agent).await?,
        Step::FetchImage => fetch(object, id, agent),
        Step::MakeDisk => {
            let Some(image) = &snapshot.image else {
                return Ok(());
            };
            let size = object
                .spec
                .claim
                .disk_gib
                .saturating_mul(GIB)
                .max(0)
                .unsigned_abs();
            let metadata = directory_metadata(own, snapshot);
            agent
                .disks
                .create(&agent.store, id, &metadata, image, size)
                .await?;
        }
        Step::WriteConfigDrive => {
            let data = guest_data(object, agent).await?;
            let bytes = pileus_guest::config_drive(&data).map_err(Error::Guest)?;
            let disks = agent.disks.clone();
            blocking(move || disks.write_config_drive(id, &bytes)).await?;
        }
        Step::Define => {
            let facts = hypervisor.host().await?;
            let host = host_side(id, snapshot, agent, &facts);
            let domain = domain_spec(object, id, own, host)?;
            hypervisor.define(&domain).await?;
        }
        Step::StartPaused => start(object, id, snapshot, agent).await?,
        Step::Resume => hypervisor.resume(id).await?,
        Step::ShutDown => {
            // On disk first: an agent that starts after this one must know that the guest did
            // not shut down by itself. A full disk is no reason not to ask.
            let disks = agent.disks.clone();
            if let Err(error) = blocking(move || disks.record_shutdown_request(id)).await {
                tracing::warn!(%id, error = %chain(&error), "the request to shut down was not recorded");
            }
            agent.runtime(id, |runtime| runtime.starts.shutdown = Some(Instant::now()));
            hypervisor.shut_down(id).await?;
        }
        Step::PowerOff => hypervisor.power_off(id).await?,
        Step::Undefine => hypervisor.undefine(id).await?,
        Step::RemovePorts => agent.ports.remove(id, INLINE_TIMEOUT).await?,
        Step::RemoveFiles => {
            agent.runtime(id, |runtime| {
                if let Some(Download::Running(_, task)) = &runtime.download {
                    task.abort();
                }
            });
            let disks = agent.disks.clone();
            blocking(move || disks.remove(id)).await?;
        }
        Step::CloseEpoch => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let now = now.map_or(0, |now| now.as_secs());
            let (agent, uid, epoch) = (agent.clone(), own.uid.clone(), own.epoch);
            let closed = blocking(move || agent.epochs.close(&uid, epoch, now)).await;
            closed.map_err(Error::Epoch)?;
        }
        Step::DropFinalizer => {
            Objects::of(agent.instances.clone())
                .remove_finalizer(object, AGENT_FINALIZER)
                .await?;
        }
    }
    Ok(())
}

/// Starts the guest.
async fn start(
    object: &Instance,
    id: Uuid,
    snapshot: &Snapshot,
    agent: &Agent,
) -> Result<(), Error> {
    let disks = agent.disks.clone();
    blocking(move || disks.clear_shutdown_request(id)).await?;
    let begun = Instant::now();
    let result = agent.hypervisor.start_paused(id).await;
    let is_restart = object.status.is_some() && snapshot.observed.was_running;
    // libvirt's event of a refused start triggers the Instance at once, so the pause must be
    // remembered here.
    agent.runtime(id, |runtime| match &result {
        Ok(()) => runtime.starts.start_succeeded(begun, is_restart),
        Err(error) => runtime.starts.start_refused(begun, chain(error)),
    });
    Ok(result?)
}

fn directory_metadata(own: &PlacementOwner, snapshot: &Snapshot) -> DirectoryMetadata {
    let uses = snapshot
        .imported
        .iter()
        .flat_map(|i| [i.kernel_digest.clone(), i.initrd_digest.clone()])
        .flatten()
        .collect();
    DirectoryMetadata {
        owner: owner_of(own),
        epoch: own.epoch,
        uses,
    }
}

async fn adopt(
    id: Uuid,
    own: &PlacementOwner,
    snapshot: &Snapshot,
    agent: &Agent,
) -> Result<(), Error> {
    if let Some(domain) = &snapshot.domain {
        // Its processors and devices stay its own.
        let metadata = pileus_hypervisor::OwnerMetadata {
            owner: owner_of(own),
            epoch: own.epoch,
            ..domain.metadata.clone().unwrap_or_default()
        };
        agent.hypervisor.set_owner_metadata(id, &metadata).await?;
    }
    let (disks, owner, epoch) = (agent.disks.clone(), owner_of(own), own.epoch);
    blocking(move || {
        let Some(metadata) = disks.contents(id).metadata else {
            return Ok(());
        };
        let metadata = DirectoryMetadata {
            owner,
            epoch,
            ..metadata
        };
        disks.set_metadata(id, &metadata)
    })
    .await?;
    tracing::info!(%id, server = %own.name, namespace = %own.namespace, "adopted");
    Ok(())
}

/// Starts the download in the background; its end triggers the Instance.
fn fetch(object: &Arc<Instance>, id: Uuid, agent: &Arc<Agent>) {
    let download = Arc::new(DownloadProgress::default());
    let task = tokio::spawn({
        let (agent, object, download) = (agent.clone(), object.clone(), download.clone());
        async move {
            let mut result = Ok(());
            for request in requests(&object) {
                if let Err(error) = agent.store.import(&request, &download).await {
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
                    let cost = if error.is_terminal() {
                        FetchFailure::Final
                    } else if error.is_costly() {
                        FetchFailure::Costly
                    } else {
                        FetchFailure::Passing
                    };
                    let pause = fetch_delay(runtime.fetch_failures, cost);
                    let again = Instant::now() + pause;
                    runtime.download = Some(Download::Failed { error, again });
                }
            });
            agent.host_changed.notify_one();
            let _ = agent.trigger.send(ObjectRef::from_obj(&*object));
        }
    });
    agent.runtime(id, |runtime| {
        // A very short download has stored its result already.
        if !task.is_finished() && !matches!(runtime.download, Some(Download::Failed { again, .. }) if again > Instant::now()) {
            runtime.download = Some(Download::Running(download, task.abort_handle()));
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

/// Collects what of the host goes into the domain.
fn host_side<'a>(
    id: Uuid,
    snapshot: &Snapshot,
    agent: &'a Agent,
    facts: &'a HostFacts,
) -> HostSide<'a> {
    let imported = snapshot.imported.as_ref();
    let stored = |digest: &String| agent.store.path(digest).display().to_string();
    let directory = agent.disks.directory(id);
    HostSide {
        machines: &facts.machines,
        cpu_model: &agent.config.cpu_model,
        virt_type: agent.config.virt_type,
        offload: !agent.ports.is_in_userspace(),
        root_disk: agent.disks.root_disk(id).display().to_string(),
        config_drive: agent.disks.config_drive(id).display().to_string(),
        has_config_drive: snapshot.has_config_drive,
        console_log: directory.join("console.log").display().to_string(),
        kernel: imported.and_then(|i| i.kernel_digest.as_ref()).map(stored),
        initrd: imported.and_then(|i| i.initrd_digest.as_ref()).map(stored),
        resources: snapshot.resources.clone(),
    }
}
