//! Stacks whose record is lost, on a real API server: as after a backup without Secrets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use pileus_api::names::{REBUILD_RECORD_ANNOTATION, STACK_UID_LABEL};
use pileus_api::{Flavor, Network, Server, Stack};
use pileus_tests::apiserver::until;
use pileus_tests::stacks::{Cloud, NAMESPACE, object_name, output, ready, resources};
use serde_json::json;

const SHOP: &str = "heat_template_version: 2021-04-16
resources:
  net: {type: OS::Neutron::Net, deletion_policy: Retain}
  sub: {type: OS::Neutron::Subnet, properties: {network: {get_resource: net}, cidr: 10.20.0.0/24}}
  group:
    type: OS::Heat::ResourceGroup
    properties: {count: 2, resource_def: {type: OS::Neutron::Port, properties: {network: {get_resource: net}}}}
  key: {type: OS::Nova::KeyPair, properties: {name: lost-key, public_key: ssh-ed25519 AAAA alice}}
  server:
    type: OS::Nova::Server
    properties:
      image: tiny
      flavor: small
      key_name: {get_resource: key}
      user_data: '#!/bin/sh'
      networks: [{network: {get_resource: net}}]
  map:
    type: Kubernetes::Object
    properties: {manifest: {apiVersion: v1, kind: ConfigMap, data: {address: {get_attr: [server, first_address]}}}}
  flavor: {type: OS::Nova::Flavor, properties: {name: lost-flavor, ram: 64, vcpus: 1}}
outputs:
  address: {value: {get_attr: [map, object, data, address]}}
";

/// Deletes every Secret of a Stack: its record, its sources, and auxiliary ones.
async fn lose(cloud: &Cloud) {
    let own = ListParams::default().labels(STACK_UID_LABEL);
    let secrets = cloud.api::<Secret>();
    let params = DeleteParams::default();
    secrets.delete_collection(&params, &own).await.unwrap();
    while cloud.count::<Secret>().await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn shop(cloud: &Cloud) -> Stack {
    cloud.account("maker", "", &["configmaps"]).await;
    cloud.account("other", "pileus.dev", &["flavors"]).await;
    // One account for both.
    let subjects =
        json!({"subjects": [{"kind": "ServiceAccount", "name": "maker", "namespace": NAMESPACE}]});
    let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> =
        Api::all(cloud.server.client());
    bindings
        .patch("other", &PatchParams::default(), &Patch::Merge(&subjects))
        .await
        .unwrap();
    let spec = json!({"template": SHOP, "serviceAccountName": "maker"});
    cloud.stack("shop", spec).await;
    cloud.becomes("shop", "CREATE_COMPLETE").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_rebuilt_from_existing_objects() {
    let cloud = Cloud::start().await;
    let made = shop(&cloud).await;
    let first = resources(&made);
    lose(&cloud).await;
    cloud.change("shop", json!({"tags": ["again"]})).await;
    let found = cloud.becomes("shop", "UPDATE_COMPLETE").await;
    assert_eq!(ready(&found).0, "True", "{found:#?}");
    assert_eq!(output(&found, "address"), Some(json!("10.20.0.9")));
    let rows = resources(&found);
    assert!(rows.keys().eq(first.keys()), "{rows:#?}");
    for (name, row) in &rows {
        assert_eq!(row.physical_id, first[name].physical_id, "{name}");
    }
    // The user data was lost with the record, and was created again.
    let server = object_name(&rows["server"]);
    let data = cloud
        .api::<Secret>()
        .get(&format!("{server}-user-data"))
        .await;
    assert!(data.unwrap().data.unwrap().contains_key("userData"));
    let events = cloud.api::<Event>();
    let told = async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        let mut notes = events.into_iter().filter_map(|event| event.note);
        notes.any(|note| note.contains("it is rebuilt from the existing objects"))
    };
    while !told().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Later updates work as before: one in place, and one by a replacement.
    let template = SHOP.replace("'#!/bin/sh'", "'#!/bin/sh -e'");
    cloud.change("shop", json!({"template": template})).await;
    let servers = cloud.api::<Server>();
    while servers.get_opt(&server).await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let changed = cloud.becomes("shop", "UPDATE_COMPLETE").await;
    let rows = resources(&changed);
    assert_ne!(rows["server"].physical_id, first["server"].physical_id);
    assert_eq!(rows["net"].physical_id, first["net"].physical_id);

    // Lost again just before the deletion: retained objects stay, all others are deleted.
    cloud.becomes("shop", "UPDATE_COMPLETE").await;
    lose(&cloud).await;
    let stacks = cloud.api::<Stack>();
    let params = DeleteParams::default();
    stacks.delete("shop", &params).await.unwrap();
    while stacks.get_opt("shop").await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cloud.count::<Server>().await, 0);
    assert_eq!(cloud.count::<ConfigMap>().await, 0);
    assert_eq!(cloud.count::<Secret>().await, 0);
    let flavors: Api<Flavor> = Api::all(cloud.server.client());
    assert!(flavors.get_opt("lost-flavor").await.unwrap().is_none());
    let net = object_name(&first["net"]);
    let net = cloud.api::<Network>().get(&net).await.unwrap();
    assert!(!net.labels().contains_key(STACK_UID_LABEL));
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_reported_and_wait_for_a_confirmation() {
    let cloud = Cloud::start().await;
    let template = "heat_template_version: newton
resources:
  word: {type: OS::Heat::RandomString}
  net: {type: OS::Neutron::Net}
";
    let made = cloud.stack("dice", json!({"template": template})).await;
    let first = cloud.becomes("dice", "CREATE_COMPLETE").await;
    let record = format!("stack-{}", made.uid().unwrap());
    lose(&cloud).await;
    cloud.change("dice", json!({"tags": ["again"]})).await;
    let api = cloud.api::<Stack>();
    let told = until(&api, "dice", "says what differs", |stack: &Stack| {
        ready(stack).1 == "RecordMissing"
    })
    .await;
    let (status, _, why) = ready(&told);
    assert_eq!(status, "Unknown");
    assert!(why.contains("word: its value was random"), "{why}");
    assert!(why.contains(&format!("rebuild-record={record}")), "{why}");
    assert_eq!(cloud.count::<Secret>().await, 0);
    let word = |word: &str| {
        Patch::Merge(json!({"metadata": {"annotations": {REBUILD_RECORD_ANNOTATION: word}}}))
    };
    let params = PatchParams::default();
    api.patch("dice", &params, &word("another")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cloud.count::<Secret>().await, 0);
    api.patch("dice", &params, &word(&record)).await.unwrap();
    let found = cloud.becomes("dice", "UPDATE_COMPLETE").await;
    assert_eq!(
        resources(&found)["net"].physical_id,
        resources(&first)["net"].physical_id
    );
    until(
        &api,
        "dice",
        "has the annotation removed",
        |stack: &Stack| !stack.annotations().contains_key(REBUILD_RECORD_ANNOTATION),
    )
    .await;

    // A malformed record is reported, too, and does not prevent the deletion.
    let broken = Patch::Merge(json!({"data": {"record": "bm8="}}));
    let secrets = cloud.api::<Secret>();
    secrets.patch(&record, &params, &broken).await.unwrap();
    cloud.change("dice", json!({"tags": ["more"]})).await;
    until(
        &api,
        "dice",
        "says that it is unreadable",
        |stack: &Stack| ready(stack).2.contains("cannot be read"),
    )
    .await;
    cloud.delete("dice").await;
}

/// Nothing can be created in the namespace, and Secrets are deleted early.
#[tokio::test(flavor = "multi_thread")]
async fn a_stack_without_a_record_is_deleted_with_its_namespace() {
    let cloud = Cloud::start().await;
    shop(&cloud).await;
    let namespaces: Api<Namespace> = Api::all(cloud.server.client());
    let params = DeleteParams::default();
    namespaces.delete(NAMESPACE, &params).await.unwrap();
    lose(&cloud).await;
    let stacks = cloud.api::<Stack>();
    stacks.delete("shop", &params).await.unwrap();
    let start = std::time::Instant::now();
    while let Some(stack) = stacks.get_opt("shop").await.unwrap() {
        assert!(start.elapsed() < Duration::from_secs(60), "{stack:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let flavors: Api<Flavor> = Api::all(cloud.server.client());
    assert!(flavors.get_opt("lost-flavor").await.unwrap().is_none());
}

const ALL: &str = "heat_template_version: 2021-04-16
resources:
  image:
    type: OS::Glance::WebImage
    properties: {name: web image, location: 'https://images.example/web.qcow2', disk_format: qcow2, container_format: bare, min_ram: 64, extra_properties: {hw_disk_bus: virtio}}
  key: {type: OS::Nova::KeyPair, properties: {name: ops, public_key: ssh-ed25519 AAAA}}
  net: {type: OS::Neutron::Net, properties: {name: one, value_specs: {}}}
  sub: {type: OS::Neutron::Subnet, properties: {name: one, network: {get_resource: net}, cidr: 10.0.0.0/24, dns_nameservers: [192.0.2.1], allocation_pools: [{start: 10.0.0.9, end: 10.0.0.99}]}}
  walls: {type: OS::Neutron::SecurityGroup, properties: {name: one, rules: [{protocol: tcp, port_range_min: 22, port_range_max: 22}, {protocol: icmp, direction: egress}]}}
  rule: {type: OS::Neutron::SecurityGroupRule, properties: {security_group: {get_resource: walls}, protocol: udp, port_range_min: 53, port_range_max: 53}}
  port: {type: OS::Neutron::Port, properties: {network: {get_resource: net}, fixed_ips: [{subnet: {get_resource: sub}, ip_address: 10.0.0.20}], security_groups: [{get_resource: walls}]}}
  group: {type: OS::Nova::ServerGroup, metadata: {min_members: 2}, properties: {policies: [affinity]}}
  boot: {type: OS::Heat::CloudConfig, properties: {cloud_config: {packages: [nginx]}}}
  script: {type: OS::Heat::SoftwareConfig, properties: {config: '#!/bin/sh'}}
  both: {type: OS::Heat::MultipartMime, properties: {parts: [{config: {get_resource: boot}}, {config: {get_resource: script}}]}}
  server:
    type: OS::Nova::Server
    properties:
      name: one
      image: {get_resource: image}
      flavor: small
      key_name: {get_resource: key}
      networks: [{port: {get_resource: port}}]
      user_data_format: RAW
      user_data: {get_resource: both}
      metadata: {a: b, n: 1}
      scheduler_hints: {group: {get_resource: group}}
";

/// Defaults of the API server are no differences, for any kind.
#[tokio::test(flavor = "multi_thread")]
async fn objects_of_every_kind_are_recovered_unchanged() {
    let cloud = Cloud::start().await;
    cloud.stack("all", json!({"template": ALL})).await;
    let made = cloud.becomes("all", "CREATE_COMPLETE").await;
    let servers = cloud.api::<Server>();
    let name = object_name(&resources(&made)["server"]);
    let before = servers.get(&name).await.unwrap();
    let record = format!("stack-{}", made.uid().unwrap());
    let params = DeleteParams::default();
    let secrets = cloud.api::<Secret>();
    secrets.delete(&record, &params).await.unwrap();
    cloud.change("all", json!({"tags": ["again"]})).await;
    let found = cloud.becomes("all", "UPDATE_COMPLETE").await;
    let (old, new) = (resources(&made), resources(&found));
    for (name, row) in &new {
        assert_eq!(row.physical_id, old[name].physical_id, "{name}");
    }
    // The objects were not written.
    let after = servers.get(&name).await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());
    // Lost again while suspended: it works as before.
    cloud.change("all", json!({"suspend": true})).await;
    cloud.becomes("all", "SUSPEND_COMPLETE").await;
    secrets.delete(&record, &params).await.unwrap();
    cloud.change("all", json!({"suspend": false})).await;
    cloud.becomes("all", "RESUME_COMPLETE").await;
    cloud.change("all", json!({"checkRequestedAt": "1"})).await;
    cloud.becomes("all", "CHECK_COMPLETE").await;
    cloud.delete("all").await;
}
