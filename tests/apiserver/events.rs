//! Events reach a real API server whatever the object is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at its first surprise"
)]

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use pileus_api::{Flavor, FlavorSpec, Reason, Server, ServerSpec};
use pileus_kube_ext::{Context, Metrics};
use pileus_tests::apiserver::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_objects_without_namespace_and_with_the_longest_names() {
    let server = TestServer::start().await;
    let context = Context::with_client(server.client(), "pileus-manager", Metrics::default())
        .await
        .unwrap();
    let flavor = Flavor::new("m1.small", FlavorSpec::default());
    let long = |letter: &str, length: usize| {
        let mut server = Server::new(&letter.repeat(length), ServerSpec::default());
        server.metadata.namespace = Some("default".into());
        server
    };
    let servers = [
        long("a", 235),
        long("b", 236),
        long("c", 237),
        long("d", 253),
    ];
    for round in 0..2 {
        let note = format!("in use, round {round}");
        context
            .events
            .warning(&flavor, Reason::InUse, "Delete", note.as_str());
        for server in &servers {
            context
                .events
                .normal(server, Reason::Scheduled, "Schedule", note.as_str());
        }
    }
    let mut wanted = vec![("Warning", "Flavor", "m1.small".to_owned())];
    wanted.extend(servers.iter().map(|server| {
        let name = server.metadata.name.clone().unwrap();
        ("Normal", "Server", name)
    }));
    let events: Api<Event> = Api::namespaced(server.client(), "default");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let listed = events.list(&ListParams::default()).await.unwrap();
        let is_told = |(kind_of, kind, name): &(&str, &str, String)| {
            listed.iter().any(|event| {
                let regarding = event.regarding.clone().unwrap_or_default();
                event.type_.as_deref() == Some(kind_of)
                    && regarding.kind.as_deref() == Some(kind)
                    && regarding.name.as_ref() == Some(name)
                    && event
                        .note
                        .as_deref()
                        .is_some_and(|n| n.starts_with("in use"))
            })
        };
        let missing: Vec<_> = wanted.iter().filter(|w| !is_told(w)).collect();
        if missing.is_empty() {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "no event of {missing:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
