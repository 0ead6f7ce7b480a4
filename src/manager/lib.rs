//! The manager: reconciles every kind, one directory each. Stacks have a role of their own
//! ([`stack::run`]), because only it acts for tenants.
//!
//! One watch for each kind feeds a cache that all controllers read ([`caches`]). Each controller
//! declares in its own module which changes wake it, and works on its own kind, one object at a
//! time for each key.

pub mod caches;
pub mod compute;
pub mod crd_deletion;
pub mod credentials;
mod fair_queue;
pub mod image;
pub mod network;
pub mod stack;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::ObjectMeta;
use tokio_util::sync::CancellationToken;

use pileus_api::names::{self, SYSTEM_NAMESPACE};
use pileus_kube_ext::lease::{self, LeadershipLost};
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::telemetry::Readiness;
use pileus_kube_ext::{ApiError, Context, chain};
pub use pileus_network::ovsdb::Tls;

pub use caches::Caches;
use compute::{flavor, host, key_pair, server};
use network::caches::NetworkCaches;
use network::pass;

/// How a manager is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where OVN's northbound database is, such as `unix:/run/ovn/ovnnb_db.sock`.
    pub ovn_nb: String,
    /// Private key, certificate and CA for it, when it is reached by TLS.
    pub ovn_tls: Option<Tls>,
    /// Largest packet of the network between the hosts, in bytes.
    pub underlay_mtu: i32,
    /// Whether that network is IPv6, whose tunnels take 20 bytes more.
    pub underlay_ipv6: bool,
    /// Who this process is among the managers.
    pub identity: String,
}

/// Why a manager ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another manager leads now; this process must end, so that two never act.
    #[error(transparent)]
    LeadershipLost(#[from] LeadershipLost),
    /// The API server refused something that the manager cannot do without.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The network's task cannot go on.
    #[error(transparent)]
    Network(#[from] pass::NetworkError),
}

/// What controllers share.
pub struct Manager {
    /// Client, cluster, events, metrics.
    pub context: Context,
    /// The objects of every kind.
    pub caches: Caches,
    /// How the manager is set up.
    pub config: Config,
    /// What is known of Servers that are being deleted.
    pub deleting: server::Deleting,
}

impl AsRef<Context> for Manager {
    fn as_ref(&self) -> &Context {
        &self.context
    }
}

/// Runs the manager until `stop` or until leadership is lost.
///
/// # Errors
/// When leadership is lost, or the manager cannot begin.
pub async fn run(
    config: Config,
    context: Context,
    ready: Readiness,
    stop: CancellationToken,
) -> Result<(), Error> {
    let identity = config.identity.clone();
    let until = stop.clone();
    let work = |context, generation| lead(config, context, generation, until);
    while_leading(names::MANAGER, identity, &context, ready, stop, work).await
}

/// Does `work` once this process leads the role, and as long as it does, with a context whose
/// client writes nothing once leadership may have ended; `work` also gets the leader's generation.
async fn while_leading<W>(
    name: &str,
    identity: String,
    context: &Context,
    ready: Readiness,
    stop: CancellationToken,
    work: impl FnOnce(Context, i64) -> W,
) -> Result<(), Error>
where
    W: Future<Output = Result<(), Error>>,
{
    ensure_namespace(&context.client, SYSTEM_NAMESPACE).await?;
    // A replica that waits for leadership is ready as well.
    ready.set(true);
    lease::lead(context, name, identity, &stop, |context, leadership| {
        work(context, leadership.generation())
    })
    .await
}

async fn lead(
    config: Config,
    context: Context,
    generation: i64,
    stop: CancellationToken,
) -> Result<(), Error> {
    host::forget_heartbeats();
    let caches = Caches::watch(&context);
    let manager = Arc::new(Manager {
        context,
        caches,
        config,
        deleting: server::Deleting::default(),
    });
    tokio::select! {
        () = manager.caches.ready() => {}
        () = crd_deletion::release_while_crd_deleting(&manager.context.client) => return Ok(()),
        () = stop.cancelled() => return Ok(()),
    }
    let controllers = futures::future::join_all(controllers(&manager, &stop));
    let network = pass::run_network(
        network_config(&manager.config, generation),
        manager.context.clone(),
        NetworkCaches::of(&manager.caches),
        stop.clone(),
    );
    let controllers = async {
        controllers.await;
        Ok(())
    };
    futures::future::try_join(controllers, network).await?;
    Ok(())
}

/// The controllers of the kinds that are reconciled one object at a time.
fn controllers(manager: &Arc<Manager>, stop: &CancellationToken) -> Vec<BoxFuture<'static, ()>> {
    let caches = &manager.caches;
    macro_rules! run {
        ($triggers:expr, $concurrency:literal, $reconcile:path, $name:literal) => {{
            let (manager, stop) = (manager.clone(), stop.clone());
            worker::run(manager, $triggers, $concurrency, $reconcile, $name, stop).boxed()
        }};
    }
    vec![
        run!(server::triggers(caches), 32, server::reconcile, "server"),
        run!(image::triggers(caches), 8, image::reconcile, "image"),
        run!(
            key_pair::triggers(caches),
            4,
            key_pair::reconcile,
            "keypair"
        ),
        run!(flavor::triggers(caches), 4, flavor::reconcile, "flavor"),
        run!(host::triggers(caches), 8, host::reconcile, "host"),
    ]
}

fn network_config(config: &Config, generation: i64) -> pass::NetworkConfig {
    pass::NetworkConfig {
        ovn_nb: config.ovn_nb.clone(),
        ovn_tls: config.ovn_tls.clone(),
        underlay_mtu: config.underlay_mtu,
        underlay_ipv6: config.underlay_ipv6,
        identity: config.identity.clone(),
        generation,
    }
}

/// Creates a namespace if it does not exist.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn ensure_namespace(client: &Client, name: &str) -> Result<(), ApiError> {
    let namespaces = Objects::<Namespace>::all(client);
    if namespaces.get(name).await?.is_some() {
        return Ok(());
    }
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    namespaces.create(&namespace).await.map(drop)
}

/// What a pass of a controller ends with: when to reconcile again without any event.
pub type Outcome = Result<Option<Duration>, ApiError>;

/// Names up to five users, and how many more there are: for messages.
#[must_use]
pub fn list_some(mut users: Vec<String>) -> String {
    users.sort();
    let more = users.len().saturating_sub(5);
    users.truncate(5);
    let names = users.join(", ");
    if more > 0 {
        format!("{names} and {more} more")
    } else {
        names
    }
}

/// Logs an error in the background that is tried again by itself.
pub(crate) fn log_retry(what: &str, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(what, error = %chain(error), "will be tried again");
}
