//! Binds Servers to Hosts.
//!
//! | part | what it does |
//! |---|---|
//! | [`facts`], [`snapshot`], [`request`], [`filters`], [`weighers`], [`policy`], [`place`] | the core: pure, synchronous, free of Kubernetes |
//! | [`resolve`] | API objects in, the core's values out |
//! | [`state`] | memory and queue: watch events in, writes out; no I/O |
//! | `decide`, `gang` | parts of it: the decisions, for one Server and for a group at once |
//! | `make_room`, [`preempt`] | parts of it: what is done for a Server that fits nowhere |
//! | [`dispatcher`], [`instances`], [`queue`], [`reports`] | parts of it: the kinds that decide, who waits, what is said of them |
//! | [`why`], [`simulate`], [`advice`] | questions that people ask, of the same core |
//! | [`live`] | all that decides, read once for such a question |
//! | [`bind`] | one write, until its outcome is certain |
//! | this file | watches, leadership, and the one task that decides |
//!
//! All watches feed one task, which takes in whatever has arrived, decides at once,
//! and lets up to [`MAX_CONCURRENT_WRITES`] status writes run beside it. Nothing is decided before all
//! kinds have been listed, because a ledger with holes overbooks.

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
use pileus_api::names::SYSTEM_NAMESPACE;
use pileus_kube_ext::Context;
use pileus_kube_ext::lease::Leader;
use state::{Decision, Outcome, State, StatusWrite};

/// How many status writes run at once.
pub const MAX_CONCURRENT_WRITES: usize = 16;
/// Name of the Lease that the leading scheduler holds.
pub const LEASE_NAME: &str = "pileus-scheduler";
/// How many watch events are taken in before a decision at most.
const MAX_EVENT_BATCH: usize = 1024;
/// How long writes under way are waited for at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// How a scheduler runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this process is among the replicas, different for each: the holder of the
    /// Lease. Without it the scheduler runs unelected.
    pub identity: Option<String>,
}

/// Why a scheduler ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It must not write any more; the process has to end and may start again.
    #[error("no longer the leading scheduler: {0}")]
    LostLeadership(String),
    /// A watch ended, which none does while it is listened to.
    #[error("the watches ended")]
    WatchEnded,
}

/// Runs the scheduler until `shutdown`. `on_ready` is called once it does its work, be it
/// as leader or as stand-by.
///
/// # Errors
/// When leadership is lost; the process has to end then.
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
    let leader = Leader::new(
        context.client.clone(),
        SYSTEM_NAMESPACE,
        LEASE_NAME,
        identity,
    );
    on_ready();
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = leader.acquire() => tracing::info!(identity = leader.identity(), "leading"),
    }
    // Dropping `schedule` when leadership is lost aborts its writes.
    let ended = tokio::select! {
        why = leader.hold() => return Err(Error::LostLeadership(why)),
        ended = schedule(&context, &metrics, || {}, &shutdown) => ended,
    };
    leader.release().await;
    ended
}

async fn schedule(
    context: &Context,
    metrics: &Metrics,
    on_ready: impl FnOnce(),
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let mut events = io::watch::all(&context.client).ready_chunks(MAX_EVENT_BATCH);
    let mut on_ready = Some(on_ready);
    let mut dispatcher = io::watch::Dispatcher::default();
    let (mut state, mut report_again) = (State::default(), false);
    let mut queued: VecDeque<StatusWrite> = VecDeque::new();
    let mut writes: JoinSet<(StatusWrite, Outcome)> = JoinSet::new();
    // Reports run one batch after another; whether all went well comes back.
    let mut reporting: JoinSet<bool> = JoinSet::new();
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = writes.join_next(), if !writes.is_empty() => {
                // A task of ours neither panics nor is aborted while we run.
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
                    reporting.spawn(io::object_status::all(context.clone(), reports));
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
    // What is under way is better finished than left for the next leader to guess.
    let finish = async { while writes.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, finish).await;
    Ok(())
}

/// Counts an outcome and publishes an event at a transition.
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
                    tracing::info!(%namespace, %name, %host, "stopped for another");
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
            tracing::debug!(%namespace, %name, "the Server has changed meanwhile");
        }
        Outcome::Rejected => {}
    }
}
