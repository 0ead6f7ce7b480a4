//! What becomes of Instances that hosts refused.

use serde_json::json;

use super::super::plan::refused::withdrawn;
use super::super::plan::{Observed, Step, plan};
use super::{observed, placed, server};
use pileus_api::Instance;

#[test]
fn what_a_host_refused_is_ordered_away_and_only_as_it_was_seen() {
    let mut server = placed(server());
    let made = server.metadata.uid.clone().unwrap();
    let refusals = json!([{"name": "h1", "epoch": 1}, {"name": "h2", "epoch": 2}]);
    let placement = json!({"host": "h2", "epoch": 2,
        "claim": {"vcpus": 1, "memoryMiB": 1, "diskGiB": 1}});
    let status = json!({"placement": placement, "refusals": refusals});
    server.status = serde_json::from_value(status).unwrap();
    let host = ("pileus-host-h1".to_owned(), format!("{made}-1"));
    assert_eq!(withdrawn(&server), [host]);

    let ready = |reason: &str| {
        json!([{"type": "Ready", "status": "False", "reason": reason, "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    };
    let instance = |status: serde_json::Value| -> Instance {
        serde_json::from_value(json!({
            "apiVersion": "pileus.dev/v1alpha1", "kind": "Instance",
            "metadata": {"name": format!("{made}-1"), "namespace": "pileus-host-h1",
                "uid": "i", "resourceVersion": "7"},
            "spec": {"server": {"namespace": "ns", "name": "s", "uid": made}, "host": "h1",
                "epoch": 1, "instanceID": "x",
                "claim": {"vcpus": 1, "memoryMiB": 1, "diskGiB": 1},
                "image": {"name": "i", "uid": "i", "diskFormat": "raw",
                    "disk": {"url": "https://x"}}},
            "status": status,
        }))
        .unwrap()
    };
    let steps = |instance: &Instance| {
        let observed = Observed {
            withdrawn: vec![instance.clone()],
            ..observed()
        };
        let gone = |step: &Step| {
            matches!(step, Step::UpdateInstance(_) | Step::DeleteInstance { .. })
                || matches!(step, Step::DeleteGuestData { namespace, .. } if namespace == "pileus-host-h1")
        };
        let steps = plan(&server, &observed).steps;
        steps.into_iter().filter(gone).collect::<Vec<_>>()
    };
    let mut refused = instance(json!({"conditions": ready("HostRefused")}));
    let first = steps(&refused);
    let [Step::UpdateInstance(ordered)] = &first[..] else {
        panic!("{first:?}");
    };
    assert_eq!(ordered.metadata.resource_version.as_deref(), Some("7"));
    refused.spec = ordered.spec.clone();
    let then = steps(&refused);
    assert!(
        matches!(&then[..], [Step::DeleteInstance { version: Some(v), .. }, Step::DeleteGuestData { .. }] if v == "7"),
        "{then:?}"
    );
    let taken_on = json!({"realized": true, "conditions": ready("HostRefused")});
    for other in [
        taken_on,
        json!({"conditions": ready("Building")}),
        json!({}),
    ] {
        assert!(steps(&instance(other)).is_empty());
    }
}
