//! A Port is one Server's at a time, whatever managers and users do at once: Servers on a real API
//! server and a real Northbound database. Placements and hosts are driven by hand.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use pileus_api::names::{MANAGER, host_namespace};
use pileus_api::{
    ConditionType, Flavor, Image, Instance, Network, Port, SecurityGroup, Server, Subnet,
    conditions,
};
use pileus_kube_ext::{Context, Metrics};
use pileus_manager::compute::server;
use pileus_manager::network::caches::NetworkCaches;
use pileus_manager::network::pass::{NetworkConfig, run_network};
use pileus_manager::{Caches, Config, Manager, worker};
use pileus_tests::apiserver::{TestServer, create, until};
use pileus_tests::ovn::Ovn;
use pileus_tests::random::from_environment;
use pileus_tests::servers::{HOST, NAMESPACE, https, is, patch_status, ready};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A manager's controller of Servers, and its network if it has a database; it asks nobody whether
/// it leads.
struct Running {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    async fn start(server: &TestServer, ovn: Option<&Ovn>) -> Self {
        let context = Context::with_client(server.client(), MANAGER, Metrics::default());
        let context = context.await.unwrap();
        let caches = Caches::watch(&context);
        caches.ready().await;
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        if let Some(ovn) = ovn {
            let config = NetworkConfig {
                ovn_nb: format!("unix:{}", ovn.path("nb.sock").display()),
                ovn_tls: None,
                generation: 1,
                underlay_mtu: 1500,
                underlay_ipv6: false,
                identity: "a".to_owned(),
            };
            let (context, until) = (context.clone(), stop.clone());
            let caches = NetworkCaches::of(&caches);
            tasks.push(tokio::spawn(async move {
                run_network(config, context, caches, until).await.unwrap();
            }));
        }
        let manager = Arc::new(Manager {
            context,
            caches: caches.clone(),
            config: Config {
                ovn_nb: String::new(),
                ovn_tls: None,
                underlay_mtu: 1500,
                underlay_ipv6: false,
                identity: "a".to_owned(),
            },
            deleting: server::Deleting::default(),
        });
        let triggers = server::triggers(&caches);
        let controller = worker::run(
            manager,
            triggers,
            32,
            server::reconcile,
            "server",
            stop.clone(),
        );
        tasks.push(tokio::spawn(controller));
        Self { stop, tasks }
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// An API server with a network, a flavor and an image.
struct World {
    server: TestServer,
    ovn: Ovn,
}

impl World {
    async fn start() -> Self {
        let server = TestServer::start().await;
        for namespace in [NAMESPACE, &host_namespace(HOST)] {
            server.namespace(namespace).await;
        }
        let ovn = Ovn::start();
        drop(ovn.connect().await);
        let client = server.client();
        let spec = json!({"vcpus": 1, "memory": "64Mi", "disk": "1Gi"});
        let flavor = json!({"metadata": {"name": "small"}, "spec": spec});
        create(&Api::<Flavor>::all(client.clone()), flavor).await;
        let image = json!({"metadata": {"name": "tiny"}, "spec": https()});
        create(&all::<Image>(&client), image).await;
        let network = json!({"metadata": {"name": "net"}, "spec": {}});
        create(&all::<Network>(&client), network).await;
        let subnet = json!({"metadata": {"name": "sub"},
            "spec": {"network": "net", "cidr": "10.31.0.0/24"}});
        create(&all::<Subnet>(&client), subnet).await;
        Self { server, ovn }
    }

    async fn port(&self, name: &str) {
        let port = json!({"metadata": {"name": name}, "spec": {"network": {"name": "net"}}});
        create(&all::<Port>(&self.server.client()), port).await;
    }
}

fn all<K>(client: &Client) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(client.clone(), NAMESPACE)
}

fn on_port(name: &str, port: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"flavor": "small", "image": {"name": "tiny"},
        "networks": [{"name": "eth0", "port": port}]}})
}

/// Writes what the scheduler writes; the Server may be gone by then.
async fn place(servers: &Api<Server>, name: &str) {
    let status = json!({"status": {"placement": {"host": HOST, "epoch": 1,
        "claim": {"vcpus": 1, "memoryMiB": 64, "diskGiB": 1}}}});
    let params = PatchParams::default();
    let _ = servers
        .patch_status(name, &params, &Patch::Merge(&status))
        .await;
}

/// What was seen of Instances: those that there are, by Port, and the times that there were two.
#[derive(Default)]
struct Seen {
    by_port: BTreeMap<String, BTreeSet<String>>,
    made: usize,
    violations: Vec<String>,
}

impl Seen {
    fn there(&mut self, instance: &Instance) {
        for nic in &instance.spec.nics {
            let of_port = self.by_port.entry(nic.port.clone()).or_default();
            if of_port.insert(instance.name_any()) {
                self.made += 1;
            }
            if of_port.len() > 1 {
                self.violations.push(format!("{}: {of_port:?}", nic.port));
            }
        }
    }
}

/// Looks at every Instance in the order in which the API server has them, and lets those go that
/// are deleted, as their host does.
fn host(client: Client, seen: Arc<Mutex<Seen>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut events = watcher(
            Api::<Instance>::all(client.clone()),
            watcher::Config::default(),
        )
        .boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => seen.lock().unwrap().by_port.clear(),
                Ok(Event::Apply(instance) | Event::InitApply(instance)) => {
                    seen.lock().unwrap().there(&instance);
                    if instance.metadata.deletion_timestamp.is_some() {
                        tokio::spawn(let_go(client.clone(), instance));
                    }
                }
                Ok(Event::Delete(instance)) => {
                    for of_port in seen.lock().unwrap().by_port.values_mut() {
                        of_port.remove(&instance.name_any());
                    }
                }
                Ok(Event::InitDone) | Err(_) => {}
            }
        }
    })
}

async fn let_go(client: Client, instance: Instance) {
    let api: Api<Instance> = Api::namespaced(client, &instance.namespace().unwrap());
    let patch = Patch::Merge(json!({"metadata": {"uid": instance.uid(), "finalizers": null}}));
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(15)).await;
        let params = PatchParams::default();
        match api.patch(&instance.name_any(), &params, &patch).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                return;
            }
            Err(error) => eprintln!("the host tries again: {error}"),
        }
    }
}

/// Removes what is left of Servers that were torn away from their finalizer, as a person would.
async fn tidy(client: &Client) {
    let instances: Api<Instance> = Api::namespaced(client.clone(), &host_namespace(HOST));
    let found = instances.list(&ListParams::default()).await.unwrap();
    let servers = all::<Server>(client)
        .list(&ListParams::default())
        .await
        .unwrap();
    let alive: BTreeSet<_> = servers.iter().filter_map(ResourceExt::uid).collect();
    for orphan in found.iter().filter(|i| !alive.contains(&i.spec.server.uid)) {
        let _ = instances
            .delete(&orphan.name_any(), &DeleteParams::default())
            .await;
    }
}

/// Numbers that look random; the seed is printed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

const PORTS: usize = 8;
const RIVALS: usize = 3;
/// Of the short form; `PILEUS_RACES` sets it, and hack/soak has 1,000.
const RACES: u64 = 300;

/// Waits a while until a Server has its Instance.
async fn is_built(servers: &Api<Server>, name: &str) {
    for _ in 0..30 {
        let server = servers.get_opt(name).await.unwrap();
        let status = server.and_then(|server| server.status);
        if status.is_some_and(|status| status.instance.is_some()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One user who makes a Server of one name with one Port and deletes it, again and again.
async fn rival(client: Client, port: String, name: String, seed: u64, races: Arc<AtomicI64>) {
    let servers = all::<Server>(&client);
    let mut dice = Dice(seed);
    while races.fetch_sub(1, Ordering::Relaxed) > 0 {
        create(&servers, on_port(&name, &port)).await;
        place(&servers, &name).await;
        // Some go before they are built, some after.
        if dice.below(3) > 0 {
            tokio::time::sleep(Duration::from_millis(dice.below(600))).await;
        } else {
            is_built(&servers, &name).await;
        }
        // It may have been torn away from its finalizer.
        match servers.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => panic!("{name}: {error}"),
        }
        if dice.below(10) == 0 {
            let torn = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            let _ = servers.patch(&name, &PatchParams::default(), &torn).await;
        }
        let begun = Instant::now();
        while let Some(server) = servers.get_opt(&name).await.unwrap() {
            if begun.elapsed() > Duration::from_secs(60) {
                let instances: Api<Instance> = Api::all(client.clone());
                let instances = instances.list(&ListParams::default()).await.unwrap();
                let names: Vec<_> = instances.iter().map(ResourceExt::name_any).collect();
                panic!(
                    "{name} {:?} stays: {:?} {names:?}",
                    server.uid(),
                    ready(&server)
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_races_never_give_one_port_to_two() {
    let world = World::start().await;
    let client = world.server.client();
    let luck = u64::from(std::process::id()) * 7919 + 1;
    eprintln!("seed {luck}");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let host = host(client.clone(), seen.clone());
    let first = Running::start(&world.server, Some(&world.ovn)).await;
    let mut second = Running::start(&world.server, None).await;
    let ports: Vec<_> = (0..PORTS).map(|n| format!("p{n}")).collect();
    for port in &ports {
        world.port(port).await;
    }
    let count = from_environment("PILEUS_RACES").unwrap_or(RACES);
    let count = i64::try_from(count).unwrap();
    let races = Arc::new(AtomicI64::new(count));
    let mut users = Vec::new();
    for (n, port) in ports.iter().enumerate() {
        for rival_of in 0..RIVALS {
            let name = format!("s{n}-{rival_of}");
            let dice = luck
                .wrapping_mul(31)
                .wrapping_add((n * RIVALS + rival_of) as u64 + 1);
            users.push(tokio::spawn(rival(
                client.clone(),
                port.clone(),
                name,
                dice,
                races.clone(),
            )));
        }
    }
    let mut restarts = 0;
    while users.iter().any(|user| !user.is_finished()) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        tidy(&client).await;
        if races.load(Ordering::Relaxed) < count / 2 && restarts == 0 {
            second.stop().await;
            second = Running::start(&world.server, None).await;
            restarts += 1;
        }
    }
    for user in users {
        user.await.unwrap();
    }
    tidy(&client).await;

    // Peace: each Port serves somebody, and everybody else knows whom.
    let (servers, named) = (all::<Server>(&client), all::<Port>(&client));
    for (n, port) in ports.iter().enumerate() {
        for rival in 0..RIVALS {
            let name = format!("last{n}-{rival}");
            create(&servers, on_port(&name, port)).await;
            place(&servers, &name).await;
        }
    }
    for (n, port) in ports.iter().enumerate() {
        let served = || {
            seen.lock()
                .unwrap()
                .by_port
                .get(port)
                .is_some_and(|s| s.len() == 1)
        };
        let held = until(&named, port, "has a holder", |p| {
            p.status.as_ref().is_some_and(|s| s.server.is_some()) && served()
        });
        let holder = held.await.status.unwrap().server.unwrap().name;
        for rival in 0..RIVALS {
            let name = format!("last{n}-{rival}");
            if name != holder {
                let told = until(&servers, &name, "is told", |s| is(s, "False", "PortInUse")).await;
                let (_, _, message) = ready(&told).unwrap();
                assert!(message.contains(&format!("`{holder}`")), "{message}");
            }
        }
        servers
            .delete(&holder, &DeleteParams::default())
            .await
            .unwrap();
        until(&named, port, "is taken over", |p| {
            let now = p.status.as_ref().and_then(|s| s.server.as_ref());
            now.is_some_and(|now| now.name != holder) && served()
        })
        .await;
    }
    first.stop().await;
    second.stop().await;
    host.abort();
    let seen = seen.lock().unwrap();
    eprintln!("{} Instances were made", seen.made);
    let made = i64::try_from(seen.made).unwrap();
    assert!(made > count / 10, "hardly anything was built");
    assert!(seen.violations.is_empty(), "{:#?}", seen.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn security_groups_of_a_running_server_follow_at_once() {
    let world = World::start().await;
    let client = world.server.client();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let host = host(client.clone(), seen.clone());
    let manager = Running::start(&world.server, Some(&world.ovn)).await;
    let group = json!({"metadata": {"name": "web"}, "spec": {"rules": []}});
    create(&all::<SecurityGroup>(&client), group).await;
    let servers = all::<Server>(&client);
    let spec = json!({"flavor": "small", "image": {"name": "tiny"},
        "networks": [{"name": "eth0", "network": {"name": "net"}}]});
    create(&servers, json!({"metadata": {"name": "vm"}, "spec": spec})).await;
    place(&servers, "vm").await;
    let built = until(&servers, "vm", "is built", |s| {
        s.status.as_ref().is_some_and(|s| s.instance.is_some())
    })
    .await;
    let ports = all::<Port>(&client);
    let port = ports.get("vm-eth0").await.unwrap();
    let status = port.status.clone().unwrap();
    // It is the Server's from the start; no write was needed for that.
    assert_eq!(status.server.map(|s| s.uid), built.uid());
    let writers = port.metadata.managed_fields.as_ref().unwrap();
    assert_eq!(
        writers.len(),
        2,
        "made, and given its addresses: {writers:#?}"
    );

    let groups = json!({"spec": {"networks": [
        {"name": "eth0", "network": {"name": "net"}, "securityGroups": ["web"]}]}});
    let params = PatchParams::default();
    servers
        .patch("vm", &params, &Patch::Merge(&groups))
        .await
        .unwrap();
    let groups = Some(vec!["web".to_owned()]);
    until(&ports, "vm-eth0", "is in the group", |p| {
        let status = p.status.as_ref();
        let conditions = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let ready = conditions::find(conditions, ConditionType::Ready);
        p.spec.security_groups == groups
            && ready.is_some_and(|r| {
                r.status == "True" && r.observed_generation == p.metadata.generation
            })
    })
    .await;
    let columns = [
        "--no-headings",
        "--columns=external_ids,ports",
        "--format=csv",
        "list",
        "Port_Group",
    ];
    let rows = world.ovn.nbctl(&columns);
    let id = world
        .ovn
        .nbctl(&["--bare", "--columns=_uuid", "list", "Logical_Switch_Port"]);
    let of_group = rows.lines().find(|row| row.contains("name\"\"=web"));
    assert!(
        of_group.is_some_and(|row| row.contains(id.trim())),
        "{rows}{id}"
    );
    // Nobody has it meanwhile: another Server that names it waits.
    create(&servers, on_port("thief", "vm-eth0")).await;
    until(&servers, "thief", "waits", |s| is(s, "False", "PortInUse")).await;
    patch_status(&servers, "thief", json!({"phase": "Pending"})).await;
    manager.stop().await;
    host.abort();
    assert!(seen.lock().unwrap().violations.is_empty());
}
