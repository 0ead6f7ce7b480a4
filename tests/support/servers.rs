//! A manager on a real API server, whose hosts and placements are driven by hand.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use super::apiserver::{TestServer, create, until};
use super::counting::Counter;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::client::ClientBuilder;
use kube::{Client, Resource, ResourceExt};
use pileus_api::names::{MANAGER, host_namespace, instance_name};
use pileus_api::{ConditionType, Flavor, Image, Instance, Server, conditions};
use pileus_kube_ext::telemetry::Readiness;
use pileus_kube_ext::{Context, Metrics};
use pileus_manager::Config;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const NAMESPACE: &str = "demo";
pub const HOST: &str = "h1";
/// How long the manager may take for a step on a loaded machine.
pub const TIMEOUT: Duration = Duration::from_secs(20);
pub const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIM2K4Z8r073mQpHOADkNIMKT5IsVq/vAqiGJClBKrnNl alice@example.org";

/// A manager in this process, on an API server of its own.
pub struct Cloud {
    pub server: TestServer,
    pub stop: CancellationToken,
    pub manager: JoinHandle<Result<(), pileus_manager::Error>>,
    /// Counts the requests of the manager that was started first.
    pub counter: Counter,
}

impl Cloud {
    pub async fn start() -> Self {
        let server = TestServer::start().await;
        for namespace in [NAMESPACE, "other", &host_namespace(HOST)] {
            server.namespace(namespace).await;
        }
        let counter = Counter::default();
        let client = ClientBuilder::try_from(server.config()).unwrap();
        let client = client.with_layer(&counter).build();
        let (stop, manager) = start_manager_as(client).await;
        Self {
            server,
            stop,
            manager,
            counter,
        }
    }

    pub fn client(&self) -> Client {
        self.server.client()
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client(), NAMESPACE)
    }

    pub fn instances(&self) -> Api<Instance> {
        Api::namespaced(self.client(), &host_namespace(HOST))
    }

    pub async fn flavor(&self, name: &str) {
        let memory = if name == "large" { "128Mi" } else { "64Mi" };
        let api: Api<Flavor> = Api::all(self.client());
        let spec = json!({"vcpus": 1, "memory": memory, "disk": "1Gi"});
        create(&api, json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    pub async fn image(&self, name: &str, spec: Value) {
        create(
            &self.api::<Image>(),
            json!({"metadata": {"name": name}, "spec": spec}),
        )
        .await;
    }

    pub async fn server(&self, name: &str, spec: Value) -> Server {
        create(
            &self.api::<Server>(),
            json!({"metadata": {"name": name}, "spec": spec}),
        )
        .await
    }

    /// Writes what the scheduler writes.
    pub async fn place(&self, name: &str, epoch: i64) {
        let status = json!({"placement": {"host": HOST, "epoch": epoch,
            "claim": {"vcpus": 1, "memoryMiB": 64, "diskGiB": 1}}});
        patch_status(&self.api::<Server>(), name, status).await;
    }

    /// Writes what the agent writes once the domain is as asked.
    pub async fn run_instance(&self, name: &str, reason: &str) {
        let power = if reason == "Active" {
            "Running"
        } else {
            "Stopped"
        };
        let at = "2026-01-01T00:00:00Z";
        let status = json!({
            "realized": true, "powerState": power, "hostBootID": "boot",
            "hardware": {"machineType": "pc-q35-10.0", "cpuModel": "max", "virtType": "qemu", "firmware": "bios"},
            "image": {"digest": DIGEST, "size": 10, "virtualSize": 20},
            "conditions": [
                {"type": "Ready", "status": "True", "reason": reason, "message": "as asked", "lastTransitionTime": at},
                {"type": "Stalled", "status": "False", "reason": reason, "message": "as asked", "lastTransitionTime": at},
            ],
        });
        patch_status(&self.instances(), name, status).await;
    }

    /// Drops the agent's finalizer, as it does when the domain is confirmed gone.
    pub async fn let_instance_go(&self, name: &str) {
        let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        let done = self
            .instances()
            .patch(name, &PatchParams::default(), &patch)
            .await;
        done.unwrap();
    }

    /// A Server that runs, and the name of its Instance.
    pub async fn active(&self, name: &str, spec: Value) -> (Server, String) {
        let made = self.server(name, spec).await;
        let api = self.api::<Server>();
        until(&api, name, "has its finalizer", |s| {
            !s.finalizers().is_empty()
        })
        .await;
        self.place(name, 1).await;
        let instance = instance_name(&made.uid().unwrap(), 1);
        until(&self.instances(), &instance, "is made", |_| true).await;
        self.run_instance(&instance, "Active").await;
        let server = until(&api, name, "is active", |s| is(s, "True", "Active")).await;
        (server, instance)
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.manager.await.unwrap().unwrap();
    }
}

pub async fn start_manager(
    server: &TestServer,
) -> (
    CancellationToken,
    JoinHandle<Result<(), pileus_manager::Error>>,
) {
    start_manager_as(server.client()).await
}

async fn start_manager_as(
    client: Client,
) -> (
    CancellationToken,
    JoinHandle<Result<(), pileus_manager::Error>>,
) {
    let context = Context::with_client(client, MANAGER, Metrics::default())
        .await
        .unwrap();
    let config = Config {
        // No OVN: what needs it waits.
        ovn_nb: "unix:/nonexistent/ovnnb_db.sock".into(),
        ovn_tls: None,
        underlay_mtu: 1500,
        underlay_ipv6: false,
        identity: "test".into(),
    };
    let stop = CancellationToken::new();
    let running = pileus_manager::run(config, context, Readiness::default(), stop.clone());
    (stop, tokio::spawn(running))
}

pub async fn patch_status<K: DeserializeOwned + Clone + Debug>(
    api: &Api<K>,
    name: &str,
    status: Value,
) {
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

pub async fn until_gone<K: Clone + Debug + DeserializeOwned>(api: &Api<K>, name: &str) {
    let start = Instant::now();
    while let Some(object) = api.get_opt(name).await.unwrap() {
        assert!(start.elapsed() < TIMEOUT, "{name} stays: {object:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn delete<K: Clone + Debug + DeserializeOwned>(api: &Api<K>, name: &str) {
    api.delete(name, &DeleteParams::default()).await.unwrap();
}

pub fn ready(server: &Server) -> Option<(String, String, String)> {
    let conditions = &server.status.as_ref()?.conditions;
    let ready = conditions::find(conditions, ConditionType::Ready)?;
    Some((
        ready.status.clone(),
        ready.reason.clone(),
        ready.message.clone(),
    ))
}

pub fn is(server: &Server, status: &str, reason: &str) -> bool {
    ready(server).is_some_and(|r| r.0 == status && r.1 == reason)
}

pub fn https() -> Value {
    json!({"source": {"url": "https://images.example/tiny.qcow2"}})
}

pub fn plain() -> Value {
    json!({"flavor": "small", "image": {"name": "tiny"}})
}
