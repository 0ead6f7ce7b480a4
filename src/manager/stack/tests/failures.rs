//! Tests of failures, missing objects and conflicts: objects that work are not replaced for them.

use k8s_openapi::jiff::SignedDuration;

use super::super::record::State;
use super::PAIR;
use super::world::World;
use pileus_api::stack::OnFailure;
use pileus_stack::value::{Value, json};

impl World {
    fn uid(&self, part: &str) -> Value {
        let mut found = self.objects.iter();
        let found = found.find(|(object, _)| object.kind != "Secret" && object.name.contains(part));
        found.map_or(Value::Null, |(_, live)| live["metadata"]["uid"].clone())
    }

    fn check(&mut self, status: &str) {
        self.stack.spec.check_requested_at = Some(self.now.to_string());
        self.run_until_idle();
        assert_eq!(self.stack_status(), status, "{:#?}", self.record);
    }

    fn heal(&mut self, status: &str) {
        self.stack.spec.heal_requested_at = Some(self.now.to_string());
        self.run_until_idle();
        assert_eq!(self.stack_status(), status, "{:#?}", self.record);
    }

    fn why(&self, path: &str) -> String {
        let record = self.record.as_ref().unwrap();
        let entry = record.incarnations(path).next();
        entry.map_or_else(String::new, |(_, entry)| entry.reason.clone())
    }
}

#[test]
fn a_check_of_a_healthy_stack_finds_nothing_wrong_with_user_data() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    let one = world.uid("-one-");
    world.check("CHECK_COMPLETE");
    // Deleted user data is reported.
    world.objects.retain(|object, _| object.kind != "Secret");
    world.check("CHECK_FAILED");
    assert!(world.why("one").contains("user-data is missing"));
    world.heal("UPDATE_COMPLETE");
    assert_ne!(world.uid("-one-"), one);
}

#[test]
fn an_object_that_is_not_ready_fails_a_check_and_is_not_replaced() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    let two = world.uid("-two-");
    world.slow = Some("-two-");
    world.update_objects();
    world.check("CHECK_FAILED");
    assert_eq!(world.why("two"), "so it is");
    // Nor does an update of something else wait for it.
    world.change("user_data: x", "user_data: y");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
}

#[test]
fn a_quantity_that_the_api_server_normalizes_is_no_drift() {
    let template = "heat_template_version: newton
resources:
  data:
    type: Kubernetes::Object
    properties:
      manifest:
        apiVersion: v1
        kind: PersistentVolumeClaim
        metadata: {name: data}
        spec: {resources: {requests: {storage: 1024Mi}}}
";
    let mut world = World::new(template);
    world.stack.spec.service_account_name = Some("maker".into());
    world.run_until_idle();
    let mut claims = world.objects.values_mut();
    claims.next().unwrap()["spec"]["resources"]["requests"]["storage"] = json!("1Gi");
    world.check("CHECK_COMPLETE");
}

#[test]
fn a_rollback_does_not_replace_what_was_only_slow_to_update() {
    let mut world = World::new(PAIR);
    let pair = PAIR.replace("outputs:", "  new: {type: OS::Neutron::Net}\noutputs:");
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.run_until_idle();
    let two = world.uid("-two-");
    world.sources.template = pair.replace("{a: b}", "{a: c}");
    world.broken = Some("-new-");
    world.slow = Some("-two-");
    for _ in 0..20 {
        world.pass(|| false);
        world.update_objects();
    }
    world.now += SignedDuration::from_secs(241);
    world.pass(|| false);
    assert_eq!(world.stack_status(), "UPDATE_FAILED", "{:#?}", world.record);
    world.slow = None;
    world.run_until_idle();
    assert_eq!(world.stack_status(), "ROLLBACK_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
    let mut live = world.objects.values();
    let live = live.find(|live| live["metadata"]["uid"] == two).unwrap();
    assert_eq!(live["spec"]["metadata"]["a"], "b");
}

#[test]
fn a_rollback_to_a_missing_template_fails_and_a_new_template_is_applied() {
    let mut world = World::new(PAIR);
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.run_until_idle();
    let good = world.sources.digest();
    world.broken = Some("-new-");
    world.change("outputs:", "  new: {type: OS::Neutron::Net}\noutputs:");
    for _ in 0..20 {
        world.pass(|| false);
        world.stored.remove(&good);
        world.update_objects();
    }
    assert_eq!(
        world.stack_status(),
        "ROLLBACK_FAILED",
        "{:#?}",
        world.record
    );
    assert_eq!(
        world.plan().problem.unwrap().reason,
        pileus_api::Reason::RecordMissing
    );
    assert!(world.log.iter().all(|line| !line.starts_with("delete")));
    world.broken = None;
    world.change("{a: b}", "{a: c}");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
}

#[test]
fn a_refused_update_is_repeated_in_place() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    let two = world.uid("-two-");
    world.refused = Some("-two-");
    world.change("{a: b}", "{a: c}");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_FAILED");
    world.refused = None;
    world.heal("UPDATE_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
    let mut live = world.objects.values();
    let live = live.find(|live| live["metadata"]["uid"] == two).unwrap();
    assert_eq!(live["spec"]["metadata"]["a"], "c");
}

#[test]
fn a_server_that_could_not_be_stopped_can_be_resumed() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    let two = world.uid("-two-");
    world.stack.spec.suspend = true;
    world.refused = Some("-two-");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "SUSPEND_FAILED");
    world.refused = None;
    world.stack.spec.suspend = false;
    world.run_until_idle();
    assert_eq!(
        world.stack_status(),
        "RESUME_COMPLETE",
        "{:#?}",
        world.record
    );
    world.change("{a: b}", "{a: c}");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
}

#[test]
fn a_failed_resource_is_not_replaced_against_restricted_actions() {
    let mut world = World::new(PAIR);
    let restricted = "resource_registry: {resources: {two: {restricted_actions: replace}}}";
    world.sources.environments = vec![restricted.to_owned()];
    world.run_until_idle();
    let two = world.uid("-two-");
    world.broken = Some("-two-");
    world.update_objects();
    world.check("CHECK_FAILED");
    world.heal("UPDATE_FAILED");
    assert!(world.why("two").starts_with("replace is restricted"));
    assert_eq!(world.uid("-two-"), two);
    // Of another type, it would be another.
    world.broken = None;
    world.change("two: {type: OS::Nova::Server, properties: {image: i, flavor: small, networks: [{network: {get_resource: net}}], metadata: {a: b}}}", "two: {type: OS::Neutron::Net}");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_FAILED");
    assert_eq!(world.uid("-two-"), two);
}

#[test]
fn resources_that_were_never_created_fail_a_check_and_are_created_by_a_heal() {
    let mut world = World::new(PAIR);
    world.refused = Some("-net-");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "CREATE_FAILED");
    world.check("CHECK_FAILED");
    let record = world.record.as_ref().unwrap();
    let mut named = ["net", "one", "port", "sub", "two"].iter();
    assert!(
        named.all(|name| record.reason.contains(name)),
        "{}",
        record.reason
    );
    world.refused = None;
    world.heal("UPDATE_COMPLETE");
    assert_eq!(world.objects.len(), 6);
    world.check("CHECK_COMPLETE");
}

#[test]
fn a_changed_on_failure_does_not_undo_an_earlier_failure() {
    for on_failure in [OnFailure::Rollback, OnFailure::Delete] {
        let mut world = World::new(PAIR);
        world.broken = Some("-two-");
        world.run_until_idle();
        assert_eq!(world.stack_status(), "CREATE_FAILED");
        let net = world.uid("-net-");
        world.stack.spec.on_failure = on_failure;
        world.run_until_idle();
        assert_eq!(world.stack_status(), "CREATE_FAILED");
        world.broken = None;
        world.change("{a: b}", "{a: c}");
        world.run_until_idle();
        assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
        assert_eq!(world.uid("-net-"), net);
        // From then on it holds.
        world.broken = Some("-two-");
        world.change("{network: {get_resource: net}}", "{network: other}");
        world.run_until_idle();
        let words = ["ROLLBACK_FAILED", "ROLLBACK_COMPLETE", "DELETE_COMPLETE"];
        assert!(
            words.contains(&world.stack_status().as_str()),
            "{}",
            world.stack_status()
        );
    }
}

#[test]
fn a_failed_resource_stays_failed_until_the_next_action() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world.refused = Some("-two-");
    world.change("{a: b}", "{a: c}");
    world.run_until_idle();
    let record = world.record.as_ref().unwrap();
    let (_, entry) = record.incarnations("two").next().unwrap();
    assert_eq!(
        (entry.state, entry.reapply, entry.replace),
        (State::Failed, false, false)
    );
    assert!(record.failure_kept);
}

#[test]
fn members_of_a_retained_group_stay() {
    let group = "  kept:
    type: OS::Heat::ResourceGroup
    deletion_policy: Retain
    properties: {count: 2, resource_def: {type: OS::Neutron::Net}}
outputs:";
    let mut world = World::new(&PAIR.replace("outputs:", group));
    world.run_until_idle();
    assert_eq!(world.count("Network"), 3);
    world.delete();
    assert_eq!((world.count("Network"), world.objects.len()), (2, 2));
}

const KEY: &str = "heat_template_version: newton
resources:
  k1: {type: OS::Nova::KeyPair, properties: {name: ops, public_key: ssh-ed25519 A}}
";

#[test]
fn a_renamed_resource_keeps_its_object() {
    let mut world = World::new(KEY);
    world.run_until_idle();
    let ops = world.uid("ops");
    world.change("k1:", "k2:");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!((world.uid("ops"), world.count("KeyPair")), (ops.clone(), 1));
    assert_eq!(world.log.last().unwrap(), "change KeyPair k2");
    let paths = world.record.as_ref().unwrap().entries.keys();
    assert_eq!(
        paths.map(|(path, _)| path.as_str()).collect::<Vec<_>>(),
        ["k2"]
    );
    // Returned by a failed update, too.
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.broken = Some("-net-");
    world.change("k2:", "net: {type: OS::Neutron::Net}\n  k3:");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "ROLLBACK_COMPLETE");
    assert_eq!((world.uid("ops"), world.count("KeyPair")), (ops, 1));
    let mut changes = world.log.iter().rev();
    let last = changes.find(|line| line.starts_with("change KeyPair"));
    assert_eq!(last.unwrap(), "change KeyPair k2");
    world.delete();
    assert!(world.objects.is_empty());
}

#[test]
fn two_resources_cannot_have_the_same_object() {
    let other =
        "  K-2: {type: OS::Nova::KeyPair, properties: {name: OPS, public_key: ssh-ed25519 B}}\n";
    let mut world = World::new(&format!("{KEY}{other}"));
    let plan = world.plan();
    let problem = plan.problem.unwrap().message;
    assert!(
        problem.contains("KeyPair ops belongs to the resource"),
        "{problem}"
    );
    // One whose name is only known later is refused before anything happens to the object.
    let later = other.replace("name: OPS", "name: {get_attr: [word, value]}");
    let value = "  word: {type: OS::Heat::Value, properties: {value: ops}}\n";
    world = World::new(KEY);
    world.run_until_idle();
    world.sources.template = format!("{KEY}{value}{later}");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_FAILED");
    assert!(
        world.why("K-2").contains("belongs to the resource k1"),
        "{}",
        world.why("K-2")
    );
    assert_eq!(world.log.len(), 1, "{:#?}", world.log);
}

#[test]
fn another_api_version_is_the_same_object() {
    let template = "heat_template_version: newton
resources:
  scaler:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: autoscaling/v1, kind: HorizontalPodAutoscaler, metadata: {name: a}, spec: {b: c}}
";
    let mut world = World::new(template);
    world.stack.spec.service_account_name = Some("maker".into());
    world.run_until_idle();
    let uid = world.uid("a");
    world.change("autoscaling/v1", "autoscaling/v2");
    world.run_until_idle();
    world.change("{name: a}", "{name: a, namespace: demo}");
    world.run_until_idle();
    assert_eq!(
        world.stack_status(),
        "UPDATE_COMPLETE",
        "{:#?}",
        world.record
    );
    assert_eq!(
        (world.uid("a"), world.objects.len()),
        (uid, 1),
        "{:#?}",
        world.log
    );
}

#[test]
fn users_of_an_object_that_must_be_deleted_first_are_deleted_before_it() {
    let fixed =
        "port: {type: OS::Neutron::Port, properties: {fixed_ips: [{ip_address: 10.0.0.5}], network";
    let mut world = World::new(&PAIR.replace(
        "port: {type: OS::Neutron::Port, properties: {network",
        fixed,
    ));
    world.run_until_idle();
    let two = world.uid("-two-");
    world.log.clear();
    world.change(
        "{ip_address: 10.0.0.5}",
        "{ip_address: 10.0.0.5}, {ip_address: 10.0.0.6}",
    );
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    let order = [
        "delete Server one",
        "delete Port port",
        "make Port port",
        "make Server one",
    ];
    let places: Vec<usize> = order.iter().map(|line| world.at(line)).collect();
    assert!(places.is_sorted(), "{:#?}", world.log);
    assert_eq!(world.uid("-two-"), two);
    // The same to heal it.
    let mut live = world.objects.values_mut();
    let port = live.find(|live| live["kind"] == "Port").unwrap();
    port["spec"]["network"]["name"] = json!("other");
    world.check("CHECK_FAILED");
    world.heal("UPDATE_COMPLETE");
    assert_eq!(world.objects.len(), 6);
}

#[test]
fn nothing_is_deleted_only_to_replace_something_else() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    let before = (world.uid("-one-"), world.uid("-sub-"));
    let mut live = world.objects.values_mut();
    let subnet = live.find(|live| live["kind"] == "Subnet").unwrap();
    subnet["spec"]["dhcp"] = json!("Disabled");
    world.check("CHECK_FAILED");
    world.heal("UPDATE_FAILED");
    assert!(
        world
            .why("sub")
            .contains("has to be deleted before its replacement is created")
    );
    assert_eq!((world.uid("-one-"), world.uid("-sub-")), before);
    let going = |live: &Value| !live["metadata"]["deletionTimestamp"].is_null();
    assert!(!world.objects.values().any(going));
}

#[test]
fn groups_that_require_groups_have_a_small_record() {
    let template = "heat_template_version: newton
resources:
  a:
    type: OS::Heat::ResourceGroup
    properties: {count: 40, resource_def: {type: OS::Neutron::Net}}
  b:
    type: OS::Heat::ResourceGroup
    depends_on: a
    properties: {count: 40, resource_def: {type: OS::Neutron::Net}}
";
    let mut world = World::new(template);
    world.run_until_idle();
    let size = |world: &World| serde_json::to_string(&world.record).unwrap().len();
    assert!(size(&world) < 80 * 1000, "{}", size(&world));
    // A replaced member is deleted although the resources that require the group are kept.
    let name = world.record.as_ref().unwrap().entries[&("a/3".to_owned(), 1)].objects[0].clone();
    world.objects.remove(&name);
    world.heal("UPDATE_COMPLETE");
    assert_eq!(world.count("Network"), 80);
    let entries = &world.record.as_ref().unwrap().entries;
    assert_eq!(entries.len(), 80);
    assert!(entries.contains_key(&("a/3".to_owned(), 2)));
    world.stack.spec.preview = true;
    assert_eq!(world.plan().preview.unwrap().unchanged, 80);
    world.stack.spec.preview = false;
    world.log.clear();
    world.delete();
    let first = world
        .log
        .iter()
        .position(|line| line.starts_with("delete Network a/"));
    let last = world
        .log
        .iter()
        .rposition(|line| line.starts_with("delete Network b/"));
    assert!(last < first, "{:#?}", world.log);
}

#[test]
fn a_missing_object_is_created_again_and_its_users_stay() {
    let key = "resources:
  key: {type: OS::Nova::KeyPair, properties: {name: ops, public_key: ssh-ed25519 A}}";
    let template = PAIR.replace("resources:", key);
    let mut world = World::new(&template.replace("user_data: x", "key_name: {get_resource: key}"));
    world.run_until_idle();
    let one = world.uid("-one-");
    world.objects.retain(|object, _| object.kind != "KeyPair");
    world.check("CHECK_FAILED");
    world.heal("UPDATE_COMPLETE");
    assert_eq!(
        (world.count("KeyPair"), world.uid("-one-")),
        (1, one.clone())
    );
    // Another key under its name would have to wait for the Server to go.
    world.change("ssh-ed25519 A", "ssh-ed25519 B");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_FAILED");
    assert_eq!((world.count("KeyPair"), world.uid("-one-")), (1, one));
}

#[test]
fn a_preview_shows_what_happens_to_failed_resources() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    let two = world.uid("-two-");
    world.refused = Some("-two-");
    world.change("{a: b}", "{a: c}");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_FAILED");
    world.refused = None;
    let preview = |world: &mut World| {
        world.stack.spec.preview = true;
        let plan = world.plan();
        assert_eq!(Some(&plan.record), world.record.as_ref());
        world.stack.spec.preview = false;
        plan.preview.unwrap()
    };
    let reported = preview(&mut world);
    assert_eq!(reported.updated, ["two (again)"]);
    assert_eq!((reported.replaced, reported.unchanged), (Vec::new(), 4));
    world.heal("UPDATE_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
    // A stalled object is replaced, and the preview shows it.
    world.broken = Some("-two-");
    world.update_objects();
    world.check("CHECK_FAILED");
    world.broken = None;
    assert_eq!(preview(&mut world).replaced, ["two"]);
    world.heal("UPDATE_COMPLETE");
    assert_ne!(world.uid("-two-"), two);
}

#[test]
fn a_record_that_is_too_big_is_reported_and_nothing_more_is_created() {
    let long = |at: usize| format!("{at}{}", "x".repeat(250));
    let one = |at| {
        format!(
            "  {}: {{type: OS::Heat::Value, properties: {{value: a}}}}",
            long(at)
        )
    };
    let values = (0..8).map(one).collect::<Vec<_>>().join("\n") + "\n";
    let names: Vec<String> = (0..8).map(long).collect();
    let template = |count: usize| {
        format!(
            "heat_template_version: newton\nresources:\n{values}  group:\n    \
             type: OS::Heat::ResourceGroup\n    depends_on: [{}]\n    \
             properties: {{count: {count}, resource_def: {{type: OS::Neutron::Net}}}}\n",
            names.join(", ")
        )
    };
    let mut world = World::new(&template(3));
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.run_until_idle();
    assert_eq!(
        (world.stack_status().as_str(), world.count("Network")),
        ("CREATE_COMPLETE", 3)
    );
    world.sources.template = template(800);
    let mut reported = None;
    for _ in 0..5 {
        let plan = world.pass(|| false);
        reported = reported.or(plan.problem);
        let size = serde_json::to_string(&world.record).unwrap().len();
        assert!(size <= 1_000_000, "{size}");
        assert!(world.count("Network") <= 3);
    }
    let reported = reported.unwrap();
    assert_eq!(reported.reason, pileus_api::Reason::RecordTooLarge);
    for part in [
        "spec.template",
        "808 resources",
        "1000000",
        "several Stacks",
    ] {
        assert!(
            reported.message.contains(part),
            "{part}: {}",
            reported.message
        );
    }
    // It has failed like any other update, and what there was is as it was.
    world.run_until_idle();
    assert_eq!(
        (world.stack_status().as_str(), world.count("Network")),
        ("ROLLBACK_COMPLETE", 3)
    );
    assert!(world.log.iter().all(|line| !line.starts_with("delete")));
    world.sources.template = template(4);
    world.run_until_idle();
    assert_eq!(
        (world.stack_status().as_str(), world.count("Network")),
        ("UPDATE_COMPLETE", 4)
    );
    world.delete();
    assert!(world.objects.is_empty());
}
