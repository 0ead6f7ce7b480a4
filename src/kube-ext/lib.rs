//! What the roles share: context, caches and triggers, verbs on objects, status reports,
//! backoff, leases, endpoints and metrics. Knows nothing of any kind's rules.

pub mod backoff;
pub mod cache;
pub mod connection;
pub mod decode;
pub mod events;
pub mod finalize;
pub mod leadership;
pub mod lease;
pub mod metrics;
pub mod objects;
pub mod readiness;
pub mod report;
pub mod role;
pub mod telemetry;
pub mod triggers;
pub mod watch;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

use connection::Deadlines;
use pileus_values::ClusterId;

pub use events::Events;
pub use metrics::Metrics;
pub use objects::find;
pub use readiness::Readiness;

/// What every role works with.
#[derive(Clone)]
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// uid of the cluster's `kube-system` namespace.
    pub cluster: ClusterId,
    /// Publishes Kubernetes events.
    pub events: Events,
    /// Metrics of the role.
    pub metrics: Metrics,
    /// Where caches and loops say whether they do their work.
    pub ready: Readiness,
}

/// Something the API server did not do for us.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct ApiError {
    /// What was tried, to follow "failed to".
    pub action: String,
    /// Why it failed.
    #[source]
    pub source: Box<kube::Error>,
}

impl ApiError {
    /// For `map_err`: names what was tried.
    pub fn doing(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self {
            action: action.into(),
            source: Box::new(source),
        }
    }

    /// Whether the object changed meanwhile; the next pass sees the newer one.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(&*self.source, kube::Error::Api(status) if status.is_conflict())
    }

    /// Whether the object is not there; see [`is_gone`].
    #[must_use]
    pub fn is_gone(&self) -> bool {
        is_gone(&self.source)
    }

    /// Whether the API server does not allow it.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(&*self.source, kube::Error::Api(status) if status.is_forbidden())
    }

    /// Whether an object of that name is there already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        matches!(&*self.source, kube::Error::Api(status) if status.is_already_exists())
    }
}

/// Whether the API server says that the object is not there.
///
/// Not every 404 says that: where a kind is not served, because its definition is gone or
/// because the API server has only just started, it has no more than `404 page not found`
/// for every object, which says nothing about any of them. `Status::is_not_found` and
/// `Api::get_opt` take both for absence; use this and [`find`].
#[must_use]
pub fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.reason == NOT_FOUND)
}

/// Whether the API server does not serve the object's kind, now or at all.
#[must_use]
pub fn is_unserved(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.reason != NOT_FOUND)
}

/// Reason in the API server's own answer about a missing object.
const NOT_FOUND: &str = "NotFound";

/// An error with all its causes on one line, for logs and messages.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A client by the configuration that `kubectl` would use, or the pod's own.
///
/// # Errors
/// When there is no usable configuration.
pub async fn client() -> Result<Client, ConnectError> {
    // Installed once per process; a second call finds the first one's and is harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = kube::Config::infer().await.map_err(ConnectError::Config)?;
    connection::client(config).map_err(ConnectError::Client)
}

impl Context {
    /// Connects by the environment (`KUBECONFIG`, or the pod's service account) and learns
    /// which cluster this is.
    ///
    /// # Errors
    /// When there is no usable configuration or the API server does not answer.
    pub async fn connect(
        manager: &'static str,
        metrics: Metrics,
        ready: Readiness,
    ) -> Result<Self, ConnectError> {
        let client = client().await?;
        Self::with(client, manager, metrics, ready, Deadlines::default()).await
    }

    /// Like [`Context::connect`] with a client made elsewhere.
    ///
    /// # Errors
    /// When the API server does not answer, or the namespace has no uid.
    pub async fn with_client(
        client: Client,
        manager: &'static str,
        metrics: Metrics,
    ) -> Result<Self, ConnectError> {
        let (ready, deadlines) = (Readiness::default(), Deadlines::default());
        Self::with(client, manager, metrics, ready, deadlines).await
    }

    /// With all that differs between programs and tests.
    ///
    /// # Errors
    /// As [`Context::with_client`].
    pub async fn with(
        client: Client,
        manager: &'static str,
        metrics: Metrics,
        ready: Readiness,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        let client = connection::with_deadlines(client, deadlines, ready.clone());
        let version = client.apiserver_version().await;
        let version = version.map_err(ConnectError::Cluster)?;
        if is_too_old(&version.major, &version.minor) {
            return Err(ConnectError::TooOld(version.git_version));
        }
        let namespace = Api::<Namespace>::all(client.clone())
            .get("kube-system")
            .await
            .map_err(ConnectError::Cluster)?;
        let uid = namespace.metadata.uid.ok_or(ConnectError::NoUid)?;
        let events = Events::new(client.clone(), manager);
        Ok(Self {
            client,
            cluster: ClusterId(uid),
            events,
            metrics,
            ready,
        })
    }
}

/// The oldest Kubernetes that is supported, 1.N: what CEL, field selectors of custom resources
/// and admission policies need, of the releases that are maintained.
pub const OLDEST_MINOR: u32 = 33;

/// Whether an API server of that version is too old. One that does not say a number is taken.
fn is_too_old(major: &str, minor: &str) -> bool {
    // Distributions write `33+`.
    let minor = minor.trim_end_matches('+').parse::<u32>();
    major == "1" && minor.is_ok_and(|minor| minor < OLDEST_MINOR)
}

/// Why a role could not reach its API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither `KUBECONFIG` nor a service account.
    #[error("no usable configuration for the API server; set KUBECONFIG")]
    Config(#[source] kube::config::InferConfigError),
    /// The configuration makes no client.
    #[error("the configuration for the API server cannot be used")]
    Client(#[source] kube::Error),
    /// The API server is of an older Kubernetes.
    #[error(
        "the API server is Kubernetes {0}; Pileus needs 1.{OLDEST_MINOR} or newer: upgrade the cluster"
    )]
    TooOld(String),
    /// The cluster's identity could not be read.
    #[error(
        "cannot read the API server's version and the namespace kube-system, whose uid identifies the cluster"
    )]
    Cluster(#[source] kube::Error),
    /// The cluster's identity is missing.
    #[error("the namespace kube-system has no uid")]
    NoUid,
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn old_api_servers_are_refused() {
        assert!(is_too_old("1", "32") && is_too_old("1", "20+"));
        assert!(!is_too_old("1", "33") && !is_too_old("1", "36+") && !is_too_old("2", "0"));
        assert!(!is_too_old("1", "of our own"));
    }

    #[test]
    fn only_a_status_of_the_api_server_says_that_an_object_is_gone() {
        let missing = Status::failure("servers \"a\" not found", "NotFound").with_code(404);
        let missing = kube::Error::Api(missing.boxed());
        assert!(is_gone(&missing) && !is_unserved(&missing));
        // What kube makes of an answer that is no Status.
        let page = Status::failure("404 page not found", "Failed to parse error data");
        let page = kube::Error::Api(page.with_code(404).boxed());
        assert!(!is_gone(&page) && is_unserved(&page));
        let conflict = Status::failure("changed", "Conflict").with_code(409);
        let conflict = kube::Error::Api(conflict.boxed());
        assert!(!is_gone(&conflict) && !is_unserved(&conflict));
    }
}
