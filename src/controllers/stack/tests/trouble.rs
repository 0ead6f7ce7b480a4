//! What failed, what was lost, and what is in use: nothing that works is destroyed for it.

use k8s_openapi::jiff::SignedDuration;
use serde_json::{Value, json};

use super::super::ledger::State;
use super::PAIR;
use super::world::World;
use crate::api::stack::OnFailure;

impl World {
    fn uid(&self, part: &str) -> Value {
        let mut found = self.objects.iter();
        let found = found.find(|(object, _)| object.kind != "Secret" && object.name.contains(part));
        found.map_or(Value::Null, |(_, live)| live["metadata"]["uid"].clone())
    }

    fn check(&mut self, word: &str) {
        self.stack.spec.check_requested_at = Some(self.now.to_string());
        self.settle();
        assert_eq!(self.word(), word, "{:#?}", self.ledger);
    }

    fn heal(&mut self, word: &str) {
        self.stack.spec.heal_requested_at = Some(self.now.to_string());
        self.settle();
        assert_eq!(self.word(), word, "{:#?}", self.ledger);
    }

    fn why(&self, path: &str) -> String {
        let ledger = self.ledger.as_ref().unwrap();
        let entry = ledger.incarnations(path).next();
        entry.map_or_else(String::new, |(_, entry)| entry.reason.clone())
    }
}

#[test]
fn a_check_of_a_healthy_stack_finds_nothing_wrong_with_user_data() {
    let mut world = World::new(PAIR);
    world.settle();
    let one = world.uid("-one-");
    world.check("CHECK_COMPLETE");
    // Somebody deletes the user data: that is told.
    world.objects.retain(|object, _| object.kind != "Secret");
    world.check("CHECK_FAILED");
    assert!(world.why("one").contains("user-data is gone"));
    world.heal("UPDATE_COMPLETE");
    assert_ne!(world.uid("-one-"), one);
}

#[test]
fn what_is_only_not_ready_when_it_is_checked_is_told_and_not_made_anew() {
    let mut world = World::new(PAIR);
    world.settle();
    let two = world.uid("-two-");
    world.slow = Some("-two-");
    world.tend();
    world.check("CHECK_FAILED");
    assert_eq!(world.why("two"), "so it is");
    // Nor does an update of something else wait for it.
    world.change("user_data: x", "user_data: y");
    world.settle();
    assert_eq!(world.word(), "UPDATE_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
}

#[test]
fn a_quantity_that_the_api_server_writes_otherwise_is_no_drift() {
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
    world.settle();
    let mut claims = world.objects.values_mut();
    claims.next().unwrap()["spec"]["resources"]["requests"]["storage"] = json!("1Gi");
    world.check("CHECK_COMPLETE");
}

#[test]
fn a_rollback_does_not_destroy_what_was_only_slow_to_change() {
    let mut world = World::new(PAIR);
    let pair = PAIR.replace("outputs:", "  new: {type: OS::Neutron::Net}\noutputs:");
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.settle();
    let two = world.uid("-two-");
    world.sources.template = pair.replace("{a: b}", "{a: c}");
    world.broken = Some("-new-");
    world.slow = Some("-two-");
    for _ in 0..20 {
        world.pass(|| false);
        world.tend();
    }
    world.now += SignedDuration::from_secs(241);
    world.pass(|| false);
    assert_eq!(world.word(), "UPDATE_FAILED", "{:#?}", world.ledger);
    world.slow = None;
    world.settle();
    assert_eq!(world.word(), "ROLLBACK_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
    let mut live = world.objects.values();
    let live = live.find(|live| live["metadata"]["uid"] == two).unwrap();
    assert_eq!(live["spec"]["metadata"]["a"], "b");
}

#[test]
fn a_change_that_was_refused_is_tried_again_where_it_is() {
    let mut world = World::new(PAIR);
    world.settle();
    let two = world.uid("-two-");
    world.refused = Some("-two-");
    world.change("{a: b}", "{a: c}");
    world.settle();
    assert_eq!(world.word(), "UPDATE_FAILED");
    world.refused = None;
    world.heal("UPDATE_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
    let mut live = world.objects.values();
    let live = live.find(|live| live["metadata"]["uid"] == two).unwrap();
    assert_eq!(live["spec"]["metadata"]["a"], "c");
}

#[test]
fn what_could_not_be_stopped_can_be_started() {
    let mut world = World::new(PAIR);
    world.settle();
    let two = world.uid("-two-");
    world.stack.spec.suspend = true;
    world.refused = Some("-two-");
    world.settle();
    assert_eq!(world.word(), "SUSPEND_FAILED");
    world.refused = None;
    world.stack.spec.suspend = false;
    world.settle();
    assert_eq!(world.word(), "RESUME_COMPLETE", "{:#?}", world.ledger);
    world.change("{a: b}", "{a: c}");
    world.settle();
    assert_eq!(world.word(), "UPDATE_COMPLETE");
    assert_eq!(world.uid("-two-"), two);
}

#[test]
fn what_must_not_be_replaced_is_not_when_it_has_failed_either() {
    let mut world = World::new(PAIR);
    let restricted = "resource_registry: {resources: {two: {restricted_actions: replace}}}";
    world.sources.environments = vec![restricted.to_owned()];
    world.settle();
    let two = world.uid("-two-");
    world.broken = Some("-two-");
    world.tend();
    world.check("CHECK_FAILED");
    world.heal("UPDATE_FAILED");
    assert!(world.why("two").starts_with("replace is restricted"));
    assert_eq!(world.uid("-two-"), two);
    // Of another type, it would be another.
    world.broken = None;
    world.change("two: {type: OS::Nova::Server, properties: {image: i, flavor: small, networks: [{network: {get_resource: net}}], metadata: {a: b}}}", "two: {type: OS::Neutron::Net}");
    world.settle();
    assert_eq!(world.word(), "UPDATE_FAILED");
    assert_eq!(world.uid("-two-"), two);
}

#[test]
fn what_was_never_made_is_not_there_for_a_check_and_is_made_by_a_heal() {
    let mut world = World::new(PAIR);
    world.refused = Some("-net-");
    world.settle();
    assert_eq!(world.word(), "CREATE_FAILED");
    world.check("CHECK_FAILED");
    let ledger = world.ledger.as_ref().unwrap();
    let mut named = ["net", "one", "port", "sub", "two"].iter();
    assert!(
        named.all(|name| ledger.reason.contains(name)),
        "{}",
        ledger.reason
    );
    world.refused = None;
    world.heal("UPDATE_COMPLETE");
    assert_eq!(world.objects.len(), 6);
    world.check("CHECK_COMPLETE");
}

#[test]
fn an_edit_of_a_failed_stack_is_looked_at_before_anything_goes() {
    for on_failure in [OnFailure::Rollback, OnFailure::Delete] {
        let mut world = World::new(PAIR);
        world.broken = Some("-two-");
        world.settle();
        assert_eq!(world.word(), "CREATE_FAILED");
        let net = world.uid("-net-");
        world.stack.spec.on_failure = on_failure;
        world.settle();
        assert_eq!(world.word(), "CREATE_FAILED");
        world.broken = None;
        world.change("{a: b}", "{a: c}");
        world.settle();
        assert_eq!(world.word(), "UPDATE_COMPLETE");
        assert_eq!(world.uid("-net-"), net);
        // From then on it holds.
        world.broken = Some("-two-");
        world.change("{network: {get_resource: net}}", "{network: other}");
        world.settle();
        let words = ["ROLLBACK_FAILED", "ROLLBACK_COMPLETE", "DELETE_COMPLETE"];
        assert!(words.contains(&world.word().as_str()), "{}", world.word());
    }
}

#[test]
fn what_has_failed_stays_so_until_it_is_dealt_with() {
    let mut world = World::new(PAIR);
    world.settle();
    world.refused = Some("-two-");
    world.change("{a: b}", "{a: c}");
    world.settle();
    let ledger = world.ledger.as_ref().unwrap();
    let (_, entry) = ledger.incarnations("two").next().unwrap();
    assert_eq!(
        (entry.state, entry.again, entry.replace),
        (State::Failed, false, false)
    );
    assert!(ledger.kept);
}

#[test]
fn what_is_in_a_retained_group_stays() {
    let group = "  kept:
    type: OS::Heat::ResourceGroup
    deletion_policy: Retain
    properties: {count: 2, resource_def: {type: OS::Neutron::Net}}
outputs:";
    let mut world = World::new(&PAIR.replace("outputs:", group));
    world.settle();
    assert_eq!(world.count("Network"), 3);
    world.delete();
    assert_eq!((world.count("Network"), world.objects.len()), (2, 2));
}
