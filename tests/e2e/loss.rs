//! Loss of objects: agent and manager find an API server that knows nothing of Pileus any
//! more. No domain or disk is touched; what is applied again is adopted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use kube::api::{Api, ListParams};
use pileus_api::{Host, Instance, Server, ServerStatus};
use pileus_tests::lab::{self, HOST_LABEL, Lab, Project, devstack, in_host};

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

fn roles(action: &str) {
    let roles: [&[&str]; 5] = [
        &["manager"],
        &["scheduler"],
        &["stacks"],
        &["agent", "1"],
        &["agent", "2"],
    ];
    for role in roles {
        devstack(&[&["role"], role, &[action]].concat());
    }
}

fn kubectl(arguments: &[&str]) -> String {
    let config = ["--kubeconfig", "/var/lib/pileus-devstack/kubeconfig/admin"];
    lab::run("kubectl", &[&config, arguments].concat())
}

fn id_of(server: &Server) -> String {
    let status = server.status.as_ref().unwrap();
    status.instance_id.clone().unwrap()
}

async fn boots(project: &Project) -> Server {
    project.apply(&everything());
    let server = project.phase("survivor", "Active", BOOT).await;
    let console = project.console("survivor").await;
    console.says("PILEUS-GUEST: ready", BOOT).await;
    server
}

async fn reports_the_orphan(lab: &Lab, id: &str) {
    let hosts: Api<Host> = Api::all(lab.client.clone());
    lab::eventually(
        "host2 reports the orphan",
        Duration::from_secs(90),
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
}

/// Applied again, it is the same VM that goes on: same process, same address.
async fn applied_again_it_goes_on(project: &Project, before: &Server, pid: &str) {
    // Flavors, the image and the hosts' labels as well.
    devstack(&["up", "--no-quickstart"]);
    let lab = Lab::get().await;
    project.apply(&everything());
    let after = project.phase("survivor", "Active", BOOT).await;
    assert_ne!(after.metadata.uid, before.metadata.uid);
    let (was, now) = (before.status.as_ref(), after.status.as_ref());
    let (was, now) = (was.unwrap(), now.unwrap());
    assert_eq!(now.instance_id, was.instance_id);
    assert_eq!(now.addresses, was.addresses);
    let epoch = |status: &ServerStatus| status.placement.as_ref().unwrap().epoch;
    assert!(epoch(now) > epoch(was));
    assert_eq!(qemu_pid(&id_of(&after)), pid, "the VM was started anew");
    let instances: Api<Instance> = Api::all(lab.client.clone());
    let instances = instances.list(&ListParams::default()).await.unwrap();
    let mine = instances
        .iter()
        .filter(|i| i.spec.server.name == "survivor");
    assert_eq!(mine.count(), 1);
}

/// Rows of the project's ports in OVN.
fn port_rows(project: &Project) -> Vec<String> {
    let owner = format!("external_ids:pileus.dev/namespace={}", project.name);
    let rows = lab::northbound(&["--columns=name", "find", "Logical_Switch_Port", &owner]);
    rows.split_whitespace().map(str::to_owned).collect()
}

/// Deletes the definitions of all kinds and waits until they are gone.
async fn delete_definitions() {
    let listed = kubectl(&["get", "crd", "-o", "name"]);
    let ours = listed.lines().filter(|n| n.ends_with(".pileus.dev"));
    let mut delete = vec!["delete", "--timeout=240s"];
    delete.extend(ours);
    assert!(delete.len() > 10, "{delete:?}");
    tokio::task::spawn_blocking({
        let delete: Vec<_> = delete.into_iter().map(str::to_owned).collect();
        move || kubectl(&delete.iter().map(String::as_str).collect::<Vec<_>>())
    })
    .await
    .unwrap();
}

/// What an agent itself says, also where no API server takes a word from it.
async fn counts_an_orphan(host: usize) {
    lab::eventually(
        "the agent counts the orphan",
        Duration::from_secs(90),
        async || {
            let address = "http://127.0.0.1:28082/metrics";
            let metrics = in_host(host, &["curl", "-sS", "--noproxy", "*", address]);
            let line = metrics.lines().find(|l| l.starts_with("pileus_orphans "));
            match line {
                Some("pileus_orphans 1") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
}

#[tokio::test]
async fn lost_objects_cost_no_vm_and_what_is_applied_again_is_adopted() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-loss").await;
    project.apply(&everything());
    let before = boots(&project).await;
    let id = id_of(&before);
    let pid = qemu_pid(&id);

    // Every object of Pileus goes, as after a restore of an older etcd: nobody deletes
    // them, they are just not there.
    roles("stop");
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
    roles("start");

    // An administrator registers the hosts again; they report the orphan and leave it alone.
    counts_an_orphan(2).await;
    devstack(&["up", "--no-quickstart"]);
    reports_the_orphan(&lab, &id).await;
    assert_eq!(qemu_pid(&id), pid, "the VM was touched");

    applied_again_it_goes_on(&project, &before, &pid).await;
    project.leaves_nothing().await;
}

#[tokio::test]
async fn a_lost_kind_costs_no_vm_and_what_is_applied_again_is_adopted() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-lost-kind").await;
    let before = boots(&project).await;
    let id = id_of(&before);
    let pid = qemu_pid(&id);
    let rows = port_rows(&project);
    assert_eq!(rows.len(), 1, "{rows:?}");
    let untouched = || {
        assert_eq!(qemu_pid(&id), pid, "the VM was touched");
        assert_eq!(port_rows(&project), rows, "the VM's network was touched");
    };

    // Every definition is deleted while all roles run: Kubernetes deletes every object, and
    // to each of them it looks as if somebody had.
    delete_definitions().await;
    counts_an_orphan(2).await;
    untouched();

    // Nor does a start against an API server that knows none of the kinds touch anything.
    roles("kill");
    for role in [&["manager"][..], &["agent", "1"], &["agent", "2"]] {
        devstack(&[&["role"], role, &["start"]].concat());
    }
    counts_an_orphan(2).await;
    untouched();

    // The definitions come back, empty, and the roles are started once more.
    devstack(&["up", "--no-quickstart"]);
    roles("kill");
    roles("start");
    reports_the_orphan(&lab, &id).await;
    untouched();
    applied_again_it_goes_on(&project, &before, &pid).await;
    assert_eq!(port_rows(&project), rows);

    // The same while no role runs: they find every object being deleted when they start.
    let before = project.phase("survivor", "Active", BOOT).await;
    roles("kill");
    let deleting = tokio::spawn(delete_definitions());
    // The API server works on some definitions at a time, and an Instance's is an early one.
    let instances: Api<Instance> = Api::all(lab.client.clone());
    lab::eventually(
        "the Instance is being deleted",
        Duration::from_secs(60),
        async || {
            let found = instances.list(&ListParams::default()).await;
            let found = found.map_err(|e| e.to_string())?;
            let going = found
                .iter()
                .all(|i| i.metadata.deletion_timestamp.is_some());
            going.then_some(()).ok_or_else(|| "not yet".to_owned())
        },
    )
    .await;
    for role in [&["manager"][..], &["agent", "1"], &["agent", "2"]] {
        devstack(&[&["role"], role, &["start"]].concat());
    }
    deleting.await.unwrap();
    counts_an_orphan(2).await;
    untouched();
    applied_again_it_goes_on(&project, &before, &pid).await;
    project.leaves_nothing().await;
}
