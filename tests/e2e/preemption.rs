//! A full host, and a Server of higher priority: real guests stop and come back with all that
//! is theirs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use futures::FutureExt;
use kube::api::{Api, DeleteParams, ListParams};
use pileus_api::{Host, Instance, SchedulerPolicy, Server};
use pileus_tests::lab::{HOST_LABEL, Lab, Project, eventually};

/// A guest boots in 3 to 5 s alone; others may use the machine as well.
const BOOT: Duration = Duration::from_secs(90);
/// The host that is made small.
const HOST: &str = "host1";

fn server(name: &str, class: &str) -> String {
    format!(
        r#"
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {{name: {name}}}
spec:
  flavor: m1.nano
  image: {{name: tiny, namespace: default}}
  networks: [{{name: eth0, network: {{name: lan}}}}]
  placement: {{hostSelector: {{{HOST_LABEL}: {HOST}}}, priorityClass: {class}}}
  shutdownTimeoutSeconds: 20
"#
    )
}

const AROUND: &str = r"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: lan}
spec: {network: lan, cidr: 10.21.0.0/24}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: e2e-low}
value: -10
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: e2e-high}
value: 1000
---
apiVersion: pileus.dev/v1alpha1
kind: SchedulerPolicy
metadata: {name: default}
spec: {preemption: LowerPriority}
";

/// Leaves the lab as it was, whatever became of the test.
async fn restore(lab: &Lab) {
    lab.reserve_memory(HOST, None).await;
    let policies: Api<SchedulerPolicy> = Api::all(lab.client.clone());
    let _ = policies.delete("default", &DeleteParams::default()).await;
    let classes: Api<k8s_openapi::api::scheduling::v1::PriorityClass> =
        Api::all(lab.client.clone());
    for name in ["e2e-low", "e2e-high"] {
        let _ = classes.delete(name, &DeleteParams::default()).await;
    }
}

fn kept(server: &Server) -> (Option<String>, Option<String>, Option<String>) {
    let status = server.status.clone().unwrap();
    (status.address_list, status.instance_id, status.instance)
}

/// Memory that the host would have left for one more Server like these, and no further.
async fn room_for_one(lab: &Lab) -> i64 {
    let hosts: Api<Host> = Api::all(lab.client.clone());
    let status = hosts.get(HOST).await.unwrap().status.unwrap();
    let (all, overhead) = (status.capacity.unwrap(), status.overhead_mib.unwrap_or(0));
    let instances: Api<Instance> = Api::namespaced(lab.client.clone(), "pileus-host-host1");
    let there = instances.list(&ListParams::default()).await.unwrap();
    let claims = there
        .items
        .iter()
        .map(|i| i.spec.claim.memory_mib + overhead);
    // The flavor's own, and half of another.
    all.memory_mib - claims.sum::<i64>() - (128 + overhead) * 3 / 2
}

async fn scenario(lab: &Lab, project: &Project) {
    project.apply(AROUND);
    lab.reserve_memory(HOST, Some(room_for_one(lab).await))
        .await;
    project.apply(&server("low", "e2e-low"));
    let before = project.phase("low", "Active", BOOT).await;
    let mut console = project.console("low").await;
    console.says("PILEUS-GUEST: ready", BOOT).await;
    console.try_shell("true", BOOT).await;
    console.shell("echo kept > /data/kept; sync").await;

    project.apply(&server("high", "e2e-high"));
    project.phase("high", "Active", BOOT).await;
    let ready = project.reason("low", "Preempted", BOOT).await;
    assert!(ready.contains("priority 1000"), "{ready}");
    let low = project.servers().get("low").await.unwrap();
    assert_eq!(kept(&low), kept(&before), "it keeps what is its own");
    let status = low.status.clone().unwrap();
    assert_eq!(
        status.power_state,
        Some(pileus_api::server::PowerState::Stopped)
    );
    assert_eq!(status.preemption.unwrap().priority, 1000);
    assert_eq!(
        low.spec.run_state, before.spec.run_state,
        "nobody writes to its spec"
    );
    let events: Api<k8s_openapi::api::events::v1::Event> =
        Api::namespaced(lab.client.clone(), &project.name);
    eventually("the event of it", BOOT, async || {
        let all = events.list(&ListParams::default()).await;
        let all = all.map_err(|e| e.to_string())?;
        let mut said = all.items.iter().filter_map(|e| e.reason.as_deref());
        let found = said.any(|reason| reason == "Preempted");
        found.then_some(()).ok_or_else(|| "none yet".to_owned())
    })
    .await;

    let servers = project.servers();
    let gone = servers.delete("high", &DeleteParams::default()).await;
    gone.unwrap();
    let after = project.phase("low", "Active", BOOT).await;
    assert_eq!(kept(&after), kept(&before));
    assert_eq!(after.status.unwrap().preemption, None);
    let mut console = project.console("low").await;
    console.says_times("PILEUS-GUEST: ready", 2, BOOT).await;
    console.try_shell("true", BOOT).await;
    let said = console.shell("cat /data/kept").await;
    assert!(said.contains("kept"), "{said}");
}

#[tokio::test]
async fn a_full_host_takes_one_of_higher_priority_and_gives_the_other_its_place_back() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-preemption").await;
    restore(&lab).await;
    // Whatever becomes of it, the other tests find the lab as it was.
    let outcome = AssertUnwindSafe(scenario(&lab, &project))
        .catch_unwind()
        .await;
    restore(&lab).await;
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
    project.leaves_nothing().await;
}
