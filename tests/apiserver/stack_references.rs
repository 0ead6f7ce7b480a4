//! Stacks whose updates have a typing error, and what they say of networks and outputs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use kube::ResourceExt;
use kube::api::{Api, ListParams};
use pileus_api::{Flavor, Server, Stack};
use pileus_tests::apiserver::{create, until};
use pileus_tests::stacks::{Cloud, output, ready, stack_status_of};
use serde_json::json;

const SHOP: &str = "heat_template_version: 2021-04-16
parameters:
  flavor: {type: string, constraints: [{custom_constraint: nova.flavor}]}
  image: {type: string}
  net_name: {type: string, default: lan}
resources:
  net: {type: OS::Neutron::Net, properties: {name: {get_param: net_name}}}
  subnet: {type: OS::Neutron::Subnet, properties: {network: {get_resource: net}, cidr: 10.41.0.0/24}}
  port: {type: OS::Neutron::Port, properties: {network: {get_resource: net}, fixed_ips: [{subnet: {get_resource: subnet}, ip_address: 10.41.0.10}]}}
  db:
    type: OS::Nova::Server
    properties: {image: {get_param: image}, flavor: {get_param: flavor}, networks: [{port: {get_resource: port}}]}
  inline:
    type: OS::Nova::Server
    properties: {image: {get_param: image}, flavor: {get_param: flavor}, networks: [{network: {get_resource: net}}]}
outputs:
  by_name: {value: {get_attr: [inline, networks, {get_param: net_name}, 0]}}
  by_addr: {value: {get_attr: [inline, addresses, {get_param: net_name}, 0, addr]}}
  by_id: {value: {get_attr: [inline, networks, {get_resource: net}, 0]}}
  net_name: {value: {get_attr: [net, name]}}
";

async fn servers(cloud: &Cloud) -> Vec<(String, String)> {
    let all = cloud.api::<Server>().list(&ListParams::default()).await;
    let all = all.unwrap().items.into_iter();
    all.map(|server| (server.name_any(), server.uid().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typing_error_costs_no_server() {
    let cloud = Cloud::start().await;
    let spec = json!({"onFailure": "Rollback", "template": SHOP,
        "parameters": {"flavor": "small", "image": "tiny"}});
    cloud.stack("shop", spec).await;
    let made = cloud.becomes("shop", "CREATE_COMPLETE").await;
    for name in ["by_name", "by_addr", "by_id"] {
        assert_eq!(output(&made, name), Some(json!("10.20.0.9")), "{name}");
    }
    assert_eq!(output(&made, "net_name"), Some(json!("lan")));
    let before = servers(&cloud).await;
    assert_eq!(before.len(), 2);
    for (field, wrong, reason) in [
        ("flavor", "smalll", "FlavorNotFound"),
        ("image", "elsewhere/tinyy", "ImageNotFound"),
    ] {
        cloud
            .change("shop", json!({"parameters": {field: wrong}}))
            .await;
        let api = cloud.api::<Stack>();
        let told = until(&api, "shop", reason, |stack: &Stack| {
            ready(stack).1 == reason
        })
        .await;
        let (status, _, why) = ready(&told);
        assert_eq!(status, "False");
        let name = wrong.rsplit('/').next().unwrap();
        assert!(why.contains("resources.db") && why.contains(name), "{why}");
        // Longer than it looks again.
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert_eq!(servers(&cloud).await, before);
        let now = api.get("shop").await.unwrap();
        assert_eq!(stack_status_of(&now), "CREATE_COMPLETE");
        let right = if field == "flavor" { "small" } else { "tiny" };
        cloud
            .change("shop", json!({"parameters": {field: right}}))
            .await;
        until(&api, "shop", "is ready", |stack: &Stack| {
            ready(stack).0 == "True"
        })
        .await;
    }
    // What is named is made meanwhile: the update goes through by itself.
    cloud
        .change("shop", json!({"parameters": {"flavor": "late"}}))
        .await;
    let api = cloud.api::<Stack>();
    until(&api, "shop", "waits", |stack: &Stack| {
        ready(stack).1 == "FlavorNotFound"
    })
    .await;
    let flavors: Api<Flavor> = Api::all(cloud.server.client());
    let spec = json!({"vcpus": 1, "memory": "64Mi", "disk": "1Gi"});
    create(
        &flavors,
        json!({"metadata": {"name": "late"}, "spec": spec}),
    )
    .await;
    cloud.becomes("shop", "UPDATE_COMPLETE").await;
    cloud.delete("shop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_output_goes_also_when_kubectl_applies() {
    let cloud = Cloud::start().await;
    let manifest = |outputs: &str| {
        format!(
            "apiVersion: pileus.dev/v1alpha1
kind: Stack
metadata: {{name: o1, namespace: demo}}
spec:
  template: |
    heat_template_version: 2021-04-16
    resources:
      v: {{type: OS::Heat::Value, properties: {{value: 1}}}}
    outputs: {outputs}
"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let apply = |outputs: &str, server_side: bool| {
        let file = folder.path().join("stack.yaml");
        std::fs::write(&file, manifest(outputs)).unwrap();
        let file = file.to_str().unwrap();
        let mut arguments = vec!["apply", "-f", file];
        arguments.extend(server_side.then_some("--server-side"));
        let (said, errors, done) = cloud.server.kubectl(&arguments);
        assert!(done, "{said}{errors}");
    };
    let api = cloud.api::<Stack>();
    let names = |stack: &Stack| -> Vec<String> {
        let outputs = stack.status.clone().unwrap_or_default().outputs;
        outputs.into_iter().map(|output| output.name).collect()
    };
    for server_side in [false, true] {
        apply(
            "{x: {value: 1}, y: {value: {get_attr: [v, value]}}}",
            server_side,
        );
        until(&api, "o1", "has both outputs", |stack| {
            names(stack) == ["x", "y"]
        })
        .await;
        apply("{x: {value: 1}}", server_side);
        until(&api, "o1", "has one output", |stack| names(stack) == ["x"]).await;
        apply("{}", server_side);
        until(&api, "o1", "has no output", |stack| names(stack).is_empty()).await;
    }
    cloud.delete("o1").await;
}
