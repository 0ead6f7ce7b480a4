//! Rows that a real `ovsdb-server` refuses, or at which it drops the connection, stop nobody else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::ovn::{cluster, desired, nothing, owner, port_name, token, topology};
use pileus_network::northbound::{Desired, Diff, Northbound, NorthboundDb, NotApplied};
use pileus_network::ovsdb::{Datum, Endpoint, Error, Operation, Options, View};
use pileus_network::topology::{
    Direction, Family, GroupIn, Key, Protocol, Remote, Rule, RuleIn, compile, group_name,
};
use pileus_tests::ovn::Ovn;

/// Many owners: 40 ports, and 20 groups with one rule of its own each.
fn many() -> Desired {
    let mut all = topology(40);
    for n in 0..20 {
        all.groups.push(GroupIn {
            owner: owner("SecurityGroup", &format!("g{n}")),
        });
        all.rules.push(RuleIn {
            owner: owner("SecurityGroupRule", &format!("r{n}")),
            group: Key::new("team", &format!("g{n}")),
            name: String::new(),
            rule: any(),
        });
    }
    desired(&all)
}

fn any() -> Rule {
    Rule {
        direction: Direction::Egress,
        family: Family::V4,
        remote: Remote::Any,
        protocol: Protocol::Any,
    }
}

/// Gives the rule of a group a match and a priority.
fn change_rule(desired: &mut Desired, group: &str, text: &str, priority: i64) {
    let name = group_name(&cluster(), &Key::new("team", group));
    let group = desired.port_groups.get_mut(&name).unwrap();
    for acl in group.acls.values_mut() {
        acl.matches = text.to_owned();
        acl.priority = priority;
    }
}

fn refused(diff: &Diff) -> Vec<(String, String)> {
    let mut found: Vec<_> = diff
        .not_applied
        .iter()
        .map(|entry| match entry {
            NotApplied::Refused { owner, message } => (owner.name.clone(), message.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    found.sort();
    found
}

fn names(refused: &[(String, String)]) -> Vec<&str> {
    refused.iter().map(|(name, _)| name.as_str()).collect()
}

fn count(ovn: &Ovn, table: &str) -> usize {
    ovn.nbctl(&["list", table]).matches("_uuid").count()
}

#[tokio::test]
async fn what_the_database_refuses_is_left_out_alone_and_tried_again_when_it_has_changed() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let good = many();
    let mut want = good.clone();
    // 32767 is the highest priority.
    change_rule(&mut want, "g3", "ip4", 40_000);
    change_rule(&mut want, "g17", "ip4", -1);
    let diff = nb.apply(&token, &want, &nothing()).await.unwrap();
    let culprits = refused(&diff);
    assert_eq!(names(&culprits), ["r17", "r3"]);
    assert!(
        culprits[0].1.contains("constraint violation"),
        "{culprits:?}"
    );
    assert_eq!(count(&ovn, "Logical_Switch_Port"), 40);
    assert_eq!(count(&ovn, "Port_Group"), 22);
    // Of the group, of its port group, of the drop group, and of 18 of 20.
    assert_eq!(count(&ovn, "ACL"), 3 + 4 + 18);

    // They are remembered: nothing is searched, nothing is sent.
    let again = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert_eq!(again.operations, []);
    assert_eq!(names(&refused(&again)), ["r17", "r3"]);
    assert!(again.retry_after.unwrap() > Duration::from_secs(5));

    // One of them is mended: that is noticed at once.
    change_rule(&mut want, "g3", "ip4", 1002);
    let mended = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert_eq!(names(&refused(&mended)), ["r17"]);
    assert_eq!(count(&ovn, "ACL"), 3 + 4 + 19);

    // A change that is refused leaves what was there.
    change_rule(&mut want, "g3", "ip6", 40_000);
    let kept = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert_eq!(names(&refused(&kept)), ["r17", "r3"]);
    assert_eq!(count(&ovn, "ACL"), 3 + 4 + 19);
    let done = nb.apply(&token, &good, &nothing()).await.unwrap();
    assert_eq!(done.not_applied, []);
    assert_eq!(count(&ovn, "ACL"), 3 + 4 + 20);
}

#[tokio::test]
async fn what_depends_on_a_refused_row_waits_for_it_and_says_so() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let mut want = many();
    // A NUL in the row of the one Network.
    let switch = want.switches.values_mut().next().unwrap();
    switch.other_config.insert("a\0b".into(), "1".into());
    let diff = nb.apply(&token, &want, &nothing()).await.unwrap();
    let waiting = diff
        .not_applied
        .iter()
        .filter(|entry| matches!(entry, NotApplied::MissingSwitch { .. }))
        .count();
    assert_eq!(waiting, 40);
    assert!(diff.not_applied.iter().any(|entry| matches!(
        entry,
        NotApplied::Refused { owner, message } if owner.kind == "Network" && message.contains(r"a\0b")
    )));
    assert_eq!(count(&ovn, "Port_Group"), 22);
    assert_eq!(count(&ovn, "Logical_Switch_Port"), 0);

    let good = many();
    let done = nb.apply(&token, &good, &nothing()).await.unwrap();
    assert_eq!(done.not_applied, []);
    assert_eq!(count(&ovn, "Logical_Switch_Port"), 40);
    // What is there stays, also with what the database cannot hold.
    nb.apply(&token, &want, &nothing()).await.unwrap();
    assert_eq!(count(&ovn, "Logical_Switch_Port"), 40);
}

/// Passes bytes on to the database, and drops each connection that sends `marker`.
fn dropping_proxy(server: PathBuf, socket: &Path, marker: &'static [u8]) {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = UnixStream::connect(&server).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let back = tokio::spawn(async move {
                let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
            });
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut buffer = vec![0; 1 << 20];
                while let Ok(count) = from_client.read(&mut buffer).await {
                    seen.extend_from_slice(&buffer[..count]);
                    if count == 0 || seen.windows(marker.len()).any(|part| part == marker) {
                        break;
                    }
                    if to_server.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                    seen.drain(..seen.len().saturating_sub(marker.len()));
                }
                back.abort();
            });
        }
    });
}

#[tokio::test]
async fn what_breaks_the_connection_is_left_out_alone() {
    let ovn = Ovn::start();
    let socket = ovn.path("proxy.sock");
    dropping_proxy(ovn.path("nb.sock"), &socket, b"poison");
    let nb = Northbound::start(vec![Endpoint::Unix(socket)], Options::default());
    let mut watch = nb.watch();
    let connected = watch.wait_for(|v| v.is_connected() && v.replica.len("NB_Global") == 1);
    drop(
        tokio::time::timeout(Duration::from_secs(20), connected)
            .await
            .unwrap()
            .unwrap(),
    );
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let mut want = many();
    change_rule(&mut want, "g3", "poison", 1002);
    change_rule(&mut want, "g9", "poison", 1002);
    let began = Instant::now();
    let diff = nb.apply(&token, &want, &nothing()).await.unwrap();
    println!(
        "bench ovn_search owners=60 culprits=2 ms={}",
        began.elapsed().as_millis()
    );
    let culprits = refused(&diff);
    assert_eq!(names(&culprits), ["r3", "r9"]);
    assert!(
        culprits[0].1.contains("drops the connection"),
        "{culprits:?}"
    );
    assert_eq!(count(&ovn, "Logical_Switch_Port"), 40);
    assert_eq!(count(&ovn, "ACL"), 3 + 4 + 18);
    assert!(nb.view().is_connected());
    assert_eq!(
        nb.apply(&token, &want, &nothing())
            .await
            .unwrap()
            .operations,
        []
    );
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_outage_and_nobodys_fault() {
    let mut ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    ovn.halt_nb(true);
    let want = many();
    let nobody = nothing();
    let (applied, ()) = tokio::join!(nb.apply(&token, &want, &nobody), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        ovn.kill_nb();
    });
    assert!(applied.is_err(), "{applied:?}");
    ovn.restart_nb();
    let mut watch = nb.watch();
    let back = watch.wait_for(View::is_connected);
    drop(
        tokio::time::timeout(Duration::from_secs(20), back)
            .await
            .unwrap()
            .unwrap(),
    );
    let diff = nb.apply(&token, &want, &nothing()).await.unwrap();
    assert_eq!(diff.not_applied, []);
}

/// Characters of all kinds: a NUL, controls, letters, what needs more than two bytes in UTF-16,
/// and what is no character.
fn random_text(mut random: impl FnMut(usize) -> usize) -> String {
    let length = random(40);
    let mut one = || match random(10) {
        0 => '\0',
        1 => char::from_u32(u32::try_from(random(0x20)).unwrap()).unwrap(),
        2 => [
            '"', '\\', '\'', '/', '$', '@', '\u{7f}', '\u{feff}', '\u{ffff}', '\u{fdd0}',
        ][random(10)],
        3 => char::from_u32(u32::try_from(0x1_0000 + random(0x10_0000)).unwrap()).unwrap(),
        4 | 5 => char::from_u32(u32::try_from(random(0xd800)).unwrap()).unwrap(),
        _ => char::from_u32(u32::try_from(0x61 + random(26)).unwrap()).unwrap(),
    };
    (0..length).map(|_| one()).collect()
}

#[tokio::test]
async fn whatever_the_names_of_rules_hold_everything_else_arrives() {
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
    for round in 0..30 {
        let mut all = topology(round % 5 + 1);
        let texts: BTreeSet<String> = (0..30)
            .map(|_| random_text(&mut random))
            .filter(|text| !text.is_empty())
            .collect();
        for name in &texts {
            all.rules.push(RuleIn {
                owner: owner("SecurityGroup", "web"),
                group: Key::new("team", "web"),
                name: name.clone(),
                rule: any(),
            });
        }
        let compiled = compile(&all);
        let bad = texts.iter().filter(|text| text.contains('\0')).count();
        assert_eq!(compiled.problems.len(), bad);
        let mut want = compiled.desired;
        // What no compiler has looked at: texts in the rows of one owner.
        let text = random_text(&mut random);
        for port in want
            .ports
            .values_mut()
            .filter(|port| port.owner.name == "p0")
        {
            port.options.insert("x".into(), text.clone());
        }
        let diff = nb.apply(&token, &want, &nothing()).await.unwrap();
        let refused = refused(&diff);
        if text.contains('\0') {
            assert_eq!(names(&refused), ["p0"]);
        } else {
            assert_eq!(refused, []);
        }
        let replica = nb.view().replica;
        let acls: BTreeSet<&str> = replica
            .rows("ACL")
            .filter_map(|(_, row)| row.get("external_ids")?.get("pileus.dev/part"))
            .collect();
        for text in texts.iter().filter(|text| !text.contains('\0')) {
            assert!(acls.contains(format!("rule/{text}").as_str()), "{text:?}");
        }
        let ports: BTreeSet<&str> = replica
            .rows("Logical_Switch_Port")
            .filter_map(|(_, row)| row.get("name").and_then(Datum::as_str))
            .collect();
        for n in 1..=round % 5 {
            assert!(ports.contains(port_name(n).as_str()));
        }
    }
}

/// What the check before sending is for: should this ever fail, the check has become needless.
#[tokio::test]
async fn the_server_drops_the_connection_of_who_sends_a_nul() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let insert = Operation::Insert {
        table: "Address_Set",
        row: [("name", Datum::atom("a\0"))].into(),
        name: "new".into(),
    };
    let sent = nb.client().transact(vec![insert]).await;
    assert_eq!(sent, Err(Error::Disconnected));
}
