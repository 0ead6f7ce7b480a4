//! Runs the planner with a simulated API server in memory: steps are executed, objects become ready,
//! and the planner runs again until it plans no more steps.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod failures;
mod groups;
mod hooks;
mod recovery;
mod references;
mod secrets;
mod size;
mod world;

use std::collections::BTreeSet;

use k8s_openapi::jiff::SignedDuration;

use super::plan::Problem;
use super::record::{Action, Reference, StackRecord};
use pileus_api::Reason;
use pileus_api::stack::OnFailure;
use pileus_stack::value::json;
use world::World;

const PAIR: &str = "heat_template_version: newton
resources:
  net: {type: OS::Neutron::Net}
  sub: {type: OS::Neutron::Subnet, properties: {network: {get_resource: net}, cidr: 10.0.0.0/24}}
  port: {type: OS::Neutron::Port, properties: {network: {get_resource: net}}}
  one: {type: OS::Nova::Server, properties: {image: i, flavor: small, networks: [{port: {get_resource: port}}], user_data: x}}
  two: {type: OS::Nova::Server, properties: {image: i, flavor: small, networks: [{network: {get_resource: net}}], metadata: {a: b}}}
outputs:
  address: {value: {get_attr: [one, first_address]}}
";

const GROUP: &str = "heat_template_version: newton
resources:
  group:
    type: OS::Heat::ResourceGroup
    properties:
      count: 3
      resource_def: {type: OS::Nova::Server, properties: {image: i, flavor: small, name: 'm%index%'}}
outputs:
  refs: {value: {get_attr: [group, first_address]}}
";

#[test]
fn objects_that_are_not_watched_are_read_less_often_the_more_there_are_and_the_longer_they_take() {
    use super::record::Entry;
    let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
    let pace = |count: u32, age: i64| {
        let entry = Entry {
            since: now - SignedDuration::from_secs(age),
            ..Entry::default()
        };
        super::plan::poll_interval(count, &entry, now).as_secs()
    };
    assert_eq!((pace(1, 0), pace(500, 0)), (2, 25));
    assert_eq!((pace(1, 80), pace(1, 3600)), (10, 60));
}

#[test]
fn requirements_are_created_first_and_deleted_last() {
    let mut world = World::new(PAIR);
    let plan = world.run_until_idle();
    assert_eq!(world.stack_status(), "CREATE_COMPLETE");
    assert_eq!(world.objects.len(), 6, "{:#?}", world.log);
    assert!(world.at("make Network net") < world.at("make Subnet sub"));
    assert!(world.at("make Subnet sub") < world.at("make Port port"));
    assert!(world.at("make Port port") < world.at("make Server one"));
    // The Secret with the user data is there before the Server.
    assert!(world.at("make Secret one") < world.at("make Server one"));
    assert_eq!(
        plan.outputs.unwrap()[0].value,
        Some(json!("10.0.0.9").into())
    );
    world.delete();
    assert!(world.objects.is_empty(), "{:#?}", world.objects);
    assert!(world.at("delete Server one") < world.at("delete Port port"));
    assert!(world.at("delete Port port") < world.at("delete Subnet sub"));
    assert!(world.at("delete Subnet sub") < world.at("delete Network net"));
}

#[test]
fn nothing_is_created_before_its_requirements_are_ready() {
    let mut world = World::new(PAIR);
    for _ in 0..5 {
        world.pass(|| false);
    }
    assert_eq!(world.objects.len(), 1, "{:#?}", world.log);
}

#[test]
fn an_update_in_place_changes_no_other_object() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world.log.clear();
    world.change("{a: b}", "{a: c}");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!(world.log, ["change Server two"]);
}

#[test]
fn a_replacement_is_created_first_unless_both_have_the_same_claim() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world.log.clear();
    world.change("flavor: small", "flavor: large");
    world.run_until_idle();
    assert!(world.at("make Server two") < world.at("delete Server two"));
    // Two Servers cannot have one Port.
    assert!(world.at("delete Server one") < world.at("make Server one"));
    assert_eq!((world.count("Server"), world.count("Secret")), (2, 1));
}

#[test]
fn a_group_grows_and_shrinks() {
    let mut world = World::new(GROUP);
    world.run_until_idle();
    for (from, to, count) in [("count: 3", "count: 5", 5), ("count: 5", "count: 2", 2)] {
        world.log.clear();
        world.change(from, to);
        let plan = world.run_until_idle();
        assert_eq!(world.count("Server"), count);
        assert!(
            world.log.iter().all(|line| !line.starts_with("change")),
            "{:#?}",
            world.log
        );
        let list = plan.outputs.unwrap()[0].value.clone().unwrap();
        assert_eq!(list.as_array().unwrap().len(), count);
    }
    // The first ones are those of the beginning.
    assert!(
        world
            .record
            .unwrap()
            .entries
            .keys()
            .all(|(_, number)| *number == 1)
    );
}

#[test]
fn member_names_that_removal_policies_exclude_are_remembered() {
    let mut world = World::new(GROUP);
    world.run_until_idle();
    let names = |world: &World| -> String {
        let entries = world.record.as_ref().unwrap().entries.keys();
        let names = entries.filter_map(|(path, _)| path.split('/').nth(1));
        names.collect::<Vec<_>>().join(" ")
    };
    let policy = "count: 3\n      removal_policies: [{resource_list: ['1']}]";
    world.change("count: 3", policy);
    world.run_until_idle();
    assert_eq!(names(&world), "0 2 3");
    // Another is named, and the one before is not used again, nor when none is named.
    world.change("['1']", "['2']");
    world.run_until_idle();
    assert_eq!(names(&world), "0 3 4");
    world.change("['2']", "[]");
    world.run_until_idle();
    assert_eq!(names(&world), "0 3 4");
    world.change("[]}]", "['0']}]\n      removal_policies_mode: update");
    world.run_until_idle();
    assert_eq!(names(&world), "1 2 3");
}

#[test]
fn user_data_whose_change_is_ignored_replaces_nothing() {
    let mut world = World::new(PAIR);
    world.change(
        "user_data: x",
        "user_data: x, user_data_update_policy: IGNORE",
    );
    world.run_until_idle();
    world.change("user_data: x", "user_data: y");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert!(!world.log.iter().any(|line| line.starts_with("delete")));
    world.change("IGNORE", "REPLACE");
    world.change("user_data: y", "user_data: z");
    world.run_until_idle();
    assert!(world.log.contains(&"delete Server one".to_owned()));
}

#[test]
fn members_are_updated_in_batches() {
    let template = GROUP.replace(
        "    properties:\n      count",
        "    update_policy: {rolling_update: {max_batch_size: 1, pause_time: 1}}\n    properties:\n      count",
    );
    let mut world = World::new(&template);
    world.run_until_idle();
    world.change("flavor: small", "flavor: large");
    let mut most = 0;
    for _ in 0..200 {
        let plan = world.pass(|| false);
        let busy =
            plan.record.entries.values().filter(|e| {
                e.action == Action::Create && e.state == super::record::State::InProgress
            });
        most = most.max(busy.count());
        world.update_objects();
    }
    assert_eq!(
        world.stack_status(),
        "UPDATE_COMPLETE",
        "{:#?}",
        world.record
    );
    assert_eq!((most, world.count("Server")), (1, 3));
}

#[test]
fn a_failed_update_is_rolled_back() {
    let mut world = World::new(PAIR);
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.run_until_idle();
    let two = |world: &World| {
        let found = world
            .objects
            .iter()
            .find(|(object, _)| object.name.contains("-two-"));
        found.map(|(_, live)| live["metadata"]["uid"].clone())
    };
    let before = two(&world);
    world.change("{network: {get_resource: net}}", "{network: other}");
    world.broken = Some("-two-");
    // What is there is ready; only the new one is not.
    for live in world.objects.values_mut() {
        live["metadata"]["keep"] = json!(true);
    }
    for _ in 0..100 {
        world.pass(|| false);
        let was = world.objects.clone();
        world.update_objects();
        for (object, live) in was
            .iter()
            .filter(|(_, live)| live["metadata"]["keep"] == true)
        {
            world.objects.insert(object.clone(), live.clone());
        }
    }
    assert_eq!(
        world.stack_status(),
        "ROLLBACK_COMPLETE",
        "{:#?}",
        world.record
    );
    // The replacement is deleted, and the old object was never changed.
    assert_eq!(two(&world), before);
    assert_eq!(world.objects.len(), 6);
    // It is not tried again until the spec changes.
    assert!(world.plan().steps.is_empty());
}

#[test]
fn a_failed_creation_is_kept_rolled_back_or_deleted() {
    for (on_failure, word, left) in [
        (OnFailure::Keep, "CREATE_FAILED", true),
        (OnFailure::Rollback, "ROLLBACK_COMPLETE", false),
        (OnFailure::Delete, "DELETE_COMPLETE", false),
    ] {
        let mut world = World::new(PAIR);
        world.stack.spec.on_failure = on_failure;
        world.broken = Some("-two-");
        world.run_until_idle();
        assert_eq!(world.stack_status(), word);
        assert_eq!(!world.objects.is_empty(), left);
        let reason = &world.record.as_ref().unwrap().reason;
        if on_failure == OnFailure::Keep {
            let wanted = "Resource CREATE failed: OS::Nova::Server: resources.two: it cannot work";
            assert_eq!(reason, wanted);
            // An update over it replaces what failed.
            world.broken = None;
            world.change("{a: b}", "{a: c}");
            world.run_until_idle();
            assert_eq!(
                (world.stack_status().as_str(), world.count("Server")),
                ("UPDATE_COMPLETE", 2)
            );
        }
    }
}

#[test]
fn a_new_template_replaces_that_of_a_running_update() {
    let mut world = World::new(GROUP);
    world.run_until_idle();
    world.change("count: 3", "count: 6");
    world.pass(|| false);
    world.change("count: 6", "count: 1");
    world.run_until_idle();
    assert_eq!(
        (world.stack_status().as_str(), world.count("Server")),
        ("UPDATE_COMPLETE", 1)
    );
}

#[test]
fn retained_objects_stay_after_a_deletion() {
    let retained = "net: {type: OS::Neutron::Net, deletion_policy: Retain}";
    let mut world = World::new(&PAIR.replace("net: {type: OS::Neutron::Net}", retained));
    world.run_until_idle();
    world.delete();
    assert_eq!(world.objects.len(), 1);
    assert!(world.log.contains(&"release Network".to_owned()));
}

#[test]
fn drift_is_reported_by_a_check_and_healed_on_request() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world
        .objects
        .retain(|object, _| !object.name.contains("-two-"));
    assert!(world.run_until_idle().steps.is_empty());
    assert_eq!(world.stack_status(), "CREATE_COMPLETE");
    world.stack.spec.check_requested_at = Some("1".into());
    world.run_until_idle();
    assert_eq!(world.stack_status(), "CHECK_FAILED");
    assert_eq!(world.count("Server"), 1);
    world.stack.spec.heal_requested_at = Some("1".into());
    world.run_until_idle();
    assert_eq!(
        (world.stack_status().as_str(), world.count("Server")),
        ("UPDATE_COMPLETE", 2)
    );
    // A changed object is reported, too.
    let port = world
        .objects
        .values_mut()
        .find(|live| live["kind"] == "Port")
        .unwrap();
    port["spec"]["network"]["name"] = json!("other");
    world.stack.spec.check_requested_at = Some("2".into());
    world.run_until_idle();
    let record = world.record.as_ref().unwrap();
    let (_, entry) = record.incarnations("port").next().unwrap();
    assert!(
        entry.reason.contains("spec.network.name has been changed"),
        "{}",
        entry.reason
    );
}

#[test]
fn a_suspended_stack_has_its_servers_stopped() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world.stack.spec.suspend = true;
    world.run_until_idle();
    assert_eq!(world.stack_status(), "SUSPEND_COMPLETE");
    let states = |world: &World| -> BTreeSet<String> {
        let servers = world
            .objects
            .values()
            .filter(|live| live["kind"] == "Server");
        servers
            .map(|live| live["spec"]["runState"].to_string())
            .collect()
    };
    assert_eq!(states(&world), BTreeSet::from(["\"Stopped\"".to_owned()]));
    world.change("{a: b}", "{a: c}");
    let plan = world.run_until_idle();
    assert_eq!(plan.problem.unwrap().reason, Reason::Suspended);
    world.stack.spec.suspend = false;
    world.run_until_idle();
    assert_eq!(states(&world), BTreeSet::from(["\"Running\"".to_owned()]));
}

#[test]
fn metadata_that_an_object_depends_on_updates_it() {
    let mut world = World::new(
        "heat_template_version: newton
resources:
  group: {type: OS::Nova::ServerGroup, metadata: {min_members: 2}, properties: {policies: [affinity]}}
  other: {type: OS::Nova::Server, metadata: {a: 1}, properties: {image: i, flavor: small}}
",
    );
    world.run_until_idle();
    world.log.clear();
    world.change("{min_members: 2}", "{a: 1, min_members: 2}");
    world.run_until_idle();
    world.log.clear();
    world.change("{a: 1, min_members: 2}", "{min_members: 2, a: 1}");
    world.stack.spec.preview = true;
    let updated = world.plan().preview.unwrap().updated;
    assert!(
        updated.is_empty(),
        "another order is no change: {updated:?}"
    );
    world.stack.spec.preview = false;
    world.change("{min_members: 2, a: 1}", "{min_members: 3}");
    world.change("{a: 1}", "{a: 2}");
    world.stack.spec.preview = true;
    let preview = world.plan().preview.unwrap();
    assert_eq!(preview.updated, ["group (metadata)"]);
    world.stack.spec.preview = false;
    world.run_until_idle();
    assert_eq!(world.log, ["change ServerGroup group"]);
    let group = world.objects.values().find(|o| o["kind"] == "ServerGroup");
    assert_eq!(group.unwrap()["spec"]["minMembers"], json!(3));
}

#[test]
fn a_preview_changes_nothing() {
    let mut world = World::new(PAIR);
    world.stack.spec.preview = true;
    let plan = world.plan();
    assert!(plan.steps.is_empty() && plan.record.action.is_none());
    assert_eq!(plan.preview.unwrap().added.len(), 5);
    world.stack.spec.preview = false;
    world.run_until_idle();
    world.stack.spec.preview = true;
    world.change("{a: b}", "{a: c}");
    world.change(
        "flavor: small, networks: [{port",
        "flavor: large, networks: [{port",
    );
    let preview = world.plan().preview.unwrap();
    assert_eq!(preview.updated, ["two (metadata)"]);
    assert_eq!(
        (preview.replaced, preview.unchanged),
        (vec!["one".to_owned()], 3)
    );
    assert_eq!(world.run_until_idle().steps, []);
}

#[test]
fn a_timeout_is_a_failure() {
    let mut world = World::new(PAIR);
    world.stack.spec.timeout_minutes = 1;
    world.pass(|| false);
    world.now += SignedDuration::from_secs(61);
    let plan = world.pass(|| false);
    assert_eq!(world.stack_status(), "CREATE_FAILED");
    assert!(
        plan.record
            .reason
            .starts_with("CREATE timed out after 1 minutes; waiting for net"),
        "{}",
        plan.record.reason
    );
}

#[test]
fn objects_of_others_are_never_changed() {
    let template = "heat_template_version: newton\nresources:\n  key: {type: OS::Nova::KeyPair, properties: {name: k, public_key: ssh-ed25519 A}}\n";
    let mut world = World::new(template);
    let object = Reference {
        api_version: "pileus.dev/v1alpha1".into(),
        kind: "KeyPair".into(),
        namespace: None,
        name: "k".into(),
    };
    let theirs = json!({"metadata": {"name": "k", "uid": "theirs"}});
    // It is found there when it is to be made.
    world.pass(|| true);
    world.objects.insert(object.clone(), theirs);
    for _ in 0..10 {
        world.pass(|| false);
    }
    assert_eq!(world.stack_status(), "CREATE_FAILED");
    world.delete();
    assert_eq!(world.objects[&object]["metadata"]["uid"], "theirs");
    assert!(world.log.is_empty(), "{:#?}", world.log);
}

#[test]
fn a_missing_template_deletes_nothing() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world.stored.clear();
    world.change("cidr: 10.0.0.0/24", "cidr: 10.0.0.0/24, qos: x");
    let plan = world.run_until_idle();
    assert!(plan.steps.is_empty());
    let Problem { reason, .. } = plan.problem.unwrap();
    assert!(matches!(
        reason,
        Reason::RecordMissing | Reason::InvalidTemplate
    ));
    assert_eq!(world.objects.len(), 6);
}

#[test]
fn the_record_is_read_as_it_was_written() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    let record = world.record.unwrap();
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<StackRecord>(&text).unwrap(), record);
}

/// Records that are stored already must stay readable.
#[test]
fn stored_field_names_do_not_change() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    let stored = serde_json::to_value(world.record.unwrap()).unwrap();
    let names = |value: &serde_json::Value| -> Vec<String> {
        let fields = value.as_object().unwrap().keys();
        fields.cloned().collect()
    };
    let fields = [
        "action",
        "checked",
        "entries",
        "failing_since",
        "goal",
        "good",
        "healed",
        "reason",
        "seed",
        "started",
        "state",
        "suspended",
        "wanted",
    ];
    assert_eq!(
        names(&stored).into_iter().collect::<BTreeSet<_>>(),
        fields.map(str::to_owned).into()
    );
    let fields = [
        "action",
        "by_account",
        "claims",
        "digest",
        "external",
        "kind",
        "objects",
        "properties",
        "reason",
        "replace",
        "requires",
        "retain",
        "since",
        "state",
    ];
    let port = names(&stored["entries"]["port#1"]);
    let known: BTreeSet<String> = fields.map(str::to_owned).into();
    assert!(port.iter().all(|name| known.contains(name)), "{port:?}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever steps crashes prevent, and at whatever pass: the same end.
    #[test]
    fn crashes_do_not_change_the_result(losses in proptest::collection::vec(proptest::bool::ANY, 0..40), counts in proptest::collection::vec(0..5usize, 1..4)) {
        let template = PAIR.replace("outputs:", "  group:\n    type: OS::Heat::ResourceGroup\n    properties: {count: 2, resource_def: {type: OS::Neutron::Port, properties: {network: {get_resource: net}}}}\noutputs:");
        let mut world = World::new(&template);
        let mut losses = losses.into_iter();
        let mut before = 2;
        for count in counts {
            world.change(&format!("count: {before}"), &format!("count: {count}"));
            before = count;
            for _ in 0..3 {
                world.pass(|| losses.next().unwrap_or(false));
                world.update_objects();
            }
        }
        world.run_until_idle();
        proptest::prop_assert!(world.stack_status().ends_with("COMPLETE"));
        proptest::prop_assert_eq!(world.count("Port"), before + 1);
        proptest::prop_assert_eq!(world.count("Server"), 2);
        world.delete();
        proptest::prop_assert!(world.objects.is_empty());
    }
}

#[test]
fn the_order_of_a_map_matters_only_for_texts() {
    let template = "heat_template_version: rocky
parameters: {map: {type: json, default: {}}}
resources:
  server: {type: OS::Nova::Server, properties: {image: i, flavor: small, metadata: {z: b, a: c}}}
  url: {type: OS::Heat::Value, properties: {value: {make_url: {host: h, query: {z: 1, a: 2}}}}}
outputs:
  url: {value: {get_attr: [url, value]}}
";
    let mut world = World::new(template);
    let map = |text: &str| serde_json::from_str(text).unwrap();
    world.sources.parameters = map(r#"{"map": {"z": 1, "a": {"y": 1, "b": 2}}}"#);
    let plan = world.run_until_idle();
    assert_eq!(
        plan.outputs.unwrap()[0].value,
        Some(json!("//h?z=1&a=2").into())
    );
    let before = world.sources.digest();
    // As an API server gives it back.
    world.sources.parameters = map(r#"{"map": {"a": {"b": 2, "y": 1}, "z": 1}}"#);
    assert_eq!(world.sources.digest(), before);
    world.log.clear();
    world.run_until_idle();
    assert_eq!(world.stack_status(), "CREATE_COMPLETE");
    world.change("{z: b, a: c}", "{a: c, z: b}");
    world.change("{z: 1, a: 2}", "{a: 2, z: 1}");
    let plan = world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert!(world.log.is_empty(), "{:#?}", world.log);
    assert_eq!(
        plan.outputs.unwrap()[0].value,
        Some(json!("//h?a=2&z=1").into())
    );
}
