//! The scheduler on a real API server.

mod support;

use kube::Api;
use pileus::api::Server;
use support::apiserver::TestServer;

#[tokio::test]
async fn our_kinds_are_served() {
    let server = TestServer::start().await;
    server.namespace("demo").await;
    let servers: Api<Server> = Api::namespaced(server.client(), "demo");
    assert!(
        servers
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}
