//! One Instance on this host: observe, plan, act, report.

pub mod act;
pub mod observe;
pub mod plan;
pub mod report;
mod resources;
#[cfg(test)]
mod restart_tests;
mod starts;
#[cfg(test)]
mod tests;
mod written;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use uuid::Uuid;

use super::Agent;
use pileus_api::Instance;
use pileus_kube_ext::{ApiError, finalize};
use plan::{Mark, Standing, Step};
pub use starts::Starts;
use written::Written;

/// How long a wait inside one pass may take; after it the Instance is queued again.
const INLINE_WAIT: Duration = Duration::from_secs(3);
/// How long a guest that is ready to run lets earlier ones be made first.
const STARTS_PATIENCE: Duration = Duration::from_secs(10);

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Instance's own fields are broken; only the manager writes them.
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
    /// The host no longer has what the guest is to have of it; its disk is here.
    #[error("the host cannot give it what it asks for: {0}. It is built as soon as the host can")]
    Resources(String),
    /// A record on the host.
    #[error("cannot record the epoch")]
    Epoch(#[source] std::io::Error),
}

/// What is remembered of an Instance while the agent runs; nothing that is decided by it
/// is lost with it, only waits start anew.
#[derive(Debug, Default)]
pub struct Runtime {
    /// Since when it is not as asked.
    pub busy_since: Option<Instant>,
    /// When the status was last written.
    pub reported: Option<Instant>,
    /// Its starts.
    pub starts: plan::timing::StartHistory,
    /// Downloads.
    pub download: Option<Download>,
    /// Downloads that failed in a row.
    pub fetch_failures: u32,
    /// Whether the guest's own shutdown stands, as last decided; the status may be behind.
    pub guest_shutdown: Option<bool>,
    /// A domain or disk of it was seen here.
    pub realized: bool,
    /// Processors of the host that were chosen for it to have to itself.
    pub pinned: BTreeSet<i32>,
    /// The standing last logged and told by an event.
    pub told: Option<pileus_api::Reason>,
    /// What was written last, until the cache has it.
    written: Written,
}

/// A download of an image's parts.
#[derive(Debug)]
pub enum Download {
    /// Under way.
    Running(Arc<pileus_storage::Progress>, tokio::task::AbortHandle),
    /// Failed.
    Failed {
        /// Why.
        error: pileus_storage::Error,
        /// When to try again.
        again: Instant,
    },
}

/// One pass. Gives when to look again, if sooner than the usual resync.
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
    let object = &agent.runtime(id, |runtime| runtime.written.or_newer(object));
    let own = observe::own_mark(object, agent);
    let mut settled = false;
    // Each round acts on what the round before has made; the bound only guards against a
    // plan that does not converge.
    for _ in 0..6 {
        let seen = match observe::observe(object, id, agent).await {
            Ok(seen) => seen,
            Err(error) => return fail(object, id, agent, error).await,
        };
        let decided = plan::plan(&object.spec, &own, &seen.plan);
        agent.runtime(id, |runtime| match decided.standing {
            Standing::GuestShutdown => runtime.guest_shutdown = Some(true),
            Standing::AsAsked => runtime.guest_shutdown = Some(false),
            _ => {}
        });
        if decided.steps.contains(&Step::Resume) && !settled {
            settled = true;
            if agent.starts.settled(STARTS_PATIENCE).await {
                continue;
            }
        }
        let starting = decided.steps.contains(&Step::StartPaused);
        let turn = starting.then(|| agent.starts.begin());
        for step in &decided.steps {
            tracing::debug!(instance = %object.name_any(), server = %object.spec.server.name, ?step, "step");
            if let Err(error) = act::act(step, object, id, &own, &seen, agent).await {
                return fail(object, id, agent, error).await;
            }
            if *step == Step::DropFinalizer {
                agent.forget(id);
                agent.host_changed.notify_one();
                return Ok(None);
            }
        }
        drop(turn);
        let again = match decided.standing {
            Standing::AwaitingPorts => {
                let ports: Vec<_> = object.spec.nics.iter().map(|n| n.port_id.clone()).collect();
                agent.ports.wait_installed(&ports, INLINE_WAIT).await || starting
            }
            // What was just done is confirmed by a look, before it is told.
            _ => !decided.steps.is_empty() && decided.steps != [Step::FetchImage],
        };
        if again {
            continue;
        }
        return report::report(object, id, agent, &seen, &decided.standing)
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

/// The mark that an Instance puts on what it makes.
pub(crate) fn marks_of(mark: &Mark) -> pileus_hypervisor::Marks {
    pileus_hypervisor::Marks {
        owner: owner_of(mark),
        epoch: mark.epoch,
        ..pileus_hypervisor::Marks::default()
    }
}

pub(crate) fn owner_of(mark: &Mark) -> pileus_values::Owner {
    pileus_values::Owner {
        cluster: pileus_values::ClusterId(mark.cluster.clone()),
        kind: "Server".to_owned(),
        namespace: mark.namespace.clone(),
        name: mark.name.clone(),
        uid: mark.uid.clone(),
    }
}

pub(crate) fn mark_from(owner: &pileus_values::Owner, epoch: i64) -> Mark {
    Mark {
        cluster: owner.cluster.0.clone(),
        namespace: owner.namespace.clone(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        epoch,
    }
}
