//! A scheduler in the test's own process, and its objects.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends its test")]
#![allow(dead_code, reason = "each test crate uses its own part of this module")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use pileus_api::names::{MANAGER_FINALIZER, SCHEDULER};
use pileus_api::{ConditionType, Host, Image, Server, conditions};
use pileus_kube_ext::{Context, Metrics};
use pileus_scheduler::Config;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::apiserver::TestServer;

pub const NAMESPACE: &str = "demo";

/// An API server with a namespace and an image.
pub async fn start() -> TestServer {
    let server = TestServer::start().await;
    prepare(&server).await;
    server
}

/// Creates a namespace and an image.
pub async fn prepare(server: &TestServer) -> Client {
    server.namespace(NAMESPACE).await;
    let image: Image = serde_json::from_value(json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Image",
        "metadata": {"name": "tiny"},
        "spec": {"source": {"url": "https://images.example/tiny.qcow2"}},
    }))
    .unwrap();
    let client = server.client();
    Api::<Image>::namespaced(client.clone(), NAMESPACE)
        .create(&PostParams::default(), &image)
        .await
        .unwrap();
    client
}

/// A scheduler in this process.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), pileus_scheduler::Error>>,
    pub metrics: Metrics,
}

impl Running {
    pub async fn start(client: Client, identity: Option<&str>) -> Self {
        let metrics = Metrics::default();
        let context = Context::with_client(client, SCHEDULER, metrics.clone())
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let config = Config {
            identity: identity.map(str::to_owned),
        };
        let task = tokio::spawn(pileus_scheduler::run(config, context, || {}, stop.clone()));
        Self {
            stop,
            task,
            metrics,
        }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A Host that is up, with 8 CPUs, an allocation ratio of 4 and 100 GiB of disk.
pub async fn add_host(client: &Client, name: &str, memory_mib: i64) {
    let api: Api<Host> = Api::all(client.clone());
    let host = json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Host",
        "metadata": {"name": name, "labels": {"rack": name}}, "spec": {},
    });
    let host: Host = serde_json::from_value(host).unwrap();
    api.create(&PostParams::default(), &host).await.unwrap();
    host_status(
        client,
        name,
        &json!({
            "capacity": {"vcpus": 8, "memoryMiB": memory_mib, "diskGiB": 100},
            "overheadMiB": 28,
            "capabilities": {"architecture": "x86_64", "virtType": "qemu",
                "libvirtVersion": "11.3.0", "qemuVersion": "10.0.0"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Heartbeat",
                "message": "up", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }),
    )
    .await;
}

pub async fn host_status(client: &Client, name: &str, status: &Value) {
    Api::<Host>::all(client.clone())
        .patch_status(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({"status": status})),
        )
        .await
        .unwrap();
}

pub async fn add_server(client: &Client, name: &str, memory: &str) {
    add(client, name, memory, &json!({})).await;
}

/// A Server of a PriorityClass.
pub async fn add_urgent(client: &Client, name: &str, memory: &str, class: &str) {
    add(client, name, memory, &json!({"priorityClass": class})).await;
}

async fn add(client: &Client, name: &str, memory: &str, placement: &Value) {
    let server = json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Server",
        "metadata": {"name": name, "finalizers": [MANAGER_FINALIZER]},
        "spec": {"resources": {"vcpus": 1, "memory": memory, "disk": "1Gi"},
            "image": {"name": "tiny"}, "placement": placement},
    });
    let server: Server = serde_json::from_value(server).unwrap();
    servers(client)
        .create(&PostParams::default(), &server)
        .await
        .unwrap();
}

/// Deletes a Server and, as the manager, removes its finalizer.
pub async fn remove_server(client: &Client, name: &str) {
    let api = servers(client);
    api.delete(name, &DeleteParams::default()).await.unwrap();
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    api.patch(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

pub fn servers(client: &Client) -> Api<Server> {
    Api::namespaced(client.clone(), NAMESPACE)
}

pub async fn list(client: &Client) -> Vec<Server> {
    servers(client)
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
}

pub fn host_of(server: &Server) -> Option<&str> {
    let placement = server.status.as_ref()?.placement.as_ref()?;
    Some(&placement.host)
}

/// (reason, message) of the condition Scheduled.
pub fn scheduled(server: &Server) -> Option<(String, String)> {
    let found = conditions::find(
        &server.status.as_ref()?.conditions,
        ConditionType::Scheduled,
    )?;
    Some((found.reason.clone(), found.message.clone()))
}

pub fn by_host(servers: &[Server]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for host in servers.iter().filter_map(host_of) {
        *counts.entry(host.to_owned()).or_default() += 1;
    }
    counts
}

/// Polls until `check` returns something; also returns how long that took.
pub async fn within<T>(
    limit: Duration,
    client: &Client,
    what: &str,
    check: impl Fn(&[Server]) -> Option<T>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        let servers = list(client).await;
        if let Some(found) = check(&servers) {
            return (found, start.elapsed());
        }
        let state: Vec<_> = servers
            .iter()
            .map(|s| (s.name_any(), host_of(s).map(str::to_owned), scheduled(s)))
            .collect();
        assert!(
            start.elapsed() < limit,
            "{what}: not in {limit:?}: {state:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
