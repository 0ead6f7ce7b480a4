//! Trouble of hosts and daemons: libvirt, OVN, a full disk, a host that is cut off. Each is
//! visible in a condition, heals without hands, and costs no running guest anything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::too_many_lines, clippy::similar_names)] // lists of cases

use std::process::Command;

use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use pileus_tests::lab::{HOST_LABEL, Lab, Project, devstack, eventually, in_host};
use pileus_tests::trouble::{Conditions, Neighbour, TIMEOUT};
use pileus_values::{ClusterId, stable_id};
use serde_json::json;

const LAN: &str = r#"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: lan}
spec: {network: lan, cidr: 10.44.0.0/24}
---
apiVersion: pileus.dev/v1alpha1
kind: SecurityGroup
metadata: {name: lan}
spec: {rules: [{name: out, direction: Egress}]}
"#;

/// A Server on a host, with an interface.
fn server(name: &str, host: usize, more: &str) -> String {
    let nic =
        "  networks: [{name: eth0, network: {name: lan}, securityGroups: [lan]}]\n".to_owned();
    Neighbour::yaml(name, host).trim_end().to_owned() + "\n" + &nic + more
}

const STOPPED: &str = "  runState: Stopped\n";

/// Runs what blocks, such as `hack/devstack`, beside the test.
async fn beside(arguments: &'static [&'static str]) {
    tokio::task::spawn_blocking(|| devstack(arguments))
        .await
        .unwrap();
}

/// Undoes a fault when the test fails before it does: the lab is everybody's.
struct Undo<F: Fn()>(F);

impl<F: Fn()> Drop for Undo<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

/// `hack/devstack` with each of the arguments, whatever it says.
fn undo(arguments: &'static [&'static [&'static str]]) -> Undo<impl Fn()> {
    Undo(move || {
        for arguments in arguments {
            try_devstack(arguments);
        }
    })
}

fn try_devstack(arguments: &[&str]) {
    let _ = Command::new("hack/devstack")
        .args(arguments)
        .current_dir(pileus_tests::program::root())
        .status();
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_and_ovn_controller_come_back_and_so_does_what_waited_for_them() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-daemons").await;
    let seen = Conditions {
        lab: &lab,
        project: &project,
    };
    project.apply(LAN);
    project.apply(&Neighbour::yaml("above", 1));
    project.apply(&Neighbour::yaml("beside", 2));
    project.apply(&server("asleep", 1, STOPPED));
    let above = Neighbour::of(&project, "above", 1).await;
    let next_door = Neighbour::of(&project, "beside", 2).await;
    project.apply(&server("flowless", 2, STOPPED));
    for name in ["asleep", "flowless"] {
        project.phase(name, "Stopped", TIMEOUT).await;
    }

    let _undo = undo(&[
        &["daemon", "libvirtd", "1", "start"],
        &["daemon", "ovn-controller", "2", "start"],
    ]);
    beside(&["daemon", "libvirtd", "1", "stop"]).await;
    beside(&["daemon", "ovn-controller", "2", "kill"]).await;
    for name in ["asleep", "flowless"] {
        project
            .patch_server(name, json!({"runState": "Running"}))
            .await;
    }
    let host = ("Host", "host1");
    let down = ["HypervisorAvailable", "False", "HypervisorUnavailable"];
    seen.says(host, down, &["libvirt", "running VMs go on"])
        .await;
    seen.refused(host, "HypervisorUnavailable", &["libvirt"])
        .await;
    let host = ("Host", "host2");
    let down = ["NetworkAvailable", "False", "NetworkUnavailable"];
    let words = ["ovn-controller", "running VMs keep their flows"];
    seen.says(host, down, &words).await;
    seen.refused(host, "NetworkUnavailable", &words).await;
    project.apply(&server("late", 1, ""));
    project.apply(&server("later", 2, STOPPED));
    let unknown = ["Ready", "Unknown", "HypervisorUnavailable"];
    seen.says(("Server", "asleep"), unknown, &["libvirt"]).await;
    let nowhere = ["Scheduled", "False", "NoHostFits"];
    seen.says(("Server", "late"), nowhere, &["host1"]).await;
    for (name, host) in [("late", "host1"), ("later", "host2")] {
        seen.refused(("Server", name), "NoHostFits", &[host]).await;
    }
    let flows = ["OVN has not installed", "ovn-controller"];
    seen.refused(("Server", "flowless"), "NetworkNotReady", &flows)
        .await;
    above.lives(&project).await;
    next_door.noticed_nothing(&project).await;

    beside(&["daemon", "libvirtd", "1", "start"]).await;
    beside(&["daemon", "ovn-controller", "2", "start"]).await;
    for name in ["asleep", "late", "flowless"] {
        project.phase(name, "Active", TIMEOUT).await;
    }
    project.phase("later", "Stopped", TIMEOUT).await;
    above.is_back(&project).await;
    next_door.noticed_nothing(&project).await;
    lab.host_ready(1).await;
    lab.host_ready(2).await;
    project.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_ovn_is_down_ports_wait_and_say_so() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-ovn").await;
    let seen = Conditions {
        lab: &lab,
        project: &project,
    };
    project.apply(LAN);
    project.apply(&server("neighbour", 1, ""));
    project.apply(&server("leaving", 2, STOPPED));
    let neighbour = Neighbour::of(&project, "neighbour", 1).await;
    project.phase("leaving", "Stopped", TIMEOUT).await;

    let _undo = undo(&[&["daemon", "ovn-nb", "start"]]);
    beside(&["daemon", "ovn-nb", "stop"]).await;
    project.apply(&server("late", 2, STOPPED));
    seen.delete("Server", "leaving").await;
    let down = ["Northbound", "tried again"];
    seen.refused(("Port", "late-eth0"), "NetworkUnavailable", &down)
        .await;
    seen.refused(
        ("Server", "late"),
        "PortNotReady",
        &["late-eth0", "Northbound"],
    )
    .await;
    // What is deleted stays until OVN has forgotten it.
    seen.refused(("Port", "leaving-eth0"), "NetworkUnavailable", &down)
        .await;
    neighbour.noticed_nothing(&project).await;

    beside(&["daemon", "ovn-nb", "start"]).await;
    project.phase("late", "Stopped", TIMEOUT).await;
    seen.gone("Server", "leaving").await;
    neighbour.noticed_nothing(&project).await;
    project.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_with_what_is_needed_and_room_is_all_it_takes() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-full").await;
    let seen = Conditions {
        lab: &lab,
        project: &project,
    };
    let neighbour = Neighbour::start(&project, "neighbour", 2).await;

    // No room for a disk: a file system of the Instance's own, smaller than any disk.
    let system: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(lab.client.clone());
    let cluster = ClusterId(system.get("kube-system").await.unwrap().uid().unwrap());
    let id = stable_id(&cluster, "Server", "e2e-full", "cramped");
    let directory = format!("/var/lib/pileus/instances/{id}");
    // In the order in which they can go: the last that is mounted hides the first.
    let mounts = [
        "/var/lib/pileus/instances".to_owned(),
        "/var/lib/pileus/partial".to_owned(),
        directory.clone(),
    ];
    let at = mounts.clone();
    let _undo = Undo(move || {
        for at in &at {
            try_devstack(&["exec", "2", "--", "umount", at]);
        }
    });
    in_host(2, &["mkdir", "-m", "711", &directory]);
    let tmpfs = |size: &str, at: &str| {
        in_host(
            2,
            &[
                "mount",
                "-t",
                "tmpfs",
                "-o",
                &format!("mode=711,size={size}"),
                "full",
                at,
            ],
        );
    };
    // A few pages: the marks fit, an overlay does not.
    tmpfs("16k", &directory);
    // No room for an image: nobody has its bytes yet.
    tmpfs("128k", "/var/lib/pileus/partial");
    let image = tempfile::Builder::new()
        .suffix(".raw")
        .tempfile_in(lab_images())
        .unwrap();
    let mut bytes = vec![0_u8; 1 << 20];
    bytes[..16].copy_from_slice(id.as_bytes());
    std::fs::write(image.path(), &bytes).unwrap();
    let cramped = Neighbour::yaml("cramped", 2) + STOPPED;
    let fetching =
        Neighbour::yaml("fetching", 2).replace("{name: tiny, namespace: default}", "{name: new}");
    project.apply(&format!(
        "apiVersion: pileus.dev/v1alpha1\nkind: Image\nmetadata: {{name: new}}\nspec: {{diskFormat: raw, source: {{url: \"file://{}\"}}}}\n{cramped}\n{fetching}{STOPPED}",
        image.path().display()
    ));
    let need = ["bytes are needed", directory.as_str()];
    seen.refused(("Server", "cramped"), "NoSpace", &need).await;
    let need = ["/var/lib/pileus/partial", "1048576 bytes are needed"];
    seen.refused(("Server", "fetching"), "NoSpace", &need).await;

    // And the host itself takes nothing new.
    tmpfs("8m", "/var/lib/pileus/instances");
    let full = ["DiskAvailable", "False", "NoSpace"];
    seen.says(("Host", "host2"), full, &["/var/lib/pileus", "bytes"])
        .await;
    seen.refused(("Host", "host2"), "NoSpace", &["bytes"]).await;
    project.apply(&(Neighbour::yaml("late", 2) + STOPPED));
    seen.refused(("Server", "late"), "NoHostFits", &["host2"])
        .await;
    neighbour.noticed_nothing(&project).await;

    for at in &mounts {
        in_host(2, &["umount", at]);
    }
    for name in ["cramped", "fetching", "late"] {
        project.phase(name, "Stopped", TIMEOUT).await;
    }
    lab.host_ready(2).await;
    neighbour.noticed_nothing(&project).await;
    project.leaves_nothing().await;
}

/// The directory that the lab's hosts take `file://` images from.
fn lab_images() -> std::path::PathBuf {
    let tiny = pileus_tests::lab::GuestImage::of("tiny");
    let disk = std::path::Path::new(tiny.get("tiny.disk")).to_owned();
    disk.parent().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_cut_off_is_unknown_and_nobody_takes_its_servers_away() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-cut").await;
    let seen = Conditions {
        lab: &lab,
        project: &project,
    };
    project.apply(LAN);
    project.apply(&server("there", 1, ""));
    project.apply(&server("here", 2, ""));
    let there = Neighbour::of(&project, "there", 1).await;
    let here = Neighbour::of(&project, "here", 2).await;

    let _undo = undo(&[&["host", "1", "heal"]]);
    beside(&["host", "1", "cut"]).await;
    let lost = ["Ready", "Unknown", "HeartbeatLost"];
    seen.says(("Host", "host1"), lost, &["host1", "not been heard from"])
        .await;
    let lost = ["Ready", "Unknown", "HostUnreachable"];
    seen.says(
        ("Server", "there"),
        lost,
        &["host1", "not started elsewhere"],
    )
    .await;
    // New ones go elsewhere, and one that cannot waits.
    let anywhere = format!("placement: {{hostSelector: {{{HOST_LABEL}: host2}}}}");
    project.apply(&server("anywhere", 2, STOPPED).replace(&anywhere, "placement: {}"));
    project.apply(&server("pinned", 1, STOPPED));
    let placed = project.phase("anywhere", "Stopped", TIMEOUT).await;
    assert_eq!(placed.status.unwrap().placement.unwrap().host, "host2");
    seen.refused(("Server", "pinned"), "NoHostFits", &["host1"])
        .await;
    there.lives(&project).await;
    here.noticed_nothing(&project).await;

    beside(&["host", "1", "heal"]).await;
    project.phase("pinned", "Stopped", TIMEOUT).await;
    there.is_back(&project).await;
    here.noticed_nothing(&project).await;
    lab.host_ready(1).await;
    project.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_libvirt_left_in_open_vswitch_goes_with_its_server() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-left").await;
    project.apply(LAN);
    for name in ["ends", "stays"] {
        project.apply(&server(name, 1, STOPPED));
    }
    let mut ids = Vec::new();
    for name in ["ends", "stays"] {
        let status = project.phase(name, "Stopped", TIMEOUT).await.status;
        ids.push(status.unwrap().instance_id.unwrap());
    }
    // As libvirt makes them, and leaves them when it is killed before it has noted the guest.
    let _undo = undo(&[
        &[
            "exec",
            "1",
            "--",
            "ovs-vsctl",
            "--if-exists",
            "del-port",
            "tapleft-1",
        ],
        &[
            "exec",
            "1",
            "--",
            "ovs-vsctl",
            "--if-exists",
            "del-port",
            "tapleft-2",
        ],
    ]);
    let ports = || in_host(1, &["ovs-vsctl", "list-ports", "br-int"]);
    for (port, id) in ["tapleft-1", "tapleft-2"].iter().zip(&ids) {
        let vm = format!("external_ids:vm-id={id}");
        let add = ["ovs-vsctl", "--may-exist", "add-port", "br-int", port];
        in_host(
            1,
            &[&add[..], &["--", "set", "Interface", port, &vm]].concat(),
        );
    }
    project
        .servers()
        .delete("ends", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the Server's port is gone", TIMEOUT, async || {
        let ports = ports();
        (!ports.contains("tapleft-1")).then_some(()).ok_or(ports)
    })
    .await;
    assert!(ports().contains("tapleft-2"), "only its own are removed");
    project.leaves_nothing().await;
}
