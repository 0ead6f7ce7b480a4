//! The scheduler on a real API server.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends its test")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config as WatchConfig, watcher};
use kube::{Client, ResourceExt};
use pileus::api::names::{MANAGER_FINALIZER, SCHEDULER};
use pileus::api::{ConditionType, Host, Image, Instance, Server, conditions};
use pileus::kube_ext::{Context, Metrics};
use pileus::scheduler::{self, Config};
use serde_json::{Value, json};
use support::apiserver::TestServer;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "demo";

async fn start() -> TestServer {
    let server = TestServer::start().await;
    server.namespace(NAMESPACE).await;
    let image: Image = serde_json::from_value(json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Image",
        "metadata": {"name": "tiny"},
        "spec": {"source": {"url": "https://images.example/tiny.qcow2"}},
    }))
    .unwrap();
    Api::<Image>::namespaced(server.client(), NAMESPACE)
        .create(&PostParams::default(), &image)
        .await
        .unwrap();
    server
}

/// A scheduler in this process.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), scheduler::Error>>,
    metrics: Metrics,
}

impl Running {
    async fn start(client: Client, identity: Option<&str>) -> Self {
        let metrics = Metrics::default();
        let context = Context::with_client(client, SCHEDULER, metrics.clone())
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let config = Config {
            identity: identity.map(str::to_owned),
        };
        let task = tokio::spawn(scheduler::run(config, context, || {}, stop.clone()));
        Self {
            stop,
            task,
            metrics,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A Host that is up, with 8 processors given out four times and 100 GiB of disk.
async fn add_host(client: &Client, name: &str, memory_mib: i64) {
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

async fn host_status(client: &Client, name: &str, status: &Value) {
    Api::<Host>::all(client.clone())
        .patch_status(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({"status": status})),
        )
        .await
        .unwrap();
}

async fn add_server(client: &Client, name: &str, memory: &str) {
    let server = json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Server",
        "metadata": {"name": name, "finalizers": [MANAGER_FINALIZER]},
        "spec": {"resources": {"vcpus": 1, "memory": memory, "disk": "1Gi"},
            "image": {"name": "tiny"}},
    });
    let server: Server = serde_json::from_value(server).unwrap();
    servers(client)
        .create(&PostParams::default(), &server)
        .await
        .unwrap();
}

/// Deletes a Server and plays the manager, who drops its finalizer once the VM is gone.
async fn remove_server(client: &Client, name: &str) {
    let api = servers(client);
    api.delete(name, &DeleteParams::default()).await.unwrap();
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    api.patch(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

fn servers(client: &Client) -> Api<Server> {
    Api::namespaced(client.clone(), NAMESPACE)
}

async fn list(client: &Client) -> Vec<Server> {
    servers(client)
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
}

fn host_of(server: &Server) -> Option<&str> {
    let placement = server.status.as_ref()?.placement.as_ref()?;
    Some(&placement.host)
}

/// (reason, message) of the condition Scheduled.
fn scheduled(server: &Server) -> Option<(String, String)> {
    let found = conditions::find(
        &server.status.as_ref()?.conditions,
        ConditionType::Scheduled,
    )?;
    Some((found.reason.clone(), found.message.clone()))
}

fn by_host(servers: &[Server]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for host in servers.iter().filter_map(host_of) {
        *counts.entry(host.to_owned()).or_default() += 1;
    }
    counts
}

/// Polls until `check` gives something; how long that took comes with it.
async fn within<T>(
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

#[tokio::test]
async fn thirty_servers_over_two_hosts_never_overbook() {
    let server = start().await;
    let client = server.client();
    // 14 Servers of 100 + 28 MiB fit on each.
    add_host(&client, "h1", 14 * 128 + 127).await;
    add_host(&client, "h2", 14 * 128).await;
    let scheduler = Running::start(server.client(), None).await;
    for i in 0..30 {
        add_server(&client, &format!("s{i}"), "100Mi").await;
    }
    let decided = |servers: &[Server]| {
        let counts = by_host(servers);
        assert!(counts.values().all(|&n| n <= 14), "{counts:?}");
        servers
            .iter()
            .all(|s| scheduled(s).is_some())
            .then_some(counts)
    };
    let (counts, _) = within(Duration::from_secs(20), &client, "all decided", decided).await;
    assert_eq!(counts.values().collect::<Vec<_>>(), [&14, &14]);

    // The two that are left say why, and nothing is written while nothing happens.
    let left = |servers: &[Server]| {
        let left = servers.iter().filter(|s| host_of(s).is_none());
        left.map(|s| (s.name_any(), s.resource_version(), scheduled(s).unwrap()))
            .collect::<Vec<_>>()
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = left(&list(&client).await);
    assert_eq!(before.len(), 2);
    for (_, _, (reason, message)) in &before {
        assert_eq!(reason, "NoHostFits");
        assert_eq!(
            message,
            "0 of 2 hosts fit: RamFilter turned away 2 (needs 100 MiB of memory, best host h1 \
             has 99)"
        );
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(left(&list(&client).await), before);

    // Being deleted is not being gone.
    let gone = list(&client)
        .await
        .into_iter()
        .find(|s| host_of(s) == Some("h2"))
        .unwrap()
        .name_any();
    servers(&client)
        .delete(&gone, &DeleteParams::default())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(left(&list(&client).await).len(), 2);
    remove_server(&client, &gone).await;
    let ((), took) = within(Duration::from_secs(2), &client, "room used", |servers| {
        (left(servers).len() == 1).then_some(())
    })
    .await;
    println!("placed {took:?} after the room was free");
    assert_eq!(by_host(&list(&client).await)["h2"], 14);
    let text = scheduler.metrics.encode();
    assert!(
        text.contains("pileus_scheduler_decisions_total 29"),
        "{text}"
    );
    scheduler.stop().await;
}

#[tokio::test]
async fn a_server_that_fits_nowhere_says_why_and_is_placed_when_room_appears() {
    let server = start().await;
    let client = server.client();
    let scheduler = Running::start(server.client(), None).await;
    add_server(&client, "s", "100Mi").await;
    let says = |text: &'static str| {
        move |servers: &[Server]| {
            let (_, message) = scheduled(&servers[0])?;
            message.contains(text).then_some(())
        }
    };
    let limit = Duration::from_secs(5);
    within(limit, &client, "no host", says("no Host is registered")).await;
    add_host(&client, "h1", 64).await;
    within(
        Duration::from_secs(15),
        &client,
        "small",
        says("(needs 100 MiB of memory, h1 has 36)"),
    )
    .await;
    // A missing image is the manager's to report; the scheduler waits in silence.
    let patch = Patch::Merge(json!({"spec": {"image": {"name": "later"}}}));
    servers(&client)
        .patch("s", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let capacity = json!({"capacity": {"vcpus": 8, "memoryMiB": 256, "diskGiB": 100}});
    host_status(&client, "h1", &capacity).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host_of(&list(&client).await[0]), None);
    let image: Image = serde_json::from_value(json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Image",
        "metadata": {"name": "later"},
        "spec": {"source": {"url": "https://images.example/later.qcow2"}},
    }))
    .unwrap();
    Api::<Image>::namespaced(server.client(), NAMESPACE)
        .create(&PostParams::default(), &image)
        .await
        .unwrap();
    let ((), took) = within(Duration::from_secs(2), &client, "image came", |servers| {
        host_of(&servers[0]).map(drop)
    })
    .await;
    println!("placed {took:?} after its image appeared");
    let placed = list(&client).await.remove(0);
    let placement = placed.status.unwrap().placement.unwrap();
    assert_eq!((placement.host.as_str(), placement.epoch), ("h1", 1));
    assert_eq!(placement.claim.memory_mib, 100);

    // A host that comes up.
    add_server(&client, "t", "200Mi").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    add_host(&client, "h2", 1024).await;
    let ((), took) = within(Duration::from_secs(2), &client, "host came", |servers| {
        let t = servers.iter().find(|s| s.name_any() == "t")?;
        (host_of(t) == Some("h2")).then_some(())
    })
    .await;
    println!("placed {took:?} after a host came up");
    scheduler.stop().await;
}

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

#[tokio::test]
async fn the_stand_by_takes_over_when_the_leader_ends() {
    let server = start().await;
    let client = server.client();
    add_host(&client, "h1", 65536).await;
    let first = Running::start(server.client(), Some("first")).await;
    add_server(&client, "s1", "100Mi").await;
    let placed = |name: &'static str| {
        move |servers: &[Server]| {
            let s = servers.iter().find(|s| s.name_any() == name)?;
            host_of(s).map(drop)
        }
    };
    within(Duration::from_secs(10), &client, "s1", placed("s1")).await;
    let second = Running::start(server.client(), Some("second")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    first.stop().await;
    add_server(&client, "s2", "100Mi").await;
    let ((), took) = within(Duration::from_secs(10), &client, "s2", placed("s2")).await;
    println!("the stand-by placed it {took:?} after the leader had ended");
    second.stop().await;
}

#[tokio::test]
async fn aggregates_groups_and_a_policy_decide_and_say_what_is_wrong_with_them() {
    let server = start().await;
    let client = server.client();
    add_host(&client, "h1", 65536).await;
    add_host(&client, "h2", 65536).await;
    let scheduler = Running::start(server.client(), None).await;
    let create = async |value: Value| {
        let kind = value["kind"].as_str().unwrap().to_owned();
        let resource = kube::api::ApiResource::from_gvk_with_plural(
            &kube::api::GroupVersionKind::gvk("pileus.dev", "v1alpha1", &kind),
            &match kind.as_str() {
                "SchedulerPolicy" => "schedulerpolicies".to_owned(),
                other => format!("{}s", other.to_lowercase()),
            },
        );
        let api: Api<kube::api::DynamicObject> = match value["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let object = serde_json::from_value(value).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
        api
    };
    let version = "pileus.dev/v1alpha1";
    create(
        json!({"apiVersion": version, "kind": "HostAggregate", "metadata": {"name": "east"},
        "spec": {"hostSelector": {"rack": "h2"}, "availabilityZone": "east"}}),
    )
    .await;
    create(json!({"apiVersion": version, "kind": "ServerGroup",
        "metadata": {"name": "apart", "namespace": NAMESPACE}, "spec": {"policy": "AntiAffinity"}}))
    .await;
    for (name, placement) in [
        (
            "zoned",
            json!({"availabilityZone": "east", "serverGroup": "apart"}),
        ),
        ("other", json!({"serverGroup": "apart"})),
        ("third", json!({"serverGroup": "apart"})),
    ] {
        create(json!({"apiVersion": version, "kind": "Server",
            "metadata": {"name": name, "namespace": NAMESPACE, "finalizers": [MANAGER_FINALIZER]},
            "spec": {"resources": {"vcpus": 1, "memory": "64Mi", "disk": "1Gi"},
                "image": {"name": "tiny"}, "placement": placement}}))
        .await;
        let decided = |servers: &[Server]| {
            let it = servers.iter().find(|s| s.name_any() == name)?;
            scheduled(it).map(|said| (host_of(it).map(str::to_owned), said.1))
        };
        let limit = Duration::from_secs(20);
        let ((host, said), _) = within(limit, &client, name, decided).await;
        let expected = match name {
            "zoned" => Some("h2"),
            "other" => Some("h1"),
            _ => None,
        };
        assert_eq!(host.as_deref(), expected, "{name}: {said}");
        let turned_away = said.contains("ServerGroupAntiAffinityFilter turned away 2");
        assert_eq!(turned_away, host.is_none(), "{said}");
    }
    let policies = create(json!({"apiVersion": version, "kind": "SchedulerPolicy",
        "metadata": {"name": "default"}, "spec": {"filters": ["NoSuchFilter"]}}))
    .await;
    let ready = async |what: &str, reason: &str| {
        let start = Instant::now();
        loop {
            let it = policies.get("default").await.unwrap();
            let said = &it.data["status"]["conditions"][0];
            if said["reason"] == reason {
                return said["message"].as_str().unwrap().to_owned();
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {said}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let said = ready("a wrong policy", "InvalidSpec").await;
    assert!(said.contains("spec.filters names `NoSuchFilter`"), "{said}");
    // Without the filter the third goes beside one of its group.
    let filters = json!({"spec": {"filters": ["ComputeFilter", "RamFilter"]}});
    policies
        .patch("default", &PatchParams::default(), &Patch::Merge(filters))
        .await
        .unwrap();
    ready("a policy put right", "Ready").await;
    within(Duration::from_secs(20), &client, "third", |servers| {
        let third = servers.iter().find(|s| s.name_any() == "third")?;
        host_of(third).map(drop)
    })
    .await;
    scheduler.stop().await;
}

#[tokio::test]
async fn what_a_host_refuses_goes_elsewhere_once_its_instance_is_gone() {
    let server = start().await;
    let client = server.client();
    add_host(&client, "h1", 65536).await;
    let scheduler = Running::start(server.client(), None).await;
    add_server(&client, "s", "100Mi").await;
    let limit = Duration::from_secs(20);
    let on = |name: &'static str| {
        move |servers: &[Server]| (host_of(&servers[0]) == Some(name)).then_some(())
    };
    within(limit, &client, "placed", on("h1")).await;
    let placed = list(&client).await.remove(0);
    let placement = placed.status.clone().unwrap().placement.unwrap();
    let uid = placed.uid().unwrap();
    let name = format!("{uid}-{}", placement.epoch);
    server.namespace("pileus-host-h1").await;
    let instances: Api<Instance> = Api::namespaced(client.clone(), "pileus-host-h1");
    let instance = json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Instance",
        "metadata": {"name": name, "finalizers": ["pileus.dev/agent"]},
        "spec": {"server": {"namespace": NAMESPACE, "name": "s", "uid": uid}, "host": "h1",
            "epoch": placement.epoch, "instanceID": uid, "claim": placement.claim,
            "image": {"name": "tiny", "uid": "i", "diskFormat": "raw",
                "disk": {"url": "https://images.example/tiny"}}},
    });
    let instance: Instance = serde_json::from_value(instance).unwrap();
    let made = instances.create(&PostParams::default(), &instance).await;
    made.unwrap();
    let refused = json!({"status": {"conditions": [{"type": "Ready", "status": "False",
        "reason": "HostRefused", "message": "no room",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    instances
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(refused))
        .await
        .unwrap();
    // Nowhere else to go: the placement stays.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host_of(&list(&client).await[0]), Some("h1"));
    add_host(&client, "h2", 65536).await;
    let taken_back = |servers: &[Server]| {
        let refusals = &servers[0].status.as_ref()?.refusals;
        let refused = refusals.iter().any(|r| r.name == "h1" && r.epoch == 1);
        (refused && host_of(&servers[0]).is_none()).then_some(())
    };
    within(limit, &client, "taken back", taken_back).await;
    // While its Instance is being removed, nothing starts elsewhere.
    instances
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host_of(&list(&client).await[0]), None);
    let let_go = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    instances
        .patch(&name, &PatchParams::default(), &let_go)
        .await
        .unwrap();
    within(limit, &client, "placed again", on("h2")).await;
    let again = list(&client).await.remove(0).status.unwrap();
    assert_eq!(again.placement.unwrap().epoch, 2);
    scheduler.stop().await;
}

/// Plays the manager and the agents of all hosts: makes an Instance of each placement,
/// takes on what fits, refuses what does not, and clears away what was taken back. Ends
/// the test when a Server is taken on twice.
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

/// Two that decide at once know nothing of each other's decisions until they are written,
/// so both may give away the last place of a host. Its agent refuses one of them, which
/// goes elsewhere: in the end every place is used once and nobody is anywhere twice.
#[tokio::test]
async fn two_schedulers_at_once_use_every_place_once() {
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
