//! The number of requests of a big Stack.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use std::fmt::Write as _;

use pileus_api::Stack;
use pileus_tests::apiserver::until;
use pileus_tests::stacks::{Cloud, resources};
use serde_json::json;

/// Objects of each of the two kinds.
const EACH: usize = 60;

fn template() -> String {
    let mut text = String::from(
        "heat_template_version: rocky\nparameters: {word: {type: string, default: one}}\nresources:\n",
    );
    for at in 0..EACH {
        let _ = writeln!(
            text,
            "  key{at}: {{type: 'OS::Nova::KeyPair', properties: {{name: key-{at}, public_key: ssh-rsa AAAA}}}}
  map{at}: {{type: 'Kubernetes::Object', properties: {{manifest: {{apiVersion: v1, kind: ConfigMap, metadata: {{name: map-{at}}}, data: {{word: {{get_param: word}}, key: {{get_resource: key{at}}}}}}}}}}}"
        );
    }
    text
}

/// Requests are counted: a status that is written for every resource, or objects that are read
/// repeatedly, would be several times as many.
#[tokio::test(flavor = "multi_thread")]
async fn a_big_stack_needs_few_requests() {
    let cloud = Cloud::start().await;
    cloud.account("maker", "", &["configmaps"]).await;
    cloud.counter.take();
    let spec = json!({"template": template(), "serviceAccountName": "maker"});
    cloud.stack("big", spec).await;
    let made = cloud.becomes("big", "CREATE_COMPLETE").await;
    assert_eq!(resources(&made).len(), 2 * EACH);
    let asked = cloud.counter.take();
    let times = |what: &str| asked.get(what).copied().unwrap_or_default();
    assert_eq!(times("POST keypairs"), EACH, "{asked:#?}");
    assert_eq!(times("POST configmaps"), EACH, "{asked:#?}");
    // The answer to the create request is enough, unless a pass was interrupted.
    assert!(times("GET configmaps") < EACH / 2, "{asked:#?}");
    assert!(times("PATCH stacks/status") < EACH / 2, "{asked:#?}");
    assert!(times("PUT secrets") < EACH / 2, "{asked:#?}");

    // An update reads each object once, since somebody may have deleted it. Before the first update of
    // an object its managed fields are migrated, by one more request.
    for (word, patches) in [("two", 2), ("three", 1)] {
        let before = cloud.api::<Stack>().get("big").await.unwrap();
        let good = |stack: &Stack| stack.status.clone().unwrap_or_default().last_good;
        cloud
            .change("big", json!({"parameters": {"word": word}}))
            .await;
        until(
            &cloud.api::<Stack>(),
            "big",
            "is changed",
            |stack: &Stack| good(stack) != good(&before),
        )
        .await;
        let asked = cloud.counter.take();
        let times = |what: &str| asked.get(what).copied().unwrap_or_default();
        assert_eq!(times("PATCH configmaps"), patches * EACH, "{asked:#?}");
        assert!(times("GET configmaps") <= 2 * EACH, "{asked:#?}");
    }
    cloud.delete("big").await;
}
