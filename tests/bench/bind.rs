//! How fast the scheduler binds, next to a bare client that writes the same number of status
//! patches to the same API server: 1,000 Servers over 500 simulated hosts, all of which are
//! waiting for one image when it appears. `cargo bench --bench bind [SERVERS HOSTS]`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config as WatchConfig, watcher};
use kube::{Client, ResourceExt};
use pileus_api::names::{MANAGER_FINALIZER, SCHEDULER};
use pileus_api::{Host, Image, Server};
use pileus_kube_ext::{Context, Metrics};
use pileus_scheduler::Config;
use pileus_tests::apiserver::TestServer;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Requests under way at once, for both.
const AT_ONCE: usize = pileus_scheduler::MAX_CONCURRENT_WRITES;

async fn all<F: Future<Output = ()>>(work: impl IntoIterator<Item = F>) {
    stream::iter(work)
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
}

async fn make_hosts(client: &Client, hosts: usize) {
    let api: Api<Host> = Api::all(client.clone());
    all((0..hosts).map(|n| {
        let api = api.clone();
        async move {
            let name = format!("host-{n:04}");
            let host = json!({
                "apiVersion": "pileus.dev/v1alpha1", "kind": "Host",
                "metadata": {"name": name}, "spec": {},
            });
            let host: Host = serde_json::from_value(host).unwrap();
            api.create(&PostParams::default(), &host).await.unwrap();
            let status = json!({"status": {
                "capacity": {"vcpus": 64, "memoryMiB": 262_144, "diskGiB": 4000},
                "overheadMiB": 28,
                "capabilities": {"architecture": "x86_64", "virtType": "qemu",
                    "libvirtVersion": "11.3.0", "qemuVersion": "10.0.0"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "Heartbeat",
                    "message": "up", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            }});
            let params = PatchParams::default();
            api.patch_status(&name, &params, &Patch::Merge(status))
                .await
                .unwrap();
        }
    }))
    .await;
}

async fn make_servers(client: &Client, namespace: &str, servers: usize) {
    let api: Api<Server> = Api::namespaced(client.clone(), namespace);
    all((0..servers).map(|n| {
        let api = api.clone();
        async move {
            let server = json!({
                "apiVersion": "pileus.dev/v1alpha1", "kind": "Server",
                "metadata": {"name": format!("server-{n:05}"), "finalizers": [MANAGER_FINALIZER]},
                "spec": {"resources": {"vcpus": 1, "memory": "512Mi", "disk": "1Gi"},
                    "image": {"name": "tiny"}},
            });
            let server: Server = serde_json::from_value(server).unwrap();
            api.create(&PostParams::default(), &server).await.unwrap();
        }
    }))
    .await;
}

/// Counts the Servers of a namespace that are placed, as its watch reports.
fn watch_placed(
    client: &Client,
    namespace: &str,
) -> (Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let api: Api<Server> = Api::namespaced(client.clone(), namespace);
    let placed = Arc::new(AtomicUsize::new(0));
    let count = placed.clone();
    let task = tokio::spawn(async move {
        let changes = watcher(api, WatchConfig::default())
            .default_backoff()
            .applied_objects();
        let mut changes = std::pin::pin!(changes);
        let mut known = std::collections::BTreeSet::new();
        while let Some(change) = changes.next().await {
            let Ok(server) = change else { continue };
            if server
                .status
                .as_ref()
                .is_some_and(|s| s.placement.is_some())
                && known.insert(server.name_any())
            {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    (placed, task)
}

async fn until(placed: &AtomicUsize, wanted: usize) {
    let deadline = Instant::now() + Duration::from_mins(10);
    while placed.load(Ordering::Relaxed) < wanted {
        assert!(
            Instant::now() < deadline,
            "{} of {wanted}",
            placed.load(Ordering::Relaxed)
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A bare client that knows where all of them go.
async fn bare(client: &Client, namespace: &str, servers: usize, hosts: usize) -> Duration {
    let api: Api<Server> = Api::namespaced(client.clone(), namespace);
    let listed = api.list(&ListParams::default()).await.unwrap().items;
    let (placed, task) = watch_placed(client, namespace);
    let start = Instant::now();
    let params = PatchParams::apply(SCHEDULER).force();
    all(listed.iter().enumerate().map(|(n, server)| {
        let (api, params) = (api.clone(), params.clone());
        async move {
            let name = server.name_any();
            let status = json!({
                "apiVersion": "pileus.dev/v1alpha1", "kind": "Server",
                "metadata": {"name": name, "namespace": server.namespace(), "uid": server.uid(),
                    "resourceVersion": server.resource_version()},
                "status": {
                    "placement": {"host": format!("host-{:04}", n % hosts), "epoch": 1,
                        "claim": {"vcpus": 1, "memoryMiB": 512, "diskGiB": 1},
                        "time": "2026-01-01T00:00:00Z"},
                    "conditions": [{"type": "Scheduled", "status": "True",
                        "reason": "Scheduled", "message": "placed on host-0000",
                        "observedGeneration": 1,
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                },
            });
            api.patch_status(&name, &params, &Patch::Apply(status))
                .await
                .unwrap();
        }
    }))
    .await;
    until(&placed, servers).await;
    let took = start.elapsed();
    task.abort();
    took
}

/// The scheduler, which waits for the image that all of them need.
async fn scheduled(client: &Client, namespace: &str, servers: usize) -> Duration {
    let (placed, task) = watch_placed(client, namespace);
    let context = Context::with_client(client.clone(), SCHEDULER, Metrics::default())
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let config = Config { identity: None };
    let told = || ready.send(()).unwrap();
    let running = tokio::spawn(pileus_scheduler::run(config, context, told, stop.clone()));
    is_ready.await.unwrap();
    let start = Instant::now();
    make_image(client, namespace).await;
    until(&placed, servers).await;
    let took = start.elapsed();
    stop.cancel();
    running.await.unwrap().unwrap();
    task.abort();
    took
}

async fn make_image(client: &Client, namespace: &str) {
    let image: Image = serde_json::from_value(json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Image",
        "metadata": {"name": "tiny"},
        "spec": {"source": {"url": "https://images.example/tiny.qcow2"}},
    }))
    .unwrap();
    let api: Api<Image> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &image).await.unwrap();
}

#[tokio::main]
async fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let servers = numbers.first().copied().unwrap_or(1000);
    let hosts = numbers.get(1).copied().unwrap_or(500);
    let server = TestServer::start().await;
    let client = server.client();
    make_hosts(&client, hosts).await;
    let mut took: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    // By turns, so that neither has the API server fresher than the other.
    for round in 0..3 {
        for who in ["bare", "scheduler"] {
            let namespace = format!("{who}-{round}");
            server.namespace(&namespace).await;
            make_servers(&client, &namespace, servers).await;
            let time = if who == "bare" {
                bare(&client, &namespace, servers, hosts).await
            } else {
                scheduled(&client, &namespace, servers).await
            };
            println!("{who:10} {servers} Servers in {:.2} s", time.as_secs_f64());
            took.entry(who).or_default().push(time.as_secs_f64());
        }
    }
    let median = |who| {
        let mut all = took[who].clone();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let ratio = median("scheduler") / median("bare");
    println!(
        "bench bind servers={servers} hosts={hosts} bare_s={:.2} scheduler_s={:.2} ratio={ratio:.2} goal=1.2 {}",
        median("bare"),
        median("scheduler"),
        if ratio <= 1.2 { "ok" } else { "MISSED" },
    );
}
