//! One Instance on this host: observe, plan, act, report.

pub mod act;
pub mod observe;
mod own_writes;
pub mod plan;
pub mod report;
mod resources;
#[cfg(test)]
mod restart_tests;
mod start_queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use uuid::Uuid;

use super::Agent;
use own_writes::OwnWrites;
use pileus_api::Instance;
use pileus_kube_ext::{ApiError, finalize};
use plan::{PlacementOwner, Progress, Step};
pub use start_queue::StartQueue;

/// How long a wait inside one pass may take; after it the Instance is queued again.
const INLINE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a guest that is ready to run waits for guests whose start was requested before.
const EARLIER_STARTS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the Instance, which only the manager writes, is malformed.
    #[error("the Instance's {field} cannot be used: {why}")]
    Spec {
        /// Which field.
        field: &'static str,
        /// Why.
        why: String,
    },
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] pileus_hypervisor::Error),
    /// Images and disks.
    #[error(transparent)]
    Storage(#[from] pileus_storage::Error),
    /// Open vSwitch.
    #[error("Open vSwitch still has ports of the guest")]
    Ports(#[from] pileus_network::ovsdb::Error),
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The guest's data.
    #[error("the guest's data cannot be used")]
    Guest(#[source] pileus_guest::Error),
    /// The Secret with the guest's data.
    #[error("the Secret {0} has no usable guest data; the manager makes it")]
    GuestData(String),
    /// The host can no longer give the guest the processors, memory pages or devices that it
    /// asks for; its disk is here.
    #[error("the host cannot give it what it asks for: {0}. It is built as soon as the host can")]
    Resources(String),
    /// The record of epochs on the host.
    #[error("cannot record the epoch")]
    Epoch(#[source] std::io::Error),
}

/// What is remembered of an Instance while the agent runs. When it is lost only waits start
/// again; no decision depends on it.
#[derive(Debug, Default)]
pub struct Runtime {
    /// Since when work on it is under way.
    pub busy_since: Option<Instant>,
    /// When the status was last written.
    pub reported_at: Option<Instant>,
    /// Its starts and ends.
    pub starts: plan::timing::StartHistory,
    /// The download of its image.
    pub download: Option<Download>,
    /// Downloads that failed in a row.
    pub fetch_failures: u32,
    /// Whether the guest shut itself down and stays off, as last decided; the status may be
    /// older.
    pub guest_shutdown: Option<bool>,
    /// A domain or disk of it was observed here.
    pub realized: bool,
    /// Size of its image's disk in bytes, since that was seen here.
    pub virtual_size: Option<i64>,
    /// Processors of the host that were chosen for it to have to itself.
    pub pinned: BTreeSet<i32>,
    /// The reason that was last logged and published as an event.
    pub last_reported: Option<pileus_api::Reason>,
    /// Its status as written last, until the watch delivers it.
    own_writes: OwnWrites,
}

/// A download of an image's parts.
#[derive(Debug)]
pub enum Download {
    /// Under way.
    Running(
        Arc<pileus_storage::DownloadProgress>,
        tokio::task::AbortHandle,
    ),
    /// Failed.
    Failed {
        /// Why.
        error: pileus_storage::Error,
        /// When to try again.
        again: Instant,
    },
}

/// One pass. Returns when the next one is due, if sooner than the usual resync.
///
/// # Errors
/// When a step failed; reported before it is returned.
pub async fn reconcile(
    object: &Arc<Instance>,
    agent: &Arc<Agent>,
) -> Result<Option<Duration>, Error> {
    let id: Uuid = object.spec.instance_id.parse().map_err(|e| Error::Spec {
        field: "instanceID",
        why: format!("{e}"),
    })?;
    if !finalize::has(&**object, pileus_api::names::AGENT_FINALIZER)
        && finalize::is_deleting(&**object)
    {
        return Ok(None);
    }
    let object = &agent.runtime(id, |runtime| runtime.own_writes.latest(object));
    let own = observe::placement_owner(object, agent);
    let mut settled = false;
    // Each round acts on what the round before has made; the bound only guards against a
    // plan that does not converge.
    for _ in 0..6 {
        let snapshot = match observe::observe(object, id, agent).await {
            Ok(snapshot) => snapshot,
            Err(error) => return fail(object, id, agent, error).await,
        };
        let decided = plan::plan(&object.spec, &own, &snapshot.observed);
        agent.runtime(id, |runtime| match decided.progress {
            Progress::GuestShutdown => runtime.guest_shutdown = Some(true),
            Progress::Complete => runtime.guest_shutdown = Some(false),
            _ => {}
        });
        if decided.steps.contains(&Step::Resume) && !settled {
            settled = true;
            if agent
                .start_queue
                .wait_for_earlier(EARLIER_STARTS_TIMEOUT)
                .await
            {
                continue;
            }
        }
        let starting = decided.steps.contains(&Step::StartPaused);
        let turn = starting.then(|| agent.start_queue.begin());
        for step in &decided.steps {
            tracing::debug!(instance = %object.name_any(), server = %object.spec.server.name, ?step, "step");
            if let Err(error) = act::act(step, object, id, &own, &snapshot, agent).await {
                return fail(object, id, agent, error).await;
            }
            if *step == Step::DropFinalizer {
                agent.forget(id);
                agent.host_changed.notify_one();
                return Ok(None);
            }
        }
        drop(turn);
        let again = match decided.progress {
            Progress::AwaitingPorts => {
                let ports: Vec<_> = object.spec.nics.iter().map(|n| n.port_id.clone()).collect();
                agent.ports.wait_installed(&ports, INLINE_TIMEOUT).await || starting
            }
            // What was just done is confirmed by another observation before it is reported.
            _ => !decided.steps.is_empty() && decided.steps != [Step::FetchImage],
        };
        if again {
            continue;
        }
        return report::report(object, id, agent, &snapshot, &decided.progress)
            .await
            .map_err(Error::Api);
    }
    Ok(Some(Duration::from_secs(1)))
}

async fn fail(
    object: &Arc<Instance>,
    id: Uuid,
    agent: &Arc<Agent>,
    error: Error,
) -> Result<Option<Duration>, Error> {
    report::report_error(object, id, agent, &error).await?;
    Err(error)
}

/// The metadata that an Instance records on its domain.
pub(crate) fn owner_metadata(owner: &PlacementOwner) -> pileus_hypervisor::OwnerMetadata {
    pileus_hypervisor::OwnerMetadata {
        owner: owner_of(owner),
        epoch: owner.epoch,
        ..pileus_hypervisor::OwnerMetadata::default()
    }
}

pub(crate) fn owner_of(owner: &PlacementOwner) -> pileus_values::Owner {
    pileus_values::Owner {
        cluster: pileus_values::ClusterId(owner.cluster.clone()),
        kind: "Server".to_owned(),
        namespace: owner.namespace.clone(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
    }
}

pub(crate) fn placement_owner_from(owner: &pileus_values::Owner, epoch: i64) -> PlacementOwner {
    PlacementOwner {
        cluster: owner.cluster.0.clone(),
        namespace: owner.namespace.clone(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        epoch,
    }
}
