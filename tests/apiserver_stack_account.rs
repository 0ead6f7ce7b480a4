//! What Stacks make with the rights of a service account, on a real API server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

mod support {
    pub mod apiserver;
    pub mod counting;
    pub mod stacks;
}

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::ResourceExt;
use serde_json::json;
use support::apiserver::{create, until};
use support::stacks::{Cloud, output, resources};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_pileus_is_made_with_the_accounts_rights_only() {
    let cloud = Cloud::start().await;
    let account = json!({"metadata": {"name": "maker"}});
    create(&cloud.api::<ServiceAccount>(), account).await;
    let template = "heat_template_version: newton
resources:
  settings:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {a: b}}
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

    // A change in place, and one of the name, which is another object.
    cloud
        .change(
            "objects",
            json!({"template": template.replace("a: b", "a: c")}),
        )
        .await;
    until(&maps, "settings", "is changed", |map: &ConfigMap| {
        map.data.as_ref().is_some_and(|data| data["a"] == "c")
    })
    .await;
    cloud.becomes("objects", "UPDATE_COMPLETE").await;
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
