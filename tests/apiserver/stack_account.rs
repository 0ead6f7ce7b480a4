//! Objects that Stacks make with the rights of a service account, on a real API server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use pileus_api::Stack;
use pileus_tests::apiserver::{create, until};
use pileus_tests::stacks::{Cloud, output, resources, stack_status_of};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn other_kinds_are_created_only_with_the_accounts_rights() {
    let cloud = Cloud::start().await;
    let account = json!({"metadata": {"name": "maker"}});
    create(&cloud.api::<ServiceAccount>(), account).await;
    let template = "heat_template_version: newton
resources:
  settings:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {a: b, gone: x}}
outputs:
  kind: {value: {get_attr: [settings, object, data, a]}}
";
    let spec = json!({"template": template, "serviceAccountName": "maker"});
    cloud.stack("objects", spec).await;
    let failed = cloud.becomes("objects", "CREATE_FAILED").await;
    let why = &resources(&failed)["settings"].reason.clone().unwrap();
    assert!(why.contains("system:serviceaccount:demo:maker"), "{why}");

    cloud.allow("maker", "", &["configmaps"]).await;
    cloud
        .change("objects", json!({"healRequestedAt": "1"}))
        .await;
    let made = cloud.becomes("objects", "UPDATE_COMPLETE").await;
    assert_eq!(output(&made, "kind"), Some(json!("b")));
    let maps = cloud.api::<ConfigMap>();
    let first = maps.get("settings").await.unwrap();

    // An update in place, and a change of the name, which is another object. Fields that are removed
    // from the manifest are removed, fields of others stay.
    let theirs = json!({"data": {"theirs": "x"}});
    let params = PatchParams::default();
    let patch = Patch::Merge(&theirs);
    maps.patch("settings", &params, &patch).await.unwrap();
    for (data, left) in [
        ("a: c, more: d", vec!["a", "more", "theirs"]),
        ("a: d", vec!["a", "theirs"]),
        ("last: e", vec!["last", "theirs"]),
    ] {
        let changed = template.replace("a: b, gone: x", data);
        cloud.change("objects", json!({"template": changed})).await;
        until(&maps, "settings", "is changed", |map: &ConfigMap| {
            let data = map.data.clone().unwrap_or_default();
            data.keys().eq(&left)
        })
        .await;
        cloud.becomes("objects", "UPDATE_COMPLETE").await;
    }
    assert_eq!(maps.get("settings").await.unwrap().uid(), first.uid());
    cloud
        .change(
            "objects",
            json!({"template": template.replace("name: settings", "name: other")}),
        )
        .await;
    until(&maps, "other", "is made", |_: &ConfigMap| true).await;
    cloud.becomes("objects", "UPDATE_COMPLETE").await;
    assert!(maps.get_opt("settings").await.unwrap().is_none());
    cloud.delete("objects").await;
    assert!(maps.get_opt("other").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_does_not_exist_fails_and_can_be_corrected_or_deleted() {
    let cloud = Cloud::start().await;
    cloud.account("maker", "", &["configmaps"]).await;
    let template = "heat_template_version: newton
resources:
  settings:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: v1, kind: ConfigMapp, metadata: {name: typed}, data: {a: b}}
";
    let spec = json!({"template": template, "serviceAccountName": "maker"});
    cloud.stack("typo", spec.clone()).await;
    let failed = cloud.becomes("typo", "CREATE_FAILED").await;
    let why = &resources(&failed)["settings"].reason.clone().unwrap();
    assert!(why.contains("no kind ConfigMapp in v1"), "{why}");
    let right = template.replace("ConfigMapp", "ConfigMap");
    cloud.change("typo", json!({"template": right})).await;
    cloud.becomes("typo", "UPDATE_COMPLETE").await;
    let maps = cloud.api::<ConfigMap>();
    assert!(maps.get_opt("typed").await.unwrap().is_some());
    cloud.delete("typo").await;
    assert!(maps.get_opt("typed").await.unwrap().is_none());

    cloud.stack("wrong", spec).await;
    cloud.becomes("wrong", "CREATE_FAILED").await;
    cloud.delete("wrong").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_outlives_the_kind_of_what_it_made() {
    let cloud = Cloud::start().await;
    cloud.account("maker", "example.org", &["widgets"]).await;
    let definition = json!({"metadata": {"name": "widgets.example.org"}, "spec": {
        "group": "example.org", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object",
                "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let definitions: Api<CustomResourceDefinition> = Api::all(cloud.server.client());
    create(&definitions, definition).await;
    let template = "heat_template_version: newton
resources:
  widget:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: example.org/v1, kind: Widget, spec: {a: b}}
";
    let spec = json!({"template": template, "serviceAccountName": "maker"});
    cloud.stack("widgets", spec).await;
    cloud.becomes("widgets", "CREATE_COMPLETE").await;
    let params = DeleteParams::default();
    definitions
        .delete("widgets.example.org", &params)
        .await
        .unwrap();
    let told = cloud.api::<Stack>();
    cloud
        .change("widgets", json!({"checkRequestedAt": "1"}))
        .await;
    until(&told, "widgets", "says that it is gone", |stack: &Stack| {
        let status = stack.status.as_ref().unwrap();
        status.stack_status.as_deref() == Some("CHECK_FAILED")
    })
    .await;
    cloud.delete("widgets").await;
}

const SETTINGS: &str = "heat_template_version: newton
resources:
  settings:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {a: b}}
outputs:
  a: {value: {get_attr: [settings, object, data, a]}}
";

#[tokio::test(flavor = "multi_thread")]
async fn temporary_errors_are_reported_and_retried() {
    let cloud = Cloud::start().await;
    cloud.account("maker", "", &["configmaps"]).await;
    let webhook = json!({"metadata": {"name": "down"}, "webhooks": [{
        "name": "down.example.org", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 1, "clientConfig": {"url": "https://127.0.0.1:1/"},
        "namespaceSelector": {},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
            "operations": ["CREATE"]}]}]});
    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(cloud.server.client());
    create(&webhooks, webhook).await;
    // The API server needs a moment to apply it.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let spec = json!({"template": SETTINGS, "serviceAccountName": "maker"});
    cloud.stack("waits", spec).await;
    let api = cloud.api::<Stack>();
    let why = |stack: &Stack| {
        let row = resources(stack).remove("settings");
        row.and_then(|row| row.reason).unwrap_or_default()
    };
    let told = until(&api, "waits", "says what is wrong", |stack: &Stack| {
        why(stack).contains("down.example.org")
    })
    .await;
    assert_eq!(resources(&told)["settings"].status, "CREATE_IN_PROGRESS");
    let params = DeleteParams::default();
    webhooks.delete("down", &params).await.unwrap();
    let made = cloud.becomes("waits", "CREATE_COMPLETE").await;
    assert_eq!(why(&made), "");
    cloud.delete("waits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_with_a_foreign_finalizer_reports_it() {
    let cloud = Cloud::start().await;
    cloud.account("maker", "", &["configmaps"]).await;
    let spec = json!({"template": SETTINGS, "serviceAccountName": "maker"});
    cloud.stack("held", spec).await;
    cloud.becomes("held", "CREATE_COMPLETE").await;
    // The last output is removed, and added again.
    let without = SETTINGS.split("outputs:").next().unwrap();
    cloud.change("held", json!({"template": without})).await;
    let done = cloud.becomes("held", "UPDATE_COMPLETE").await;
    assert_eq!(output(&done, "a"), None);
    cloud.change("held", json!({"template": SETTINGS})).await;
    let maps = cloud.api::<ConfigMap>();
    let hold = |finalizers: serde_json::Value| {
        Patch::Merge(json!({"metadata": {"finalizers": finalizers}}))
    };
    let params = PatchParams::default();
    let by_another = hold(json!(["example.org/hold"]));
    maps.patch("settings", &params, &by_another).await.unwrap();
    let api = cloud.api::<Stack>();
    until(&api, "held", "has its output", |stack: &Stack| {
        output(stack, "a") == Some(json!("b"))
    })
    .await;
    api.delete("held", &DeleteParams::default()).await.unwrap();
    until(&api, "held", "says who holds it", |stack: &Stack| {
        let row = resources(stack).remove("settings");
        row.is_some_and(|row| {
            row.reason
                .is_some_and(|why| why.contains("example.org/hold"))
        }) && stack_status_of(stack) == "DELETE_IN_PROGRESS"
    })
    .await;
    let free = hold(json!(null));
    maps.patch("settings", &params, &free).await.unwrap();
    cloud.wait_until_deleted("held").await;
}
