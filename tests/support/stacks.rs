//! The controller of Stacks on a real API server. A simulator of the other controllers makes the
//! objects of Stacks ready: it writes their status, and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]
#![allow(dead_code, reason = "each test crate uses its own part of this module")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::client::ClientBuilder;
use kube::{Client, Resource, ResourceExt};
use pileus_api::names::{MANAGER, STACK_UID_LABEL};
use pileus_api::stack::StackResource;
use pileus_api::{
    ConditionType, Flavor, Image, KeyPair, Network, Port, SecurityGroup, SecurityGroupRule, Server,
    ServerGroup, Stack, Subnet, conditions,
};
use pileus_kube_ext::{Context, Metrics};
use pileus_manager::{Caches, Config, Manager, stack, worker};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::apiserver::{TestServer, create, until};
use super::counting::Counter;

pub const NAMESPACE: &str = "demo";
/// How long the manager may take for a step on a loaded machine.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// An API server, the controller of Stacks, and a simulator of the other controllers.
pub struct Cloud {
    pub server: TestServer,
    /// Counts the requests of the controller.
    pub counter: Counter,
    /// The user of the controller; with all rights if `None`.
    user: Option<String>,
    controller: Option<Controller>,
}

struct Controller {
    stop: CancellationToken,
    running: JoinHandle<()>,
}

/// Writes the status that the controllers of other kinds would write.
struct Simulator {
    client: Client,
}

impl Cloud {
    pub async fn start() -> Self {
        Self::start_as(None).await
    }

    /// The controller has the rights that a manager is installed with, and no others.
    pub async fn start_with_the_managers_rights() -> Self {
        Self::start_as(Some("system:serviceaccount:pileus-system:manager")).await
    }

    async fn start_as(user: Option<&str>) -> Self {
        let server = TestServer::start().await;
        server.namespace(NAMESPACE).await;
        let simulator = Simulator {
            client: server.client(),
        };
        tokio::spawn(async move {
            loop {
                simulator.pass().await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        let mut cloud = Self {
            server,
            counter: Counter::default(),
            user: user.map(str::to_owned),
            controller: None,
        };
        if user.is_some() {
            cloud.install_rights().await;
        }
        cloud.start_controller().await;
        cloud
    }

    /// What `config/rbac/manager.yaml` says.
    async fn install_rights(&self) {
        let text = include_str!("../../config/rbac/manager.yaml");
        let client = self.server.client();
        for part in text.split("\n---\n") {
            let object = pileus_stack::yaml::parse(part).unwrap();
            let object = serde_json::to_value(object).unwrap();
            match object["kind"].as_str() {
                Some("ClusterRole") => {
                    create(&Api::<ClusterRole>::all(client.clone()), object).await;
                }
                Some("ClusterRoleBinding") => {
                    create(&Api::<ClusterRoleBinding>::all(client.clone()), object).await;
                }
                // The account itself: nobody logs in with it here.
                _ => {}
            }
        }
    }

    pub async fn start_controller(&mut self) {
        let mut config = self.server.config();
        config.auth_info.impersonate.clone_from(&self.user);
        let client = ClientBuilder::try_from(config).unwrap();
        let client = client.with_layer(&self.counter).build();
        let context = Context::with_client(client, MANAGER, Metrics::default());
        let context = context.await.unwrap();
        let caches = Caches::watch(&context.client);
        let manager = Arc::new(Manager {
            context,
            caches,
            config: Config {
                ovn_nb: "unix:/nonexistent/ovnnb_db.sock".into(),
                ovn_tls: None,
                underlay_mtu: 1500,
                underlay_ipv6: false,
                identity: "test".into(),
            },
            // Long enough to be visible in tests.
            stacks: stack::Shared::with_grace(Duration::from_secs(4)),
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let running = tokio::spawn(async move {
            manager.caches.ready().await;
            let triggers = stack::triggers(&manager.caches);
            stack::source_watch::start(&manager, &triggers);
            worker::run(manager, triggers, 8, stack::reconcile, "stack", stopped).await;
        });
        self.controller = Some(Controller { stop, running });
    }

    /// Aborts the controller at any point.
    pub fn kill_controller(&mut self) {
        if let Some(controller) = self.controller.take() {
            controller.running.abort();
            controller.stop.cancel();
        }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.server.client(), NAMESPACE)
    }

    /// A service account with the rights that a stack needs for `resources`, such as `configmaps` of
    /// the group ``.
    pub async fn account(&self, name: &str, group: &str, resources: &[&str]) {
        let account = json!({"metadata": {"name": name}});
        create(&self.api::<ServiceAccount>(), account).await;
        self.allow(name, group, resources).await;
    }

    /// Gives a service account the rights that a stack needs.
    pub async fn allow(&self, name: &str, group: &str, resources: &[&str]) {
        let role = json!({"metadata": {"name": name}, "rules": [
            {"apiGroups": [group], "resources": resources, "verbs": ["get", "create", "patch", "delete"]}]});
        let binding = json!({"metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}]});
        let client = self.server.client();
        create(&Api::<ClusterRole>::all(client.clone()), role).await;
        create(&Api::<ClusterRoleBinding>::all(client), binding).await;
    }

    pub async fn stack(&self, name: &str, spec: Value) -> Stack {
        create(
            &self.api::<Stack>(),
            json!({"metadata": {"name": name}, "spec": spec}),
        )
        .await
    }

    pub async fn change(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        let api = self.api::<Stack>();
        api.patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    pub async fn becomes(&self, name: &str, stack_status: &str) -> Stack {
        until(&self.api::<Stack>(), name, stack_status, |stack: &Stack| {
            stack_status_of(stack) == stack_status && is_observed(stack)
        })
        .await
    }

    /// How many objects of a kind the stacks have made.
    pub async fn count<K>(&self) -> usize
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let made = ListParams::default().labels(STACK_UID_LABEL);
        self.api::<K>().list(&made).await.unwrap().items.len()
    }

    pub async fn delete(&self, name: &str) {
        let api = self.api::<Stack>();
        api.delete(name, &DeleteParams::default()).await.unwrap();
        self.wait_until_deleted(name).await;
    }

    /// Waits until a Stack that is being deleted is gone with all that it has made.
    pub async fn wait_until_deleted(&self, name: &str) {
        let api = self.api::<Stack>();
        let start = Instant::now();
        while let Some(stack) = api.get_opt(name).await.unwrap() {
            assert!(start.elapsed() < STEP_TIMEOUT, "{name} stays: {stack:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(self.count::<Server>().await, 0);
        assert_eq!(self.count::<Port>().await, 0);
        assert_eq!(self.count::<Network>().await, 0);
        assert_eq!(self.count::<Subnet>().await, 0);
        assert_eq!(self.count::<Secret>().await, 0);
    }
}

impl Simulator {
    async fn pass(&self) {
        self.make_ready::<Network>(&|_| json!({"mtu": 1442})).await;
        self.make_ready::<Subnet>(&|_| json!({"gatewayIP": "10.20.0.1"}))
            .await;
        self.make_ready::<Port>(&|object| {
            let address = object["spec"]["fixedIPs"][0]["address"]
                .as_str()
                .unwrap_or("10.20.0.9");
            json!({"macAddress": "52:54:00:00:00:01",
                "fixedIPs": [{"subnet": "s", "address": address, "allocation": "a"}]})
        })
        .await;
        self.make_ready::<SecurityGroup>(&|_| json!({})).await;
        self.make_ready::<SecurityGroupRule>(&|_| json!({})).await;
        self.make_ready::<KeyPair>(&|_| json!({})).await;
        self.make_ready::<Image>(&|_| json!({})).await;
        self.make_ready::<ServerGroup>(&|_| json!({})).await;
        self.make_ready::<Server>(&|_| {
            json!({"phase": "Active", "addresses": [
                {"name": "nic-0", "port": "p", "macAddress": "52:54:00:00:00:01", "ips": ["10.20.0.9"]}]})
        })
        .await;
    }

    /// Makes every object of a kind ready whose last change is not observed yet. A Server with the
    /// flavor `none` never becomes ready, one with the flavor `later` waits for that.
    async fn make_ready<K>(&self, more: &(dyn Fn(&Value) -> Value + Sync))
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        let kind = ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &kind);
        let Ok(list) = api.list(&ListParams::default()).await else {
            return;
        };
        for object in list {
            let value = serde_json::to_value(&object).unwrap();
            let generation = object.metadata.generation;
            if value["status"]["observedGeneration"].as_i64() == generation {
                continue;
            }
            let mut good = value["spec"]["flavor"] != "none";
            let waits = value["spec"]["flavor"] == "later";
            let there = Api::<Flavor>::all(self.client.clone());
            if waits
                && there
                    .get_opt("later")
                    .await
                    .is_ok_and(|found| found.is_none())
            {
                good = false;
            }
            let condition = |name: &str, holds: bool| {
                json!({"type": name, "status": if holds { "True" } else { "False" },
                    "reason": if good { "Ready" } else { "FlavorNotFound" },
                    "message": if good { "as asked" } else { "there is no such Flavor" },
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            };
            let mut status = more(&value);
            // A waiting Server is handled again.
            status["observedGeneration"] = json!(if waits && !good { None } else { generation });
            let stalled = condition("Stalled", !good && !waits);
            status["conditions"] = json!([condition("Ready", good), stalled]);
            let patch = Patch::Merge(json!({"status": status}));
            // It may have been deleted meanwhile.
            let _ = api
                .patch_status(&object.name_any(), &PatchParams::default(), &patch)
                .await;
        }
    }
}

pub fn stack_status_of(stack: &Stack) -> String {
    let status = stack.status.as_ref();
    status
        .and_then(|s| s.stack_status.clone())
        .unwrap_or_default()
}

pub fn is_observed(stack: &Stack) -> bool {
    let status = stack.status.as_ref();
    status.and_then(|s| s.observed_generation) == stack.metadata.generation
}

pub fn resources(stack: &Stack) -> BTreeMap<String, StackResource> {
    let rows = stack.status.clone().unwrap_or_default().resources;
    rows.into_iter()
        .map(|row| (row.name.clone(), row))
        .collect()
}

pub fn output(stack: &Stack, name: &str) -> Option<Value> {
    let outputs = stack.status.clone().unwrap_or_default().outputs;
    outputs
        .into_iter()
        .find(|output| output.name == name)?
        .value
}

pub fn ready(stack: &Stack) -> (String, String, String) {
    let conditions = stack.status.clone().unwrap_or_default().conditions;
    let ready = conditions::find(&conditions, ConditionType::Ready).unwrap();
    (
        ready.status.clone(),
        ready.reason.clone(),
        ready.message.clone(),
    )
}

pub fn object_name(row: &StackResource) -> String {
    let object = row.object.clone().unwrap();
    object.split_once('/').unwrap().1.to_owned()
}
