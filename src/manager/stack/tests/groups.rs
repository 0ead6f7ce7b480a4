//! Tests of groups with batches, and of removed members.

use std::collections::BTreeSet;

use super::super::record::{Action, Rolling, State};
use super::world::World;
use pileus_api::stack::OnFailure;
use pileus_stack::value::{Value, json};

/// A group of Servers whose metadata can change in place; what comes after it has its ids.
fn group(policy: &str, count: usize) -> String {
    format!(
        "heat_template_version: rocky
resources:
  group:
    type: OS::Heat::ResourceGroup
    update_policy: {{{policy}}}
    properties:
      count: {count}
      resource_def: {{type: OS::Nova::Server, properties: {{image: i, flavor: small, metadata: {{v: a}}}}}}
  after: {{type: OS::Heat::Value, properties: {{value: {{get_attr: [group, refs]}}}}}}
outputs:
  refs: {{value: {{get_attr: [after, value]}}}}
  gone: {{value: {{get_attr: [group, removed_rsrc_list]}}}}
"
    )
}

/// Names of the members that there are.
fn names(world: &World) -> String {
    let entries = world.record.as_ref().unwrap().entries.iter();
    let names = entries.filter_map(|((path, _), _)| path.split('/').nth(1));
    names
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
        .join(" ")
}

/// What was seen of an update: members made and changed, batch by batch, and the fewest that
/// were in service.
#[derive(Debug, Default, PartialEq)]
struct Course {
    batches: Vec<String>,
    least: usize,
    most: usize,
}

fn course(world: &mut World) -> Course {
    let mut course = Course {
        least: usize::MAX,
        ..Course::default()
    };
    for _ in 0..100 {
        let from = world.log.len();
        let before = world.record.clone();
        let plan = world.pass(|| false);
        let entries = plan.record.entries.iter();
        let members = entries.filter(|((path, _), _)| path.starts_with("group/"));
        let serving = members
            .clone()
            .filter(|(_, entry)| entry.state == State::Complete && entry.action != Action::Delete);
        course.least = course.least.min(serving.count());
        course.most = course.most.max(members.count());
        let mut did: Vec<String> = world.log[from..]
            .iter()
            .filter_map(|line| Some(line.replace(" Server group/", " ")).filter(|l| l != line))
            .collect();
        if !did.is_empty() {
            did.sort();
            course.batches.push(did.join(", "));
        }
        world.update_objects();
        if before.as_ref() == Some(&plan.record) && !plan.record.is_busy() {
            break;
        }
    }
    course
}

#[test]
fn a_group_grows_during_an_update_so_that_enough_members_are_in_service() {
    let policy = "rolling_update: {max_batch_size: 2, min_in_service: 3}";
    let mut world = World::new(&group(policy, 3));
    world.run_until_idle();
    world.change("v: a", "v: b");
    let observed = course(&mut world);
    assert_eq!(
        observed.batches,
        [
            "make 3, make 4",
            "change 1, change 2",
            "change 0",
            "delete 3, delete 4"
        ]
    );
    assert_eq!((observed.least, observed.most), (3, 5));
    assert_eq!(
        (world.stack_status().as_str(), names(&world).as_str()),
        ("UPDATE_COMPLETE", "0 1 2")
    );
    // What comes after the group has never seen those that were there for the time of it.
    let refs = world.plan().outputs.unwrap()[1].value.clone().unwrap();
    assert_eq!(refs.as_array().unwrap().len(), 3, "{refs}");
}

#[test]
fn batches_have_the_size_of_the_policy_and_no_member_is_added_without_need() {
    for (policy, batches, least) in [
        (
            "rolling_update: {max_batch_size: 1}",
            vec!["change 2", "change 1", "change 0"],
            2,
        ),
        (
            "rolling_update: {max_batch_size: 2, min_in_service: 1}",
            vec!["change 1, change 2", "change 0"],
            1,
        ),
        (
            "rolling_update: {max_batch_size: 2, min_in_service: 2}",
            vec!["change 2, make 3", "change 0, change 1", "delete 3"],
            2,
        ),
        (
            "batch_create: {max_batch_size: 2}",
            vec!["change 0, change 1, change 2"],
            0,
        ),
    ] {
        let mut world = World::new(&group(policy, 3));
        world.run_until_idle();
        world.change("v: a", "v: b");
        let observed = course(&mut world);
        assert_eq!(
            (observed.batches, observed.least),
            (batches.into_iter().map(str::to_owned).collect(), least),
            "{policy}"
        );
        assert_eq!(names(&world), "0 1 2");
    }
}

#[test]
fn a_change_of_only_the_size_has_no_batches() {
    let policy = "rolling_update: {max_batch_size: 1, min_in_service: 1, pause_time: 60}";
    let mut world = World::new(&group(policy, 2));
    world.run_until_idle();
    world.change("count: 2", "count: 5");
    assert_eq!(course(&mut world).batches, ["make 2, make 3, make 4"]);
    world.change("count: 5", "count: 3");
    assert_eq!(course(&mut world).batches, ["delete 3, delete 4"]);
}

#[test]
fn a_group_grows_and_updates_in_batches() {
    let policy = "rolling_update: {max_batch_size: 2, min_in_service: 2}";
    let mut world = World::new(&group(policy, 2));
    world.run_until_idle();
    world.change("count: 2", "count: 5");
    world.change("v: a", "v: b");
    let observed = course(&mut world);
    assert_eq!(
        observed.batches,
        ["make 2, make 3", "change 1, make 4", "change 0"]
    );
    assert!(observed.least >= 2);
}

#[test]
fn first_members_are_created_in_batches_with_pauses() {
    let policy = "batch_create: {max_batch_size: 2, pause_time: 5}";
    let mut world = World::new(&group(policy, 5));
    let mut made = Vec::new();
    for _ in 0..40 {
        let from = world.log.len();
        let plan = world.pass(|| false);
        if world.log.len() > from {
            made.push((world.log.len() - from, world.now));
        }
        // It is said when to look again, also while nothing happens.
        let resting = matches!(
            plan.record.rolling.get("group"),
            Some(Rolling::Pause { .. })
        );
        if resting {
            world.now +=
                k8s_openapi::jiff::SignedDuration::try_from(plan.requeue_after.unwrap()).unwrap();
        }
        world.update_objects();
    }
    assert_eq!(world.stack_status(), "CREATE_COMPLETE");
    let sizes: Vec<usize> = made.iter().map(|(count, _)| *count).collect();
    assert_eq!(sizes, [2, 2, 1]);
    for pair in made.windows(2) {
        assert!(pair[1].1.duration_since(pair[0].1).as_secs() >= 5);
    }
}

#[test]
fn a_failed_update_in_batches_is_rolled_back_in_batches() {
    let policy = "rolling_update: {max_batch_size: 1, min_in_service: 3}";
    let mut world = World::new(&group(policy, 3));
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.run_until_idle();
    world.change("v: a", "v: b");
    world.broken = Some("-group-3-");
    for _ in 0..60 {
        world.pass(|| false);
        world.update_objects();
    }
    assert_eq!(
        world.stack_status(),
        "ROLLBACK_COMPLETE",
        "{:#?}",
        world.record
    );
    assert_eq!(names(&world), "0 1 2");
    let metadata = |(_, live): (&_, &Value)| live["spec"]["metadata"]["v"].clone();
    let values: BTreeSet<String> = (world.objects.iter())
        .map(metadata)
        .map(|v| v.to_string())
        .collect();
    assert_eq!(values, BTreeSet::from(["\"a\"".to_owned()]));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    /// Crashes and new templates at any moment: every member is what the last one says.
    #[test]
    fn crashes_and_new_templates_do_not_stop_batches(
        losses in proptest::collection::vec(proptest::bool::ANY, 0..40),
        changes in proptest::collection::vec((0usize..6, 0usize..3, 1usize..12), 1..4),
        size in 1usize..4, least in 0usize..5,
    ) {
        let policy = format!("rolling_update: {{max_batch_size: {size}, min_in_service: {least}}}");
        let mut world = World::new(&group(&policy, 2));
        let mut losses = losses.into_iter();
        let (mut count, mut value) = (2, "v: a".to_owned());
        for (next, version, passes) in changes {
            world.change(&format!("count: {count}"), &format!("count: {next}"));
            let other = format!("v: x{version}");
            world.change(&value, &other);
            (count, value) = (next, other);
            for _ in 0..passes {
                world.pass(|| losses.next().unwrap_or(false));
                world.update_objects();
            }
        }
        world.run_until_idle();
        proptest::prop_assert!(world.stack_status().ends_with("COMPLETE"));
        proptest::prop_assert_eq!(world.count("Server"), count);
        for live in world.objects.values() {
            let text = format!("v: {}", live["spec"]["metadata"]["v"].as_str().unwrap());
            proptest::prop_assert_eq!(&text, &value);
        }
        world.delete();
        proptest::prop_assert!(world.objects.is_empty());
    }
}

/// The reference id of a member, from the output.
fn id(world: &World, at: usize) -> String {
    let refs = world.plan().outputs.unwrap()[1].value.clone().unwrap();
    refs[at].as_str().unwrap().to_owned()
}

#[test]
fn members_are_removed_by_reference_id() {
    let mut world = World::new(&group("", 4));
    world.run_until_idle();
    let (one, three) = (id(&world, 1), id(&world, 3));
    let listed = format!("count: 4\n      removal_policies: [{{resource_list: [{one}, {three}]}}]");
    world.change("count: 4", &listed);
    // One is deleted later than the other, when only the record still maps its id to its name.
    for pass in 0..30 {
        world.pass(|| pass == 2);
        world.update_objects();
    }
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!(names(&world), "0 2 4 5");
    let gone = |world: &World| world.plan().outputs.unwrap()[0].value.clone();
    assert_eq!(gone(&world), Some(json!(["1", "3"]).into()));
    // The ids are still in the template, and nothing has them.
    world.change("v: a", "v: b");
    world.run_until_idle();
    assert_eq!(names(&world), "0 2 4 5");
    // Unknown ids are ignored; numbers are names, too.
    world.change(&format!("[{one}, {three}]"), "[nobody, 0]");
    world.run_until_idle();
    assert_eq!(names(&world), "2 4 5 6");
    assert_eq!(gone(&world), Some(json!(["0", "1", "3"]).into()));
    // Only the names in the current template count.
    let five = id(&world, 2);
    let only = format!("[{five}]}}]\n      removal_policies_mode: update");
    world.change("[nobody, 0]}]", &only);
    world.run_until_idle();
    assert_eq!(names(&world), "0 1 2 3");
    assert_eq!(gone(&world), Some(json!(["5"]).into()));
}
