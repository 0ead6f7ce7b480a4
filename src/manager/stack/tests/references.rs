//! Tests of what an update names: it is there before anything is changed or deleted.

use super::PAIR;
use super::world::World;
use pileus_api::Reason;
use pileus_api::stack::OnFailure;

#[test]
fn a_typing_error_changes_nothing() {
    let mut world = World::new(PAIR);
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.run_until_idle();
    let before = world.objects.clone();
    let good = world.sources.template.clone();
    world.log.clear();
    for (right, wrong, reason) in [
        (
            "flavor: small, networks: [{port",
            "flavor: smalll, networks: [{port",
            Reason::FlavorNotFound,
        ),
        (
            "image: i, flavor: small, networks: [{port",
            "image: ii, flavor: small, networks: [{port",
            Reason::ImageNotFound,
        ),
        (
            "user_data: x",
            "user_data: x, key_name: kk",
            Reason::KeyPairNotFound,
        ),
        (
            "networks: [{port: {get_resource: port}}]",
            "networks: [{network: elsewhere/lann}]",
            Reason::NetworkNotFound,
        ),
    ] {
        world.missing = ["smalll", "ii", "kk", "lann"]
            .into_iter()
            .find(|name| wrong.contains(name));
        world.change(right, wrong);
        let plan = world.run_until_idle();
        let problem = plan.problem.unwrap();
        assert_eq!(problem.reason, reason, "{problem:?}");
        let name = world.missing.unwrap();
        assert!(
            problem.message.contains("resources.one: ") && problem.message.contains(name),
            "{problem:?}"
        );
        assert!(plan.requeue_after.is_some(), "it may come");
        assert_eq!(world.stack_status(), "CREATE_COMPLETE");
        assert_eq!(world.objects, before, "{:#?}", world.log);
        world.sources.template.clone_from(&good);
    }
    // As soon as it is there the update begins.
    world.change(
        "flavor: small, networks: [{port",
        "flavor: smalll, networks: [{port",
    );
    world.missing = None;
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
}

#[test]
fn a_server_is_not_deleted_for_one_that_cannot_be() {
    let mut world = World::new(PAIR);
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.run_until_idle();
    let before = world.count("Server");
    // The name is an attribute that is known only while the update runs.
    let text = world.sources.template.replace(
        "user_data: x}}",
        "user_data: x, key_name: {get_attr: [late, value]}}}\n  late: {type: OS::Heat::Value, properties: {value: gone}}",
    );
    world.sources.template = text.replace(
        "flavor: small, networks: [{port",
        "flavor: big, networks: [{port",
    );
    world.missing = Some("gone");
    world.log.clear();
    world.run_until_idle();
    assert_eq!(world.stack_status(), "ROLLBACK_COMPLETE");
    assert_eq!(world.count("Server"), before);
    assert!(
        !world.log.iter().any(|line| line == "delete Server one"),
        "{:#?}",
        world.log
    );
}

#[test]
fn a_rollback_that_makes_an_emptied_server_is_no_success() {
    let mut world = World::new(PAIR);
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.run_until_idle();
    // All that the new one names is there; it fails all the same.
    world.change(
        "flavor: small, networks: [{port",
        "flavor: big, networks: [{port",
    );
    for _ in 0..100 {
        world.broken = (world.record.as_ref().unwrap().action
            == Some(super::super::record::Action::Update))
        .then_some("-one-");
        world.pass(|| false);
        world.update_objects();
    }
    world.broken = None;
    world.run_until_idle();
    assert_eq!(world.stack_status(), "ROLLBACK_FAILED");
    let why = world.record.as_ref().unwrap().reason.clone();
    assert!(why.contains("one") && why.contains("empty"), "{why}");
    assert_eq!(world.count("Server"), 2);
    // An update that succeeds ends it.
    world.change(
        "flavor: big, networks: [{port",
        "flavor: bigger, networks: [{port",
    );
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert!(world.record.as_ref().unwrap().emptied.is_empty());
}
