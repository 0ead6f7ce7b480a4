//! Sources of Stacks in ConfigMaps and Secrets of a real API server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams};
use pileus_api::{Network, Stack};
use pileus_tests::apiserver::{create, until};
use pileus_tests::stacks::{Cloud, is_observed, output, ready, resources};
use serde_json::{Value, json};

const TEMPLATE: &str = "heat_template_version: 2021-04-16
parameters: {word: {type: string}, secret: {type: string, default: none}}
resources:
  net: {type: OS::Neutron::Net}
  word: {type: OS::Heat::Value, properties: {value: {get_param: word}}}
  secret: {type: OS::Heat::Value, properties: {value: {get_param: secret}}}
outputs:
  word: {value: {get_attr: [word, value]}}
  secret: {value: {get_attr: [secret, value]}}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_source_is_applied_and_a_deleted_one_changes_nothing() {
    let cloud = Cloud::start().await;
    let (maps, secrets) = (cloud.api::<ConfigMap>(), cloud.api::<Secret>());
    let spec = json!({
        "templateFrom": {"name": "template", "key": "t.yaml"},
        "environments": [{"name": "e", "from": {"name": "environment", "key": "e.yaml"}}],
        "parametersFrom": [{"name": "passwords", "kind": "Secret"}],
    });
    // Applied in any order: the Stack waits for missing sources.
    cloud.stack("from", spec).await;
    let api = cloud.api::<Stack>();
    until(&api, "from", "says what is missing", |stack: &Stack| {
        is_observed(stack) && ready(stack).2.contains("`template`")
    })
    .await;
    let map = |name: &str, key: &str, text: &str| json!({"metadata": {"name": name}, "data": {key: text}});
    create(&maps, map("template", "t.yaml", TEMPLATE)).await;
    create(
        &maps,
        map("environment", "e.yaml", "parameters: {word: one}"),
    )
    .await;
    let secret = json!({"metadata": {"name": "passwords"}, "stringData": {"secret": "s3cret-one"}});
    create(&secrets, secret).await;
    let made = cloud.becomes("from", "CREATE_COMPLETE").await;
    assert_eq!(output(&made, "word"), Some(json!("one")));
    assert_eq!(output(&made, "secret"), Some(json!("******")));
    let net = resources(&made)["net"].physical_id.clone();

    let change = async |value: Value, is_secret: bool, name: &str| {
        let (params, patch) = (PatchParams::default(), Patch::Merge(value));
        if is_secret {
            drop(secrets.patch(name, &params, &patch).await.unwrap());
        } else {
            drop(maps.patch(name, &params, &patch).await.unwrap());
        }
    };
    let text = json!({"data": {"e.yaml": "parameters: {word: two}"}});
    change(text, false, "environment").await;
    until(&api, "from", "takes the environment up", |stack: &Stack| {
        output(stack, "word") == Some(json!("two"))
    })
    .await;
    let before = cloud.becomes("from", "UPDATE_COMPLETE").await;
    change(
        json!({"stringData": {"secret": "s3cret-two"}}),
        true,
        "passwords",
    )
    .await;
    until(&api, "from", "takes the Secret up", |stack: &Stack| {
        let status = stack.status.as_ref().unwrap();
        status.last_good != before.status.as_ref().unwrap().last_good
    })
    .await;

    // A deleted source is reported; existing objects stay.
    maps.delete("environment", &DeleteParams::default())
        .await
        .unwrap();
    let told = until(&api, "from", "says what is gone", |stack: &Stack| {
        ready(stack).1 == "SourceNotFound"
    })
    .await;
    assert!(ready(&told).2.contains("`environment`"), "{told:#?}");
    assert_eq!(resources(&told)["net"].physical_id, net);
    assert_eq!(output(&told, "word"), Some(json!("two")));
    assert_eq!(cloud.count::<Network>().await, 1);
    let text = "parameters: {word: three}";
    create(&maps, map("environment", "e.yaml", text)).await;
    let back = until(&api, "from", "goes on", |stack: &Stack| {
        output(stack, "word") == Some(json!("three")) && ready(stack).0 == "True"
    })
    .await;
    assert_eq!(resources(&back)["net"].physical_id, net);
    let shown = serde_json::to_string(&back).unwrap();
    assert!(!shown.contains("s3cret"), "{shown}");
    cloud.delete("from").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_read_with_the_accounts_rights_and_never_shown() {
    let cloud = Cloud::start().await;
    let (api, secrets) = (cloud.api::<Stack>(), cloud.api::<Secret>());
    let files = json!({"metadata": {"name": "files"}, "stringData": {"key": "s3cret words"}});
    create(&secrets, files).await;
    let template = "heat_template_version: 2021-04-16
resources:
  none: {type: OS::Heat::None}
outputs:
  whole: {value: {get_file: key}}
  part: {value: {yaql: {expression: '$.data.substring(0, 6)', data: {get_file: key}}}}
";
    // Without an account the manager reads it.
    let spec = json!({"template": template, "filesFrom": [{"name": "files", "kind": "Secret"}]});
    cloud.stack("plain", spec.clone()).await;
    let made = cloud.becomes("plain", "CREATE_COMPLETE").await;
    assert_eq!(output(&made, "whole"), Some(json!("******")));
    assert_eq!(output(&made, "part"), Some(json!("******")));

    // Without the right to read it nothing is created.
    let account = json!({"metadata": {"name": "reader"}});
    create(&cloud.api::<ServiceAccount>(), account).await;
    let mut with_account = spec;
    with_account["serviceAccountName"] = json!("reader");
    cloud.stack("theirs", with_account).await;
    let denied = until(&api, "theirs", "is denied the Secret", |stack: &Stack| {
        is_observed(stack) && ready(stack).1 == "AccountDenied"
    })
    .await;
    let why = ready(&denied).2;
    assert!(why.contains("`reader`"), "{why}");
    cloud.allow("reader", "", &["secrets"]).await;
    cloud.becomes("theirs", "CREATE_COMPLETE").await;

    // Secrets of Stacks are not allowed as sources.
    let record = made.status.as_ref().unwrap().record.clone().unwrap();
    let thief = json!({"template": template.replace("key", "record"),
        "filesFrom": [{"name": record, "kind": "Secret"}]});
    cloud.stack("thief", thief).await;
    let refused = until(&api, "thief", "is refused", |stack: &Stack| {
        is_observed(stack) && ready(stack).1 == "InvalidSpec"
    })
    .await;
    let why = ready(&refused).2;
    assert!(why.contains("belongs to a Stack"), "{why}");
    for name in ["plain", "theirs", "thief"] {
        let stack = api.get(name).await.unwrap();
        let shown = serde_json::to_string(&stack.status).unwrap();
        assert!(!shown.contains("s3cret"), "{shown}");
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
    for name in ["plain", "theirs", "thief"] {
        while api.get_opt(name).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
