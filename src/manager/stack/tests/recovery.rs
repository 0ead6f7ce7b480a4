//! Tests of a lost record: existing objects are recorded unchanged, or nothing is changed.

use std::collections::BTreeSet;

use super::super::plan::Observed;
use super::super::plan::rebuild::{Rebuilt, problem, rebuild};
use super::super::record::Reference;
use super::PAIR;
use super::world::World;
use pileus_api::names::STACK_UID_LABEL;
use pileus_api::stack::OnFailure;
use pileus_stack::value::json;

impl World {
    /// The Secrets with the record and the templates go; what can be found again.
    fn lose(&mut self) -> Rebuilt {
        let status = self.stack.status.get_or_insert_default();
        status.record = Some("stack-u-1".to_owned());
        self.record = None;
        self.stored.clear();
        self.search()
    }

    fn search(&self) -> Rebuilt {
        let uid = "u-1";
        let ours = self.objects.iter().filter(|(object, live)| {
            object.api_version.starts_with(pileus_api::GROUP)
                && live["metadata"]["labels"][STACK_UID_LABEL] == uid
        });
        let unrecorded = ours.map(|(object, _)| (object.clone(), String::new()));
        let mut observed = Observed {
            unrecorded: unrecorded.collect(),
            seed: "other".to_owned(),
            ..self.nothing_observed()
        };
        let mut asked: BTreeSet<Reference> = BTreeSet::new();
        loop {
            let found = rebuild(&self.stack, &observed, &asked);
            let more = found.to_read.iter().map(|(object, _)| object.clone());
            let more: Vec<_> = more.filter(|object| !asked.contains(object)).collect();
            if more.is_empty() {
                return found;
            }
            for object in more {
                if let Some(live) = self.objects.get(&object) {
                    observed.objects.insert(object.clone(), live.clone());
                }
                asked.insert(object);
            }
        }
    }

    /// Goes on with what was found.
    fn continue_with(&mut self, found: Rebuilt) {
        self.stored
            .insert(self.sources.digest(), self.sources.clone());
        self.record = Some(found.record);
        self.log.clear();
    }

    fn reported(&self, found: &Rebuilt) -> String {
        problem(&self.nothing_observed(), "stack-u-1", &found.differences).message
    }
}

#[test]
fn objects_without_differences_are_recorded_unchanged() {
    let group = "  group:
    type: OS::Heat::ResourceGroup
    properties: {count: 2, resource_def: {type: OS::Neutron::Port, properties: {network: {get_resource: net}}}}
  key: {type: OS::Nova::KeyPair, properties: {name: ops, public_key: ssh-ed25519 A}}
  map: {type: 'Kubernetes::Object', properties: {manifest: {apiVersion: v1, kind: ConfigMap, data: {a: b}}}}
  word: {type: OS::Heat::Value, properties: {value: {get_attr: [one, first_address]}}}
outputs:";
    let mut world = World::new(&PAIR.replace("outputs:", group));
    world.stack.spec.service_account_name = Some("maker".into());
    world.run_until_idle();
    // One is the second of its name.
    world.change("user_data: x", "user_data: y");
    let before = world.run_until_idle();
    let objects = world.objects.clone();
    let entries = world.record.clone().unwrap().entries;
    let found = world.lose();
    assert_eq!(found.differences, Vec::<String>::new());
    assert!(found.record.entries.keys().eq(entries.keys()));
    world.continue_with(found);
    let after = world.run_until_idle();
    assert_eq!(
        world.stack_status(),
        "UPDATE_COMPLETE",
        "{:#?}",
        world.record
    );
    assert_eq!(before.outputs, after.outputs);
    // What cannot be compared is applied where it is; nothing else is.
    assert_eq!(world.log, ["change ConfigMap map"]);
    let uids = |objects: &std::collections::BTreeMap<Reference, pileus_stack::value::Value>| {
        let live = objects.iter();
        live.map(|(o, live)| (o.clone(), live["metadata"]["uid"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(uids(&world.objects), uids(&objects));
    for (key, entry) in &world.record.as_ref().unwrap().entries {
        let old = &entries[key];
        assert_eq!(
            (
                &entry.requires,
                &entry.objects,
                &entry.claims,
                &entry.resource_type
            ),
            (&old.requires, &old.objects, &old.claims, &old.resource_type)
        );
    }
    // From then on it is as ever.
    world.log.clear();
    world.change("metadata: {a: b}", "metadata: {a: c}");
    world.change("user_data: y", "user_data: z");
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!(world.count("Server"), 2);
    assert!(world.log.contains(&"delete Server one".to_owned()));
    world.delete();
    assert!(world.objects.is_empty(), "{:#?}", world.objects);
}

#[test]
fn differences_are_reported_and_nothing_is_changed_until_confirmed() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world.change("{a: b}", "{a: c}");
    let net = PAIR.replace("outputs:", "  new: {type: OS::Neutron::Net}\noutputs:");
    let found = world.lose();
    assert!(
        found.differences[0].starts_with("two: Server shop-two-"),
        "{:?}",
        found.differences
    );
    let reported = world.reported(&found);
    for part in [
        "stack-u-1",
        "two: Server shop-two-",
        "spec.metadata.a is not what the template says",
        "Restore the Secret",
        "pileus.dev/rebuild-record=stack-u-1",
        "delete the Stack",
    ] {
        assert!(reported.contains(part), "{part}: {reported}");
    }
    // Objects that the template no longer has, resources that are new in it, and objects of others.
    let without = net.replace(
        "  port: {type: OS::Neutron::Port, properties: {network: {get_resource: net}}}\n",
        "",
    );
    world.sources.template = without.replace("[{port: {get_resource: port}}]", "[]");
    for live in world.objects.values_mut() {
        if live["metadata"]["name"].as_str().unwrap().contains("-sub-") {
            live["metadata"]["labels"] = json!({});
        }
    }
    let found = world.search();
    for part in ["new: Network", "port: Port", "sub: Subnet", "one: Server"] {
        let reported = found.differences.iter().any(|why| why.starts_with(part));
        assert!(reported, "{part}: {:?}", found.differences);
    }
    // What the template does not have stays without the Stack, and nothing is made a second time.
    for live in world.objects.values_mut() {
        live["metadata"]["labels"] = json!({STACK_UID_LABEL: "u-1"});
    }
    let found = world.search();
    world.continue_with(found);
    for _ in 0..40 {
        world.pass(|| false);
        world.update_objects();
    }
    assert!(world.log.contains(&"release Port".to_owned()));
    assert_eq!(world.count("Port"), 1);
    assert!(world.count("Server") <= 2, "{:#?}", world.log);
}

#[test]
fn random_values_are_lost_with_the_record() {
    let chance = "  word: {type: OS::Heat::RandomString}\noutputs:";
    let template = PAIR.replace("outputs:", chance);
    let mut world =
        World::new(&template.replace("user_data: x", "user_data: {get_resource: word}"));
    world.run_until_idle();
    let found = world.lose();
    let reported = world.reported(&found);
    assert!(
        reported.contains("word: its value was random"),
        "{reported}"
    );
    assert!(
        reported.contains("user-data: data.userData is not"),
        "{reported}"
    );
}

#[test]
fn missing_user_data_is_created_again_for_an_existing_server() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world.objects.retain(|object, _| object.kind != "Secret");
    let found = world.lose();
    assert_eq!(found.differences, Vec::<String>::new());
    world.continue_with(found);
    world.run_until_idle();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!(world.log, ["make Secret one", "change Server one"]);
}

#[test]
fn a_failure_after_recovery_deletes_nothing() {
    for on_failure in [OnFailure::Rollback, OnFailure::Delete] {
        let mut world = World::new(PAIR);
        world.stack.spec.on_failure = on_failure;
        world.run_until_idle();
        world.objects.retain(|object, _| object.kind != "Secret");
        world.broken = Some("-one-");
        world.update_objects();
        let found = world.lose();
        world.continue_with(found);
        world.run_until_idle();
        assert_eq!(world.stack_status(), "UPDATE_FAILED");
        assert!(world.log.iter().all(|line| !line.starts_with("delete")));
        // What fails later returns to what was found.
        let goal = world.record.as_ref().unwrap().target_digest.clone();
        assert!(goal.is_some() && world.record.as_ref().unwrap().last_good_digest == goal);
    }
}

#[test]
fn a_recovered_stack_stays_suspended() {
    let mut world = World::new(PAIR);
    world.run_until_idle();
    world.stack.spec.suspend = true;
    world.run_until_idle();
    world.stack.status.get_or_insert_default().stack_status = Some("SUSPEND_COMPLETE".into());
    let found = world.lose();
    assert_eq!(found.differences, Vec::<String>::new());
    world.continue_with(found);
    world.run_until_idle();
    assert!(world.log.is_empty(), "{:#?}", world.log);
    world.stack.spec.suspend = false;
    world.run_until_idle();
    assert_eq!(world.stack_status(), "RESUME_COMPLETE");
    let servers = world.objects.values().filter(|o| o["kind"] == "Server");
    assert!(
        servers
            .into_iter()
            .all(|o| o["spec"]["runState"] == "Running")
    );
}

#[test]
fn retained_objects_stay_when_a_stack_without_record_is_deleted() {
    let retained = "port: {type: OS::Neutron::Port, deletion_policy: Retain, ";
    // Objects that cannot be compared, because a requirement is missing, stay as well.
    for lose_net in [false, true] {
        let mut world = World::new(&PAIR.replace("port: {type: OS::Neutron::Port, ", retained));
        world.run_until_idle();
        if lose_net {
            world.objects.retain(|object, _| object.kind != "Network");
        }
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now);
        world.stack.metadata.deletion_timestamp = Some(now);
        let found = world.lose();
        world.continue_with(found);
        for _ in 0..40 {
            world.pass(|| false);
            world.update_objects();
        }
        assert_eq!((world.count("Port"), world.count("Server")), (1, 0));
        assert!(world.log.contains(&"release Port".to_owned()));
        assert!(!world.log.contains(&"delete Port port".to_owned()));
    }
}
