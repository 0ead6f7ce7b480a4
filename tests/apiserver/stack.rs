//! Stacks on a real API server: created, updated, refused, deleted.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use pileus_api::names::{MANAGER_FINALIZER, STACK_UID_LABEL};
use pileus_api::{Network, Server, Stack};
use pileus_tests::apiserver::{create, until};
use pileus_tests::stacks::{Cloud, is_observed, object_name, output, ready, resources};
use serde_json::{Value, json};

const WEB: &str = r#"
heat_template_version: 2021-04-16
parameters:
  flavor: {type: string, default: small}
  password: {type: string, hidden: true, default: hunter2-and-more}
resources:
  network: {type: OS::Neutron::Net, properties: {name: private}}
  subnet:
    type: OS::Neutron::Subnet
    properties: {network: {get_resource: network}, cidr: 10.20.0.0/24}
  group:
    type: OS::Neutron::SecurityGroup
    properties: {rules: [{protocol: tcp, port_range_min: 22, port_range_max: 22}]}
  port:
    type: OS::Neutron::Port
    properties:
      network: {get_resource: network}
      fixed_ips: [{subnet: {get_resource: subnet}}]
      security_groups: [{get_resource: group}]
  key:
    type: OS::Nova::KeyPair
    properties: {name: web-key, public_key: ssh-ed25519 AAAA alice}
  word: {type: OS::Heat::RandomString, properties: {length: 12}}
  wait: {type: OS::Heat::Delay, properties: {min_wait: 0.2}}
  server:
    type: OS::Nova::Server
    depends_on: wait
    properties:
      image: tiny
      flavor: {get_param: flavor}
      key_name: {get_resource: key}
      networks: [{port: {get_resource: port}}]
      user_data_format: RAW
      user_data:
        str_replace:
          template: "echo $password"
          params: {$password: {get_param: password}}
outputs:
  address: {value: {get_attr: [server, first_address]}}
  mac: {value: {get_attr: [port, mac_address]}}
  word: {value: {get_attr: [word, value]}}
  secret: {value: {str_replace: {template: "p=$p", params: {$p: {get_param: password}}}}}
  digest: {value: {digest: [md5, {get_param: password}]}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_is_created_updated_and_deleted_completely() {
    let cloud = Cloud::start().await;
    cloud.stack("web", json!({"template": WEB})).await;
    let made = cloud.becomes("web", "CREATE_COMPLETE").await;
    assert_eq!(made.finalizers(), [MANAGER_FINALIZER]);
    assert_eq!(ready(&made).0, "True", "{made:#?}");
    assert_eq!(output(&made, "address"), Some(json!("10.20.0.9")));
    assert_eq!(output(&made, "mac"), Some(json!("52:54:00:00:00:01")));
    let word = output(&made, "word").unwrap();
    assert_eq!(word.as_str().map(str::len), Some(12));
    // Values of hidden parameters are nowhere in the Stack.
    assert_eq!(output(&made, "secret"), Some(json!("******")));
    assert_eq!(output(&made, "digest"), Some(json!("******")));
    let status = serde_json::to_string(&made.status).unwrap();
    assert!(!status.contains("hunter2"), "{status}");
    // The status of a complete Stack is not written: that would reconcile it endlessly.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let at_rest = cloud.api::<Stack>().get("web").await.unwrap();
    assert_eq!(at_rest.resource_version(), made.resource_version());
    let first = resources(&made);
    assert_eq!(first.len(), 8, "{first:#?}");
    let server = cloud
        .api::<Server>()
        .get(&object_name(&first["server"]))
        .await
        .unwrap();
    assert_eq!(server.uid(), first["server"].physical_id);
    assert_eq!(server.owner_references()[0].uid, made.uid().unwrap());
    assert_eq!(server.spec.key_pairs, ["web-key"]);
    let data = server.spec.user_data_from.clone().unwrap();
    let secret = cloud.api::<Secret>().get(&data.name).await.unwrap();
    assert_eq!(secret.data.unwrap()["userData"].0, b"echo hunter2-and-more");

    // Another flavor: the Port cannot have two Servers, so the old one is deleted first.
    cloud
        .change("web", json!({"parameters": {"flavor": "large"}}))
        .await;
    let updated = cloud.becomes("web", "UPDATE_COMPLETE").await;
    let second = resources(&updated);
    assert_ne!(second["server"].physical_id, first["server"].physical_id);
    for kept in ["network", "subnet", "port", "group", "key"] {
        assert_eq!(second[kept].physical_id, first[kept].physical_id, "{kept}");
    }
    assert_eq!(cloud.count::<Server>().await, 1);
    assert_eq!(output(&updated, "word"), Some(word));
    cloud.delete("web").await;
}

/// Tenants can write the Secret with the record, but must not get the manager's rights by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_gives_no_access_outside_of_the_stack() {
    let cloud = Cloud::start().await;
    let template =
        "{heat_template_version: 2021-04-16, resources: {word: {type: OS::Heat::RandomString}}}";
    let stack = cloud.stack("forged", json!({"template": template})).await;
    cloud.becomes("forged", "CREATE_COMPLETE").await;

    let uid = stack.uid().unwrap();
    let elsewhere: Api<Secret> = Api::namespaced(cloud.server.client(), "default");
    let labels = json!({STACK_UID_LABEL: uid});
    create(
        &elsewhere,
        json!({"metadata": {"name": "victim", "labels": labels}}),
    )
    .await;
    let own: Api<Secret> = cloud.api();
    let mut record = own.get(&format!("stack-{uid}")).await.unwrap();
    let bytes = &mut record.data.as_mut().unwrap().get_mut("record").unwrap().0;
    let mut ledger: Value = serde_json::from_slice(bytes).unwrap();
    let mut entry = ledger["entries"]["word#1"].clone();
    entry["objects"] = json!([
        {"api_version": "v1", "kind": "Secret", "namespace": "default", "name": "victim"}]);
    ledger["entries"]["other#1"] = entry;
    *bytes = serde_json::to_vec(&ledger).unwrap();
    own.replace(&record.name_any(), &PostParams::default(), &record)
        .await
        .unwrap();

    cloud.delete("forged").await;
    let victim = elsewhere.get("victim").await.unwrap();
    assert!(victim.metadata.deletion_timestamp.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_templates_are_reported_before_anything_is_created() {
    let cloud = Cloud::start().await;
    let template = "heat_template_version: newton\nresources:\n  net: {type: OS::Neutron::Net}\n  router: {type: OS::Neutron::Router}\n";
    cloud.stack("refused", json!({"template": template})).await;
    let api = cloud.api::<Stack>();
    let told = |stack: &Stack, part: &str| is_observed(stack) && ready(stack).2.contains(part);
    until(&api, "refused", "names the type", |s| {
        told(s, "OS::Neutron::Router")
    })
    .await;
    assert_eq!(cloud.count::<Network>().await, 0);

    let template = "heat_template_version: newton\nresources:\n  net: {type: OS::Neutron::Net, properties: {qos_policy: gold}}\n";
    cloud.change("refused", json!({"template": template})).await;
    until(&api, "refused", "names the property", |s| {
        told(s, "qos_policy")
    })
    .await;
    let template = "heat_template_version: newton\nresources:\n  f: {type: OS::Nova::Flavor, properties: {ram: 64, vcpus: 1}}\n";
    cloud.change("refused", json!({"template": template})).await;
    until(&api, "refused", "asks for an account", |s| {
        told(s, "serviceAccountName")
    })
    .await;

    // A missing source is read again.
    cloud
        .change(
            "refused",
            json!({"template": null, "templateFrom": {"name": "t", "key": "t.yaml"}}),
        )
        .await;
    until(&api, "refused", "names the ConfigMap", |s| told(s, "`t`")).await;
    let template = "heat_template_version: newton\nresources: {net: {type: OS::Neutron::Net}}\n";
    create(
        &cloud.api::<ConfigMap>(),
        json!({"metadata": {"name": "t"}, "data": {"t.yaml": template}}),
    )
    .await;
    cloud.change("refused", json!({"tags": ["again"]})).await;
    cloud.becomes("refused", "CREATE_COMPLETE").await;
    cloud.delete("refused").await;
}
