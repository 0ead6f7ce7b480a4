//! What is outside of the planner, in memory.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::ledger::{Ledger, Reference, Sources};
use super::super::plan::{self, Lookup, Plan, Seen, Step};
use crate::api::Stack;
use crate::api::names::STACK_UID_LABEL;

/// Everything outside of the planner.
pub(super) struct World {
    pub(super) stack: Stack,
    pub(super) sources: Sources,
    pub(super) ledger: Option<Ledger>,
    pub(super) stored: BTreeMap<String, Sources>,
    pub(super) objects: BTreeMap<Reference, Value>,
    pub(super) now: Timestamp,
    pub(super) uids: u32,
    /// What was done, in order.
    pub(super) log: Vec<String>,
    /// Objects whose names hold this never become ready.
    pub(super) broken: Option<&'static str>,
}

impl Lookup for BTreeMap<Reference, Value> {
    fn find(&self, kind: &str, name: &str) -> Option<Value> {
        let found = self
            .iter()
            .find(|(object, _)| object.kind == kind && object.name == name);
        found.map(|(_, live)| live.clone())
    }
}

pub(super) fn stack() -> Stack {
    serde_json::from_value(json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Stack",
        "metadata": {"name": "shop", "namespace": "demo", "uid": "u-1"},
        "spec": {"template": "x"},
    }))
    .unwrap()
}

impl World {
    pub(super) fn new(template: &str) -> Self {
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

    pub(super) fn plan(&self) -> Plan {
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
            grace: std::time::Duration::from_secs(60),
        };
        plan::plan(&self.stack, &seen)
    }

    /// Plans and acts; `lost` says which steps a crash prevents.
    pub(super) fn pass(&mut self, mut lost: impl FnMut() -> bool) -> Plan {
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

    pub(super) fn act(&mut self, step: &Step) {
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
    pub(super) fn tend(&mut self) {
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
    pub(super) fn settle(&mut self) -> Plan {
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

    pub(super) fn word(&self) -> String {
        self.ledger.as_ref().unwrap().word().unwrap()
    }

    pub(super) fn change(&mut self, from: &str, to: &str) {
        assert!(self.sources.template.contains(from), "{from}");
        self.sources.template = self.sources.template.replace(from, to);
    }

    pub(super) fn count(&self, kind: &str) -> usize {
        self.objects
            .keys()
            .filter(|object| object.kind == kind)
            .count()
    }

    pub(super) fn at(&self, what: &str) -> usize {
        let found = self.log.iter().position(|line| line == what);
        found.unwrap_or_else(|| panic!("{what} is not in {:#?}", self.log))
    }

    pub(super) fn delete(&mut self) {
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
