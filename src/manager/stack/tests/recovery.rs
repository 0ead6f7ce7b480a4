//! A record that is lost: what exists is taken as it is, or nothing is touched.

use std::collections::BTreeSet;

use super::super::record::Reference;
use super::super::plan::Observed;
use super::super::plan::rebuild::{Rebuilt, problem, rebuild};
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
        let strays = ours.map(|(object, _)| (object.clone(), String::new()));
        let mut observed = Observed {
            strays: strays.collect(),
            seed: "other".to_owned(),
            ..self.nothing_observed()
        };
        let mut asked: BTreeSet<Reference> = BTreeSet::new();
        loop {
            let found = rebuild(&self.stack, &observed, &asked);
            let more = found.reads.iter().map(|(object, _)| object.clone());
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
    fn go_on(&mut self, found: Rebuilt) {
        self.stored
            .insert(self.sources.digest(), self.sources.clone());
        self.record = Some(found.record);
        self.log.clear();
    }

    fn told(&self, found: &Rebuilt) -> String {
        problem(&self.nothing_observed(), "stack-u-1", &found.differs).message
    }
}

#[test]
fn what_is_as_the_template_says_is_taken_as_it_is() {
    let group = "  group:
    type: OS::Heat::ResourceGroup
    properties: {count: 2, resource_def: {type: OS::Neutron::Port, properties: {network: {get_resource: net}}}}
  key: {type: OS::Nova::KeyPair, properties: {name: ops, public_key: ssh-ed25519 A}}
  map: {type: 'Kubernetes::Object', properties: {manifest: {apiVersion: v1, kind: ConfigMap, data: {a: b}}}}
  word: {type: OS::Heat::Value, properties: {value: {get_attr: [one, first_address]}}}
outputs:";
    let mut world = World::new(&PAIR.replace("outputs:", group));
    world.stack.spec.service_account_name = Some("maker".into());
    world.settle();
    // One is the second of its name.
    world.change("user_data: x", "user_data: y");
    let before = world.settle();
    let objects = world.objects.clone();
    let entries = world.record.clone().unwrap().entries;
    let found = world.lose();
    assert_eq!(found.differs, Vec::<String>::new());
    assert!(found.record.entries.keys().eq(entries.keys()));
    world.go_on(found);
    let after = world.settle();
    assert_eq!(world.word(), "UPDATE_COMPLETE", "{:#?}", world.record);
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
            (&entry.requires, &entry.objects, &entry.claims, &entry.kind),
            (&old.requires, &old.objects, &old.claims, &old.kind)
        );
    }
    // From then on it is as ever.
    world.log.clear();
    world.change("metadata: {a: b}", "metadata: {a: c}");
    world.change("user_data: y", "user_data: z");
    world.settle();
    assert_eq!(world.word(), "UPDATE_COMPLETE");
    assert_eq!(world.count("Server"), 2);
    assert!(world.log.contains(&"delete Server one".to_owned()));
    world.delete();
    assert!(world.objects.is_empty(), "{:#?}", world.objects);
}

#[test]
fn what_is_not_is_told_and_nothing_is_touched_until_somebody_says_so() {
    let mut world = World::new(PAIR);
    world.settle();
    world.change("{a: b}", "{a: c}");
    let net = PAIR.replace("outputs:", "  new: {type: OS::Neutron::Net}\noutputs:");
    let found = world.lose();
    assert!(
        found.differs[0].starts_with("two: Server shop-two-"),
        "{:?}",
        found.differs
    );
    let told = world.told(&found);
    for part in [
        "stack-u-1",
        "two: Server shop-two-",
        "spec.metadata.a is not what the template says",
        "Restore the Secret",
        "pileus.dev/rebuild-record=stack-u-1",
        "delete the Stack",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // What the template has no more, what it has only now, and what another has made.
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
        let told = found.differs.iter().any(|why| why.starts_with(part));
        assert!(told, "{part}: {:?}", found.differs);
    }
    // What the template does not have stays without the Stack, and nothing is made a second time.
    for live in world.objects.values_mut() {
        live["metadata"]["labels"] = json!({STACK_UID_LABEL: "u-1"});
    }
    let found = world.search();
    world.go_on(found);
    for _ in 0..40 {
        world.pass(|| false);
        world.tend();
    }
    assert!(world.log.contains(&"release Port".to_owned()));
    assert_eq!(world.count("Port"), 1);
    assert!(world.count("Server") <= 2, "{:#?}", world.log);
}

#[test]
fn what_was_made_by_chance_is_lost_with_the_record() {
    let chance = "  word: {type: OS::Heat::RandomString}\noutputs:";
    let template = PAIR.replace("outputs:", chance);
    let mut world =
        World::new(&template.replace("user_data: x", "user_data: {get_resource: word}"));
    world.settle();
    let found = world.lose();
    let told = world.told(&found);
    assert!(
        told.contains("word: its value was made by chance"),
        "{told}"
    );
    assert!(told.contains("user-data: data.userData is not"), "{told}");
}

#[test]
fn user_data_that_went_with_the_record_is_made_again_for_the_server_that_is_there() {
    let mut world = World::new(PAIR);
    world.settle();
    world.objects.retain(|object, _| object.kind != "Secret");
    let found = world.lose();
    assert_eq!(found.differs, Vec::<String>::new());
    world.go_on(found);
    world.settle();
    assert_eq!(world.word(), "UPDATE_COMPLETE");
    assert_eq!(world.log, ["make Secret one", "change Server one"]);
}

#[test]
fn a_failure_after_the_loss_destroys_nothing() {
    for on_failure in [OnFailure::Rollback, OnFailure::Delete] {
        let mut world = World::new(PAIR);
        world.stack.spec.on_failure = on_failure;
        world.settle();
        world.objects.retain(|object, _| object.kind != "Secret");
        world.broken = Some("-one-");
        world.tend();
        let found = world.lose();
        world.go_on(found);
        world.settle();
        assert_eq!(world.word(), "UPDATE_FAILED");
        assert!(world.log.iter().all(|line| !line.starts_with("delete")));
        // What fails later returns to what was found.
        let goal = world.record.as_ref().unwrap().goal.clone();
        assert!(goal.is_some() && world.record.as_ref().unwrap().good == goal);
    }
}

#[test]
fn a_suspended_stack_stays_so() {
    let mut world = World::new(PAIR);
    world.settle();
    world.stack.spec.suspend = true;
    world.settle();
    world.stack.status.get_or_insert_default().stack_status = Some("SUSPEND_COMPLETE".into());
    let found = world.lose();
    assert_eq!(found.differs, Vec::<String>::new());
    world.go_on(found);
    world.settle();
    assert!(world.log.is_empty(), "{:#?}", world.log);
    world.stack.spec.suspend = false;
    world.settle();
    assert_eq!(world.word(), "RESUME_COMPLETE");
    let servers = world.objects.values().filter(|o| o["kind"] == "Server");
    assert!(
        servers
            .into_iter()
            .all(|o| o["spec"]["runState"] == "Running")
    );
}

#[test]
fn what_is_retained_stays_when_a_stack_without_a_record_goes() {
    let retained = "port: {type: OS::Neutron::Port, deletion_policy: Retain, ";
    // What cannot be compared, because what it needs is gone, stays as well.
    for lose_net in [false, true] {
        let mut world = World::new(&PAIR.replace("port: {type: OS::Neutron::Port, ", retained));
        world.settle();
        if lose_net {
            world.objects.retain(|object, _| object.kind != "Network");
        }
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now);
        world.stack.metadata.deletion_timestamp = Some(now);
        let found = world.lose();
        world.go_on(found);
        for _ in 0..40 {
            world.pass(|| false);
            world.tend();
        }
        assert_eq!((world.count("Port"), world.count("Server")), (1, 0));
        assert!(world.log.contains(&"release Port".to_owned()));
        assert!(!world.log.contains(&"delete Port port".to_owned()));
    }
}
