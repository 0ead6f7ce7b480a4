//! Two schedulers at once on a real API server, as while leadership changes.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends its test")]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::StreamExt;
use http::{Method, Request};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::client::ClientBuilder;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config as WatchConfig, watcher};
use kube::{Client, ResourceExt};
use pileus_api::{Instance, Server};
use pileus_tests::apiserver::TestServer;
use pileus_tests::scheduling::*;
use serde_json::json;
use tokio::sync::watch;
use tower::Service;
use tower::layer::layer_fn;

#[tokio::test]
async fn two_schedulers_at_once_place_no_server_twice() {
    let server = start().await;
    let client = server.client();
    for i in 0..4 {
        add_host(&client, &format!("h{i}"), 65536).await;
    }
    let first = Running::start(server.client(), None).await;
    let second = Running::start(server.client(), None).await;
    let api = servers(&client);
    let watch = tokio::spawn(async move {
        let mut seen = BTreeMap::new();
        let mut changes = watcher(api, WatchConfig::default())
            .default_backoff()
            .applied_objects()
            .boxed();
        while seen.len() < 40 {
            let server = changes.next().await.unwrap().unwrap();
            if let Some(placement) = server.status.clone().unwrap_or_default().placement {
                assert_eq!(placement.epoch, 1);
                let before = seen.insert(server.name_any(), placement.clone());
                assert!(
                    before.is_none_or(|b| b == placement),
                    "{}",
                    server.name_any()
                );
            }
        }
        seen
    });
    for i in 0..40 {
        add_server(&client, &format!("s{i}"), "100Mi").await;
    }
    let seen = tokio::time::timeout(Duration::from_secs(30), watch)
        .await
        .unwrap()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for server in list(&client).await {
        let placement = server.status.clone().unwrap().placement;
        assert_eq!(placement.as_ref(), seen.get(&server.name_any()));
    }
    for line in [&first, &second].map(|s| s.metrics.encode()) {
        for line in line
            .lines()
            .filter(|l| l.contains("scheduler_") && l.contains("_total"))
        {
            println!("{line}");
        }
    }
    first.stop().await;
    second.stop().await;
}

/// Acts as the manager and the agents of all hosts: creates an Instance of each placement,
/// accepts what fits, refuses what does not, and deletes what was withdrawn. Fails the test if a
/// Server is accepted twice.
async fn play_manager_and_agents(client: Client, room: usize) {
    let instances = |host: &str| -> Api<Instance> {
        Api::namespaced(client.clone(), &format!("pileus-host-{host}"))
    };
    let mut there: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    loop {
        for server in list(&client).await {
            let (name, uid) = (server.name_any(), server.uid().unwrap());
            let status = server.status.unwrap_or_default();
            for refusal in &status.refusals {
                let refused = format!("{uid}-{}", refusal.epoch);
                if there.remove(&refused).is_some() {
                    let api = instances(&refusal.name);
                    api.delete(&refused, &DeleteParams::default())
                        .await
                        .unwrap();
                }
            }
            let Some(placement) = status.placement else {
                continue;
            };
            let made = format!("{uid}-{}", placement.epoch);
            if there.contains_key(&made) {
                continue;
            }
            let twice = taken.iter().find(|(_, t)| t.contains(&name));
            assert!(twice.is_none(), "{name} is on {twice:?} already");
            let instance = json!({
                "apiVersion": "pileus.dev/v1alpha1", "kind": "Instance",
                "metadata": {"name": made},
                "spec": {"server": {"namespace": NAMESPACE, "name": name, "uid": uid},
                    "host": placement.host, "epoch": placement.epoch, "instanceID": uid,
                    "claim": placement.claim,
                    "image": {"name": "tiny", "uid": "i", "diskFormat": "raw",
                        "disk": {"url": "https://images.example/tiny"}}},
            });
            let api = instances(&placement.host);
            let instance: Instance = serde_json::from_value(instance).unwrap();
            api.create(&PostParams::default(), &instance).await.unwrap();
            let on_it = taken.entry(placement.host.clone()).or_default();
            let fits = on_it.len() < room;
            if fits {
                on_it.push(name.clone());
            }
            let reason = if fits { "Active" } else { "HostRefused" };
            let status = json!({"status": {"realized": fits, "conditions": [{"type": "Ready",
                "status": if fits { "True" } else { "False" }, "reason": reason,
                "message": "so it is", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            api.patch_status(&made, &PatchParams::default(), &Patch::Merge(status))
                .await
                .unwrap();
            there.insert(made, (placement.host, name));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Two schedulers do not know each other's decisions before they are written, so that both may
/// use the last capacity of a host. Its agent refuses one of the Servers, which is placed on
/// another host: in the end all capacity is used once and no Server runs twice.
#[tokio::test]
async fn two_schedulers_at_once_use_all_capacity_once() {
    let server = start().await;
    let client = server.client();
    for host in ["h0", "h1", "h2"] {
        // Ten Servers of 100 + 28 MiB fit on each.
        add_host(&client, host, 10 * 128 + 28).await;
        server.namespace(&format!("pileus-host-{host}")).await;
    }
    let first = Running::start(server.client(), None).await;
    let second = Running::start(server.client(), None).await;
    let played = tokio::spawn(play_manager_and_agents(server.client(), 10));
    for i in 0..33 {
        add_server(&client, &format!("s{i}"), "100Mi").await;
    }
    let full = |servers: &[Server]| {
        let counts = by_host(servers);
        let unplaced = servers.iter().filter(|s| host_of(s).is_none());
        let told = unplaced.filter(|s| scheduled(s).is_some()).count();
        (counts.values().all(|n| *n == 10) && counts.len() == 3 && told == 3).then_some(())
    };
    within(Duration::from_secs(60), &client, "every place used", full).await;
    assert!(!played.is_finished(), "{:?}", played.await);
    played.abort();
    let all = list(&client).await;
    let again = all.iter().filter(|s| {
        let status = s.status.as_ref();
        status.is_some_and(|s| !s.refusals.is_empty())
    });
    println!("{} were refused and placed again", again.count());
    first.stop().await;
    second.stop().await;
}

/// Holds back the status writes of a scheduler: only those to Servers whose names begin with the
/// prefix pass, and none before it is opened. All other requests pass.
#[derive(Clone)]
struct Gate<S> {
    inner: S,
    open: watch::Receiver<Option<&'static str>>,
    held: Arc<AtomicUsize>,
}

impl<S, B> Service<Request<B>> for Gate<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let server = path
            .strip_suffix("/status")
            .and_then(|p| Some(p.rsplit_once("/servers/")?.1.to_owned()))
            .filter(|_| request.method() == Method::PATCH);
        let (mut open, held) = (self.open.clone(), self.held.clone());
        // Nothing is sent before it is awaited.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if let Some(server) = server {
                held.fetch_add(1, Ordering::Relaxed);
                let passing = open.wait_for(|b| b.is_some_and(|b| server.starts_with(b)));
                passing.await.unwrap();
            }
            answer.await
        })
    }
}

/// A scheduler behind a gate, how to open the gate, and how many writes have reached it.
async fn gated(
    server: &TestServer,
) -> (
    Running,
    watch::Sender<Option<&'static str>>,
    Arc<AtomicUsize>,
) {
    let (opens, open) = watch::channel(None);
    let held = Arc::new(AtomicUsize::new(0));
    let layer = layer_fn(|inner| Gate {
        inner,
        open: open.clone(),
        held: held.clone(),
    });
    let builder = ClientBuilder::try_from(server.config()).unwrap();
    let client = builder.with_layer(&layer).build();
    (Running::start(client, None).await, opens, held)
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn conflicts(scheduler: &Running) -> u64 {
    let text = scheduler.metrics.encode();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("pileus_scheduler_conflicts_total "));
    line.unwrap().parse().unwrap()
}

/// The worst case of two schedulers: before any write of either was carried out, each has placed
/// ten different Servers on the same capacity of the only host, and has reported to the other
/// one's Servers that no host fits.
#[tokio::test]
async fn two_schedulers_that_assumed_the_same_capacity_lose_no_server() {
    let server = TestServer::start().await;
    let client = prepare(&server).await;
    add_host(&client, "h0", 10 * 128 + 28).await;
    for host in ["h0", "h1"] {
        server.namespace(&format!("pileus-host-{host}")).await;
    }
    let priority: PriorityClass = serde_json::from_value(json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "high"}, "value": 1000,
    }))
    .unwrap();
    let priorities: Api<PriorityClass> = Api::all(client.clone());
    let made = priorities.create(&PostParams::default(), &priority).await;
    made.unwrap();

    for i in 0..10 {
        add_server(&client, &format!("s{i}"), "100Mi").await;
    }
    let (first, open_first, held_first) = gated(&server).await;
    until("the first has decided", || {
        held_first.load(Ordering::Relaxed) >= 10
    })
    .await;
    for i in 0..10 {
        add_urgent(&client, &format!("t{i}"), "100Mi", "high").await;
    }
    let (second, open_second, held_second) = gated(&server).await;
    until("both have decided all", || {
        // Sixteen writes run at once: ten placements, and the reports on the others.
        held_first.load(Ordering::Relaxed) >= 16 && held_second.load(Ordering::Relaxed) >= 16
    })
    .await;
    assert_eq!(by_host(&list(&client).await).len(), 0);
    open_first.send_replace(Some("s"));
    open_second.send_replace(Some("t"));
    let twice = |servers: &[Server]| (by_host(servers).get("h0") == Some(&20)).then_some(());
    let limit = Duration::from_secs(60);
    within(limit, &client, "given away twice", twice).await;

    open_first.send_replace(Some(""));
    open_second.send_replace(Some(""));
    let played = tokio::spawn(play_manager_and_agents(server.client(), 10));
    add_host(&client, "h1", 10 * 128 + 28).await;
    let settled = |servers: &[Server]| {
        let counts = by_host(servers);
        ["h0", "h1"]
            .iter()
            .all(|h| counts.get(*h) == Some(&10))
            .then_some(())
    };
    within(limit, &client, "every place used once", settled).await;
    // And it stays so.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all = list(&client).await;
    assert!(settled(&all).is_some(), "{:?}", by_host(&all));
    assert!(!played.is_finished(), "{:?}", played.await);
    played.abort();
    let refused = |s: &&Server| s.status.as_ref().is_some_and(|s| !s.refusals.is_empty());
    assert_eq!(all.iter().filter(refused).count(), 10);
    let met = (conflicts(&first), conflicts(&second));
    println!("conflicts met by each: {met:?}");
    assert!(met.0 >= 10 && met.1 >= 10, "{met:?}");
    first.stop().await;
    second.stop().await;
}
