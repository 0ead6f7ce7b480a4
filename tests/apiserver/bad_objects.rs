//! Objects that this version cannot decode stop nobody, and are reported.

use std::time::{Duration, Instant};

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use pileus_api::KeyPair;
use pileus_kube_ext::connection::Deadlines;
use pileus_kube_ext::{Context, Metrics, Readiness};
use pileus_manager::Config;
use pileus_tests::apiserver::{TestServer, create, until};
use pileus_tests::servers::KEY;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Has the API server take anything as a public key, as the definition of another version might.
async fn loosen(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = api.get("keypairs.pileus.dev").await.unwrap();
    let mut versions = serde_json::to_value(definition.spec.versions).unwrap();
    versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let patch = Patch::Merge(json!({"spec": {"versions": versions}}));
    let params = PatchParams::default();
    api.patch("keypairs.pileus.dev", &params, &patch)
        .await
        .unwrap();
}

/// A value that is nested so deep.
fn nested(depth: usize) -> Value {
    (0..depth).fold(json!("end"), |inner, _| json!({"a": inner}))
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_cannot_be_decoded_stop_nobody_and_are_told() {
    let server = TestServer::start().await;
    server.namespace("demo").await;
    let client = server.client();
    loosen(&client).await;
    let kind = ApiResource::erase::<KeyPair>(&());
    let any: Api<DynamicObject> = Api::namespaced_with(client.clone(), "demo", &kind);
    let pair = |name: &str, key: &Value| {
        let mut object = DynamicObject::new(name, &kind);
        object.data = json!({"spec": {"publicKey": key}});
        object
    };
    let params = PostParams::default();
    let start = Instant::now();
    for (name, key) in [("number", json!(3_000_000_000_u64)), ("deep", nested(90))] {
        // The definition takes a moment to be in force.
        while let Err(error) = any.create(&params, &pair(name, &key)).await {
            assert!(start.elapsed() < Duration::from_secs(30), "{error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    // Too deep for any client that decodes the list as a whole, and so is what the API server
    // notes about its fields.
    let text = serde_json::to_vec(&pair("bottomless", &json!("KEY"))).unwrap();
    let text = String::from_utf8(text).unwrap();
    let deep = format!("{}1{}", r#"{"a":"#.repeat(500), "}".repeat(500));
    let request = kube::core::Request::new(any.resource_url().to_owned());
    let request = request.create(&params, text.replace(r#""KEY""#, &deep).into_bytes());
    client.request_text(request.unwrap()).await.unwrap();
    let pairs: Api<KeyPair> = Api::namespaced(client.clone(), "demo");
    assert!(pairs.list(&ListParams::default()).await.is_err());

    let (metrics, ready) = (Metrics::default(), Readiness::default());
    let context = Context::with(
        server.client(),
        "pileus-manager",
        metrics.clone(),
        ready.clone(),
        Deadlines::default(),
    )
    .await
    .unwrap();
    let config = Config {
        ovn_nb: "unix:/nonexistent/ovnnb_db.sock".into(),
        ovn_tls: None,
        underlay_mtu: 1500,
        underlay_ipv6: false,
        identity: "test".into(),
    };
    let stop = CancellationToken::new();
    let running = pileus_manager::run(config, context, ready.clone(), stop.clone());
    let running = tokio::spawn(running);

    let good = json!({"metadata": {"name": "good"}, "spec": {"publicKey": KEY}});
    create(&Api::<KeyPair>::namespaced(client.clone(), "demo"), good).await;
    let told = |pair: &KeyPair| pair.status.is_some();
    // Decoded one by one here too.
    wait_for_status(&any, "good").await;
    assert!(ready.get(), "{}", ready.report().1);
    let text = metrics.encode();
    assert!(
        text.contains(r#"pileus_unreadable_objects{kind="KeyPair"} 3"#),
        "{text}"
    );
    for (name, problem) in [
        (
            "number",
            "spec.publicKey cannot be read: invalid type: integer",
        ),
        ("deep", "spec.publicKey cannot be read: invalid type: map"),
        ("bottomless", "cannot be read"),
    ] {
        event(&client, name, problem).await;
    }

    // What is corrected is taken up, and what becomes bad is kept as it was.
    let patch = |key: Value| Patch::Merge(json!({"spec": {"publicKey": key}}));
    let params = PatchParams::default();
    any.patch("number", &params, &patch(json!(KEY)))
        .await
        .unwrap();
    until(&pairs, "number", "is taken up", told).await;
    any.patch("good", &params, &patch(json!(7))).await.unwrap();
    event(&client, "good", "invalid type: integer").await;
    assert!(
        metrics
            .encode()
            .contains(r#"pileus_unreadable_objects{kind="KeyPair"} 3"#)
    );
    stop.cancel();
    running.await.unwrap().unwrap();
}

async fn wait_for_status(api: &Api<DynamicObject>, name: &str) {
    let start = Instant::now();
    loop {
        let object = api.get(name).await.unwrap();
        if object
            .data
            .get("status")
            .is_some_and(|s| s.get("fingerprint").is_some())
        {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{object:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn event(client: &Client, name: &str, problem: &str) {
    let api: Api<Event> = Api::namespaced(client.clone(), "demo");
    let start = Instant::now();
    loop {
        let events = api.list(&ListParams::default()).await.unwrap();
        let is_told = |event: &Event| {
            event.reason.as_deref() == Some("CannotBeRead")
                && event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name)
                && event
                    .note
                    .as_deref()
                    .is_some_and(|note| note.contains(problem))
        };
        if events.iter().any(is_told) {
            return;
        }
        let notes: Vec<_> = events.iter().map(|e| &e.note).collect();
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{name}: {notes:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
