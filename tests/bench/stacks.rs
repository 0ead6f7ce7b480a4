//! What many and big Stacks cost: requests of their controller for each resource that is made,
//! writes of status, size of what is stored, memory, and what is asked at rest. A real API
//! server, the real controllers of Stacks and key pairs; nothing that needs a host.
//!
//! `cargo bench --bench stacks [STACKS [RESOURCES [SECONDS AT REST]]]`, by default 20 stacks of
//! 500 resources and 20 s.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench")]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::client::ClientBuilder;
use kube::{Api, Client, ResourceExt};
use pileus_api::Stack;
use pileus_api::names::MANAGER;
use pileus_kube_ext::{Context, Metrics};
use pileus_manager::compute::key_pair;
use pileus_manager::stack::{self, StackManager};
use pileus_manager::{Caches, Config, Manager, worker};
use pileus_tests::apiserver::{TestServer, create};
use pileus_tests::counting::{Counter, Counts};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "demo";
/// Stacks made or changed at once, as by one who applies a folder.
const AT_ONCE: usize = 8;
/// A bench that takes longer has found something.
const TIMEOUT: Duration = Duration::from_mins(60);

/// A template of `resources` resources: four values, three key pairs and three objects of
/// Kubernetes' own in ten, some made of others' attributes.
fn template(stack: usize, resources: usize) -> String {
    let mut text = String::from(
        "heat_template_version: rocky\nparameters: {word: {type: string, default: one}}\nresources:\n",
    );
    for at in 0..resources {
        let ten = at / 10 * 10;
        let _ = match at % 10 {
            0..=2 => writeln!(
                text,
                "  r{at}: {{type: 'OS::Nova::KeyPair', properties: {{name: key-{stack}-{at}, public_key: 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA {at}'}}}}"
            ),
            3..=5 => writeln!(
                text,
                "  r{at}: {{type: 'Kubernetes::Object', properties: {{manifest: {{apiVersion: v1, kind: ConfigMap, metadata: {{name: map-{stack}-{at}}}, data: {{word: {{get_param: word}}}}}}}}}}"
            ),
            6 => writeln!(
                text,
                "  r{at}: {{type: 'OS::Heat::Value', properties: {{value: {{get_attr: [r{ten}, public_key]}}}}}}"
            ),
            _ => writeln!(
                text,
                "  r{at}: {{type: 'OS::Heat::Value', properties: {{value: {{get_resource: r{ten}}}}}}}"
            ),
        };
    }
    let _ = writeln!(
        text,
        "outputs:\n  key: {{value: {{get_attr: [r6, value]}}}}"
    );
    text
}

/// The controllers, and what those of Stacks ask.
struct Lab {
    server: TestServer,
    manager: Arc<StackManager>,
    counter: Counter,
}

impl Lab {
    async fn start() -> Self {
        let server = TestServer::start().await;
        server.namespace(NAMESPACE).await;
        let counter = Counter::default();
        let client = ClientBuilder::try_from(server.config()).unwrap();
        let client = client.with_layer(&counter).build();
        let (manager, pairs) = Self::managers(&server, client).await;
        let stacks = manager.clone();
        tokio::spawn(async move {
            stacks.caches.ready().await;
            let stop = CancellationToken::new();
            let triggers = stack::triggers(&stacks.caches);
            worker::run(stacks, triggers, 16, stack::reconcile, "stack", stop).await;
        });
        tokio::spawn(async move {
            pairs.caches.ready().await;
            let stop = CancellationToken::new();
            let triggers = key_pair::triggers(&pairs.caches);
            worker::run(pairs, triggers, 4, key_pair::reconcile, "keypair", stop).await;
        });
        Self {
            server,
            manager,
            counter,
        }
    }

    /// One of Stacks, whose requests are counted, and one of everything else.
    async fn managers(server: &TestServer, counted: Client) -> (Arc<StackManager>, Arc<Manager>) {
        let context = async |client| {
            let context = Context::with_client(client, MANAGER, Metrics::default()).await;
            context.unwrap()
        };
        let uncounted = context(server.client()).await;
        let stacks = StackManager {
            context: context(counted).await,
            caches: stack::Caches::watch(&uncounted),
            stacks: stack::Shared::default(),
        };
        let others = Manager {
            caches: Caches::watch(&uncounted),
            context: uncounted,
            config: Config {
                ovn_nb: "unix:/nonexistent/ovnnb_db.sock".into(),
                ovn_tls: None,
                underlay_mtu: 1500,
                underlay_ipv6: false,
                identity: "bench".into(),
            },
            deleting: pileus_manager::compute::server::Deleting::default(),
        };
        (Arc::new(stacks), Arc::new(others))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.server.client(), NAMESPACE)
    }

    async fn account(&self) {
        let account = json!({"metadata": {"name": "maker"}});
        create(&self.api::<ServiceAccount>(), account).await;
        let role = json!({"metadata": {"name": "maker"}, "rules": [
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "patch", "delete"]}]});
        create(&self.api::<Role>(), role).await;
        let binding = json!({"metadata": {"name": "maker"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "maker"},
            "subjects": [{"kind": "ServiceAccount", "name": "maker", "namespace": NAMESPACE}]});
        create(&self.api::<RoleBinding>(), binding).await;
    }

    /// Waits until every Stack says `word`, and no action is asked that is not done.
    async fn all_say(&self, stacks: usize, word: &str) -> Duration {
        let start = Instant::now();
        let mut told = start;
        loop {
            let all = self.manager.caches.stacks.state();
            let said = all.iter().filter(|stack| {
                let status = stack.status.as_ref();
                status.is_some_and(|status| {
                    status.stack_status.as_deref() == Some(word)
                        && status.observed_generation == stack.metadata.generation
                })
            });
            let said = said.count();
            if said == stacks {
                return start.elapsed();
            }
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let some = all.first().and_then(|stack| stack.status.as_ref());
                eprintln!(
                    "{:5.0} s: {said} {word}; one: {:?} {:?} {:?}",
                    start.elapsed().as_secs_f64(),
                    some.and_then(|status| status.stack_status.as_deref()),
                    some.and_then(|status| status.progress.as_deref()),
                    some.and_then(|status| status.stack_status_reason.as_deref()),
                );
            }
            assert!(start.elapsed() < TIMEOUT, "only {said} are {word}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn all_are_gone(&self) -> Duration {
        let start = Instant::now();
        while !self.manager.caches.stacks.state().is_empty() {
            assert!(start.elapsed() < TIMEOUT, "some stacks stay");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        start.elapsed()
    }

    /// Bytes of the biggest Stack as it is stored, and of the biggest record.
    async fn sizes(&self) -> (usize, usize) {
        let size = |value: serde_json::Result<Vec<u8>>| value.unwrap().len();
        let (api, few) = (self.api::<Stack>(), ListParams::default().limit(3));
        let stacks = api.list(&few).await.unwrap().items;
        let stack = stacks.iter().map(|s| size(serde_json::to_vec(s))).max();
        let mut record = 0;
        for stack in &stacks {
            let name = stack.status.as_ref().unwrap().record.clone().unwrap();
            let secret = self.api::<Secret>().get(&name).await.unwrap();
            record = record.max(size(serde_json::to_vec(&secret)));
        }
        (stack.unwrap_or_default(), record)
    }
}

/// Processor time of this process so far, in seconds.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|t| t.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}

/// Memory of this process, in MiB: that of the controllers, their stores, and little else.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn print(case: &str, size: (usize, usize), took: Duration, cpu: f64, counts: &Counts) {
    let (stacks, resources) = size;
    let asked: usize = counts.values().sum();
    let status = counts.get("PATCH stacks/status").copied().unwrap_or(0);
    for (what, times) in counts {
        eprintln!("  {times:7} × {what}");
    }
    println!(
        "bench stack case={case} stacks={stacks} resources={resources} seconds={:.1} \
         calls_per_resource={:.3} status_writes_per_stack={:.1} calls={asked} manager_cpu_s={:.1} \
         manager_mib={:.0}",
        took.as_secs_f64(),
        asked as f64 / (stacks * resources) as f64,
        status as f64 / stacks as f64,
        processor() - cpu,
        memory(),
    );
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().filter_map(|argument| argument.parse().ok());
    let mut next = |default: usize| arguments.next().unwrap_or(default);
    let (stacks, resources, seconds) = (next(20), next(500), next(20));
    let lab = Lab::start().await;
    lab.account().await;
    let api = lab.api::<Stack>();
    let size = (stacks, resources);
    let name = |n: usize| format!("stack-{n:03}");

    lab.counter.take();
    let (start, cpu) = (Instant::now(), processor());
    let made = stream::iter(0..stacks).map(|n| {
        let spec = json!({"template": template(n, resources), "serviceAccountName": "maker"});
        let stack = json!({"metadata": {"name": name(n)}, "spec": spec});
        let api = api.clone();
        async move { drop(create(&api, stack).await) }
    });
    made.buffer_unordered(AT_ONCE).collect::<()>().await;
    lab.all_say(stacks, "CREATE_COMPLETE").await;
    print("create", size, start.elapsed(), cpu, &lab.counter.take());
    let (stack, record) = lab.sizes().await;
    println!(
        "bench stack case=size resources={resources} stack_bytes={stack} record_bytes={record}"
    );

    // What has just been done may have an echo.
    tokio::time::sleep(Duration::from_secs(5)).await;
    lab.counter.take();
    let (start, cpu) = (Instant::now(), processor());
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    print("rest", size, start.elapsed(), cpu, &lab.counter.take());

    let (start, cpu) = (Instant::now(), processor());
    let changed = stream::iter(0..stacks).map(|n| {
        let patch = Patch::Merge(json!({"spec": {"parameters": {"word": "two"}}}));
        let (api, name) = (api.clone(), name(n));
        async move {
            let done = api.patch(&name, &PatchParams::default(), &patch).await;
            drop(done.unwrap());
        }
    });
    changed.buffer_unordered(AT_ONCE).collect::<()>().await;
    lab.all_say(stacks, "UPDATE_COMPLETE").await;
    print("update", size, start.elapsed(), cpu, &lab.counter.take());

    let (start, cpu) = (Instant::now(), processor());
    for stack in lab.manager.caches.stacks.state() {
        let (name, params) = (stack.name_any(), DeleteParams::default());
        drop(api.delete(&name, &params).await.unwrap());
    }
    lab.all_are_gone().await;
    print("delete", size, start.elapsed(), cpu, &lab.counter.take());
}
