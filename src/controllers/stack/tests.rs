//! The planner driven by a world in memory: what it says is done, objects become ready, and
//! it is asked again until it says no more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::ledger::{Action, Ledger, Reference, Sources};
use super::plan::{self, Lookup, Plan, Problem, Seen, Step};
use crate::api::names::STACK_UID_LABEL;
use crate::api::stack::OnFailure;
use crate::api::{Reason, Stack};

/// Everything outside of the planner.
struct World {
    stack: Stack,
    sources: Sources,
    ledger: Option<Ledger>,
    stored: BTreeMap<String, Sources>,
    objects: BTreeMap<Reference, Value>,
    now: Timestamp,
    uids: u32,
    /// What was done, in order.
    log: Vec<String>,
    /// Objects whose names hold this never become ready.
    broken: Option<&'static str>,
}

impl Lookup for BTreeMap<Reference, Value> {
    fn find(&self, kind: &str, name: &str) -> Option<Value> {
        let found = self
            .iter()
            .find(|(object, _)| object.kind == kind && object.name == name);
        found.map(|(_, live)| live.clone())
    }
}

fn stack() -> Stack {
    serde_json::from_value(json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Stack",
        "metadata": {"name": "shop", "namespace": "demo", "uid": "u-1"},
        "spec": {"template": "x"},
    }))
    .unwrap()
}

impl World {
    fn new(template: &str) -> Self {
        Self {
            stack: stack(),
            sources: Sources {
                template: template.to_owned(),
                ..Sources::default()
            },
            ledger: None,
            stored: BTreeMap::new(),
            objects: BTreeMap::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            uids: 0,
            log: Vec::new(),
            broken: None,
        }
    }

    fn plan(&self) -> Plan {
        let named: BTreeSet<&Reference> = self
            .ledger
            .iter()
            .flat_map(|ledger| ledger.entries.values())
            .flat_map(|entry| &entry.objects)
            .collect();
        let seen = Seen {
            now: self.now,
            sources: Ok(self.sources.clone()),
            stored: self.stored.clone(),
            ledger: self.ledger.clone(),
            seed: "seed".to_owned(),
            objects: self
                .objects
                .iter()
                .filter(|(object, _)| named.contains(object))
                .map(|(object, live)| (object.clone(), live.clone()))
                .collect(),
            denied: None,
            strays: Vec::new(),
            find: &self.objects,
            kind_lost: false,
        };
        plan::plan(&self.stack, &seen)
    }

    /// Plans and acts; `lost` says which steps a crash prevents.
    fn pass(&mut self, mut lost: impl FnMut() -> bool) -> Plan {
        let plan = self.plan();
        if let Some(sources) = &plan.store {
            self.stored.insert(sources.digest(), sources.clone());
        }
        self.ledger = Some(plan.ledger.clone());
        for step in &plan.steps {
            if !lost() {
                self.act(step);
            }
        }
        self.now += SignedDuration::from_millis(100);
        plan
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Apply { manifest, live, .. } => {
                let object = Reference::of(manifest);
                let word = if live.is_some() { "change" } else { "make" };
                let path = manifest["metadata"]["annotations"]["pileus.dev/stack-resource"].clone();
                self.log
                    .push(format!("{word} {} {}", object.kind, path.as_str().unwrap()));
                let mut new = manifest.clone();
                self.uids += 1;
                let uid = live.as_ref().map_or_else(
                    || json!(format!("o-{}", self.uids)),
                    |live| live["metadata"]["uid"].clone(),
                );
                new["metadata"]["uid"] = uid;
                assert!(
                    live.is_some() || !self.objects.contains_key(&object),
                    "{object:?} is made twice"
                );
                self.objects.insert(object, new);
            }
            Step::Delete { object, .. } => {
                if let Some(live) = self.objects.remove(object) {
                    let path = &live["metadata"]["annotations"]["pileus.dev/stack-resource"];
                    self.log
                        .push(format!("delete {} {}", object.kind, path.as_str().unwrap()));
                }
            }
            Step::Release { live, .. } => {
                let object = Reference::of(live);
                self.log.push(format!("release {}", object.kind));
                let live = self.objects.get_mut(&object).unwrap();
                live["metadata"]["labels"][STACK_UID_LABEL] = Value::Null;
            }
        }
    }

    /// What exists becomes ready, unless it is broken.
    fn tend(&mut self) {
        for (object, live) in &mut self.objects {
            let broken = self.broken.is_some_and(|part| object.name.contains(part));
            let (ready, stalled) = if broken {
                ("False", "True")
            } else {
                ("True", "False")
            };
            live["status"] = json!({
                "addresses": [{"name": "nic-0", "port": "p", "macAddress": "m", "ips": ["10.0.0.9"]}],
                "conditions": [
                    {"type": "Ready", "status": ready, "reason": "X", "message": "so it is"},
                    {"type": "Stalled", "status": stalled, "reason": "X", "message": "it cannot work"},
                ],
            });
        }
    }

    /// Until nothing is left to do.
    fn settle(&mut self) -> Plan {
        for _ in 0..500 {
            let before = self.ledger.clone();
            let plan = self.pass(|| false);
            self.tend();
            if plan.steps.is_empty() && before == self.ledger && !plan.ledger.is_busy() {
                return plan;
            }
        }
        panic!("never at rest: {:#?}\n{:#?}", self.ledger, self.log);
    }

    fn word(&self) -> String {
        self.ledger.as_ref().unwrap().word().unwrap()
    }

    fn change(&mut self, from: &str, to: &str) {
        assert!(self.sources.template.contains(from), "{from}");
        self.sources.template = self.sources.template.replace(from, to);
    }

    fn count(&self, kind: &str) -> usize {
        self.objects
            .keys()
            .filter(|object| object.kind == kind)
            .count()
    }

    fn at(&self, what: &str) -> usize {
        let found = self.log.iter().position(|line| line == what);
        found.unwrap_or_else(|| panic!("{what} is not in {:#?}", self.log))
    }

    fn delete(&mut self) {
        self.stack.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now),
        );
        for _ in 0..100 {
            let plan = self.pass(|| false);
            self.tend();
            if plan.gone {
                return;
            }
        }
        panic!("never gone: {:#?}", self.ledger);
    }
}

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
fn requirements_come_first_and_go_last() {
    let mut world = World::new(PAIR);
    let plan = world.settle();
    assert_eq!(world.word(), "CREATE_COMPLETE");
    assert_eq!(world.objects.len(), 6, "{:#?}", world.log);
    assert!(world.at("make Network net") < world.at("make Subnet sub"));
    assert!(world.at("make Subnet sub") < world.at("make Port port"));
    assert!(world.at("make Port port") < world.at("make Server one"));
    // The Secret with the user data is there before the Server.
    assert!(world.at("make Secret one") < world.at("make Server one"));
    assert_eq!(plan.outputs.unwrap()[0].value, Some(json!("10.0.0.9")));
    world.delete();
    assert!(world.objects.is_empty(), "{:#?}", world.objects);
    assert!(world.at("delete Server one") < world.at("delete Port port"));
    assert!(world.at("delete Port port") < world.at("delete Subnet sub"));
    assert!(world.at("delete Subnet sub") < world.at("delete Network net"));
}

#[test]
fn nothing_is_made_before_what_it_requires_is_ready() {
    let mut world = World::new(PAIR);
    for _ in 0..5 {
        world.pass(|| false);
    }
    assert_eq!(world.objects.len(), 1, "{:#?}", world.log);
}

#[test]
fn a_change_in_place_touches_nothing_else() {
    let mut world = World::new(PAIR);
    world.settle();
    world.log.clear();
    world.change("{a: b}", "{a: c}");
    world.settle();
    assert_eq!(world.word(), "UPDATE_COMPLETE");
    assert_eq!(world.log, ["change Server two"]);
}

#[test]
fn a_replacement_comes_first_unless_both_need_the_same() {
    let mut world = World::new(PAIR);
    world.settle();
    world.log.clear();
    world.change("flavor: small", "flavor: large");
    world.settle();
    assert!(world.at("make Server two") < world.at("delete Server two"));
    // Two Servers cannot have one Port.
    assert!(world.at("delete Server one") < world.at("make Server one"));
    assert_eq!((world.count("Server"), world.count("Secret")), (2, 1));
}

#[test]
fn a_group_grows_and_shrinks() {
    let mut world = World::new(GROUP);
    world.settle();
    for (from, to, count) in [("count: 3", "count: 5", 5), ("count: 5", "count: 2", 2)] {
        world.log.clear();
        world.change(from, to);
        let plan = world.settle();
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
            .ledger
            .unwrap()
            .entries
            .keys()
            .all(|(_, number)| *number == 1)
    );
}

#[test]
fn members_are_changed_a_few_at_a_time() {
    let template = GROUP.replace(
        "    properties:\n      count",
        "    update_policy: {rolling_update: {max_batch_size: 1, pause_time: 1}}\n    properties:\n      count",
    );
    let mut world = World::new(&template);
    world.settle();
    world.change("flavor: small", "flavor: large");
    let mut most = 0;
    for _ in 0..200 {
        let plan = world.pass(|| false);
        let busy =
            plan.ledger.entries.values().filter(|e| {
                e.action == Action::Create && e.state == super::ledger::State::InProgress
            });
        most = most.max(busy.count());
        world.tend();
    }
    assert_eq!(world.word(), "UPDATE_COMPLETE", "{:#?}", world.ledger);
    assert_eq!((most, world.count("Server")), (1, 3));
}

#[test]
fn a_failed_update_returns_to_what_was_there() {
    let mut world = World::new(PAIR);
    world.stack.spec.on_failure = OnFailure::Rollback;
    world.settle();
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
        world.tend();
        for (object, live) in was
            .iter()
            .filter(|(_, live)| live["metadata"]["keep"] == true)
        {
            world.objects.insert(object.clone(), live.clone());
        }
    }
    assert_eq!(world.word(), "ROLLBACK_COMPLETE", "{:#?}", world.ledger);
    // The replacement is gone, and the old one was never touched.
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
        world.settle();
        assert_eq!(world.word(), word);
        assert_eq!(!world.objects.is_empty(), left);
        let reason = &world.ledger.as_ref().unwrap().reason;
        if on_failure == OnFailure::Keep {
            let wanted = "Resource CREATE failed: OS::Nova::Server: resources.two: it cannot work";
            assert_eq!(reason, wanted);
            // An update over it replaces what failed.
            world.broken = None;
            world.change("{a: b}", "{a: c}");
            world.settle();
            assert_eq!(
                (world.word().as_str(), world.count("Server")),
                ("UPDATE_COMPLETE", 2)
            );
        }
    }
}

#[test]
fn an_update_may_change_its_mind() {
    let mut world = World::new(GROUP);
    world.settle();
    world.change("count: 3", "count: 6");
    world.pass(|| false);
    world.change("count: 6", "count: 1");
    world.settle();
    assert_eq!(
        (world.word().as_str(), world.count("Server")),
        ("UPDATE_COMPLETE", 1)
    );
}

#[test]
fn what_is_retained_stays() {
    let mut world = World::new(&PAIR.replace(
        "type: OS::Nova::Server, properties: {image: i, flavor: small, networks: [{network",
        "type: OS::Nova::Server, deletion_policy: Retain, properties: {image: i, flavor: small, networks: [{network",
    ));
    world.settle();
    world.delete();
    assert_eq!(world.objects.len(), 1);
    assert!(world.log.contains(&"release Server".to_owned()));
}

#[test]
fn drift_is_told_by_a_check_and_healed_when_asked() {
    let mut world = World::new(PAIR);
    world.settle();
    world
        .objects
        .retain(|object, _| !object.name.contains("-two-"));
    assert!(world.settle().steps.is_empty());
    assert_eq!(world.word(), "CREATE_COMPLETE");
    world.stack.spec.check_requested_at = Some("1".into());
    world.settle();
    assert_eq!(world.word(), "CHECK_FAILED");
    assert_eq!(world.count("Server"), 1);
    world.stack.spec.heal_requested_at = Some("1".into());
    world.settle();
    assert_eq!(
        (world.word().as_str(), world.count("Server")),
        ("UPDATE_COMPLETE", 2)
    );
    // What somebody has changed is told too.
    let port = world
        .objects
        .values_mut()
        .find(|live| live["kind"] == "Port")
        .unwrap();
    port["spec"]["network"]["name"] = json!("other");
    world.stack.spec.check_requested_at = Some("2".into());
    world.settle();
    let ledger = world.ledger.as_ref().unwrap();
    let (_, entry) = ledger.incarnations("port").next().unwrap();
    assert!(
        entry.reason.contains("spec.network.name has been changed"),
        "{}",
        entry.reason
    );
}

#[test]
fn a_suspended_stack_has_its_servers_stopped() {
    let mut world = World::new(PAIR);
    world.settle();
    world.stack.spec.suspend = true;
    world.settle();
    assert_eq!(world.word(), "SUSPEND_COMPLETE");
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
    let plan = world.settle();
    assert_eq!(plan.problem.unwrap().reason, Reason::Suspended);
    world.stack.spec.suspend = false;
    world.settle();
    assert_eq!(states(&world), BTreeSet::from(["\"Running\"".to_owned()]));
}

#[test]
fn a_preview_does_nothing() {
    let mut world = World::new(PAIR);
    world.stack.spec.preview = true;
    let plan = world.plan();
    assert!(plan.steps.is_empty() && plan.ledger.action.is_none());
    assert_eq!(plan.preview.unwrap().added.len(), 5);
    world.stack.spec.preview = false;
    world.settle();
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
    assert_eq!(world.settle().steps, []);
}

#[test]
fn too_long_is_a_failure() {
    let mut world = World::new(PAIR);
    world.stack.spec.timeout_minutes = 1;
    world.pass(|| false);
    world.now += SignedDuration::from_secs(61);
    let plan = world.pass(|| false);
    assert_eq!(world.word(), "CREATE_FAILED");
    assert!(
        plan.ledger
            .reason
            .starts_with("CREATE timed out after 1 minutes; waiting for net"),
        "{}",
        plan.ledger.reason
    );
}

#[test]
fn what_is_not_the_stacks_is_never_touched() {
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
    assert_eq!(world.word(), "CREATE_FAILED");
    world.delete();
    assert_eq!(world.objects[&object]["metadata"]["uid"], "theirs");
    assert!(world.log.is_empty(), "{:#?}", world.log);
}

#[test]
fn a_template_that_is_gone_costs_nothing() {
    let mut world = World::new(PAIR);
    world.settle();
    world.stored.clear();
    world.change("cidr: 10.0.0.0/24", "cidr: 10.0.0.0/24, qos: x");
    let plan = world.settle();
    assert!(plan.steps.is_empty());
    let Problem { reason, .. } = plan.problem.unwrap();
    assert!(matches!(
        reason,
        Reason::RecordMissing | Reason::InvalidTemplate
    ));
    assert_eq!(world.objects.len(), 6);
}

#[test]
fn the_record_survives_being_written() {
    let mut world = World::new(PAIR);
    world.settle();
    let ledger = world.ledger.unwrap();
    let text = serde_json::to_string(&ledger).unwrap();
    assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever steps crashes prevent, and at whatever pass: the same end.
    #[test]
    fn crashes_change_nothing_in_the_end(losses in proptest::collection::vec(proptest::bool::ANY, 0..40), counts in proptest::collection::vec(0..5usize, 1..4)) {
        let template = PAIR.replace("outputs:", "  group:\n    type: OS::Heat::ResourceGroup\n    properties: {count: 2, resource_def: {type: OS::Neutron::Port, properties: {network: {get_resource: net}}}}\noutputs:");
        let mut world = World::new(&template);
        let mut losses = losses.into_iter();
        let mut before = 2;
        for count in counts {
            world.change(&format!("count: {before}"), &format!("count: {count}"));
            before = count;
            for _ in 0..3 {
                world.pass(|| losses.next().unwrap_or(false));
                world.tend();
            }
        }
        world.settle();
        proptest::prop_assert!(world.word().ends_with("COMPLETE"));
        proptest::prop_assert_eq!(world.count("Port"), before + 1);
        proptest::prop_assert_eq!(world.count("Server"), 2);
        world.delete();
        proptest::prop_assert!(world.objects.is_empty());
    }
}

/// A stack of 500 resources is planned in a time that 200 of them leave to each other.
#[test]
fn big_stacks_are_planned_soon() {
    let mut world = World::new(&GROUP.replace("count: 3", "count: 500"));
    let begun = std::time::Instant::now();
    world.settle();
    assert_eq!(world.count("Server"), 500);
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
}
