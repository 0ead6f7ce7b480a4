//! A Server that was placed where there is no room any more, as by another scheduler that did
//! not know: its host turns it away, and it runs elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use kube::api::{Api, DeleteParams, Patch, PatchParams};
use pileus_api::Flavor;
use pileus_tests::lab::{Lab, Project, eventually};
use serde_json::json;

/// A guest boots in 3 to 5 s alone; others may use the machine as well.
const BOOT: Duration = Duration::from_secs(90);

const SERVER: &str = r"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: lan}
spec: {network: lan, cidr: 10.22.0.0/24}
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {name: moved}
spec:
  flavor: e2e-later
  image: {name: tiny, namespace: default}
  networks: [{name: eth0, network: {name: lan}}]
";

/// Comes after the Server, so that no scheduler decides before the test has.
const FLAVOR: &str = r"
apiVersion: pileus.dev/v1alpha1
kind: Flavor
metadata: {name: e2e-later}
spec: {vcpus: 1, memory: 128Mi, disk: 1Gi}
";

/// Also what an earlier, killed run left.
async fn no_flavor(lab: &Lab) {
    let flavors: Api<Flavor> = Api::all(lab.client.clone());
    let _ = flavors.delete("e2e-later", &DeleteParams::default()).await;
    eventually("its flavor is gone", BOOT, async || {
        match flavors.get_opt("e2e-later").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn scenario(project: &Project) {
    project.apply(SERVER);
    project.reason("moved", "FlavorNotFound", BOOT).await;
    // More than the host has: so little is known of it where this was decided.
    let claim = json!({"vcpus": 1, "memoryMiB": 1 << 20, "diskGiB": 1});
    let placement = json!({"host": "host1", "epoch": 1, "claim": claim});
    let patch = Patch::Merge(json!({"status": {"placement": placement}}));
    let servers = project.servers();
    let params = PatchParams::default();
    servers
        .patch_status("moved", &params, &patch)
        .await
        .unwrap();
    project.apply(FLAVOR);
    let server = project.phase("moved", "Active", BOOT).await;
    let status = server.status.unwrap();
    let placement = status.placement.unwrap();
    assert_eq!((placement.host.as_str(), placement.epoch), ("host2", 2));
    assert_eq!(status.refusals.len(), 1, "{:?}", status.refusals);
    let refusal = &status.refusals[0];
    assert_eq!((refusal.name.as_str(), refusal.epoch), ("host1", 1));
    assert!(refusal.message.contains("MiB of memory"), "{refusal:?}");
    project
        .console("moved")
        .await
        .says("PILEUS-GUEST: ready", BOOT)
        .await;
}

#[tokio::test]
async fn a_server_that_its_host_has_no_room_for_runs_elsewhere_and_remembers_who_refused() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-refusal").await;
    no_flavor(&lab).await;
    scenario(&project).await;
    project.leaves_nothing().await;
    no_flavor(&lab).await;
}
