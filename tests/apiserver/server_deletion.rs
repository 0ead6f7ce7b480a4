//! What the deletion of many Servers at once costs, and what others' objects do to it.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends its test")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, ResourceExt};
use pileus_api::names::{host_namespace, instance_name};
use pileus_api::{Image, Instance, Port, Server};
use pileus_tests::apiserver::{create, until};
use pileus_tests::servers::*;
use serde_json::json;

/// Servers that are deleted at once.
const MANY: usize = 50;

/// Lets the Instances of the host go as soon as they are being deleted, as its agent does.
async fn play_agent(client: Client) {
    let api: Api<Instance> = Api::namespaced(client, &host_namespace(HOST));
    loop {
        let all = api.list(&ListParams::default()).await.unwrap();
        let going = all.items.into_iter();
        let going = going.filter(|i| i.metadata.deletion_timestamp.is_some());
        for instance in going {
            let patch = kube::api::Patch::Merge(json!({"metadata": {"finalizers": null}}));
            let params = kube::api::PatchParams::default();
            let _ = api.patch(&instance.name_any(), &params, &patch).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_deletions_take_few_requests_and_look_at_no_others_objects() {
    let cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.image("tiny", https()).await;
    let servers = cloud.api::<Server>();
    until(&cloud.api::<Image>(), "tiny", "has its finalizer", |i| {
        !i.finalizers().is_empty()
    })
    .await;
    let names: Vec<String> = (0..MANY).map(|i| format!("s{i}")).collect();
    let mut instances = BTreeSet::new();
    for name in &names {
        let made = cloud.server(name, plain()).await;
        instances.insert(instance_name(&made.uid().unwrap(), 1));
    }
    for name in &names {
        until(&servers, name, "has its finalizer", |s: &Server| {
            !s.finalizers().is_empty()
        })
        .await;
        cloud.place(name, 1).await;
    }
    for instance in &instances {
        until(&cloud.instances(), instance, "is made", |_| true).await;
        cloud.run_instance(instance, "Active").await;
    }
    for name in &names {
        until(&servers, name, "is active", |s| is(s, "True", "Active")).await;
    }
    // What has just been done may have an echo.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let agent = tokio::spawn(play_agent(cloud.client()));
    cloud.counter.take();
    cloud.counter.take_lists();
    let (params, all) = (DeleteParams::default(), ListParams::default());
    servers.delete_collection(&params, &all).await.unwrap();
    let start = Instant::now();
    while !servers
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .is_empty()
    {
        assert!(start.elapsed() < Duration::from_secs(60), "Servers stay");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let asked = cloud.counter.take();
    agent.abort();
    assert_eq!(
        cloud
            .api::<Port>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        0
    );
    // Heartbeats of the manager's own leadership aside.
    let requests = asked.iter().filter(|(what, _)| !what.contains("leases"));
    let each = requests.map(|(_, n)| n).sum::<usize>().div_ceil(MANY);
    println!("deletion: {each} requests for each Server: {asked:#?}");
    assert!(each <= 12, "{each} for each: {asked:#?}");
    let listed = cloud.counter.take_lists();
    let whole = |what: &&String| what.starts_with("instances in *");
    assert_eq!(listed.keys().find(whole), None, "{listed:#?}");
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_tenants_bind_and_hold_nobody() {
    let cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.image("tiny", https()).await;
    let servers = cloud.api::<Server>();
    let (server, instance) = cloud.active("web", plain()).await;
    let uid = server.uid().unwrap();
    // As its own, in a namespace of somebody else.
    let real = cloud.instances().get(&instance).await.unwrap();
    let forged: Api<Instance> = Api::namespaced(cloud.client(), "other");
    let mut spec = serde_json::to_value(&real.spec).unwrap();
    spec["epoch"] = json!(9);
    let name = instance_name(&uid, 9);
    let object = json!({"metadata": {"name": name, "finalizers": ["example.org/stay"],
        "labels": {"pileus.dev/server-uid": uid}}, "spec": spec});
    create(&forged, object).await;
    let status = json!({"image": {"digest": format!("sha256:{}", "f".repeat(64)), "size": 1, "virtualSize": 1},
        "realized": true, "conditions": []});
    patch_status(&forged, &name, status).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let image = cloud.api::<Image>().get("tiny").await.unwrap();
    assert_eq!(image.status.unwrap().digest.as_deref(), Some(DIGEST));
    delete(&servers, "web").await;
    until(&cloud.instances(), &instance, "is being deleted", |i| {
        i.metadata.deletion_timestamp.is_some()
    })
    .await;
    cloud.let_instance_go(&instance).await;
    until_gone(&servers, "web").await;
    let left = forged.get(&name).await.unwrap();
    assert!(
        left.metadata.deletion_timestamp.is_none(),
        "nobody touches it"
    );
    let patch = kube::api::Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let params = kube::api::PatchParams::default();
    forged.patch(&name, &params, &patch).await.unwrap();
    cloud.stop().await;
}
