//! The whole way on two real hosts: guests that boot, talk, are stopped and started, lose
//! their host, and leave nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use kube::ResourceExt;
use pileus_tests::lab::{self, GuestImage, HOST_LABEL, Lab, Project, devstack, in_host};
use serde_json::json;

/// A guest boots in 3 to 5 s alone; others may use the machine as well.
const BOOT: Duration = Duration::from_secs(90);

fn server(name: &str, host: usize, more: &str) -> String {
    format!(
        r#"
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {{name: {name}}}
spec:
  flavor: m1.nano
  image: {{name: tiny, namespace: default}}
  networks: [{{name: eth0, network: {{name: lan}}, securityGroups: [lan]}}]
  placement: {{hostSelector: {{{HOST_LABEL}: host{host}}}}}
  shutdownTimeoutSeconds: 20
{more}
"#
    )
}

const LAN: &str = r#"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: lan}
spec: {network: lan, cidr: 10.20.0.0/24, dnsServers: [10.20.0.53]}
---
apiVersion: pileus.dev/v1alpha1
kind: SecurityGroup
metadata: {name: lan}
spec:
  rules:
    - {name: out, direction: Egress}
    - {name: ping, direction: Ingress, protocol: icmp, remoteGroup: lan}
    - {name: bulk, direction: Ingress, protocol: tcp, portRangeMin: 5000, portRangeMax: 5000, remoteCIDR: 10.20.0.0/24}
---
apiVersion: pileus.dev/v1alpha1
kind: KeyPair
metadata: {name: me}
spec: {publicKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@example.org}
"#;

fn address(server: &pileus_api::Server) -> (String, String) {
    let status = server.status.as_ref().unwrap();
    let first = &status.addresses[0];
    (first.ips[0].clone(), first.mac_address.clone())
}

#[tokio::test]
async fn guests_talk_across_hosts_as_their_groups_allow_and_keep_what_is_theirs() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-talk").await;
    project.apply(LAN);
    let first =
        "  keyPairs: [me]\n  userData: |\n    #!/bin/sh\n    echo user data of $(hostname)\n";
    project.apply(&server("first", 1, first));
    project.apply(&server("second", 2, ""));
    let one = project.phase("first", "Active", BOOT).await;
    let two = project.phase("second", "Active", BOOT).await;
    assert_eq!(
        one.status
            .as_ref()
            .unwrap()
            .placement
            .as_ref()
            .unwrap()
            .host,
        "host1"
    );
    assert_eq!(
        two.status
            .as_ref()
            .unwrap()
            .placement
            .as_ref()
            .unwrap()
            .host,
        "host2"
    );

    let mut console = project.console("first").await;
    console.says("PILEUS-GUEST: ready", BOOT).await;
    let log = console.log();
    let (ip, mac) = address(&one);
    for said in [
        "hostname=first",
        "keys=1",
        &format!("address eth0={ip}/24 mtu=1442"),
        "user data of first",
    ] {
        assert!(log.contains(said), "`{said}` is not in\n{log}");
    }
    let mut other = project.console("second").await;
    other.says("PILEUS-GUEST: ready", BOOT).await;

    // The tunnel carries pings and 50 MB over TCP.
    other.try_shell(&format!("ping -c 1 -W 5 {ip}"), BOOT).await;
    other.shell(&format!("ping -c 3 -W 5 {ip}")).await;
    console
        .shell("(nc -l -p 5000 | sha256sum > /tmp/sum) > /dev/null 2>&1 & true")
        .await;
    let send = format!("dd if=/dev/zero bs=1000000 count=50 2>/dev/null | nc {ip} 5000");
    let (code, said) = other.try_shell(&send, Duration::from_secs(180)).await;
    assert_eq!(code, 0, "{said}");
    let sum = console.shell("sleep 2; cat /tmp/sum").await;
    // sha256 of 50,000,000 zero bytes.
    let zeros = {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(vec![0_u8; 50_000_000]))
    };
    assert!(sum.contains(&zeros), "{sum}");

    // A port that the group does not open, and an address that is not the guest's own.
    console
        .shell("(nc -l -p 5001 > /tmp/never) > /dev/null 2>&1 & true")
        .await;
    let (code, _) = other
        .try_shell(&format!("echo x | nc -w 3 {ip} 5001"), BOOT)
        .await;
    assert_ne!(code, 0, "a closed port let something through");
    other.shell("ip addr add 10.20.0.99/24 dev eth0").await;
    let (code, said) = other
        .try_shell(&format!("ping -c 2 -W 2 -I 10.20.0.99 {ip}"), BOOT)
        .await;
    assert_ne!(code, 0, "a spoofed address got through:\n{said}");

    // Stopped and started: the same address, the same disk.
    console.shell("echo kept > /data/kept; sync").await;
    project
        .patch_server("first", json!({"runState": "Stopped"}))
        .await;
    project
        .phase("first", "Stopped", Duration::from_secs(60))
        .await;
    let id = one.status.as_ref().unwrap().instance_id.clone().unwrap();
    assert_eq!(
        in_host(1, &["virsh", "domstate", &format!("pileus-{id}")]).trim(),
        "shut off"
    );
    project
        .patch_server("first", json!({"runState": "Running"}))
        .await;
    let again = project.phase("first", "Active", BOOT).await;
    assert_eq!(address(&again), (ip, mac));
    let mut console = project.console("first").await;
    console.says_times("PILEUS-GUEST: ready", 2, BOOT).await;
    assert!(console.shell("cat /data/kept").await.contains("kept"));
    project.leaves_nothing().await;
}

/// The processor that a Server's only one is bound to, as libvirt says.
fn bound_to(server: &pileus_api::Server) -> String {
    let id = server.status.as_ref().unwrap().instance_id.clone().unwrap();
    let said = in_host(1, &["virsh", "vcpupin", &format!("pileus-{id}")]);
    let line = said.lines().find(|l| l.trim_start().starts_with("0 "));
    let affinity = line.and_then(|l| l.split_whitespace().nth(1));
    affinity.unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[tokio::test]
async fn guests_have_processors_to_themselves_until_none_is_left() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-pinned").await;
    project.apply(LAN);
    project.apply(
        r#"
apiVersion: pileus.dev/v1alpha1
kind: Flavor
metadata: {name: e2e-pinned}
spec:
  vcpus: 1
  memory: 128Mi
  disk: 1Gi
  extraSpecs: {"hw:numa_nodes": "1", "hw:cpu_policy": dedicated}
"#,
    );
    let count = std::thread::available_parallelism().unwrap().get();
    let pinned = |name: &str| server(name, 1, "").replace("m1.nano", "e2e-pinned");
    let names: Vec<_> = (0..count).map(|n| format!("pinned-{n}")).collect();
    for name in &names {
        project.apply(&pinned(name));
    }
    let mut taken = std::collections::BTreeSet::new();
    for name in &names {
        let server = project.phase(name, "Active", BOOT).await;
        let placement = server.status.as_ref().unwrap().placement.as_ref().unwrap();
        assert_eq!(placement.numa_nodes, [0]);
        let on = bound_to(&server);
        assert!(taken.insert(on.clone()), "{on} was given twice");
    }
    let console = project.console(&names[0]).await;
    console.says("PILEUS-GUEST: ready", BOOT).await;

    // One more waits for a processor, and gets the very one that becomes free.
    project.apply(&pinned("late"));
    let message = project.reason("late", "NoHostFits", BOOT).await;
    assert!(message.contains("NUMATopologyFilter"), "{message}");
    let first = project.servers().get(&names[0]).await.unwrap();
    let freed = bound_to(&first);
    let gone = project
        .servers()
        .delete(&names[0], &Default::default())
        .await;
    gone.unwrap();
    let late = project.phase("late", "Active", BOOT).await;
    assert_eq!(bound_to(&late), freed);
    project.leaves_nothing().await;
    let flavors: kube::Api<pileus_api::Flavor> = kube::Api::all(lab.client.clone());
    let gone = flavors.delete("e2e-pinned", &Default::default()).await;
    gone.unwrap();
}

/// The devices are the machine's own, and it has no IOMMU: nothing is started here.
#[tokio::test]
async fn devices_that_a_host_offers_are_given_out_once() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-devices").await;
    project.apply(LAN);
    let hosts: kube::Api<pileus_api::Host> = kube::Api::all(lab.client.clone());
    let offer = async |what: serde_json::Value| {
        let patch = json!({"spec": {"pciDevices": what}});
        let patch = kube::api::Patch::Merge(&patch);
        hosts
            .patch("host1", &Default::default(), &patch)
            .await
            .unwrap();
        let empty = what.is_null();
        lab::eventually("the Host tells of its devices", BOOT, async || {
            let host = hosts.get("host1").await.map_err(|e| e.to_string())?;
            let devices = host.status.unwrap_or_default().pci_devices;
            if devices.is_empty() == empty {
                Ok(devices)
            } else {
                Err(format!("{devices:?}"))
            }
        })
        .await
    };
    let devices = offer(json!([{"name": "e2e-card", "addresses": ["*:*:*.*"]}])).await;
    assert!(devices.iter().all(|d| d.alias == "e2e-card"), "{devices:?}");
    let count = devices.len();
    for (name, count) in [("one", 1), ("all", count)] {
        project.apply(&format!(
            "apiVersion: pileus.dev/v1alpha1\nkind: Flavor\nmetadata: {{name: e2e-card-{name}}}\n\
             spec: {{vcpus: 1, memory: 128Mi, disk: 1Gi, extraSpecs: \
             {{\"pci_passthrough:alias\": \"e2e-card:{count}\"}}}}\n"
        ));
    }
    let off = |name: &str, flavor: &str| {
        server(name, 1, "  runState: Stopped\n").replace("m1.nano", flavor)
    };
    project.apply(&off("first", "e2e-card-one"));
    let first = project.phase("first", "Stopped", BOOT).await;
    let placement = first.status.as_ref().unwrap().placement.as_ref().unwrap();
    let [given] = placement.pci_devices.as_slice() else {
        panic!("{placement:?}");
    };
    assert!(devices.iter().any(|d| d.name == given.name), "{given:?}");
    let id = first.status.as_ref().unwrap().instance_id.clone().unwrap();
    let xml = in_host(1, &["virsh", "dumpxml", &format!("pileus-{id}")]);
    let (bus, slot) = (&given.name[5..7], &given.name[8..10]);
    let source = format!("<address domain='0x0000' bus='0x{bus}' slot='0x{slot}' function=");
    let hostdev = xml.split("<hostdev ").nth(1).unwrap_or_default();
    assert!(hostdev.contains(&source), "{source} is not in {xml}");

    // All of them are too many as long as one is taken.
    project.apply(&off("second", "e2e-card-all"));
    let message = project.reason("second", "NoHostFits", BOOT).await;
    assert!(message.contains("PciPassthroughFilter"), "{message}");
    let gone = project.servers().delete("first", &Default::default()).await;
    gone.unwrap();
    let second = project.phase("second", "Stopped", BOOT).await;
    let placement = second.status.unwrap().placement.unwrap();
    assert_eq!(placement.pci_devices.len(), count);
    project.leaves_nothing().await;
    assert_eq!(offer(serde_json::Value::Null).await, []);
    let flavors: kube::Api<pileus_api::Flavor> = kube::Api::all(lab.client.clone());
    for name in ["e2e-card-one", "e2e-card-all"] {
        flavors.delete(name, &Default::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_host_that_reboots_brings_its_servers_back() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-reboot").await;
    project.apply(LAN);
    project.apply(&server("back", 1, ""));
    project.apply(&server("stopped", 1, "  runState: Stopped\n"));
    project.apply(&server("else", 2, ""));
    let before = project.phase("back", "Active", BOOT).await;
    project.phase("stopped", "Stopped", BOOT).await;
    project.phase("else", "Active", BOOT).await;
    project
        .console("back")
        .await
        .says("PILEUS-GUEST: ready", BOOT)
        .await;

    tokio::task::spawn_blocking(|| devstack(&["host", "1", "reboot"]))
        .await
        .unwrap();
    lab.host_ready(1).await;
    let id = before.status.as_ref().unwrap().instance_id.clone().unwrap();
    lab::eventually("the domain runs again", BOOT, async || {
        let state = in_host(1, &["virsh", "domstate", &format!("pileus-{id}")]);
        if state.trim() == "running" {
            Ok(())
        } else {
            Err(state)
        }
    })
    .await;
    let after = project.phase("back", "Active", BOOT).await;
    assert_eq!(address(&before), address(&after));
    let console = project.console("back").await;
    console.says_times("PILEUS-GUEST: ready", 2, BOOT).await;
    // What was stopped stays so, and nobody was moved.
    project.phase("stopped", "Stopped", BOOT).await;
    assert_eq!(
        in_host(1, &["virsh", "list", "--name"])
            .split_whitespace()
            .count(),
        1
    );
    let elsewhere = project.phase("else", "Active", BOOT).await;
    assert_eq!(elsewhere.status.unwrap().placement.unwrap().epoch, 1);
    project.leaves_nothing().await;
}

#[tokio::test]
async fn a_guest_that_shuts_itself_down_follows_the_policy() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-shutdown").await;
    project.apply(LAN);
    project.apply(&server("stays", 2, ""));
    project.apply(&server("returns", 2, "  onGuestShutdown: Restart\n"));
    let mut consoles = Vec::new();
    for name in ["stays", "returns"] {
        project.phase(name, "Active", BOOT).await;
        let mut console = project.console(name).await;
        console.says("PILEUS-GUEST: ready", BOOT).await;
        console.try_shell("true", BOOT).await;
        // The answer may be lost with the guest.
        let answer = console.try_shell("poweroff", BOOT);
        let _ = tokio::time::timeout(Duration::from_secs(1), answer).await;
        consoles.push(console);
    }
    let message = project
        .reason("stays", "GuestShutdown", Duration::from_secs(60))
        .await;
    assert!(message.contains("runState"), "{message}");
    consoles[1].says_times("PILEUS-GUEST: ready", 2, BOOT).await;
    project.phase("returns", "Active", BOOT).await;
    // The way out that the message names.
    project
        .patch_server("stays", json!({"runState": "Stopped"}))
        .await;
    project.phase("stays", "Stopped", BOOT).await;
    project
        .patch_server("stays", json!({"runState": "Running"}))
        .await;
    project.phase("stays", "Active", BOOT).await;
    project.leaves_nothing().await;
}

#[tokio::test]
async fn debian_with_cloud_init_reads_all_that_it_is_told() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-debian").await;
    let image = tokio::task::spawn_blocking(|| GuestImage::of("debian"))
        .await
        .unwrap();
    project.apply(LAN);
    project.apply(&format!(
        r#"
apiVersion: pileus.dev/v1alpha1
kind: Image
metadata: {{name: debian}}
spec:
  source: {{url: "file://{}", checksum: "sha256:{}"}}
  minMemory: 512Mi
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {{name: bookworm}}
spec:
  resources: {{vcpus: 2, memory: 1Gi, disk: 4Gi}}
  image: {{name: debian}}
  networks: [{{name: eth0, network: {{name: lan}}, securityGroups: [lan]}}]
  keyPairs: [me]
  metadata: {{role: test}}
  userData: |
    #!/bin/sh
    echo "told by user data" > /root/told
"#,
        image.get("debian.disk"),
        image.get("debian.disk.sha256"),
    ));
    let server = project
        .phase("bookworm", "Active", Duration::from_secs(180))
        .await;
    let (ip, _) = address(&server);
    let mut console = project.console("bookworm").await;
    let boot = Duration::from_secs(300);
    console.says("root@bookworm:~#", boot).await;
    // A shell that is still setting its terminal up throws away what is typed.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (code, said) = console
        .try_shell("cloud-init status --wait --long", boot)
        .await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("status: done"), "{said}");
    let result = console.shell("cat /run/cloud-init/result.json").await;
    assert!(result.contains("\"errors\": []"), "{result}");
    assert!(said.contains("ConfigDrive"), "{said}");
    assert!(console.shell("hostname").await.contains("bookworm"));
    assert!(
        console
            .shell("cat /root/told")
            .await
            .contains("told by user data")
    );
    assert!(console.shell("ip -4 addr show eth0").await.contains(&ip));
    let keys = console
        .shell("cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys")
        .await;
    assert!(keys.contains("me@example.org"), "{keys}");
    assert_eq!(server.name_any(), "bookworm");
    project.leaves_nothing().await;
}
