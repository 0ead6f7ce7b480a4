//! One holder of a Port at any time.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::json;

use super::super::plan::claim::holder;
use super::super::plan::{Observed, ObservedNic, Progress, Step, plan};
use super::{act, address, deleting, observed, placed, problems, read, server, settle, words};
use pileus_api::common::Resolved;
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{Instance, Port, Reason, Server};

/// Has the first interface use a Port of the user's, which has its addresses.
pub(super) fn name_port(observed: &mut Observed, name: &str) {
    let nic = &mut observed.nics[0];
    nic.made = false;
    nic.port_name = name.into();
    nic.port = Some(port(name));
}

fn port(name: &str) -> Port {
    let mut port: Port = read(
        json!({"metadata": {"name": name, "namespace": "demo", "uid": name},
        "spec": {"network": {"name": "n"}}}),
    );
    address(&mut port);
    hold(&mut port, None);
    port
}

fn hold(port: &mut Port, by: Option<(&str, &str)>) {
    port.status.as_mut().unwrap().server = by.map(|(name, uid)| Resolved {
        name: name.into(),
        uid: uid.into(),
    });
}

/// A placed Server that names the Port `kept`.
fn naming() -> (Server, Observed) {
    let (mut server, mut observed) = (placed(server()), observed());
    server.metadata.finalizers = Some(vec![MANAGER_FINALIZER.into()]);
    server.spec.networks[0].network = None;
    server.spec.networks[0].port = Some("kept".into());
    name_port(&mut observed, "kept");
    (server, observed)
}

/// The same with an Instance.
fn built() -> (Server, Observed) {
    let (mut server, mut observed) = naming();
    for step in plan(&server, &observed).steps {
        act(&step, &mut server, &mut observed);
    }
    settle(&mut server, &mut observed);
    assert_eq!(observed.instances.len(), 1);
    (server, observed)
}

#[test]
fn a_server_is_built_with_a_port_only_once_it_has_it() {
    let (mut server, mut observed) = naming();
    let first = plan(&server, &observed);
    assert_eq!(words(&first), ["claim port kept"]);
    assert_eq!(first.progress, Progress::AwaitingPorts(vec!["kept".into()]));
    act(&first.steps[0], &mut server, &mut observed);
    let name = format!("{}-1", super::UID);
    assert_eq!(
        words(&plan(&server, &observed)),
        [
            format!("create guest data {name}"),
            "confirm ports kept".to_owned(),
            format!("create instance {name}"),
        ]
    );
    settle(&mut server, &mut observed);
}

#[test]
fn a_port_of_another_is_waited_for_and_one_of_nobody_is_taken_over() {
    let (server, mut observed) = naming();
    hold(
        observed.nics[0].port.as_mut().unwrap(),
        Some(("db", "db-uid")),
    );
    observed.nics[0].used_by = Some("db".into());
    let (reasons, message) = problems(&server, &observed);
    assert_eq!(reasons, [Reason::PortInUse]);
    assert!(message.contains("Server `db`"), "{message}");
    assert!(plan(&server, &observed).steps.is_empty());
    // The cache has no such Server any more; whether that is so is asked before the claim counts.
    observed.nics[0].used_by = None;
    let steps = plan(&server, &observed).steps;
    let [
        Step::ClaimPort {
            from: Some(from), ..
        },
    ] = &steps[..]
    else {
        panic!("{steps:?}");
    };
    assert_eq!(from.uid, "db-uid");
    // One that was made again under the same name has nothing of its predecessor's.
    hold(
        observed.nics[0].port.as_mut().unwrap(),
        Some(("web", "old")),
    );
    let steps = plan(&server, &observed).steps;
    assert!(matches!(&steps[..], [Step::ClaimPort { from: Some(from), .. }] if from.uid == "old"));
}

#[test]
fn a_port_that_is_not_ready_yet_is_claimed_and_one_that_is_going_is_not() {
    let (mut server, mut observed) = naming();
    let port = observed.nics[0].port.as_mut().unwrap();
    port.status.as_mut().unwrap().conditions[0].status = "False".into();
    assert_eq!(problems(&server, &observed).0, [Reason::PortNotReady]);
    assert_eq!(words(&plan(&server, &observed)), ["claim port kept"]);
    settle(&mut server, &mut observed);
    let (server, mut observed) = naming();
    deleting(&mut observed.nics[0].port.as_mut().unwrap().metadata);
    assert!(plan(&server, &observed).steps.is_empty());
}

#[test]
fn what_is_not_needed_is_given_back_once_no_instance_has_it() {
    let (mut server, mut observed) = built();
    let instance = observed.instances[0].clone();
    observed.instances.clear();
    server.spec.networks.clear();
    observed.nics.clear();
    let releases = |observed: &Observed| {
        let steps = plan(&server, observed).steps;
        let released = |s: &Step| matches!(s, Step::ReleasePort(_));
        steps.iter().any(released)
    };
    assert!(
        !releases(&observed),
        "which Instances there are is not known"
    );
    observed.all_instances = Some(vec![instance]);
    assert!(!releases(&observed), "its Instance is plugged in");
    observed.all_instances = Some(vec![]);
    assert!(releases(&observed));
}

#[test]
fn nobody_waits_for_a_port_while_it_has_a_later_one() {
    let (mut server, mut observed) = naming();
    let mut later = observed.nics[0].clone();
    "zz".clone_into(&mut later.name);
    "zz".clone_into(&mut later.port_name);
    later.port = Some(port("zz"));
    let mut network = server.spec.networks[0].clone();
    network.name = "zz".into();
    network.port = Some("zz".into());
    server.spec.networks.push(network);
    observed.nics.push(later);
    assert_eq!(
        words(&plan(&server, &observed)),
        ["claim port kept", "claim port zz"]
    );
    hold(
        observed.nics[1].port.as_mut().unwrap(),
        Some(("web", super::UID)),
    );
    observed.held_ports = vec![observed.nics[1].port.clone().unwrap()];
    observed.nics[0].used_by = Some("db".into());
    observed.all_instances = Some(vec![]);
    assert_eq!(words(&plan(&server, &observed)), ["release port zz"]);
}

#[test]
fn a_deleted_server_gives_its_ports_back_behind_its_instance_and_before_it_goes() {
    let (mut server, mut observed) = built();
    deleting(&mut server.metadata);
    let steps = words(&plan(&server, &observed));
    assert!(!steps.iter().any(|s| s.contains("release")), "{steps:?}");
    observed.instances.clear();
    let steps = words(&plan(&server, &observed));
    let name = format!("{}-1", super::UID);
    assert_eq!(
        steps,
        [
            format!("delete guest data {name}"),
            "release port kept".to_owned(),
            "remove finalizer".to_owned(),
        ]
    );
}

#[test]
fn a_running_guest_has_its_port_whose_status_was_lost() {
    let (server, mut observed) = built();
    observed.nics[0].port = Some(port("kept"));
    assert_eq!(words(&plan(&server, &observed)), ["claim port kept"]);
}

#[test]
fn security_groups_of_an_inline_network_reach_its_port() {
    let (mut server, mut observed) = super::built();
    server.spec.networks[0].security_groups = Some(vec!["web".into()]);
    let steps = plan(&server, &observed).steps;
    let [Step::UpdatePort(changed)] = &steps[..] else {
        panic!("{steps:?}");
    };
    assert_eq!(changed.spec.security_groups, Some(vec!["web".to_owned()]));
    act(&steps[0], &mut server, &mut observed);
    assert!(plan(&server, &observed).steps.is_empty());
    // A Port of the user's is the user's.
    observed.nics[0]
        .port
        .as_mut()
        .unwrap()
        .metadata
        .owner_references = None;
    server.spec.networks[0].security_groups = None;
    assert!(plan(&server, &observed).steps.is_empty());
}

/// What the API server has.
#[derive(Clone, Default)]
struct World {
    servers: BTreeMap<String, Server>,
    ports: BTreeMap<String, (u64, Port)>,
    instances: BTreeMap<String, Instance>,
    made: u64,
}

impl World {
    /// As a manager sees it whose caches are that old.
    fn observe(&self, server: &Server) -> Observed {
        let uid = server.uid().unwrap();
        let own = |i: &&Instance| i.spec.server.uid == uid;
        let instances: Vec<_> = self.instances.values().filter(own).cloned().collect();
        let nics = server.spec.networks.iter().map(|network| {
            let name = network.port.clone().unwrap();
            let port = self.ports[&name].1.clone();
            let exists = |holder: &&Resolved| {
                let found = self.servers.get(&holder.name);
                found.is_some_and(|s| s.uid().as_ref() == Some(&holder.uid))
            };
            let named = holder(&port)
                .filter(exists)
                .map(|h| (h.name.clone(), h.uid.clone()));
            let plugged = self.instances.values().filter(|i| plugs(i, &name));
            let plugged = plugged.map(|i| (i.spec.server.name.clone(), i.spec.server.uid.clone()));
            let used_by = named.into_iter().chain(plugged).find(|(_, by)| *by != uid);
            ObservedNic {
                name: network.name.clone(),
                port_name: name,
                used_by: used_by.map(|(name, _)| name),
                port: Some(port),
                ..observed().nics.remove(0)
            }
        });
        Observed {
            nics: nics.map(|nic| ObservedNic { made: false, ..nic }).collect(),
            instances,
            held_ports: self
                .ports
                .values()
                .filter(|(_, port)| holder(port).is_some_and(|h| h.uid == uid))
                .map(|(_, port)| port.clone())
                .collect(),
            ..observed()
        }
    }

    /// Carries out a step; false when the API server refuses.
    fn act(&mut self, step: &Step, server: &Server) -> bool {
        let uid = server.uid().unwrap();
        match step {
            Step::ClaimPort { port, from } => {
                if let Some(from) = from {
                    let exists = self.servers.get(&from.name);
                    let exists = exists.is_some_and(|s| s.uid().as_ref() == Some(&from.uid));
                    let built = |i: &Instance| i.spec.server.uid == from.uid;
                    if exists || self.instances.values().any(built) {
                        return false;
                    }
                }
                self.set_holder(port, Some((&server.name_any(), &uid)))
            }
            Step::ReleasePort(port) => self.set_holder(port, None),
            Step::ConfirmPorts(ports) => {
                let now = self.servers.get(&server.name_any());
                now.is_some_and(|now| {
                    now.uid() == server.uid()
                        && now.metadata.generation == server.metadata.generation
                        && now.metadata.deletion_timestamp.is_none()
                }) && ports.iter().all(|(name, _)| {
                    holder(&self.ports[name].1).is_some_and(|holder| holder.uid == uid)
                })
            }
            Step::CreateInstance(instance) => {
                let name = instance.name_any();
                let made = self.instances.entry(name);
                made.or_insert_with(|| (**instance).clone());
                true
            }
            Step::DeleteInstance { name, .. } => {
                self.instances.remove(name);
                true
            }
            Step::RemoveFinalizer => {
                let same = |now: &Server| now.uid() == server.uid();
                if self.servers.get(&server.name_any()).is_some_and(same) {
                    self.servers.remove(&server.name_any());
                }
                true
            }
            _ => true,
        }
    }

    fn set_holder(&mut self, port: &Port, by: Option<(&str, &str)>) -> bool {
        let (version, now) = self.ports.get_mut(&port.name_any()).unwrap();
        if port.resource_version() != now.resource_version() {
            return false;
        }
        *version += 1;
        hold(now, by);
        now.metadata.resource_version = Some(version.to_string());
        true
    }

    fn make(&mut self, name: &str, ports: &BTreeSet<usize>) {
        self.made += 1;
        let (mut server, _) = naming();
        server.metadata.name = Some(name.into());
        server.metadata.uid = Some(format!("uid-{}", self.made));
        self.servers.insert(name.into(), server);
        self.ask(name, ports);
    }

    fn ask(&mut self, name: &str, ports: &BTreeSet<usize>) {
        let server = self.servers.get_mut(name).unwrap();
        let generation = server.metadata.generation.unwrap_or_default();
        server.metadata.generation = Some(generation + 1);
        server.spec.networks = ports
            .iter()
            .map(|n| pileus_api::server::ServerNetwork {
                name: format!("n{n}"),
                port: Some(format!("p{n}")),
                ..Default::default()
            })
            .collect();
    }

    fn most_on_one_port(&self) -> usize {
        let count = |port: &String| self.instances.values().filter(|i| plugs(i, port)).count();
        self.ports.keys().map(count).max().unwrap_or_default()
    }
}

fn plugs(instance: &Instance, port: &str) -> bool {
    instance.spec.nics.iter().any(|nic| nic.port == port)
}

/// A plan under way: the Server that it was made from, and what is left of it.
type Pass = (Server, Vec<Step>);

/// Begins a pass of a manager whose caches are as `seen`; Instances are read as they are now where
/// the planner asks for that.
fn begin(seen: &World, now: &World, name: &str) -> Option<Pass> {
    let server = seen.servers.get(name)?.clone();
    let mut observed = seen.observe(&server);
    let own = |i: &&Instance| i.spec.server.uid == server.uid().unwrap();
    let all: Vec<_> = now.instances.values().filter(own).cloned().collect();
    if server.metadata.deletion_timestamp.is_some() {
        observed.instances = all;
    } else if !super::super::plan::claim::not_needed(&server, &observed).is_empty() {
        observed.all_instances = Some(all);
    }
    Some((server.clone(), plan(&server, &observed).steps))
}

/// The next step of a pass. Right before an Instance is made, it is confirmed that it may be.
fn go_on(world: &mut World, pass: &mut Pass) {
    let (server, steps) = pass;
    while !steps.is_empty() {
        let step = steps.remove(0);
        if !world.act(&step, server) {
            steps.clear();
        }
        if !matches!(step, Step::ConfirmPorts(_)) {
            break;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Two managers with caches that are behind, whose passes run into each other, Servers that
    /// change, go, and come again under the same name: never two Instances with one Port, and in
    /// the end every Port that somebody can have is somebody's.
    #[test]
    fn never_two_instances_with_one_port(
        events in proptest::collection::vec(
            (0..10_u8, 0..4_usize, proptest::collection::btree_set(0..3_usize, 0..4), 0..6_usize, 0..2_usize),
            1..120,
        ),
    ) {
        let mut world = World::default();
        for n in 0..3 {
            let mut port = port(&format!("p{n}"));
            port.metadata.resource_version = Some("0".into());
            world.ports.insert(format!("p{n}"), (0, port));
        }
        let mut history = vec![world.clone()];
        // One pass at a time for each Server in each manager.
        let mut passes: BTreeMap<(usize, String), Pass> = BTreeMap::new();
        for (what, which, ports, age, manager) in events {
            let name = format!("s{which}");
            let exists = world.servers.contains_key(&name);
            match what {
                0 if !exists => world.make(&name, &ports),
                0 => world.ask(&name, &ports),
                1 if exists => deleting(&mut world.servers.get_mut(&name).unwrap().metadata),
                // Torn away from its finalizer.
                2 if age == 0 => {
                    world.servers.remove(&name);
                }
                // A manager ends in the middle of whatever it does.
                3 if age == 0 => passes.retain(|(of, _), _| *of != manager),
                _ => {
                    let key = (manager, name.clone());
                    let seen = &history[history.len() - 1 - age.min(history.len() - 1)];
                    if !passes.contains_key(&key) && let Some(pass) = begin(seen, &world, &name) {
                        passes.insert(key.clone(), pass);
                    }
                    if let Some(pass) = passes.get_mut(&key) {
                        go_on(&mut world, pass);
                    }
                    passes.retain(|_, (_, steps)| !steps.is_empty());
                }
            }
            history.push(world.clone());
            prop_assert!(world.most_on_one_port() <= 1, "{:?}", world.instances.keys());
        }
        for _ in 0..40 {
            for name in world.servers.keys().cloned().collect::<Vec<_>>() {
                let Some(mut pass) = begin(&world, &world, &name) else { continue };
                while !pass.1.is_empty() {
                    go_on(&mut world, &mut pass);
                }
                prop_assert!(world.most_on_one_port() <= 1);
            }
        }
        for n in 0..3 {
            let port = format!("p{n}");
            let built = |uid: &Option<String>| {
                world.instances.values().any(|i| Some(&i.spec.server.uid) == uid.as_ref())
            };
            let wanted = world.servers.values().filter(|s| !built(&s.uid())).any(|s| {
                s.spec.networks.len() == 1 && s.spec.networks[0].port.as_ref() == Some(&port)
            });
            let held = holder(&world.ports[&port].1).is_some();
            prop_assert!(!wanted || held, "{port} is nobody's");
        }
    }
}
