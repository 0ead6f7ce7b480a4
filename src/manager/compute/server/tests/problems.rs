//! What keeps a Server from being built, and how it is reported.

use serde_json::json;

use super::super::plan::{Step, UserData, plan};
use super::{Change, deleting, observed, placed, problems, read, server, words};
use pileus_api::{Port, Reason};

/// What is reported on a placed Server after `change`; nothing may be made of it.
fn refused(change: Change<'_>) -> (Vec<Reason>, String) {
    let (mut server, mut observed) = (placed(server()), observed());
    change(&mut server, &mut observed);
    let plan = plan(&server, &observed);
    assert!(
        plan.steps.iter().all(|s| matches!(s, Step::AddFinalizer)),
        "nothing is made of it: {:?}",
        words(&plan)
    );
    problems(&server, &observed)
}

fn each_is_told(cases: &[(Change<'_>, Reason, &str)]) {
    for (change, reason, culprit) in cases {
        let (reasons, message) = refused(*change);
        assert_eq!(reasons, [*reason], "{message}");
        assert!(
            message.contains(culprit),
            "{culprit} is missing in: {message}"
        );
    }
}

#[test]
fn what_cannot_be_used_as_it_is_names_the_field_and_its_value() {
    each_is_told(&[
        (
            &|_, s| s.user_data = UserData::Is(vec![0; 64 * 1024 + 1]),
            Reason::UserDataTooLarge,
            "65537 bytes",
        ),
        (
            &|_, s| s.user_data = UserData::Refused("token".into(), "is a credential".into()),
            Reason::SecretNotAllowed,
            "Secret `token` is a credential, so no guest is given it; name another",
        ),
        (
            &|s, _| s.spec.networks[0].fixed_ip = Some("10.0.0".into()),
            Reason::InvalidSpec,
            "spec.networks[a].fixedIP: `10.0.0`",
        ),
    ]);
}

#[test]
fn each_missing_thing_has_its_reason_and_its_culprit() {
    let cases: [(Change<'_>, Reason, &str); 14] = [
        (&|_, s| s.flavor = None, Reason::FlavorNotFound, "`small`"),
        (&|_, s| s.image = None, Reason::ImageNotFound, "`tiny`"),
        (
            &|_, s| s.image.as_mut().unwrap().metadata.namespace = Some("theirs".into()),
            Reason::ImageNotFound,
            "`theirs`",
        ),
        (
            &|_, s| deleting(&mut s.image.as_mut().unwrap().metadata),
            Reason::ImageNotReady,
            "`tiny`",
        ),
        (
            &|_, s| {
                s.image.as_mut().unwrap().spec.disk_format = pileus_api::image::DiskFormat::Vmdk;
            },
            Reason::UnsupportedFormat,
            "qemu-img convert",
        ),
        (
            &|_, s| s.image.as_mut().unwrap().spec.min_memory = Some("1Gi".into()),
            Reason::FlavorTooSmall,
            "1Gi",
        ),
        (
            &|_, s| s.nics[0].network = None,
            Reason::NetworkNotFound,
            "`n`",
        ),
        (
            &|s, o| {
                let named = s.spec.networks[0].network.as_mut().unwrap();
                named.namespace = Some("theirs".into());
                let found = o.nics[0].network.as_mut().unwrap();
                found.metadata.namespace = Some("theirs".into());
            },
            Reason::NetworkNotFound,
            "`theirs`",
        ),
        (
            &|s, _| {
                s.spec.networks[0].network = None;
                s.spec.networks[0].port = Some("kept".into());
            },
            Reason::PortNotFound,
            "`kept`",
        ),
        (
            &|s, o| {
                s.spec.networks[0].network = None;
                s.spec.networks[0].port = Some("kept".into());
                super::claims::name_port(o, "kept");
                o.nics[0].used_by = Some("other".into());
            },
            Reason::PortInUse,
            "`other`",
        ),
        (
            &|_, s| {
                s.key_pairs.insert("alice".into(), None);
            },
            Reason::KeyPairNotFound,
            "`alice`",
        ),
        (
            &|_, s| s.user_data = UserData::NoSecret("init".into()),
            Reason::SecretNotFound,
            "`init`",
        ),
        (
            &|_, s| s.user_data = UserData::NotAllowed,
            Reason::NotOptedIn,
            "kubectl create rolebinding pileus-user-data --namespace demo --clusterrole \
             pileus-user-data --serviceaccount pileus-system:manager",
        ),
        (
            &|_, s| s.user_data = UserData::NoKey("init".into(), "k".into()),
            Reason::SecretKeyNotFound,
            "`k`",
        ),
    ];
    each_is_told(&cases);
    let (reasons, _) = refused(&|_, s| {
        s.flavor = None;
        s.image = None;
        s.nics[0].network = None;
    });
    assert_eq!(reasons.len(), 3, "all at once");
}

#[test]
fn a_port_of_that_name_that_is_not_ours_is_not_taken() {
    let (server, mut observed) = (server(), observed());
    let theirs: Port = read(
        json!({"metadata": {"name": "web-a", "namespace": "demo", "uid": "theirs"},
        "spec": {"network": {"name": "n"}}}),
    );
    observed.nics[0].port = Some(theirs);
    assert_eq!(problems(&server, &observed).0, [Reason::PortInUse]);
}

#[test]
fn a_guest_whose_port_is_unplugged_is_not_ready() {
    let (mut server, mut observed) = super::built();
    server.spec.run_state = pileus_api::server::RunState::Running;
    let report = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "Active",
        "message": "as asked", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    observed.instances[0].status = serde_json::from_value(report).unwrap();
    let say = |observed: &super::Observed| {
        let plan = plan(&server, observed);
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        let status = super::status(&server, observed, &plan, now);
        (status.conditions[0].clone(), status.phase)
    };
    assert_eq!(say(&observed).0.status, "True");
    let port = observed.nics[0].port.as_mut().unwrap();
    port.spec.network.namespace = Some("theirs".into());
    let ready = &mut port.status.as_mut().unwrap().conditions[0];
    ready.status = "False".into();
    ready.reason = "NetworkNotFound".into();
    ready.message = "there is no Network theirs/n that namespace demo may use".into();
    let (ready, phase) = say(&observed);
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "PortNotReady")
    );
    assert!(ready.message.contains("theirs/n"), "{}", ready.message);
    assert_eq!(phase.as_deref(), Some("Active"), "it runs on");
}
