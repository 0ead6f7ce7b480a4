//! Places Servers on Hosts.
//!
//! | part | what it is |
//! |---|---|
//! | [`filters`], [`weighers`] | one file each; add a filter or a weigher there |
//! | [`placement`] | the pure choice of a host: facts, requests, snapshot, placer, policy |
//! | [`objects`] | from API objects to the values of [`placement`] |
//! | [`state`] | state and queue: watch events in, decisions out; no I/O |
//! | [`questions`] | `pileus why`, `simulate` and `advise` |
//! | `io` | watches, and writes of statuses |
//! | this file | the role: leadership, and the task that decides |
//!
//! All watches feed one task. It applies the events that have arrived, decides at once, and lets
//! up to [`MAX_CONCURRENT_WRITES`] status writes run concurrently. Nothing is decided before all
//! kinds have been listed, because decisions with an incomplete ledger would overcommit hosts.

pub mod filters;
#[cfg(test)]
mod fixtures;
mod io;
mod metrics;
pub mod objects;
pub mod placement;
pub mod questions;
pub mod state;
pub mod weighers;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use metrics::Metrics;
use pileus_api::Reason;
use pileus_kube_ext::Context;
use pileus_kube_ext::lease::{self, LeadershipLost};
use state::{Decision, Outcome, State, StatusWrite};

/// Maximum number of concurrent status writes.
pub const MAX_CONCURRENT_WRITES: usize = 16;
/// Name of the Lease that the leading scheduler holds.
pub const LEASE_NAME: &str = "pileus-scheduler";
/// Maximum number of watch events that are applied before the next decision.
const MAX_EVENT_BATCH: usize = 1024;
/// A round of the loop that takes longer shows in the role's readiness.
const LOOP_LIMIT: Duration = Duration::from_secs(30);
/// How long writes in flight may take at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Configuration of the scheduler.
#[derive(Clone, Debug)]
pub struct Config {
    /// Identity of this replica as holder of the Lease; unique. Without it the scheduler runs
    /// without leader election.
    pub identity: Option<String>,
}

/// Why the scheduler ended without shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another replica may lead now; the process must end and may be restarted.
    #[error(transparent)]
    LostLeadership(#[from] LeadershipLost),
    /// The watches ended, which must not happen.
    #[error("the watches ended")]
    WatchEnded,
}

/// Runs the scheduler until `shutdown`. `on_ready` is called once it works as leader or waits for
/// leadership.
///
/// # Errors
/// If leadership is lost; the process must end then.
pub async fn run(
    config: Config,
    context: Context,
    on_ready: impl FnOnce() + Send,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let metrics = Metrics::new(&context.metrics);
    let Some(identity) = config.identity else {
        return schedule(&context, &metrics, on_ready, &shutdown).await;
    };
    on_ready();
    let stop = shutdown.clone();
    // `schedule` is dropped when leadership is lost, which aborts its writes.
    lease::lead(
        &context,
        LEASE_NAME,
        identity,
        &shutdown,
        async |context, _| schedule(&context, &metrics, || {}, &stop).await,
    )
    .await
}

async fn schedule(
    context: &Context,
    metrics: &Metrics,
    on_ready: impl FnOnce(),
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let mut events = io::watch::all(context).ready_chunks(MAX_EVENT_BATCH);
    let mut on_ready = Some(on_ready);
    let mut dispatcher = io::watch::Dispatcher::default();
    let (mut state, mut report_again) = (State::default(), false);
    let mut queued: VecDeque<StatusWrite> = VecDeque::new();
    let mut writes: JoinSet<(StatusWrite, Outcome)> = JoinSet::new();
    // Reports are written one batch after another; the result is whether all writes succeeded.
    let mut reporting: JoinSet<bool> = JoinSet::new();
    let check = context.ready.check("loop/scheduling");
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = writes.join_next(), if !writes.is_empty() => {
                // These tasks neither panic nor are aborted while the scheduler runs.
                if let Ok((write, outcome)) = ended {
                    record_outcome(context, metrics, &write, &outcome);
                    state.write_finished(&write, outcome, Timestamp::now());
                }
            }
            Some(succeeded) = reporting.join_next(), if !reporting.is_empty() => {
                if !succeeded.unwrap_or(false) {
                    report_again = true;
                }
            }
            _ = clock.tick() => {
                check.busy(LOOP_LIMIT);
                if std::mem::take(&mut report_again) {
                    state.report_again();
                }
            }
            batch = events.next() => {
                let Some(batch) = batch else { return Err(Error::WatchEnded) };
                for event in batch {
                    dispatcher.apply(event, &mut state);
                }
            }
            // What others wait for goes first.
            () = std::future::ready(()), if state.has_deferred() => {}
        }
        if dispatcher.all_listed() {
            if let Some(on_ready) = on_ready.take() {
                on_ready();
            }
            let start = Instant::now();
            let decided = state.decide(Timestamp::now());
            metrics.decided(decided.len(), start.elapsed());
            queued.extend(decided);
            if reporting.is_empty() {
                let reports = state.reports(Timestamp::now());
                if !reports.is_empty() {
                    let rejected = metrics.rejected.clone();
                    reporting.spawn(io::object_status::all(context.clone(), rejected, reports));
                }
            }
        }
        while writes.len() < MAX_CONCURRENT_WRITES
            && let Some(write) = queued.pop_front()
        {
            let client = context.client.clone();
            writes.spawn(async move {
                let outcome = io::server_status::write_status(client, &write).await;
                (write, outcome)
            });
        }
        metrics
            .queue
            .set(i64::try_from(state.queue_length()).unwrap_or(i64::MAX));
    }
    check.done();
    // Writes in flight are finished, so that the next leader finds them.
    let finish = async { while writes.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, finish).await;
    Ok(())
}

/// Counts an outcome, and publishes an event at a transition.
fn record_outcome(context: &Context, metrics: &Metrics, write: &StatusWrite, outcome: &Outcome) {
    let (namespace, name) = &write.key;
    match outcome {
        Outcome::Written(server) => {
            context.metrics.status_written("scheduler");
            let message = write.status.conditions.first().map(|c| c.message.clone());
            let message = message.unwrap_or_default();
            let host = write.status.placement.as_ref();
            let host = host.map(|p| p.host.as_str()).unwrap_or_default();
            let (warn, reason) = match write.decision {
                Decision::Placed => {
                    metrics.decisions.inc();
                    tracing::info!(%namespace, %name, %host, "placed");
                    (false, Reason::Scheduled)
                }
                Decision::Preempted => {
                    metrics.preemptions.inc();
                    tracing::info!(%namespace, %name, %host, "stopped for a Server of higher priority");
                    (true, Reason::Preempted)
                }
                Decision::Resumed => {
                    tracing::info!(%namespace, %name, %host, "started again");
                    (false, Reason::Resumed)
                }
                Decision::Unscheduled { transition } => {
                    metrics.failures.inc();
                    if !transition {
                        return;
                    }
                    tracing::info!(%namespace, %name, %message, "no host fits");
                    (true, Reason::FailedScheduling)
                }
            };
            let events = &context.events;
            if warn {
                events.warning(&**server, reason, "Scheduling", message);
            } else {
                events.normal(&**server, reason, "Scheduling", message);
            }
        }
        Outcome::Conflict => {
            metrics.conflicts.inc();
            tracing::debug!(%namespace, %name, "conflict: the Server has changed");
        }
        Outcome::Rejected(why) => {
            metrics.rejected.inc();
            tracing::error!(%namespace, %name, error = %why, "status rejected");
            // Its status cannot say it.
            context.events.warning(
                &*write.server,
                Reason::StatusRejected,
                "Scheduling",
                format!("the API server rejects what the scheduler decided: {why}"),
            );
        }
    }
}
