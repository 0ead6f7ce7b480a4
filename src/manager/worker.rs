//! Runs a controller: one pass at a time for each object, many objects at once and namespaces in
//! turn, backoff for what fails, and a resync now and then.
//!
//! A pass that panics or never ends is that of one object, which is tried again like any that
//! fails; the others go on.

use std::fmt::Debug;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::Outcome;
use super::fair_queue::{FairQueue, Keyed};
use pileus_kube_ext::backoff::Backoff;
use pileus_kube_ext::triggers::Triggers;
use pileus_kube_ext::{ApiError, Context, chain};

/// Every object is reconciled this often without any event.
const RESYNC: Duration = Duration::from_secs(300);
/// Longest time that one pass may take; each of its requests has a much shorter one.
const PASS_TIMEOUT: Duration = Duration::from_secs(300);
/// When an object is reconciled again whose pass has panicked.
const PANIC_RETRY: Duration = Duration::from_secs(300);
/// How often a controller gives a sign of life, and how long it may give none.
const SIGNS_OF_LIFE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// How long passes that run may go on when the controller is stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key(Option<String>, String);

impl Keyed for Key {
    fn group(&self) -> Option<String> {
        self.0.clone()
    }
}

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
    F: Fn(Arc<K>, Arc<M>) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let (cache, mut requests) = triggers.into_parts();
    let concurrency = usize::from(concurrency);
    let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    let mut queue = FairQueue::<Key>::new(concurrency);
    let mut passes = FuturesUnordered::new();
    let check = M::as_ref(&manager)
        .ready
        .check(format!("controller/{name}"));
    let mut signs = tokio::time::interval(SIGNS_OF_LIFE.0);
    loop {
        while queue.running() < concurrency
            && let Some(key) = queue.pop()
        {
            let Some(object) = cache.get(key.0.as_deref().unwrap_or_default(), &key.1) else {
                // Deleted: nothing is remembered of it.
                queue.done(&key);
                backoff.reset(&key);
                continue;
            };
            let pass = pass(object, manager.clone(), reconcile, name);
            passes.push(pass.map(move |outcome| (key, outcome)));
        }
        let timer = async {
            match queue.next_time() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some((key, outcome)) = passes.next(), if !passes.is_empty() => {
                let wait = match outcome {
                    Ended::Well(wait) => {
                        backoff.reset(&key);
                        wait.unwrap_or(RESYNC)
                    }
                    Ended::Failed(error) => {
                        let wait = backoff.next(key.clone());
                        log(name, &key, &error, wait);
                        wait
                    }
                    Ended::Panicked => PANIC_RETRY,
                };
                queue.done(&key);
                queue.push_at(key, Instant::now() + wait);
            }
            request = requests.recv() => {
                let Some(request) = request else { break };
                queue.push(key_of(request));
                while let Ok(request) = requests.try_recv() {
                    queue.push(key_of(request));
                }
            }
            () = timer => queue.advance(Instant::now()),
            _ = signs.tick() => check.busy(SIGNS_OF_LIFE.1),
        }
    }
    let rest = async { while passes.next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_TIMEOUT, rest).await;
    check.done();
}

fn key_of<K: Resource<DynamicType = ()>>(request: ObjectRef<K>) -> Key {
    Key(request.namespace, request.name)
}

/// How a pass ended.
enum Ended {
    Well(Option<Duration>),
    Failed(ApiError),
    Panicked,
}

async fn pass<M, K, F, Fut>(
    object: Arc<K>,
    manager: Arc<M>,
    reconcile: F,
    name: &'static str,
) -> Ended
where
    M: AsRef<Context>,
    K: Resource<DynamicType = ()>,
    F: Fn(Arc<K>, Arc<M>) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let started = Instant::now();
    let (namespace, object_name) = (object.namespace(), object.name_any());
    // What a pass shares with others is behind locks that a panic does not spoil.
    let work = AssertUnwindSafe(async { reconcile(object, manager.clone()).await }).catch_unwind();
    let outcome = match tokio::time::timeout(PASS_TIMEOUT, work).await {
        Ok(Ok(Ok(wait))) => Ended::Well(wait),
        Ok(Ok(Err(error))) => Ended::Failed(error),
        Ok(Err(_)) => {
            tracing::error!(name, ?namespace, object = %object_name, "a pass panicked");
            Ended::Panicked
        }
        Err(late) => {
            let doing = format!("finish the pass within {PASS_TIMEOUT:?}");
            Ended::Failed(ApiError::doing(doing)(kube::Error::Service(late.into())))
        }
    };
    let failed = !matches!(outcome, Ended::Well(_));
    M::as_ref(&manager)
        .metrics
        .reconciled(name, started.elapsed(), failed);
    outcome
}

fn log(name: &str, key: &Key, error: &ApiError, wait: Duration) {
    let (namespace, object) = (&key.0, &key.1);
    // A conflict only says that the cache was behind; the newer version is on its way and wakes us
    // by itself.
    if error.is_conflict() {
        tracing::debug!(name, ?namespace, %object, error = %chain(error), "conflict");
    } else {
        tracing::warn!(name, ?namespace, %object, error = %chain(error), ?wait, "will be tried again");
    }
}
