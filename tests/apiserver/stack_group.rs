//! Groups of a Stack on a real API server, and a controller that is killed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::ListParams;
use pileus_api::{Network, Server, Stack};
use pileus_tests::apiserver::until;
use pileus_tests::stacks::{Cloud, STEP_TIMEOUT, is_observed, output, ready};
use serde_json::{Value, json};

const SERVER: &str = "heat_template_version: newton
parameters: {image: {type: string}, flavor: {type: string}}
resources:
  word: {type: OS::Heat::RandomString, properties: {length: 8}}
  server:
    type: OS::Nova::Server
    properties: {image: {get_param: image}, flavor: {get_param: flavor}, metadata: {word: {get_attr: [word, value]}}}
outputs:
  address: {value: {get_attr: [server, first_address]}}
";

const GROUP: &str = "heat_template_version: newton
parameters: {count: {type: number, default: 3}, flavor: {type: string, default: small}}
resources:
  net: {type: OS::Neutron::Net}
  group:
    type: OS::Heat::ResourceGroup
    properties:
      count: {get_param: count}
      resource_def:
        type: server.yaml
        properties: {image: tiny, flavor: {get_param: flavor}}
outputs:
  addresses: {value: {get_attr: [group, address]}}
";

fn group(count: i64, flavor: &str) -> Value {
    json!({"template": GROUP, "files": {"server.yaml": SERVER}, "onFailure": "Rollback",
        "parameters": {"count": count, "flavor": flavor}})
}

/// uids of the Servers by resource.
async fn servers(cloud: &Cloud) -> BTreeMap<String, String> {
    let list = cloud
        .api::<Server>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let row = |server: Server| {
        let path = server.annotations()["pileus.dev/stack-resource"].clone();
        (path, server.uid().unwrap())
    };
    list.into_iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_shrinks_and_rolls_back_a_failed_update() {
    let cloud = Cloud::start().await;
    cloud.stack("many", group(3, "small")).await;
    let made = cloud.becomes("many", "CREATE_COMPLETE").await;
    assert_eq!(
        output(&made, "addresses"),
        Some(json!(["10.20.0.9", "10.20.0.9", "10.20.0.9"]))
    );
    let three = servers(&cloud).await;
    assert_eq!(
        three.keys().collect::<Vec<_>>(),
        ["group/0/server", "group/1/server", "group/2/server"]
    );

    cloud.change("many", group(5, "small")).await;
    cloud.becomes("many", "UPDATE_COMPLETE").await;
    let five = servers(&cloud).await;
    assert_eq!(five.len(), 5);
    assert!(three.iter().all(|(path, uid)| five[path] == *uid));

    cloud.change("many", group(2, "small")).await;
    let start = Instant::now();
    while servers(&cloud).await.len() != 2 {
        assert!(start.elapsed() < STEP_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let shrunk = cloud.becomes("many", "UPDATE_COMPLETE").await;
    let two = servers(&cloud).await;
    assert!(two.iter().all(|(path, uid)| three[path] == *uid));
    assert_eq!(
        output(&shrunk, "addresses"),
        Some(json!(["10.20.0.9", "10.20.0.9"]))
    );

    // Servers of this flavor fail: the old ones still exist, and stay.
    cloud.change("many", group(2, "none")).await;
    let back = cloud.becomes("many", "ROLLBACK_COMPLETE").await;
    assert_eq!(servers(&cloud).await, two);
    assert_eq!(ready(&back).0, "False");
    cloud.change("many", group(2, "large")).await;
    cloud.becomes("many", "UPDATE_COMPLETE").await;
    let large = servers(&cloud).await;
    assert!(
        large.iter().all(|(path, uid)| two[path] != *uid),
        "{large:?}"
    );
    cloud.delete("many").await;
}

const ROLLING: &str = "heat_template_version: newton
parameters: {v: {type: string}, gone: {type: comma_delimited_list, default: ''}}
resources:
  group:
    type: OS::Heat::ResourceGroup
    update_policy: {rolling_update: {max_batch_size: 2, min_in_service: 3}}
    properties:
      count: 3
      removal_policies: [{resource_list: {get_param: gone}}]
      resource_def:
        type: OS::Nova::Server
        properties: {image: tiny, flavor: small, metadata: {v: {get_param: v}}}
outputs:
  refs: {value: {get_attr: [group, refs]}}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_during_an_update_and_removes_a_member_by_id() {
    let cloud = Cloud::start().await;
    let spec =
        |v: &str, gone: &str| json!({"template": ROLLING, "parameters": {"v": v, "gone": gone}});
    cloud.stack("many", spec("a", "")).await;
    let made = cloud.becomes("many", "CREATE_COMPLETE").await;
    let refs = output(&made, "refs").unwrap();
    let before = servers(&cloud).await;

    cloud.change("many", spec("b", "")).await;
    let start = Instant::now();
    // Additional members exist during the update, and are deleted at its end.
    for wanted in [5, 3] {
        while servers(&cloud).await.len() != wanted {
            assert!(start.elapsed() < STEP_TIMEOUT, "never {wanted} members");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let changed = cloud.becomes("many", "UPDATE_COMPLETE").await;
    assert_eq!(output(&changed, "refs"), Some(refs.clone()));
    assert_eq!(servers(&cloud).await, before);
    for server in cloud
        .api::<Server>()
        .list(&ListParams::default())
        .await
        .unwrap()
    {
        assert_eq!(server.spec.metadata["v"], "b");
    }

    cloud
        .change("many", spec("b", refs[1].as_str().unwrap()))
        .await;
    let start = Instant::now();
    while servers(&cloud).await.keys().collect::<Vec<_>>() != ["group/0", "group/2", "group/3"] {
        assert!(start.elapsed() < STEP_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cloud.becomes("many", "UPDATE_COMPLETE").await;
    cloud.delete("many").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_at_any_moment_changes_no_result() {
    let mut cloud = Cloud::start().await;
    let rounds = std::env::var("PILEUS_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = std::env::var("PILEUS_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("PILEUS_SEED={seed}");
    cloud.stack("many", group(3, "small")).await;
    for round in 0..rounds.unwrap_or(6) {
        // A linear congruential generator is random enough here.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(seed >> 33 & 0x1ff)).await;
        cloud.kill_controller();
        let flavor = if round % 2 == 0 { "small" } else { "large" };
        let count = i64::try_from(seed >> 40 & 3).unwrap() + 1;
        cloud.change("many", group(count, flavor)).await;
        cloud.start_controller().await;
    }
    cloud.change("many", group(4, "small")).await;
    let api = cloud.api::<Stack>();
    until(&api, "many", "comes to its end", |stack: &Stack| {
        is_observed(stack) && ready(stack).0 == "True"
    })
    .await;
    assert_eq!(servers(&cloud).await.len(), 4);
    assert_eq!(cloud.count::<Server>().await, 4);
    assert_eq!(cloud.count::<Network>().await, 1);
    cloud.delete("many").await;
}
