//! Leases: leadership of a role, and the heartbeat of a host.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::ApiError;

/// How long leadership lasts without renewal. Twice client-go's default: an API server that
/// is slow under load should not cost the leader its place.
const LEADER_SECONDS: i32 = 30;
/// How often the leader renews, and others look.
const RENEW_INTERVAL: Duration = Duration::from_secs(4);
/// How long a renewal may fail before the leader gives up, which must be well below the
/// lease's own duration.
const RENEW_DEADLINE: Duration = Duration::from_secs(20);
/// How long one renewal may take.
const RENEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Holds the leadership of a role among its replicas.
#[derive(Clone)]
pub struct Leader {
    api: Api<Lease>,
    name: String,
    identity: String,
    generation: Arc<AtomicI64>,
}

impl Leader {
    /// Leadership `name` in `namespace`, as `identity`, which differs for each process.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            generation: Arc::default(),
        }
    }

    /// Counts the leaders: a later one has a higher number, also when the lease was deleted and
    /// made again in between. 0 before this process led.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        let made = lease.metadata.creation_timestamp.as_ref();
        let made = made.map_or(0, |time| time.0.as_second());
        let made = made.clamp(0, i64::from(u32::MAX >> 1));
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        let generation = (made << 32) | i64::from(transitions.unwrap_or(0).max(0));
        self.generation.store(generation, Ordering::SeqCst);
        true
    }

    /// Who we are.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits until this process leads.
    ///
    /// A holder counts as gone when its lease has not changed for its whole duration by
    /// *our* clock: clocks of two machines are never compared, as in client-go.
    pub async fn acquire(&self) {
        let mut seen: Option<(Option<String>, Instant)> = None;
        loop {
            match self.try_acquire(&mut seen).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(lease = %self.name, error = %super::chain(&error), "cannot take the lease");
                }
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    async fn try_acquire(
        &self,
        seen: &mut Option<(Option<String>, Instant)>,
    ) -> Result<bool, ApiError> {
        let doing = || format!("take the lease {}", self.name);
        let Some(lease) = super::find(&self.api, &self.name)
            .await
            .map_err(ApiError::doing(doing()))?
        else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(0)),
            };
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(lease) => Ok(self.is_ours(&lease)),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
                Err(error) => Err(ApiError::doing(doing())(error)),
            };
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let version = lease.metadata.resource_version.clone();
        let since = match seen {
            Some((last, since)) if *last == version => *since,
            _ => {
                let now = Instant::now();
                *seen = Some((version.clone(), now));
                now
            }
        };
        let duration = spec.lease_duration_seconds.unwrap_or(LEADER_SECONDS).max(1);
        let lasts = Duration::from_secs(u64::try_from(duration).unwrap_or(1));
        if !holder.is_empty() && holder != self.identity && since.elapsed() < lasts {
            return Ok(false);
        }
        let mut taken = lease;
        taken.spec = Some(self.spec(spec.lease_transitions.unwrap_or(0) + 1));
        // `replace` carries the version: of two that try, one gets a conflict.
        match self
            .api
            .replace(&self.name, &PostParams::default(), &taken)
            .await
        {
            Ok(lease) => Ok(self.is_ours(&lease)),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
            Err(error) => Err(ApiError::doing(doing())(error)),
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(LEADER_SECONDS),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Renews until leadership is lost: somebody else holds the lease, or it could not be
    /// renewed for 20 seconds. The caller must end the process then.
    ///
    /// In a task of its own: what the caller does meanwhile may take long without a pause,
    /// and must not cost the lease by that.
    pub async fn hold(&self) -> String {
        let leader = self.clone();
        let held = tokio::spawn(async move { leader.renew_until_lost().await });
        let held = AbortOnDropHandle::new(held).await;
        held.unwrap_or_else(|error| format!("the lease is not renewed: {error}"))
    }

    async fn renew_until_lost(&self) -> String {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEW_INTERVAL).await;
            match tokio::time::timeout(RENEW_TIMEOUT, self.renew()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return format!("another process took the lease {}", self.name),
                Ok(Err(error)) => {
                    tracing::warn!(lease = %self.name, error = %super::chain(&error), "cannot renew the lease");
                }
                Err(_) => tracing::warn!(lease = %self.name, "renewing the lease takes too long"),
            }
            if renewed.elapsed() > RENEW_DEADLINE {
                return format!(
                    "the lease {} could not be renewed for {RENEW_DEADLINE:?}",
                    self.name
                );
            }
        }
    }

    async fn renew(&self) -> Result<bool, ApiError> {
        let doing = || format!("renew the lease {}", self.name);
        let mut lease = self
            .api
            .get(&self.name)
            .await
            .map_err(ApiError::doing(doing()))?;
        let Some(spec) = lease.spec.as_mut() else {
            return Ok(false);
        };
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(false);
        }
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        match self
            .api
            .replace(&self.name, &PostParams::default(), &lease)
            .await
        {
            Ok(_) => Ok(true),
            Err(error) => Err(ApiError::doing(doing())(error)),
        }
    }

    /// Releases the lease, so that the next leader need not wait until it expires.
    pub async fn release(&self) {
        let Ok(mut lease) = self.api.get(&self.name).await else {
            return;
        };
        let Some(spec) = lease.spec.as_mut() else {
            return;
        };
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            let _ = self
                .api
                .replace(&self.name, &PostParams::default(), &lease)
                .await;
        }
    }
}

/// Name of the Lease that a host's agent renews in the host's namespace.
pub const HEARTBEAT: &str = "pileus-agent";
/// How long a heartbeat lasts, in seconds; Kubernetes' node leases last as long.
pub const HEARTBEAT_SECONDS: i32 = 40;
/// How often an agent renews its heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Renews a host's heartbeat once.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn heartbeat(client: &Client, namespace: &str, identity: &str) -> Result<(), ApiError> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": HEARTBEAT},
        "spec": {
            "holderIdentity": identity,
            "leaseDurationSeconds": HEARTBEAT_SECONDS,
            "renewTime": MicroTime(Timestamp::now()),
        },
    });
    let params = PatchParams::apply(pileus_api::names::AGENT).force();
    api.patch(HEARTBEAT, &params, &Patch::Apply(&lease))
        .await
        .map(drop)
        .map_err(ApiError::doing("renew the host's heartbeat"))
}
