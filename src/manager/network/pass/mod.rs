//! The network's one task: all objects of all kinds of the network, in all namespaces, and OVN's
//! rows, in passes over everything.
//!
//! A pass decides about all objects at once, which makes addresses unique without locks between
//! tasks, and gives OVN one transaction for all changes that came together; changes that come
//! while it runs are for the next one. Its steps, each of which may be the last before a crash:
//!
//! 1. finalizers, and the `default` groups of new namespaces;
//! 2. the plan ([`plan`](mod@super::plan), pure);
//! 3. `IPAllocation`s are created: that is the lock on an address;
//! 4. OVN's rows, in one transaction, which a leader's token fences;
//! 5. the addresses of deleted objects are released, their finalizers removed, and all statuses
//!    written.
//!
//! Absence is never evidence: no pass begins before every store is complete, and rows are removed
//! only with objects whose deletion was observed.

mod allocations;
mod kind;
mod overlay;
mod worker;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::caches::NetworkCaches;
use super::network::plan::{OVERHEAD_IPV4, OVERHEAD_IPV6};
use pileus_kube_ext::Context;
use pileus_kube_ext::backoff::Backoff;
use pileus_network::northbound::token::{Holder, Token};
use pileus_network::northbound::{Northbound, NorthboundDb};
use pileus_network::ovsdb::{EndpointError, Options, Tls, parse_endpoints};

/// A pass begins this long after the last one, also without any event.
const RESYNC_INTERVAL: Duration = Duration::from_mins(5);
/// The same while deletions wait for others.
const BLOCKED_INTERVAL: Duration = Duration::from_secs(10);
/// The pause before a pass that repeats one whose state was outdated.
const AGAIN_INTERVAL: Duration = Duration::from_millis(5);
/// A pass that takes longer shows in the role's readiness.
const PASS_LIMIT: Duration = Duration::from_mins(10);
/// Name in metrics.
const METRICS_NAME: &str = "network";

/// How the network is set up.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Where OVN's Northbound database is, such as `unix:/run/ovn/ovnnb_db.sock`; several
    /// with commas between them.
    pub ovn_nb: String,
    /// Who we are for the database, and whom we trust, when it is reached by TLS.
    pub ovn_tls: Option<Tls>,
    /// Largest packet of the network between the hosts, in bytes.
    pub underlay_mtu: i32,
    /// Whether that network is IPv6, whose tunnels have longer headers.
    pub underlay_ipv6: bool,
    /// Who this process is among the managers.
    pub identity: String,
    /// Higher for every later leader.
    pub generation: i64,
}

impl NetworkConfig {
    /// Largest packet of a guest, in bytes.
    #[must_use]
    pub fn max_mtu(&self) -> i32 {
        let overhead = if self.underlay_ipv6 {
            OVERHEAD_IPV6
        } else {
            OVERHEAD_IPV4
        };
        self.underlay_mtu.saturating_sub(overhead)
    }
}

/// Why the network's task ended.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The configuration names no database.
    #[error("the address of OVN's Northbound database cannot be used")]
    Endpoint(#[from] EndpointError),
    /// Another manager leads now; this process must end.
    #[error(
        "another manager has OVN's Northbound database: {holder}. If none runs any more, as after \
         the API server's data was restored from a copy, remove its claim: ovn-nbctl remove \
         NB_Global . external_ids {key}"
    )]
    Fenced {
        /// Who it is.
        holder: Holder,
        /// The key of its claim.
        key: String,
    },
}

/// The outcome of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Something failed and is tried again.
    failed: bool,
    /// An address turned out to be held by another; a new pass begins at once.
    again: bool,
    /// Deletions wait for others.
    blocked: bool,
    /// OVN refused rows of an object, which are tried again then.
    retry_after: Option<Duration>,
}

/// Runs the network until `stop`. Call it once, after leadership was won.
///
/// # Errors
/// When the configuration cannot be used, or another manager leads.
pub async fn run_network(
    config: NetworkConfig,
    context: Context,
    mut caches: NetworkCaches,
    stop: CancellationToken,
) -> Result<(), NetworkError> {
    let endpoints = parse_endpoints(&config.ovn_nb)?;
    let options = Options {
        tls: config.ovn_tls.clone(),
        ..Options::default()
    };
    let northbound = Northbound::start(endpoints, options);
    let mut rows = northbound.watch();
    tokio::select! {
        () = caches.ready() => {}
        () = stop.cancelled() => return Ok(()),
    }
    let token = Token {
        cluster: context.cluster.clone(),
        identity: config.identity.clone(),
        generation: config.generation,
    };
    let ready = context.ready.clone();
    let mut worker = worker::Worker::new(context, northbound, token, config.max_mtu());
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    let check = ready.check("controller/network");
    loop {
        check.busy(PASS_LIMIT);
        caches.changes.mark_unchanged();
        rows.mark_unchanged();
        let started = std::time::Instant::now();
        let outcome = tokio::select! {
            outcome = worker.pass(&caches) => outcome?,
            () = stop.cancelled() => return Ok(()),
        };
        worker.record_duration(started.elapsed(), outcome.failed);
        let wait = if outcome.failed {
            backoff.next(())
        } else if outcome.again {
            AGAIN_INTERVAL
        } else if outcome.blocked {
            BLOCKED_INTERVAL
        } else {
            RESYNC_INTERVAL
        };
        if !outcome.failed {
            backoff.reset(&());
        }
        check.ok();
        let wait = outcome.retry_after.map_or(wait, |retry| retry.min(wait));
        let timer = tokio::time::sleep(wait);
        tokio::pin!(timer);
        loop {
            tokio::select! {
                changed = caches.changes.changed() => {
                    if changed.is_err() {
                        // The watches are gone: the process is ending.
                        stop.cancelled().await;
                        return Ok(());
                    }
                }
                changed = rows.changed() => {
                    if changed.is_ok() && worker.rows_are_as_applied() {
                        continue;
                    }
                }
                () = &mut timer => {}
                () = stop.cancelled() => return Ok(()),
            }
            break;
        }
    }
}
