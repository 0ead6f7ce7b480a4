//! Runs a controller: one pass at a time for each object, many objects at once, backoff
//! for what fails, and a resync now and then.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::controller::{Action, Config, ReconcileRequest, applier};
use kube::{Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::Outcome;
use pileus_kube_ext::backoff::Backoff;
use pileus_kube_ext::triggers::Triggers;
use pileus_kube_ext::{ApiError, Context, chain};

/// Every object is reconciled this often without any event.
const RESYNC: Duration = Duration::from_secs(300);

/// Runs the controller of one kind until `stop`; `manager` is what the controllers of its role
/// share.
pub async fn run<M, K, F, Fut>(
    manager: Arc<M>,
    triggers: Triggers<K>,
    concurrency: u16,
    reconcile: F,
    name: &'static str,
    stop: CancellationToken,
) where
    M: AsRef<Context> + Send + Sync + 'static,
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Debug + Eq + Hash + Clone + Unpin,
    F: Fn(Arc<K>, Arc<M>) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let backoff = Arc::new(Backoff::new(
        Duration::from_millis(200),
        Duration::from_secs(30),
    ));
    let (cache, requests) = triggers.into_parts();
    let queue = futures::stream::unfold(requests, |mut requests| async {
        let request = requests.recv().await?;
        Some((
            Ok::<_, std::convert::Infallible>(ReconcileRequest::from(request)),
            requests,
        ))
    })
    .take_until(stop.cancelled_owned());
    let succeeded = backoff.clone();
    let key = |object: &K| (object.namespace(), object.name_any());
    applier(
        move |object: Arc<K>, manager: Arc<M>| {
            let backoff = succeeded.clone();
            Box::pin(async move {
                let started = Instant::now();
                let result = reconcile(object.clone(), manager.clone()).await;
                M::as_ref(&manager).metrics.reconciled(name, started.elapsed(), result.is_err());
                let wait = result?;
                backoff.reset(&key(&object));
                Ok::<_, ApiError>(Action::requeue(wait.unwrap_or(RESYNC)))
            })
        },
        move |object, error, _| {
            // A conflict only says that the cache was behind; the newer version is on its
            // way and wakes us by itself.
            let wait = backoff.next(key(&object));
            if error.is_conflict() {
                tracing::debug!(name, object = %object.name_any(), error = %chain(error), "conflict");
            } else {
                tracing::warn!(name, object = %object.name_any(), error = %chain(error), ?wait, "will be tried again");
            }
            Action::requeue(wait)
        },
        manager,
        cache.store().clone(),
        queue,
        Config::default().concurrency(concurrency),
    )
    .for_each(|_| async {})
    .await;
}
