//! The planner, without any API server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

mod claims;
mod fields;
mod guest_data;
mod problems;
mod refused;
mod topology;

use k8s_openapi::ByteString;
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{Observed, ObservedNic, Plan, Progress, Step, UserData, plan};
use super::status::status;
use pileus_api::common::Resolved;
use pileus_api::instance::OnDeletion;
use pileus_api::names::{AGENT_FINALIZER, MANAGER_FINALIZER, SERVER_UID_LABEL};
use pileus_api::{ConditionType, Image, Instance, Network, Port, Reason, Server, conditions};
use pileus_values::ClusterId;

const UID: &str = "11111111-1111-4111-8111-111111111111";

fn read<K: serde::de::DeserializeOwned + kube::Resource<DynamicType = ()>>(mut value: Value) -> K {
    value["apiVersion"] = K::api_version(&()).into();
    value["kind"] = K::kind(&()).into();
    serde_json::from_value(value).unwrap()
}

fn server() -> Server {
    read(json!({
        "metadata": {"name": "web", "namespace": "demo", "uid": UID, "generation": 1},
        "spec": {"flavor": "small", "image": {"name": "tiny"},
            "networks": [{"name": "a", "network": {"name": "n"}}]},
    }))
}

fn placed(mut server: Server) -> Server {
    server.status = serde_json::from_value(json!({"placement": {"host": "h1", "epoch": 1,
        "claim": {"vcpus": 1, "memoryMiB": 64, "diskGiB": 1}}}))
    .unwrap();
    server
}

fn image() -> Image {
    read(
        json!({"metadata": {"name": "tiny", "namespace": "demo", "uid": "image"},
        "spec": {"source": {"url": "https://images.example/tiny.qcow2"}}}),
    )
}

fn network() -> Network {
    read(
        json!({"metadata": {"name": "n", "namespace": "demo", "uid": "net"}, "spec": {},
        "status": {"mtu": 1442}}),
    )
}

fn address(port: &mut Port) {
    port.status = serde_json::from_value(json!({"portID": "22222222-2222-4222-8222-222222222222",
        "macAddress": "52:54:00:00:00:01", "server": {"name": "web", "uid": UID},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "x",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}))
    .unwrap();
}

fn observed() -> Observed {
    Observed {
        cluster: ClusterId("cluster".into()),
        flavor: Some(read(json!({"metadata": {"name": "small"},
            "spec": {"vcpus": 1, "memory": "64Mi", "disk": "1Gi"}}))),
        image: Some(image()),
        nics: vec![ObservedNic {
            name: "a".into(),
            port_name: "web-a".into(),
            made: true,
            network: Some(network()),
            ..ObservedNic::default()
        }],
        ..Observed::default()
    }
}

/// Carries out a step on what is observed, as the API server would.
fn act(step: &Step, server: &mut Server, observed: &mut Observed) {
    match step {
        Step::AddFinalizer => server.metadata.finalizers = Some(vec![MANAGER_FINALIZER.into()]),
        Step::RemoveFinalizer => server.metadata.finalizers = None,
        Step::CreatePort(port) => {
            let nic = observed
                .nics
                .iter_mut()
                .find(|n| Some(&n.port_name) == port.metadata.name.as_ref());
            let mut port = (**port).clone();
            port.metadata.uid = Some("port".into());
            nic.unwrap().port = Some(port);
        }
        Step::CreateGuestData(_) | Step::DeleteGuestData { .. } | Step::ConfirmPorts(_) => {}
        Step::UpdatePort(changed) => {
            for nic in &mut observed.nics {
                if nic.port_name == changed.name_any() {
                    nic.port = Some((**changed).clone());
                }
            }
        }
        Step::ClaimPort { port, .. } => {
            for port in observed
                .nics
                .iter_mut()
                .filter(|nic| nic.port_name == port.name_any())
                .filter_map(|nic| nic.port.as_mut())
            {
                let uid = server.metadata.uid.clone().unwrap_or_default();
                let name = server.name_any();
                let status = port.status.get_or_insert_default();
                status.server = Some(Resolved { name, uid });
                observed.held_ports.push(port.clone());
            }
        }
        Step::ReleasePort(port) => {
            observed
                .held_ports
                .retain(|held| held.name_any() != port.name_any());
            for port in observed
                .nics
                .iter_mut()
                .filter(|nic| nic.port_name == port.name_any())
                .filter_map(|nic| nic.port.as_mut())
            {
                port.status.get_or_insert_default().server = None;
            }
        }
        Step::CreateInstance(instance) => {
            let mut instance = (**instance).clone();
            instance.metadata.uid = Some("instance".into());
            observed.instances = vec![instance];
        }
        Step::UpdateInstance(instance) => observed.instances = vec![(**instance).clone()],
        Step::DeleteInstance { uid, .. } => {
            for instance in observed
                .instances
                .iter_mut()
                .filter(|i| i.metadata.uid.as_ref() == Some(uid))
            {
                deleting(&mut instance.metadata);
            }
        }
        Step::DeletePort { uid, .. } => {
            observed
                .owned_ports
                .retain(|p| p.metadata.uid.as_ref() != Some(uid));
        }
    }
}

fn deleting(metadata: &mut kube::api::ObjectMeta) {
    metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
}

fn settle(server: &mut Server, observed: &mut Observed) -> Plan {
    let first = plan(server, observed);
    for step in &first.steps {
        act(step, server, observed);
    }
    let second = plan(server, observed);
    assert!(
        second.steps.is_empty(),
        "planned again: {:?}",
        words(&second)
    );
    second
}

fn words(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

fn problems(server: &Server, observed: &Observed) -> (Vec<Reason>, String) {
    match plan(server, observed).progress {
        Progress::Problems(found) => {
            let messages: Vec<_> = found.iter().map(|p| p.message.clone()).collect();
            (
                found.iter().map(|p| p.reason).collect(),
                messages.join("; "),
            )
        }
        other => panic!("no problem: {other:?}"),
    }
}

#[test]
fn a_server_is_built_step_by_step_and_then_left_alone() {
    let (mut server, mut observed) = (server(), observed());
    assert_eq!(
        words(&plan(&server, &observed)),
        ["add finalizer", "create port web-a"]
    );
    assert_eq!(
        settle(&mut server, &mut observed).progress,
        Progress::Unplaced
    );
    let mut server = placed(server);
    assert_eq!(
        settle(&mut server, &mut observed).progress,
        Progress::AwaitingPorts(vec!["web-a".into()])
    );
    address(observed.nics[0].port.as_mut().unwrap());
    let name = format!("{UID}-1");
    assert_eq!(
        words(&plan(&server, &observed)),
        [
            format!("create guest data {name}"),
            format!("create instance {name}")
        ]
    );
    assert_eq!(
        settle(&mut server, &mut observed).progress,
        Progress::Building
    );
    let instance = &observed.instances[0];
    assert_eq!(
        instance.metadata.namespace.as_deref(),
        Some("pileus-host-h1")
    );
    assert_eq!(
        instance.metadata.finalizers,
        Some(vec![AGENT_FINALIZER.to_owned()])
    );
    assert_eq!(instance.spec.nics[0].mtu, 1442);
}

type Change<'a> = &'a dyn Fn(&mut Server, &mut Observed);

#[test]
fn deletion_goes_host_first_then_ports_then_the_server() {
    let (mut server, mut observed) = built();
    deleting(&mut server.metadata);
    observed.owned_ports = vec![observed.nics[0].port.clone().unwrap()];
    assert_eq!(
        words(&plan(&server, &observed)),
        [
            format!("update instance {UID}-1"),
            format!("delete instance {UID}-1")
        ]
    );
    settle(&mut server, &mut observed);
    assert_eq!(observed.instances[0].spec.on_deletion, OnDeletion::Remove);
    observed.instances.clear();
    assert_eq!(
        words(&plan(&server, &observed)),
        [
            format!("delete guest data {UID}-1"),
            "delete port web-a".to_owned()
        ]
    );
    observed.owned_ports.clear();
    let last = plan(&server, &observed);
    assert!(matches!(last.steps.last(), Some(Step::RemoveFinalizer)));
    server.metadata.finalizers = None;
    assert!(plan(&server, &observed).steps.is_empty());
}

#[test]
fn a_server_that_is_deleted_with_its_crd_removes_nothing() {
    let (mut server, mut observed) = built();
    deleting(&mut server.metadata);
    observed.crd_deleting = true;
    observed.owned_ports = vec![observed.nics[0].port.clone().unwrap()];
    assert_eq!(
        words(&plan(&server, &observed)),
        [format!("delete instance {UID}-1")]
    );
    settle(&mut server, &mut observed);
    assert_eq!(observed.instances[0].spec.on_deletion, OnDeletion::Release);
    observed.instances.clear();
    assert_eq!(
        words(&plan(&server, &observed)),
        [
            format!("delete guest data {UID}-1"),
            "remove finalizer".to_owned()
        ]
    );
}

#[test]
fn what_only_carries_our_label_is_never_deleted() {
    let (mut server, mut observed) = built();
    deleting(&mut server.metadata);
    observed.instances[0].spec.server.uid = "someone else".into();
    let theirs: Port = read(json!({"metadata": {"name": "x", "uid": "x",
        "labels": {(SERVER_UID_LABEL): UID}}, "spec": {"network": {"name": "n"}}}));
    observed.owned_ports = vec![theirs];
    let plan = plan(&server, &observed);
    assert_eq!(
        words(&plan),
        [
            format!("delete guest data {UID}-1"),
            "remove finalizer".to_owned()
        ]
    );
}

/// A Server with an Instance.
fn built() -> (Server, Observed) {
    let (mut server, mut observed) = (server(), observed());
    settle(&mut server, &mut observed);
    let mut server = placed(server);
    address(observed.nics[0].port.as_mut().unwrap());
    settle(&mut server, &mut observed);
    assert_eq!(observed.instances.len(), 1);
    (server, observed)
}

#[test]
fn a_missing_reference_never_disturbs_what_runs() {
    let (server, mut observed) = built();
    observed.flavor = None;
    observed.image = None;
    observed.nics[0].network = None;
    let plan = plan(&server, &observed);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    assert!(!matches!(plan.progress, Progress::Problems(_)));
}

#[test]
fn a_secret_that_is_too_large_is_looked_at_again_and_a_literal_is_not() {
    let (mut server, mut observed) = (server(), observed());
    observed.user_data = UserData::Is(vec![0; 64 * 1024 + 1]);
    assert!(plan(&server, &observed).progress.waits_for_secret());
    server.spec.user_data = Some("x".repeat(64 * 1024 + 1));
    assert!(!plan(&server, &observed).progress.waits_for_secret());
}

#[test]
fn what_cannot_be_changed_in_place_is_named_with_both_values() {
    let cases: [(Change<'_>, &str); 9] = [
        (
            &|s, _| s.spec.hostname = Some("front".into()),
            "hostname (front asked for; none given, fixed at first boot)",
        ),
        (
            &|s, _| s.spec.user_data = Some("hunter2".into()),
            "userData (changed, but fixed at first boot)",
        ),
        (
            &|s, _| s.spec.key_pairs = vec!["alice".into()],
            "keyPairs (alice asked for; none given, fixed at first boot)",
        ),
        (
            &|s, _| {
                s.spec.metadata.insert("role".into(), "hunter2".into());
            },
            "metadata (changed, but fixed at first boot)",
        ),
        (
            &|s, _| s.spec.config_drive = pileus_api::server::ConfigDrive::Disabled,
            "configDrive (Disabled asked for, Enabled built)",
        ),
        (
            &|s, _| s.spec.image.name = "other".into(),
            "image (demo/other asked for, demo/tiny built)",
        ),
        (
            &|s, observed| {
                s.spec.networks.clear();
                observed.nics.clear();
            },
            "networks (none asked for; a on Port web-a built)",
        ),
        (
            &|s, _| s.spec.networks[0].network.as_mut().unwrap().name = "m".into(),
            "networks[a] (demo/m asked for, demo/n built)",
        ),
        (
            &|s, _| s.spec.networks[0].fixed_ip = Some("10.0.0.9".into()),
            "networks[a] (demo/n 10.0.0.9 asked for, demo/n built)",
        ),
    ];
    assert!(
        plan(&built().0, &built().1).outdated.is_empty(),
        "as it was built"
    );
    for (change, told) in cases {
        let (mut server, mut observed) = built();
        change(&mut server, &mut observed);
        let plan = plan(&server, &observed);
        assert_eq!(plan.outdated, [told]);
        assert!(plan.steps.is_empty(), "{told}: {:?}", words(&plan));
        assert!(!plan.outdated.concat().contains("hunter2"));
    }
}

#[test]
fn a_spec_that_has_become_invalid_is_reported_and_the_guest_runs_on() {
    let (mut server, observed) = built();
    server.spec.networks[0].fixed_ip = Some("10.0.0".into());
    let plan = plan(&server, &observed);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    assert!(!matches!(plan.progress, Progress::Problems(_)));
    assert!(
        plan.outdated[0].contains("fixedIP: `10.0.0`"),
        "{:?}",
        plan.outdated
    );
}

#[test]
fn a_restored_server_gets_the_same_instance_again() {
    let (server, mut observed) = built();
    let old: Instance = observed.instances.remove(0);
    let plan = plan(&server, &observed);
    let Some(Step::CreateInstance(new)) = plan.steps.last() else {
        panic!("{:?}", words(&plan));
    };
    assert_eq!(new.metadata.name, old.metadata.name);
    assert_eq!(new.spec, old.spec);
}

#[test]
fn no_secret_is_logged() {
    let data = UserData::Is(b"hunter2".to_vec());
    assert!(!format!("{data:?}").contains("hunter2"));
    let mut observed = observed();
    observed.user_data = data;
    assert!(!format!("{observed:?}").contains("hunter2"));
    let secret = k8s_openapi::api::core::v1::Secret {
        data: Some([("k".to_owned(), ByteString(b"hunter2".to_vec()))].into()),
        ..Default::default()
    };
    let step = Step::CreateGuestData(Box::new(secret));
    assert!(!step.to_string().contains("hunter2"));
}

#[test]
fn a_lost_host_makes_ready_unknown_and_moves_nothing() {
    let (server, mut observed) = built();
    observed.host_lost = Some("silent for 40 s".into());
    let plan = plan(&server, &observed);
    assert!(plan.steps.is_empty());
    let said = status(
        &server,
        &observed,
        &plan,
        k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
    );
    assert_eq!(said.phase.as_deref(), Some("Unknown"));
    assert_eq!(said.conditions[0].status, "Unknown");
    assert_eq!(said.conditions[0].reason, "HostUnreachable");
}

#[test]
fn a_preempted_server_is_stopped_without_a_change_of_its_spec_and_says_for_whom() {
    let (mut server, mut observed) = built();
    let status_of = server.status.get_or_insert_default();
    status_of.preemption = Some(pileus_api::server::Preemption {
        priority: 10,
        ..Default::default()
    });
    status_of.conditions = serde_json::from_value(json!([{"type": "Scheduled", "status": "True",
        "reason": "Preempted", "message": "for one of priority 10", "lastTransitionTime":
        "2026-01-01T00:00:00Z"}]))
    .unwrap();
    settle(&mut server, &mut observed);
    let spec = observed.instances[0].spec.clone();
    assert!(spec.preempted);
    assert_eq!(spec.run_state, server.spec.run_state);
    let say = |observed: &Observed, reason: &str, ready: &str, server: &Server| {
        let mut observed = observed.clone();
        observed.instances[0].status =
            serde_json::from_value(json!({"conditions": [{"type": "Ready",
            "status": ready, "reason": reason, "message": "the host's", "lastTransitionTime":
            "2026-01-01T00:00:00Z"}]}))
            .unwrap();
        let plan = plan(server, &observed);
        let said = status(
            server,
            &observed,
            &plan,
            k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        );
        let ready = conditions::find(&said.conditions, ConditionType::Ready).unwrap();
        (
            said.phase.unwrap(),
            ready.reason.clone(),
            ready.message.clone(),
        )
    };
    let is = |(phase, reason, _): (String, String, String)| (phase, reason);
    let expect = |phase: &str, reason: &str| (phase.to_owned(), reason.to_owned());
    // An older report of the host is not its answer.
    assert_eq!(
        is(say(&observed, "Active", "True", &server)),
        expect("Stopping", "Stopping")
    );
    assert_eq!(
        is(say(&observed, "Stopped", "True", &server)),
        expect("Stopping", "Stopping")
    );
    let said = say(&observed, "Preempted", "False", &server);
    assert_eq!(said.2, "for one of priority 10");
    assert_eq!(is(said), expect("Preempted", "Preempted"));
    server.status.as_mut().unwrap().preemption = None;
    settle(&mut server, &mut observed);
    assert!(!observed.instances[0].spec.preempted);
    // Its room is not there after all: the host's own words.
    assert_eq!(
        say(&observed, "Preempted", "False", &server).2,
        "the host's"
    );
}

proptest! {
    /// Whatever is missing or present, acting and planning again yields no steps, and no
    /// step is for another Server.
    #[test]
    fn plans_settle_and_touch_only_their_own(
        flavor: bool, image: bool, network: bool, has_port: bool, ready: bool, is_placed: bool,
        has_finalizer: bool, gone: bool, stopped: bool,
    ) {
        let (mut server, mut observed) = (server(), observed());
        if has_port {
            for step in plan(&server, &observed).steps {
                act(&step, &mut server, &mut observed);
            }
            if ready {
                address(observed.nics[0].port.as_mut().unwrap());
            }
        }
        server.metadata.finalizers = has_finalizer.then(|| vec![MANAGER_FINALIZER.into()]);
        if is_placed {
            server = placed(server);
        }
        if stopped {
            server.spec.run_state = pileus_api::server::RunState::Stopped;
        }
        if !flavor { observed.flavor = None; }
        if !image { observed.image = None; }
        if !network { observed.nics[0].network = None; }
        if gone { deleting(&mut server.metadata); }
        let first = plan(&server, &observed);
        for step in &first.steps {
            match step {
                Step::CreateInstance(i) => prop_assert_eq!(&i.spec.server.uid, UID),
                Step::CreatePort(p) => {
                    prop_assert_eq!(&p.metadata.owner_references.as_ref().unwrap()[0].uid, UID);
                }
                _ => {}
            }
            act(step, &mut server, &mut observed);
        }
        let again = plan(&server, &observed);
        // Deleting what is gone already is harmless, and ends with the Server itself.
        prop_assert!(gone || again.steps.is_empty(), "{:?}", words(&again));
    }
}

#[test]
fn a_made_port_follows_its_server_until_it_has_its_addresses() {
    let (mut server, mut observed) = (placed(server()), observed());
    settle(&mut server, &mut observed);
    let anew = |server: &Server, observed: &Observed| {
        let steps = plan(server, observed).steps;
        steps
            .iter()
            .any(|s| matches!(s, Step::DeletePort { uid, .. } if uid == "port"))
    };
    assert!(!anew(&server, &observed), "as asked");
    server.spec.networks[0].fixed_ip = Some("10.0.0.9".into());
    assert!(
        anew(&server, &observed),
        "it asks for another address by now"
    );
    let mut ready = observed.clone();
    address(ready.nics[0].port.as_mut().unwrap());
    assert!(!anew(&server, &ready), "it has its addresses for life");
    let mut foreign = observed.clone();
    let port = foreign.nics[0].port.as_mut().unwrap();
    port.metadata.owner_references = None;
    assert!(!anew(&server, &foreign), "somebody else's");
    server.status.as_mut().unwrap().instance = Some("web-1".into());
    assert!(!anew(&server, &observed), "it was built");
}
