//! The Northbound database behind a trait, and the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::apply::Apply;
use super::diff::{Diff, Scope, diff_within};
use super::refusals::Refusals;
use super::rows::Desired;
use super::token::{Holder, Token};
use crate::ovsdb::{Client, Endpoint, Error, Monitor, Options, View};

/// How often a claim is decided anew because the table has changed.
const CLAIM_ATTEMPTS: usize = 20;

/// Why the desired rows were not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Another manager leads, so nothing was changed; claim the token again only after
    /// leadership was won again.
    #[error("another manager leads{}; nothing was written", holder.as_ref().map(|h| format!(": {h}")).unwrap_or_default())]
    Fenced {
        /// Who holds the token, as far as known.
        holder: Option<Holder>,
    },
    /// The database failed or refused.
    #[error("cannot write OVN's Northbound database")]
    Database(#[from] Error),
}

/// OVN's Northbound database. Every method may be called any number of times.
pub trait NorthboundDb: Send + Sync {
    /// The rows as they are, and whether they are up to date.
    fn view(&self) -> View;

    /// A receiver that is notified when the rows or the connection change. To miss nothing,
    /// keep it, and read the view after each notification.
    fn watch(&self) -> watch::Receiver<View>;

    /// Claims the leader's token, which succeeds only if its holder is an earlier leader. Call it
    /// once after leadership was won.
    fn claim(&self, token: &Token) -> impl Future<Output = Result<(), ApplyError>> + Send;

    /// Brings our rows into the desired state by one transaction, or none if they are.
    /// `deleted` holds uids of owners whose deletion was observed; see [`diff`](super::diff()).
    /// Owners whose rows the database refuses are left out and reported, and stop nobody else.
    fn apply(
        &self,
        token: &Token,
        desired: &Desired,
        deleted: &BTreeSet<String>,
    ) -> impl Future<Output = Result<Diff, ApplyError>> + Send;

    /// Whether the rows are the desired ones, but for those that the database refuses: then there
    /// is nothing to apply, and nobody has changed what is ours.
    fn is_applied(&self, token: &Token, desired: &Desired, deleted: &BTreeSet<String>) -> bool;
}

/// The columns that are monitored. What northd writes, such as `up`, is not among them: a guest
/// that starts wakes nobody.
#[must_use]
pub fn monitor() -> Monitor {
    Monitor {
        database: "OVN_Northbound".to_owned(),
        tables: BTreeMap::from([
            ("NB_Global", ["name", "external_ids"].as_slice()),
            (
                "Logical_Switch",
                &["name", "ports", "other_config", "external_ids"],
            ),
            (
                "Logical_Switch_Port",
                &[
                    "name",
                    "type",
                    "addresses",
                    "port_security",
                    "enabled",
                    "options",
                    "parent_name",
                    "tag_request",
                    "dhcpv4_options",
                    "dhcpv6_options",
                    "external_ids",
                ],
            ),
            ("DHCP_Options", &["cidr", "options", "external_ids"]),
            (
                "ACL",
                &[
                    "name",
                    "priority",
                    "direction",
                    "match",
                    "action",
                    "external_ids",
                ],
            ),
            ("Port_Group", &["name", "ports", "acls", "external_ids"]),
            ("Address_Set", &["name", "addresses", "external_ids"]),
        ]),
    }
}

/// The real database.
#[derive(Clone, Debug)]
pub struct Northbound {
    client: Client,
    refusals: Arc<Mutex<Refusals>>,
}

impl Northbound {
    /// Begins to connect; must be called within a tokio runtime.
    #[must_use]
    pub fn start(endpoints: Vec<Endpoint>, options: Options) -> Self {
        Self {
            client: Client::start(endpoints, monitor(), options),
            refusals: Arc::default(),
        }
    }

    /// The client, for what the trait does not offer.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl NorthboundDb for Northbound {
    fn view(&self) -> View {
        self.client.view()
    }

    fn watch(&self) -> watch::Receiver<View> {
        self.client.watch()
    }

    async fn claim(&self, token: &Token) -> Result<(), ApplyError> {
        let mut last = Error::Disconnected;
        for _ in 0..CLAIM_ATTEMPTS {
            let replica = self.view().replica;
            let operations = token.claim(&replica).map_err(|holder| ApplyError::Fenced {
                holder: Some(holder),
            })?;
            match self.client.transact(operations).await {
                Ok(_) => return Ok(()),
                // Somebody has written the table meanwhile, maybe only another key.
                Err(error @ Error::WaitFailed { index: 0 }) => last = error,
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.into())
    }

    async fn apply(
        &self,
        token: &Token,
        desired: &Desired,
        deleted: &BTreeSet<String>,
    ) -> Result<Diff, ApplyError> {
        if !self.view().is_connected() {
            // The replica is outdated; the client's error says why there is no connection.
            self.client.transact(Vec::new()).await?;
        }
        let apply = Apply {
            client: &self.client,
            token,
            desired,
            deleted,
            refusals: &self.refusals,
        };
        apply.run().await
    }

    fn is_applied(&self, token: &Token, desired: &Desired, deleted: &BTreeSet<String>) -> bool {
        let view = self.view();
        let refused = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let scope = Scope::without(refused.uids());
        view.is_connected()
            && diff_within(&view.replica, &token.cluster, desired, deleted, &scope)
                .operations
                .is_empty()
    }
}
