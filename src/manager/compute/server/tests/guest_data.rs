//! The data of a guest: not made before all of it is known, and not kept longer than it is needed.

use serde_json::{Value, json};

use super::super::plan::{Observed, Progress, Step, plan};
use super::{UID, act, address, observed, placed, read, server, settle, words};
use pileus_api::{Server, Subnet};

/// A Server that is placed and has its Port.
fn with_port() -> (Server, Observed) {
    let (mut server, mut observed) = (server(), observed());
    settle(&mut server, &mut observed);
    address(observed.nics[0].port.as_mut().unwrap());
    (placed(server), observed)
}

#[test]
fn the_guests_data_goes_once_its_config_drive_was_made_and_the_drive_stays() {
    let (mut server, mut observed) = with_port();
    settle(&mut server, &mut observed);
    let name = format!("{UID}-1");
    assert_eq!(observed.instances[0].spec.guest_data.as_ref(), Some(&name));
    // Its host has begun, but has no domain yet.
    observed.instances[0].status = serde_json::from_value(json!({"realized": true})).unwrap();
    assert!(plan(&server, &observed).steps.is_empty());
    let hardware =
        json!({"machineType": "m", "cpuModel": "c", "virtType": "kvm", "firmware": "bios"});
    observed.instances[0].status = serde_json::from_value(json!({"hardware": hardware})).unwrap();
    let steps = plan(&server, &observed);
    assert_eq!(
        words(&steps),
        [
            format!("delete guest data {name}"),
            format!("update instance {name}")
        ]
    );
    for step in &steps.steps {
        if let Step::DeleteGuestData { namespace, .. } = step {
            assert_eq!(namespace, "pileus-host-h1");
        }
        act(step, &mut server, &mut observed);
    }
    assert_eq!(observed.instances[0].spec.guest_data, None);
    assert!(plan(&server, &observed).steps.is_empty());
}

#[test]
fn a_guest_is_built_only_when_its_subnets_gateway_is_known() {
    let (server, mut observed) = with_port();
    let nic = &mut observed.nics[0];
    let status = nic.port.as_mut().unwrap().status.as_mut().unwrap();
    let ip = json!([{"subnet": "s", "address": "10.0.0.5", "allocation": "a"}]);
    status.fixed_ips = serde_json::from_value(ip).unwrap();
    let subnet = |status: Value| -> Subnet {
        read(json!({"metadata": {"name": "s", "namespace": "demo"},
            "spec": {"network": "n", "cidr": "10.0.0.0/24"}, "status": status}))
    };
    let known = json!({"networkUID": "net", "gatewayIP": "10.0.0.1"});
    let without_gateway = json!({"networkUID": "net"});
    for (subnets, is_built) in [
        (vec![], false),
        (vec![subnet(Value::Null)], false),
        (vec![subnet(json!({}))], false),
        (vec![subnet(known)], true),
        (vec![subnet(without_gateway)], true),
    ] {
        observed.nics[0].subnets = subnets;
        let plan = plan(&server, &observed);
        let waits = matches!(plan.progress, Progress::AwaitingPorts(_));
        assert_eq!((waits, plan.steps.is_empty()), (!is_built, !is_built));
    }
}
