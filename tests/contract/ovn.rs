//! The Northbound driver and the network compiler against a real OVN of their own.
//! One file for both, since a driver is tested with compiled rows.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are not seen as tests

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pileus_network::northbound::token::{Holder, Token};
use pileus_network::northbound::{ApplyError, Desired, NorthboundDb, NotApplied, controller};
use pileus_network::ovsdb::{Error, Options, View};
use pileus_network::topology::{
    AddressIn, Binding, Direction, Family, GroupIn, Key, NetworkIn, PortIn, Protocol, Remote, Rule,
    RuleIn, Security, SubnetIn, Topology, Transport, compile, group_name, logical_port,
    switch_name,
};
use pileus_tests::ovn::Ovn;
use pileus_values::{ClusterId, Mac, Owner};

pub(super) fn cluster() -> ClusterId {
    ClusterId("5f1c4f4e-0000-4000-8000-000000000001".into())
}

pub(super) fn token(identity: &str) -> Token {
    Token {
        cluster: cluster(),
        identity: identity.into(),
        generation: 1,
    }
}

pub(super) fn owner(kind: &str, name: &str) -> Owner {
    Owner {
        cluster: cluster(),
        kind: kind.into(),
        namespace: "team".into(),
        name: name.into(),
        uid: format!("uid-{kind}-{name}"),
    }
}

pub(super) fn ingress(name: &str, port: u16, remote: Remote) -> RuleIn {
    RuleIn {
        owner: owner("SecurityGroup", "web"),
        group: Key::new("team", "web"),
        name: name.into(),
        rule: Rule {
            direction: Direction::Ingress,
            family: Family::V4,
            remote,
            protocol: Protocol::Transport {
                transport: Transport::Tcp,
                ports: Some(port..=port),
            },
        },
    }
}

pub(super) fn topology(ports: usize) -> Topology {
    let port = |n: usize| {
        let owner = owner("Port", &format!("p{n}"));
        let id = logical_port(&cluster(), &Key::of(&owner));
        let offset = u32::try_from(n).unwrap() + 10;
        PortIn {
            network: Key::new("team", "net"),
            mac: Mac::derive(&id, 0),
            addresses: vec![
                AddressIn {
                    subnet: "v4".into(),
                    address: std::net::Ipv4Addr::from(0x0a00_0000 + offset).into(),
                },
                AddressIn {
                    subnet: "v6".into(),
                    address: std::net::Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(offset))
                        .into(),
                },
            ],
            security: Security::Enabled {
                // p2 is in no group: nothing reaches it and it reaches nothing.
                groups: if n == 2 { vec![] } else { vec!["web".into()] },
                pairs: vec![],
            },
            binding: Binding::Anywhere,
            owner,
        }
    };
    let subnet = |name: &str, cidr: &str, gateway: &str| SubnetIn {
        owner: owner("Subnet", name),
        network: "net".into(),
        cidr: cidr.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
        service: None,
        dns_servers: vec![
            "192.0.2.53".parse().unwrap(),
            "2001:db8::53".parse().unwrap(),
        ],
        host_routes: vec![(
            "198.51.100.0/24".parse().unwrap(),
            "10.0.0.2".parse().unwrap(),
        )],
        dhcp: true,
    };
    let egress = RuleIn {
        owner: owner("SecurityGroupRule", "out"),
        group: Key::new("team", "web"),
        name: String::new(),
        rule: Rule {
            direction: Direction::Egress,
            family: Family::V4,
            remote: Remote::Any,
            protocol: Protocol::Any,
        },
    };
    Topology {
        cluster: cluster(),
        networks: vec![NetworkIn {
            owner: owner("Network", "net"),
            mtu: 1442,
        }],
        subnets: vec![
            subnet("v4", "10.0.0.0/16", "10.0.0.1"),
            subnet("v6", "fd00::/64", "fd00::1"),
        ],
        ports: (0..ports).map(port).collect(),
        groups: vec![GroupIn {
            owner: owner("SecurityGroup", "web"),
        }],
        rules: vec![
            ingress("ssh", 22, Remote::Group("web".into())),
            ingress("http", 80, Remote::Any),
            egress,
        ],
    }
}

pub(super) fn desired(topology: &Topology) -> Desired {
    let compiled = compile(topology);
    assert_eq!(compiled.problems, []);
    compiled.desired
}

pub(super) fn port_name(n: usize) -> String {
    logical_port(&cluster(), &Key::new("team", &format!("p{n}")))
}

pub(super) fn nothing() -> BTreeSet<String> {
    BTreeSet::new()
}

#[tokio::test]
async fn desired_rows_are_created_corrected_and_then_unchanged() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let want = desired(&topology(3));
    let first = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert!(first.orphans.is_empty() && first.not_applied.is_empty());
    let again = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert_eq!(again.operations, [], "a second pass has nothing to do");

    let switch = switch_name(&cluster(), &Key::new("team", "net"));
    let group = group_name(&cluster(), &Key::new("team", "web"));
    let p0 = port_name(0);
    assert_eq!(ovn.nbctl(&["lsp-list", &switch]).lines().count(), 3);
    assert!(
        ovn.nbctl(&["lsp-get-port-security", &p0])
            .contains("10.0.0.10")
    );
    assert!(ovn.nbctl(&["dhcp-options-list"]).lines().count() == 2);
    assert_eq!(ovn.nbctl(&["acl-list", &group]).lines().count(), 3);

    // Damage by hand, and rows of others in ours.
    ovn.nbctl(&["lsp-set-addresses", &p0, "unknown"]);
    ovn.nbctl(&["lsp-set-port-security", &p0]);
    ovn.nbctl(&["lsp-del", &port_name(1)]);
    ovn.nbctl(&[
        "clear",
        "Logical_Switch_Port",
        &port_name(2),
        "external_ids",
    ]);
    ovn.nbctl(&["set", "Logical_Switch", &switch, "external_ids:theirs=1"]);
    ovn.nbctl(&[
        "remove",
        "Logical_Switch",
        &switch,
        "external_ids",
        "pileus.dev/name",
    ]);
    ovn.nbctl(&["--type=port-group", "acl-del", &group]);
    ovn.nbctl(&["clear", "Port_Group", &group, "ports"]);
    ovn.nbctl(&["lsp-add", &switch, "theirs"]);
    ovn.nbctl(&["ls-add", "their-switch"]);
    ovn.nbctl(&[
        "--type=port-group",
        "acl-add",
        &group,
        "to-lport",
        "7",
        "ip",
        "drop",
    ]);
    let mut watch = nb.watch();
    let seen = watch.wait_for(|v| {
        v.replica.rows("ACL").any(|(_, r)| {
            r.get("external_ids")
                .is_some_and(|e| e.get("pileus.dev/cluster").is_none())
        })
    });
    drop(
        tokio::time::timeout(Duration::from_secs(5), seen)
            .await
            .unwrap()
            .unwrap(),
    );

    let repair = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert!(!repair.operations.is_empty());
    let done = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert_eq!(done.operations, [], "all is repaired at once");
    assert!(ovn.nbctl(&["lsp-get-addresses", &p0]).contains("10.0.0.10"));
    assert_eq!(ovn.nbctl(&["lsp-list", &switch]).lines().count(), 4);
    assert_eq!(ovn.nbctl(&["acl-list", &group]).lines().count(), 4);
    assert!(ovn.nbctl(&["ls-list"]).contains("their-switch"));
    assert!(
        ovn.nbctl(&["get", "Logical_Switch", &switch, "external_ids"])
            .contains("theirs")
    );

    assert_eq!(ovn.northd_complaints(), [""; 0]);
}

#[tokio::test]
async fn an_observed_deletion_removes_but_not_what_holds_rows_of_others() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let want = desired(&topology(3));
    nb.apply(&token, &want, &nothing()).await.unwrap();
    let switch = switch_name(&cluster(), &Key::new("team", "net"));
    let group = group_name(&cluster(), &Key::new("team", "web"));
    ovn.nbctl(&["lsp-add", &switch, "theirs"]);
    ovn.nbctl(&["ls-add", "their-switch"]);
    ovn.nbctl(&[
        "--type=port-group",
        "acl-add",
        &group,
        "to-lport",
        "7",
        "ip",
        "drop",
    ]);
    let mut watch = nb.watch();
    let seen = watch.wait_for(|view| view.replica.len("ACL") == 8);
    drop(
        tokio::time::timeout(Duration::from_secs(5), seen)
            .await
            .unwrap()
            .unwrap(),
    );
    // An observed deletion removes; a switch that holds rows of others stays.
    let deleted: BTreeSet<String> = want
        .ports
        .values()
        .map(|p| p.owner.uid.clone())
        .chain([
            "uid-Network-net".into(),
            "uid-Subnet-v4".into(),
            "uid-Subnet-v6".into(),
        ])
        .collect();
    let gone = nb
        .apply(&token, &Desired::default(), &deleted)
        .await
        .unwrap();
    assert!(
        matches!(
            gone.not_applied.as_slice(),
            [NotApplied::HoldsOtherRows { rows: 1, .. }]
        ),
        "{gone:?}"
    );
    assert_eq!(ovn.nbctl(&["lsp-list", &switch]).lines().count(), 1);
    assert_eq!(ovn.nbctl(&["dhcp-options-list"]).lines().count(), 0);
    ovn.nbctl(&["lsp-del", "theirs"]);
    ovn.nbctl(&[
        "--type=port-group",
        "acl-del",
        &group,
        "to-lport",
        "7",
        "ip",
    ]);
    let mut watch = nb.watch();
    let seen =
        watch.wait_for(|v| v.replica.len("Logical_Switch_Port") == 0 && v.replica.len("ACL") == 7);
    drop(
        tokio::time::timeout(Duration::from_secs(5), seen)
            .await
            .unwrap()
            .unwrap(),
    );
    let deleted = deleted
        .into_iter()
        .chain(["uid-SecurityGroup-web".into(), cluster().0])
        .collect();
    nb.apply(&token, &Desired::default(), &deleted)
        .await
        .unwrap();
    assert_eq!(ovn.nbctl(&["ls-list"]).lines().count(), 1, "theirs alone");
    assert_eq!(ovn.nbctl(&["list", "Port_Group"]).trim(), "");
    assert_eq!(ovn.northd_complaints(), [""; 0]);
}

#[tokio::test]
async fn absence_removes_nothing_and_is_reported() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let want = desired(&topology(3));
    nb.apply(&token, &want, &nothing()).await.unwrap();

    let empty = nb
        .apply(&token, &Desired::default(), &nothing())
        .await
        .unwrap();
    assert_eq!(empty.operations, []);
    // A switch, 3 ports, 2 DHCP rows, 2 port groups.
    assert_eq!(empty.orphans.len(), 8, "{:?}", empty.orphans);

    // Ports alone are missing: their memberships stay, too.
    let mut without_ports = topology(3);
    without_ports.ports.clear();
    let kept = nb
        .apply(&token, &desired(&without_ports), &nothing())
        .await
        .unwrap();
    assert_eq!(kept.operations, []);

    // The owners come back with other uids: adopted, not made anew.
    let mut reborn = topology(3);
    for port in &mut reborn.ports {
        port.owner.uid.push_str("-2");
    }
    let row = ovn.nbctl(&["get", "Logical_Switch_Port", &port_name(0), "_uuid"]);
    nb.apply(&token, &desired(&reborn), &nothing())
        .await
        .unwrap();
    assert_eq!(
        row,
        ovn.nbctl(&["get", "Logical_Switch_Port", &port_name(0), "_uuid"])
    );
    assert!(
        ovn.nbctl(&["get", "Logical_Switch_Port", &port_name(0), "external_ids"])
            .contains("uid-Port-p0-2")
    );
}

#[tokio::test]
async fn of_two_leaders_only_the_one_with_the_token_can_write() {
    let ovn = Ovn::start();
    let (old, new) = (ovn.connect().await, ovn.connect().await);
    let first = token("first");
    let second = Token {
        generation: 2,
        ..token("second")
    };
    let want = desired(&topology(1));
    assert!(matches!(
        old.apply(&first, &want, &nothing()).await,
        Err(ApplyError::Fenced { holder: None })
    ));
    old.claim(&first).await.unwrap();
    let before = old.view().replica;
    ovn.nbctl(&["set", "NB_Global", ".", "external_ids:theirs=1"]);
    new.claim(&second).await.unwrap();
    // The old one was asleep meanwhile. It may even decide by what it read before that.
    let by_second = Err(ApplyError::Fenced {
        holder: Some(Holder {
            generation: 2,
            identity: "second".into(),
        }),
    });
    assert_eq!(
        old.apply(&first, &want, &nothing()).await.map(drop),
        by_second
    );
    assert_eq!(old.claim(&first).await, by_second);
    let stale = first.claim(&before).unwrap();
    assert_eq!(
        old.client().transact(stale).await,
        Err(Error::WaitFailed { index: 0 })
    );
    let twin = Token {
        generation: 2,
        ..token("twin")
    };
    assert_eq!(old.claim(&twin).await, by_second);
    new.claim(&second).await.unwrap();
    assert_eq!(ovn.nbctl(&["ls-list"]), "");
    new.apply(&second, &want, &nothing()).await.unwrap();
    assert_eq!(ovn.nbctl(&["ls-list"]).lines().count(), 1);
}

#[tokio::test]
async fn after_the_server_was_killed_the_client_reports_it_and_reconnects() {
    let mut ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    nb.apply(&token, &desired(&topology(2)), &nothing())
        .await
        .unwrap();

    let mut watch = nb.watch();
    ovn.kill_nb();
    let lost = watch.wait_for(|view| !view.is_connected());
    drop(
        tokio::time::timeout(Duration::from_secs(5), lost)
            .await
            .unwrap()
            .unwrap(),
    );
    let want = desired(&topology(3));
    assert!(matches!(
        nb.apply(&token, &want, &nothing()).await,
        Err(ApplyError::Database(Error::NotConnected { .. }))
    ));
    ovn.restart_nb();
    let back = watch.wait_for(View::is_connected);
    drop(
        tokio::time::timeout(Duration::from_secs(20), back)
            .await
            .unwrap()
            .unwrap(),
    );
    let diff = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert!(!diff.operations.is_empty());
    assert_eq!(nb.view().replica.len("Logical_Switch_Port"), 3);
}

#[tokio::test]
async fn a_thousand_ports_fit_in_one_transaction_and_northd_accepts_them() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let want = desired(&topology(1000));
    let began = std::time::Instant::now();
    nb.apply(&token, &want, &nothing()).await.unwrap();
    let applied = began.elapsed();
    let began = std::time::Instant::now();
    assert_eq!(
        nb.apply(&token, &want, &nothing())
            .await
            .unwrap()
            .operations,
        []
    );
    println!(
        "bench ovn_apply ports=1000 apply_ms={} idle_diff_ms={}",
        applied.as_millis(),
        began.elapsed().as_millis()
    );
    ovn.nbctl(&["--wait=sb", "--timeout=120", "sync"]);
    let flows = ovn.sbctl(&["--bare", "--columns=_uuid", "list", "Logical_Flow"]);
    assert!(flows.lines().count() > 1000);
    assert_eq!(ovn.northd_complaints(), [""; 0]);
}

#[tokio::test]
async fn a_port_that_comes_up_wakes_nobody_and_what_others_change_is_seen() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let want = desired(&topology(3));
    nb.apply(&token, &want, &nothing()).await.unwrap();
    assert!(nb.is_applied(&token, &want, &nothing()));
    let mut watch = nb.watch();
    watch.mark_unchanged();
    for up in ["up=true", "up=false", "tag=7"] {
        ovn.nbctl(&["set", "Logical_Switch_Port", &port_name(0), up]);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!watch.has_changed().unwrap());
    ovn.nbctl(&["lsp-set-addresses", &port_name(0), "unknown"]);
    tokio::time::timeout(Duration::from_secs(5), watch.changed())
        .await
        .unwrap()
        .unwrap();
    assert!(!nb.is_applied(&token, &want, &nothing()));
}

#[tokio::test]
async fn security_groups_pass_and_drop_as_in_neutron() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let topology = topology(3);
    nb.apply(&token, &desired(&topology), &nothing())
        .await
        .unwrap();
    ovn.nbctl(&["--wait=sb", "--timeout=60", "sync"]);
    let switch = switch_name(&cluster(), &Key::new("team", "net"));
    let address = |n: usize| topology.ports[n].addresses[0].address;
    let tcp = |from: usize, to: usize, port: u16| {
        format!(
            "inport==\"{}\" && eth.src=={} && eth.dst=={} && ip4.src=={} && ip4.dst=={} && ip.ttl==64 && tcp && tcp.dst=={port}",
            port_name(from),
            topology.ports[from].mac,
            topology.ports[to].mac,
            address(from),
            address(to),
        )
    };
    let passes = |packet: &str, to: usize| {
        let verdict = ovn.trace(&switch, packet);
        // ovn-trace cuts uuids short.
        verdict.contains(&format!("output(\"{}", &port_name(to)[..6]))
    };
    assert!(passes(&tcp(0, 1, 22), 1), "ssh within the group");
    assert!(passes(&tcp(0, 1, 80), 1), "http from anywhere");
    assert!(!passes(&tcp(0, 1, 443), 1), "no rule, no way");
    assert!(!passes(&tcp(0, 2, 80), 2), "into a port without groups");
    assert!(!passes(&tcp(2, 1, 80), 1), "out of a port without groups");
    let spoofed = tcp(0, 1, 80).replace(&format!("ip4.src=={}", address(0)), "ip4.src==10.0.0.99");
    assert!(!passes(&spoofed, 1), "an address that is not the port's");
    let dhcp = format!(
        "inport==\"{}\" && eth.src=={} && eth.dst==ff:ff:ff:ff:ff:ff && ip4.src==0.0.0.0 && ip4.dst==255.255.255.255 && ip.ttl==64 && udp && udp.src==68 && udp.dst==67",
        port_name(2),
        topology.ports[2].mac,
    );
    let verdict = ovn.trace_detail(&switch, &dhcp);
    assert!(verdict.contains("put_dhcp_opts"), "{verdict}");
}

#[tokio::test]
async fn a_transaction_under_way_when_the_server_stops_answering_has_an_unknown_outcome() {
    let ovn = Ovn::start();
    let nb = ovn
        .connect_with(Options {
            probe_interval: Duration::from_millis(200),
            ..Options::default()
        })
        .await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    // Longer than two probes: an idle connection is kept.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(nb.view().is_connected());
    ovn.halt_nb(true);
    let began = std::time::Instant::now();
    let result = nb.apply(&token, &desired(&topology(1)), &nothing()).await;
    assert_eq!(result, Err(ApplyError::Database(Error::Disconnected)));
    // Two probes, and a while for a connection that may come back.
    assert!(began.elapsed() < Duration::from_secs(8));
    ovn.halt_nb(false);
    let mut watch = nb.watch();
    let back = watch.wait_for(View::is_connected);
    drop(
        tokio::time::timeout(Duration::from_secs(20), back)
            .await
            .unwrap()
            .unwrap(),
    );
    // Whether it was committed or not, the next pass ends in the same place.
    nb.apply(&token, &desired(&topology(1)), &nothing())
        .await
        .unwrap();
    assert_eq!(ovn.nbctl(&["ls-list"]).lines().count(), 1);
    assert_eq!(
        ovn.nbctl(&["list", "Port_Group"]).matches("_uuid").count(),
        2
    );
}

#[tokio::test]
async fn one_transaction_leads_from_any_rows_to_the_desired_ones() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    println!("seed {seed}");
    let mut state = u64::try_from(seed & u128::from(u64::MAX)).unwrap() | 1;
    let mut random = move |below: usize| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for round in 0..40 {
        let mut next = topology(random(12));
        if random(2) == 0 {
            next.networks.push(NetworkIn {
                owner: owner("Network", "other"),
                mtu: 1400,
            });
            for port in &mut next.ports {
                if random(3) == 0 {
                    port.network.name = "other".into();
                    port.addresses.clear();
                }
            }
        }
        for port in &mut next.ports {
            match random(4) {
                0 => port.security = Security::Disabled,
                1 => port.addresses.truncate(random(3)),
                _ => {}
            }
        }
        let keep = random(4);
        next.rules.truncate(keep);
        next.subnets[0].dhcp = random(2) == 0;
        let want = desired(&next);
        let deleted: BTreeSet<String> = (0..12)
            .filter(|_| random(2) == 0)
            .map(|n| format!("uid-Port-p{n}"))
            .filter(|uid| !want.ports.values().any(|port| port.owner.uid == *uid))
            .collect();
        nb.apply(&token, &want, &deleted).await.unwrap();
        let again = nb.apply(&token, &want, &deleted).await.unwrap();
        assert_eq!(again.operations, [], "round {round}");
        assert!(
            again
                .orphans
                .iter()
                .all(|orphan| !deleted.contains(&orphan.owner.uid))
        );
    }
    assert_eq!(ovn.northd_complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ovn_controller_that_cannot_work_is_reported_with_its_reason() {
    let ovn = Ovn::start();
    let run_dir = ovn.path("");
    let says = async |part: &str| {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let problem = controller::problem(&run_dir).await;
            if problem.as_deref().unwrap_or_default().contains(part) {
                break;
            }
            assert!(Instant::now() < until, "expected {part}, got {problem:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    says("ovn-controller.pid: No such file").await;
    let running = ovn.start_controller();
    says("southbound database: not connected").await;
    drop(running);
    // Killed, it leaves its files.
    says("Connection refused").await;
}
