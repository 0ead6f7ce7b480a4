//! Which host of a real OVN gets which port.

use std::time::{Duration, Instant};

use super::ovn::{desired, nothing, port_name, token, topology};
use pileus_network::northbound::NorthboundDb;
use pileus_network::topology::Binding;
use pileus_tests::chassis::Chassis;
use pileus_tests::ovn::Ovn;

fn southbound(ovn: &Ovn) -> String {
    format!("unix:{}", ovn.path("sb.sock").display())
}

/// Name of the chassis that has a port; empty when none has.
fn bound_to(ovn: &Ovn, port: &str) -> String {
    let wanted = format!("logical_port={port}");
    let find = [
        "--bare",
        "--columns=chassis",
        "find",
        "Port_Binding",
        &wanted,
    ];
    match ovn.sbctl(&find).trim() {
        "" => String::new(),
        id => {
            let name = ovn.sbctl(&["get", "Chassis", id, "name"]);
            name.trim().trim_matches('"').to_owned()
        }
    }
}

/// Waits until a chassis has a port; returns how long that took.
pub(super) async fn wait_bound(ovn: &Ovn, port: &str, chassis: &str) -> Duration {
    let began = Instant::now();
    loop {
        let bound = bound_to(ovn, port);
        if bound == chassis {
            return began.elapsed();
        }
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{port} is bound to `{bound}`, not to `{chassis}`"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_bound_by_the_host_it_is_placed_on_and_by_no_other() {
    let ovn = Ovn::start();
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    let mut wanted = topology(2);
    wanted.ports[0].binding = Binding::Nowhere;
    nb.apply(&token, &desired(&wanted), &nothing())
        .await
        .unwrap();
    let southbound = southbound(&ovn);
    let hosts = ["h1", "h2"].map(|name| {
        let number = name.as_bytes()[1] - b'0';
        Chassis::start(&ovn, name, number, &southbound, None)
    });
    let (port, witness) = (port_name(0), port_name(1));
    // Both have an interface with the port's id, as a host that lies would.
    for host in &hosts {
        host.plug(&port);
    }
    // A port that may be bound anywhere shows when the hosts have done their work.
    let third = Chassis::start(&ovn, "h3", 3, &southbound, None);
    third.plug(&witness);
    wait_bound(&ovn, &witness, "h3").await;
    assert_eq!(bound_to(&ovn, &port), "", "it is placed nowhere");
    let to_it = format!("eth.dst == {}", wanted.ports[0].mac);
    let flows = ovn.sbctl(&["lflow-list"]);
    let mut leading = flows
        .lines()
        .filter(|flow| flow.contains("ls_in_l2_lkup") && flow.contains(&to_it));
    assert!(leading.all(|flow| flow.contains("drop")), "{flows}");

    for host in ["h2", "h1", "h2"] {
        wanted.ports[0].binding = Binding::Chassis(host.into());
        nb.apply(&token, &desired(&wanted), &nothing())
            .await
            .unwrap();
        let took = wait_bound(&ovn, &port, host).await;
        println!("bench ovn_bind host={host} ms={}", took.as_millis());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(bound_to(&ovn, &port), host);
    }
    // By the name of the host as well.
    wanted.ports[0].binding = Binding::Chassis("h1.example".into());
    nb.apply(&token, &desired(&wanted), &nothing())
        .await
        .unwrap();
    wait_bound(&ovn, &port, "h1").await;
}
