//! The scheduler on a real API server.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends its test")]

use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{Image, Instance, Server};
use pileus_tests::scheduling::*;
use serde_json::{Value, json};

#[tokio::test]
async fn thirty_servers_on_two_hosts_never_overcommit() {
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
            "0 of 2 hosts fit: RamFilter rejected 2 (needs 100 MiB of memory)"
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
async fn a_server_that_no_host_fits_reports_why_and_is_placed_when_capacity_is_freed() {
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
        says("(needs 100 MiB of memory)"),
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
async fn the_standby_takes_over_when_the_leader_ends() {
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
async fn aggregates_groups_and_a_policy_are_used_and_their_errors_are_reported() {
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
        let rejected = said.contains("ServerGroupAntiAffinityFilter rejected 2");
        assert_eq!(rejected, host.is_none(), "{said}");
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
    ready("a corrected policy", "Ready").await;
    within(Duration::from_secs(20), &client, "third", |servers| {
        let third = servers.iter().find(|s| s.name_any() == "third")?;
        host_of(third).map(drop)
    })
    .await;
    scheduler.stop().await;
}

#[tokio::test]
async fn a_refused_server_is_placed_elsewhere_once_its_instance_is_deleted() {
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
