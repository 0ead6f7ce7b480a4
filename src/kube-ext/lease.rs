//! Leases: leadership of a role, and the heartbeat of a host.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::leadership::{Leadership, Rival};
use super::readiness::Check;
use super::{ApiError, Context};
use pileus_api::names::SYSTEM_NAMESPACE;

/// How long leadership lasts without renewal. Twice client-go's default: an API server that
/// is slow under load should not cost the leader its place.
const LEADER_SECONDS: i32 = 30;
/// The same, by which others wait.
#[cfg(test)]
pub(crate) const LEADER_DURATION: Duration = Duration::from_secs(30);
/// How often the leader renews, and others look.
const RENEW_INTERVAL: Duration = Duration::from_secs(4);
/// How often a process that does not lead looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long the leader acts after it *sent* the last renewal that succeeded, which must be well
/// below the lease's own duration.
pub(crate) const RENEW_DEADLINE: Duration = Duration::from_secs(20);
/// How long one look or renewal may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a release may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Leadership was lost; this process must end, so that two never act.
#[derive(Clone, Debug, thiserror::Error)]
#[error("leadership lost: {0}")]
pub struct LeadershipLost(pub String);

/// Waits for the leadership `name`, then runs `work` with it until `work` ends, `stop` is
/// cancelled or leadership is lost, with which `work` is dropped.
///
/// `work` is given a context whose client writes nothing once leadership may have ended.
///
/// # Errors
/// When leadership is lost, or as `work` ends.
pub async fn lead<W, E>(
    context: &Context,
    name: &str,
    identity: String,
    stop: &CancellationToken,
    work: impl FnOnce(Context, Leadership) -> W,
) -> Result<(), E>
where
    W: Future<Output = Result<(), E>>,
    E: From<LeadershipLost>,
{
    let mut leader = Leader::new(context.client.clone(), SYSTEM_NAMESPACE, name, identity);
    leader.check = Some(Arc::new(context.ready.check("leader-election")));
    let leadership = tokio::select! {
        leadership = leader.acquire() => leadership,
        () = stop.cancelled() => return Ok(()),
    };
    let generation = leadership.generation();
    tracing::info!(
        identity = leader.identity(),
        lease = name,
        generation,
        "leading"
    );
    let fenced = Context {
        client: leadership.fence(context.client.clone()),
        ..context.clone()
    };
    let ended = tokio::select! {
        // The loss first: `work` must not take another step after it.
        biased;
        why = leader.hold() => return Err(LeadershipLost(why).into()),
        ended = work(fenced, leadership) => ended,
    };
    leader.release().await;
    ended
}

/// Holds the leadership of a role among its replicas.
#[derive(Clone)]
pub struct Leader {
    api: Api<Lease>,
    name: String,
    identity: String,
    leadership: Leadership,
    /// Where it says whether the lease can be looked at and renewed.
    check: Option<Arc<Check>>,
}

impl Leader {
    /// Leadership `name` in `namespace`, as `identity`, which differs for each process.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            leadership: Leadership::default(),
            check: None,
        }
    }

    /// Says whether the lease can be looked at and renewed.
    fn report(&self, problem: Option<String>) {
        match (&self.check, problem) {
            (Some(check), None) => check.ok(),
            (Some(check), Some(problem)) => check.failed(problem),
            (None, _) => {}
        }
    }

    /// Who we are.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Counts the leaders: a later one has a higher number, also when the lease was deleted and
    /// made again in between. 0 before this process led.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.leadership.generation()
    }

    /// Waits until this process leads.
    ///
    /// A holder counts as gone when its lease has not changed for its whole duration by
    /// *our* clock: clocks of two machines are never compared, as in client-go.
    pub async fn acquire(&self) -> Leadership {
        let mut rival = Rival::default();
        loop {
            let sent = Instant::now();
            match timeout(ATTEMPT_TIMEOUT, self.try_acquire(&mut rival)).await {
                Ok(Ok(Some(lease))) => {
                    self.report(None);
                    self.leadership
                        .begin(generation(&lease), sent + RENEW_DEADLINE);
                    return self.leadership.clone();
                }
                Ok(Ok(None)) => self.report(None),
                Ok(Err(error)) => {
                    let error = super::chain(&error);
                    tracing::warn!(lease = %self.name, error, "cannot take the lease");
                    self.report(Some(error));
                }
                Err(_) => {
                    tracing::warn!(lease = %self.name, "taking the lease takes too long");
                    self.report(Some("the API server does not answer".to_owned()));
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// The lease as it is now that we hold it; nothing when another does.
    async fn try_acquire(&self, rival: &mut Rival) -> Result<Option<Lease>, ApiError> {
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
                Ok(lease) => Ok(Some(lease)),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
                Err(error) => Err(ApiError::doing(doing())(error)),
            };
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let version = lease.metadata.resource_version.as_deref();
        let duration = spec.lease_duration_seconds.unwrap_or(LEADER_SECONDS).max(1);
        let lasts = Duration::from_secs(u64::try_from(duration).unwrap_or(1));
        let is_gone = rival.is_gone(version, lasts, Instant::now());
        if !holder.is_empty() && holder != self.identity && !is_gone {
            return Ok(None);
        }
        let mut taken = lease;
        taken.spec = Some(self.spec(spec.lease_transitions.unwrap_or(0).saturating_add(1)));
        // `replace` carries the version: of two that try, one gets a conflict.
        match self
            .api
            .replace(&self.name, &PostParams::default(), &taken)
            .await
        {
            Ok(lease) => Ok(Some(lease)),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(None),
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

    /// Renews until leadership is lost: somebody else holds the lease, or 20 seconds have passed
    /// since a renewal was sent that succeeded. The caller must end the process then.
    ///
    /// In a task of its own: what the caller does meanwhile may take long without a pause,
    /// and must not cost the lease by that.
    pub async fn hold(&self) -> String {
        let leader = self.clone();
        let held = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = leader.leadership.ended() => format!(
                    "the lease {} could not be renewed for {RENEW_DEADLINE:?}",
                    leader.name
                ),
                why = leader.renew_until_taken() => why,
            }
        });
        let held = AbortOnDropHandle::new(held).await;
        self.leadership.give_up();
        held.unwrap_or_else(|error| format!("the lease is not renewed: {error}"))
    }

    async fn renew_until_taken(&self) -> String {
        loop {
            tokio::time::sleep(RENEW_INTERVAL).await;
            // Before the request: when it arrives is not known.
            let sent = Instant::now();
            match timeout(ATTEMPT_TIMEOUT, self.renew()).await {
                Ok(Ok(true)) => {
                    self.leadership.renewed(sent + RENEW_DEADLINE);
                    self.report(None);
                }
                Ok(Ok(false)) => return format!("another process took the lease {}", self.name),
                Ok(Err(error)) => {
                    let error = super::chain(&error);
                    tracing::warn!(lease = %self.name, error, "cannot renew the lease");
                    self.report(Some(error));
                }
                Err(_) => {
                    tracing::warn!(lease = %self.name, "renewing the lease takes too long");
                    self.report(Some("the API server does not answer".to_owned()));
                }
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
        // A later process may have our identity.
        let is_ours = generation(&lease) == self.generation();
        let Some(spec) = lease.spec.as_mut() else {
            return Ok(false);
        };
        if !is_ours || spec.holder_identity.as_deref() != Some(&self.identity) {
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

    /// Releases the lease, so that the next leader need not wait until it expires. Best effort:
    /// an API server that does not answer is not waited for.
    pub async fn release(&self) {
        self.leadership.give_up();
        let released = timeout(RELEASE_TIMEOUT, self.try_release()).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::info!(lease = %self.name, "the lease is not released; it expires");
        }
    }

    async fn try_release(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(&self.name).await?;
        if generation(&lease) != self.generation() {
            return Ok(());
        }
        let Some(spec) = lease.spec.as_mut() else {
            return Ok(());
        };
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            let params = PostParams::default();
            self.api.replace(&self.name, &params, &lease).await?;
        }
        Ok(())
    }
}

/// A number that is higher for every later holder of the lease: its transitions, and before them
/// when the lease was made, since one that is deleted and made again counts from 0.
fn generation(lease: &Lease) -> i64 {
    let made = lease.metadata.creation_timestamp.as_ref();
    let made = made
        .map_or(0, |time| time.0.as_second())
        .clamp(0, i64::from(u32::MAX));
    let spec = lease.spec.as_ref();
    let transitions = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    (made << 31) | i64::from(transitions.max(0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_later_holder_has_a_higher_generation() {
        let lease = |made: i64, transitions: i32| {
            let made = Timestamp::from_second(made).unwrap();
            let made = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(made);
            generation(&Lease {
                metadata: ObjectMeta {
                    creation_timestamp: Some(made),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec {
                    lease_transitions: Some(transitions),
                    ..LeaseSpec::default()
                }),
            })
        };
        let ordered = [
            lease(1_700_000_000, 0),
            lease(1_700_000_000, 1),
            lease(1_700_000_000, i32::MAX),
            lease(1_700_000_001, 0),
            lease(4_000_000_000, 7),
        ];
        assert!(ordered.is_sorted() && ordered[0] > 0, "{ordered:?}");
        assert!(RENEW_DEADLINE < Duration::from_secs(LEADER_SECONDS.unsigned_abs().into()));
    }
}
