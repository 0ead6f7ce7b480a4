//! Loss of objects: agent and manager find an API server that knows nothing of Pileus any
//! more. No domain or disk is touched; what is applied again is adopted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use kube::api::{Api, ListParams};
use pileus::api::{Host, Instance};
use support::lab::{self, HOST_LABEL, Lab, Project, devstack, in_host};

const BOOT: Duration = Duration::from_secs(90);

fn everything() -> String {
    format!(
        r#"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {{name: lan}}
spec: {{}}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {{name: lan}}
spec: {{network: lan, cidr: 10.30.0.0/24}}
---
apiVersion: pileus.dev/v1alpha1
kind: SecurityGroup
metadata: {{name: default}}
spec: {{rules: [{{name: out, direction: Egress}}]}}
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {{name: survivor}}
spec:
  flavor: m1.nano
  image: {{name: tiny, namespace: default}}
  networks: [{{name: eth0, network: {{name: lan}}}}]
  placement: {{hostSelector: {{{HOST_LABEL}: host2}}}}
"#
    )
}

fn qemu_pid(id: &str) -> String {
    in_host(2, &["cat", &format!("/run/libvirt/qemu/pileus-{id}.pid")])
        .trim()
        .to_owned()
}

#[tokio::test]
async fn lost_objects_cost_no_vm_and_what_is_applied_again_is_adopted() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-loss").await;
    project.apply(&everything());
    let before = project.phase("survivor", "Active", BOOT).await;
    let status = before.status.clone().unwrap();
    let id = status.instance_id.clone().unwrap();
    project
        .console("survivor")
        .await
        .says("PILEUS-GUEST: ready", BOOT)
        .await;
    let pid = qemu_pid(&id);

    // Every object of Pileus goes, as after a restore of an older etcd: nobody deletes
    // them, they are just not there.
    let roles: [&[&str]; 4] = [
        &["manager"],
        &["scheduler"],
        &["agent", "1"],
        &["agent", "2"],
    ];
    for role in roles {
        devstack(&[&["role"], role, &["stop"]].concat());
    }
    devstack(&["daemon", "apiserver", "stop"]);
    let wiped = lab::run(
        "etcdctl",
        &[
            "--endpoints=http://127.0.0.1:23790",
            "del",
            "--prefix",
            "/registry/pileus.dev/",
        ],
    );
    assert!(wiped.trim().parse::<u32>().unwrap() > 3, "{wiped}");
    devstack(&["daemon", "apiserver", "start"]);
    for role in roles {
        devstack(&[&["role"], role, &["start"]].concat());
    }

    // The host tells of the orphan and leaves it alone.
    let hosts: Api<Host> = Api::all(lab.client.clone());
    lab::eventually(
        "host2 reports the orphan",
        Duration::from_secs(60),
        async || {
            let host = hosts.get("host2").await.map_err(|e| e.to_string())?;
            let orphans = host.status.unwrap_or_default().orphans;
            match orphans.iter().find(|o| o.name == id) {
                Some(orphan) if orphan.server_name == "survivor" => Ok(()),
                _ => Err(format!("{orphans:?}")),
            }
        },
    )
    .await;
    assert_eq!(qemu_pid(&id), pid, "the VM was touched");

    // Applied again, it is the same VM that goes on: same process, same address.
    let flavors = concat!(env!("CARGO_MANIFEST_DIR"), "/config/flavors.yaml");
    lab::run(
        "kubectl",
        &[
            "--kubeconfig",
            "/var/lib/pileus-devstack/kubeconfig/admin",
            "apply",
            "-f",
            flavors,
        ],
    );
    devstack(&["up", "--no-quickstart"]);
    let lab = Lab::get().await;
    project.apply(&everything());
    let after = project.phase("survivor", "Active", BOOT).await;
    assert_ne!(after.metadata.uid, before.metadata.uid);
    let now = after.status.clone().unwrap();
    assert_eq!(now.instance_id.as_deref(), Some(id.as_str()));
    assert_eq!(now.addresses, status.addresses);
    assert!(now.placement.unwrap().epoch > status.placement.unwrap().epoch);
    assert_eq!(qemu_pid(&id), pid, "the VM was started anew");
    let instances: Api<Instance> = Api::all(lab.client.clone());
    assert_eq!(
        instances
            .list(&ListParams::default())
            .await
            .unwrap()
            .iter()
            .filter(|i| i.spec.server.name == "survivor")
            .count(),
        1
    );
    project.leaves_nothing().await;
}
