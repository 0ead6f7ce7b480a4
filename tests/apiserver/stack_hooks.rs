//! Hooks and restricted actions of a Stack on a real API server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use pileus_api::names::CLEAR_HOOKS_ANNOTATION;
use pileus_api::{KeyPair, Network, Server, Stack};
use pileus_tests::apiserver::until;
use pileus_tests::stacks::{Cloud, ready, resources, stack_status_of};
use serde_json::{Value, json};

const TEMPLATE: &str = "heat_template_version: 2021-04-16
parameters: {flavor: {type: string, default: small}, word: {type: string, default: one}}
resources:
  net: {type: OS::Neutron::Net}
  server:
    type: OS::Nova::Server
    properties:
      image: tiny
      flavor: {get_param: flavor}
      metadata: {word: {get_param: word}}
      networks: [{network: {get_resource: net}}]
";

fn environment(text: &str) -> Value {
    json!([{"name": "e", "text": text}])
}

/// Waits until a resource waits at a hook.
async fn waits(cloud: &Cloud, name: &str, resource: &str, hook: &str) -> Stack {
    let told = format!("paused until Hook {hook} is cleared");
    until(&cloud.api::<Stack>(), name, &told, |stack: &Stack| {
        let row = resources(stack).remove(resource);
        row.is_some_and(|row| row.reason.is_some_and(|why| why.contains(&told)))
    })
    .await
}

async fn clear(cloud: &Cloud, name: &str, what: &str) {
    let annotations = json!({CLEAR_HOOKS_ANNOTATION: what});
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    let api = cloud.api::<Stack>();
    api.patch(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

/// Waits until the manager has removed the annotation.
async fn taken(cloud: &Cloud, name: &str) {
    let api = cloud.api::<Stack>();
    until(&api, name, "loses its annotation", |stack: &Stack| {
        !stack.annotations().contains_key(CLEAR_HOOKS_ANNOTATION)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_waits_at_each_of_its_hooks_until_that_is_cleared() {
    let cloud = Cloud::start().await;
    let hooks = "resource_registry: {resources: {server: {hooks: [pre-create, post-create, pre-update, pre-delete]}, n*: {hooks: post-delete}}}";
    let spec = json!({"template": TEMPLATE, "environments": environment(hooks)});
    cloud.stack("held", spec).await;
    let held = waits(&cloud, "held", "server", "pre-create").await;
    assert_eq!(stack_status_of(&held), "CREATE_IN_PROGRESS");
    assert!(ready(&held).2.contains("server:pre-create"), "{held:#?}");
    assert_eq!(cloud.count::<Server>().await, 0);
    // A hook of another resource is not cleared.
    clear(&cloud, "held", "server:post-create").await;
    waits(&cloud, "held", "server", "pre-create").await;
    clear(&cloud, "held", "server:pre-create").await;
    taken(&cloud, "held").await;
    waits(&cloud, "held", "server", "post-create").await;
    assert_eq!(cloud.count::<Server>().await, 1);
    clear(&cloud, "held", "*").await;
    let made = cloud.becomes("held", "CREATE_COMPLETE").await;
    taken(&cloud, "held").await;

    // It still waits after a restart of the controller.
    let change = json!({"parameters": {"word": "two"}});
    cloud.change("held", change).await;
    waits(&cloud, "held", "server", "pre-update").await;
    let word = async || {
        let server = resources(&made)["server"].object.clone().unwrap();
        let name = server.split_once('/').unwrap().1.to_owned();
        cloud
            .api::<Server>()
            .get(&name)
            .await
            .unwrap()
            .spec
            .metadata["word"]
            .clone()
    };
    assert_eq!(word().await, "one");
    clear(&cloud, "held", "server").await;
    cloud.becomes("held", "UPDATE_COMPLETE").await;
    assert_eq!(word().await, "two");
    taken(&cloud, "held").await;

    let api = cloud.api::<Stack>();
    api.delete("held", &DeleteParams::default()).await.unwrap();
    waits(&cloud, "held", "server", "pre-delete").await;
    assert_eq!(cloud.count::<Server>().await, 1);
    clear(&cloud, "held", "server:pre-delete").await;
    waits(&cloud, "held", "net", "post-delete").await;
    assert_eq!(cloud.count::<Network>().await, 0);
    clear(&cloud, "held", "net").await;
    cloud.wait_until_deleted("held").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restricted_actions_are_refused_and_change_nothing() {
    let cloud = Cloud::start().await;
    let forbids = "resource_registry: {resources: {server: {restricted_actions: replace}, net: {restricted_actions: [update, replace]}}}";
    let spec = json!({"template": TEMPLATE, "environments": environment(forbids)});
    cloud.stack("fixed", spec).await;
    let made = cloud.becomes("fixed", "CREATE_COMPLETE").await;
    // An update in place is allowed.
    cloud
        .change("fixed", json!({"parameters": {"word": "two"}}))
        .await;
    cloud.becomes("fixed", "UPDATE_COMPLETE").await;
    cloud
        .change("fixed", json!({"parameters": {"flavor": "large"}}))
        .await;
    let failed = cloud.becomes("fixed", "UPDATE_FAILED").await;
    let said = ready(&failed).2;
    assert!(
        said.contains("replace is restricted for resource"),
        "{said}"
    );
    assert!(said.contains("restricted_actions"), "{said}");
    let uid = resources(&made)["server"].physical_id.clone();
    let kept = resources(&failed)
        .into_values()
        .any(|row| row.physical_id == uid);
    assert!(kept, "{failed:#?}");
    assert_eq!(cloud.count::<Server>().await, 1);

    let parameters = json!({"flavor": "small", "word": "two"});
    cloud
        .change("fixed", json!({"parameters": parameters}))
        .await;
    let back = cloud.becomes("fixed", "UPDATE_COMPLETE").await;
    assert_eq!(resources(&back)["server"].physical_id, uid);
    let hooks = "resource_registry: {resources: {server: {hooks: pre-lunch}}}";
    cloud
        .change("fixed", json!({"environments": environment(hooks)}))
        .await;
    let api = cloud.api::<Stack>();
    until(&api, "fixed", "names the unknown hook", |stack: &Stack| {
        ready(stack).2.contains("pre-lunch")
    })
    .await;
    cloud.delete("fixed").await;
    assert_eq!(cloud.count::<KeyPair>().await, 0);
}
