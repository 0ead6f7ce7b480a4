//! What keeps a Server from being built, and how it is told.

use serde_json::json;

use super::super::plan::{Step, UserData, plan};
use super::{Change, deleting, observed, placed, problems, read, server, words};
use pileus_api::{Port, Reason};

/// What a Server that was placed is told after `change`; nothing may be made of it.
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
    let cases: [(Change<'_>, Reason, &str); 13] = [
        (&|_, s| s.flavor = None, Reason::FlavorNotFound, "`small`"),
        (&|_, s| s.image = None, Reason::ImageNotFound, "`tiny`"),
        (
            &|_, s| s.image.as_mut().unwrap().metadata.namespace = Some("theirs".into()),
            Reason::ImageNotShared,
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
            &|_, s| s.nics[0].network.as_mut().unwrap().metadata.namespace = Some("theirs".into()),
            Reason::NetworkNotShared,
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
            &|_, s| s.nics[0].used_by = Some("other".into()),
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
