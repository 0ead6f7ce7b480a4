//! The network's one task: Networks, Subnets, Ports and security groups of all namespaces,
//! and OVN's rows, in passes over everything.
//!
//! A pass decides for all objects at once, which makes addresses unique without locks
//! between tasks, and gives OVN one transaction for all that came together; while it runs,
//! changes pile up for the next one. Its steps, each of which may be the last before a
//! crash:
//!
//! 1. finalizers, and the `default` groups of new namespaces;
//! 2. the decision ([`plan`], pure);
//! 3. `IPAllocation`s are created: that is the lock on an address;
//! 4. OVN's rows, in one transaction, which a leader's token fences;
//! 5. what deleted objects held is given up, then their finalizers, and all statuses.
//!
//! Absence is never evidence: no pass begins before every store is complete, and rows go
//! only with objects whose deletion was observed.

pub mod act;
pub mod decision;
mod hints;
pub mod overlay;
mod pass;
pub mod plan;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::network::caches::NetworkCaches;
use crate::network::network::plan::{OVERHEAD_IPV4, OVERHEAD_IPV6};
use pileus_kube_ext::Context;
use pileus_kube_ext::backoff::Backoff;
use pileus_network::northbound::token::Token;
use pileus_network::northbound::{Northbound, NorthboundDb};
use pileus_network::ovsdb::{EndpointError, Options, parse_endpoints};

/// Everything is looked at this often without any event.
const RESYNC: Duration = Duration::from_mins(5);
/// Deletions that wait for others are looked at this often.
const BLOCKED: Duration = Duration::from_secs(10);

/// How the network is set up.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Where OVN's Northbound database is, such as `unix:/run/ovn/ovnnb_db.sock`; several
    /// with commas between them.
    pub ovn_nb: String,
    /// Largest packet of the network between the hosts, in bytes.
    pub underlay_mtu: i32,
    /// Whether that network is IPv6, whose tunnels take more.
    pub underlay_ipv6: bool,
    /// Who this process is among the managers.
    pub identity: String,
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
    #[error("another manager has taken OVN's Northbound database over{}", holder.as_deref().map(|h| format!(": {h}")).unwrap_or_default())]
    Fenced {
        /// Who it is, as far as known.
        holder: Option<String>,
    },
}

/// What a pass came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Something failed and is to be tried again.
    failed: bool,
    /// The world changed under the pass; look again at once.
    again: bool,
    /// Deletions wait for others.
    blocked: bool,
}

/// Runs the network until `stop`. To be called after leadership was won, once.
///
/// # Errors
/// When the configuration cannot be used, or another manager leads.
pub async fn run_network(
    config: NetworkConfig,
    context: Context,
    mut stores: NetworkCaches,
    stop: CancellationToken,
) -> Result<(), NetworkError> {
    let endpoints = parse_endpoints(&config.ovn_nb)?;
    let northbound = Northbound::start(endpoints, Options::default());
    let mut rows = northbound.watch();
    tokio::select! {
        () = stores.ready() => {}
        () = stop.cancelled() => return Ok(()),
    }
    let token = Token {
        cluster: context.cluster.clone(),
        identity: config.identity.clone(),
    };
    let mut worker = pass::Worker::new(context, northbound, token, config.max_mtu());
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    loop {
        stores.changes.mark_unchanged();
        rows.mark_unchanged();
        let begun = std::time::Instant::now();
        let outcome = tokio::select! {
            outcome = worker.pass(&stores) => outcome?,
            () = stop.cancelled() => return Ok(()),
        };
        worker.measured(begun.elapsed(), outcome.failed);
        let wait = if outcome.failed {
            backoff.next(())
        } else if outcome.again {
            Duration::from_millis(5)
        } else if outcome.blocked {
            BLOCKED
        } else {
            RESYNC
        };
        if !outcome.failed {
            backoff.reset(&());
        }
        let timer = tokio::time::sleep(wait);
        tokio::select! {
            changed = stores.changes.changed() => {
                if changed.is_err() {
                    // The watches are gone: the process is ending.
                    stop.cancelled().await;
                    return Ok(());
                }
            }
            _ = rows.changed() => {}
            () = timer => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}
