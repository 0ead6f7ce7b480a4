//! Stacks on an API server that fails, for a moment or for long.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use kube::api::DeleteParams;
use pileus_api::Stack;
use pileus_tests::apiserver::until;
use pileus_tests::counting::Trouble;
use pileus_tests::stacks::{Cloud, ready};
use serde_json::json;

const TEMPLATE: &str = "heat_template_version: 2021-04-16
parameters: {count: {type: number, default: 3}, word: {type: string, default: one}}
resources:
  net: {type: OS::Neutron::Net}
  sub: {type: OS::Neutron::Subnet, properties: {network: {get_resource: net}, cidr: 10.20.0.0/24}}
  key: {type: OS::Nova::KeyPair, properties: {name: trouble, public_key: ssh-ed25519 AAAA alice}}
  group:
    type: OS::Heat::ResourceGroup
    properties:
      count: {get_param: count}
      resource_def:
        type: OS::Nova::Server
        properties:
          image: tiny
          flavor: small
          key_name: {get_resource: key}
          user_data: {get_param: word}
          networks: [{network: {get_resource: net}}]
  map:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: v1, kind: ConfigMap, metadata: {name: trouble}, data: {word: {get_param: word}}}
outputs:
  word: {value: {get_attr: [map, object, data, word]}}
";

#[tokio::test(flavor = "multi_thread")]
async fn lasting_errors_are_reported() {
    let cloud = Cloud::start().await;
    cloud.account("maker", "", &["configmaps"]).await;
    let spec = json!({"template": TEMPLATE, "serviceAccountName": "maker"});
    cloud.stack("blind", spec).await;
    cloud.becomes("blind", "CREATE_COMPLETE").await;
    cloud.counter.trouble(Trouble::Of("GET configmaps"));
    let api = cloud.api::<Stack>();
    let params = DeleteParams::default();
    cloud
        .change("blind", json!({"checkRequestedAt": "1"}))
        .await;
    let told = until(&api, "blind", "says what fails", |stack: &Stack| {
        ready(stack).1 == "Retrying"
    })
    .await;
    let (status, _, why) = ready(&told);
    assert_eq!(status, "Unknown");
    assert!(why.contains("read ConfigMap trouble"), "{why}");
    cloud.counter.trouble(Trouble::None);
    cloud.becomes("blind", "CHECK_COMPLETE").await;
    cloud.counter.trouble(Trouble::Of("GET configmaps"));
    api.delete("blind", &params).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    cloud.counter.trouble(Trouble::None);
    cloud.wait_until_deleted("blind").await;
}
