//! `pileus simulate`: objects from files in, decisions out. Without API server and clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::objects::catalogue::Key;
use crate::objects::resolve::image_key;
use crate::questions::advice::{self, Goal};
use crate::state::{Outcome, State, StatusWrite};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{
    ConditionType, Flavor, Host, HostAggregate, Image, ImageSpec, Instance, Reason,
    SchedulerPolicy, Server, ServerGroup, conditions,
};

/// Maximum number of decision passes until nothing changes any more.
const MAX_ROUNDS: usize = 100;

/// Why objects cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document is not YAML.
    #[error("document {0} of the files is not YAML or JSON: {1}")]
    Yaml(usize, String),
    /// An object is invalid.
    #[error("{kind} {name} cannot be read: {why}")]
    Object {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A Host has no capacity.
    #[error(
        "Host {0} has no status.capacity, so that it is unknown what fits: take Hosts from \
         `kubectl get hosts -o yaml`, or write `capacity: {{vcpus: 8, memoryMiB: 16384, diskGiB: 100}}`"
    )]
    NoCapacity(String),
    /// A Host does not exist.
    #[error("there is no Host {0} in the files")]
    NoHost(String),
}

/// The question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Hosts to be drained: where would their Servers be placed?
    pub drain: Vec<String>,
    /// Also advise which Servers to migrate, for this goal.
    pub advise: Option<Goal>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text for users.
    pub text: String,
    /// Whether every Server has a host.
    pub all_fit: bool,
}

/// Answers for the objects of files, each a stream of YAML documents.
///
/// # Errors
/// If an object is invalid or incomplete.
pub fn simulate(files: &[String], question: &Question, now: Timestamp) -> Result<Answer, Error> {
    let mut state = State::default();
    let ignored = load(&mut state, files, now)?;
    let mut answer = answer(&mut state, question, now)?;
    if !ignored.is_empty() {
        let kinds: Vec<&str> = ignored.iter().map(String::as_str).collect();
        let _ = writeln!(answer.text, "\nIgnored kinds: {}.", kinds.join(", "));
    }
    Ok(answer)
}

fn documents(files: &[String]) -> Result<Vec<Value>, Error> {
    let mut found: Vec<Value> = Vec::new();
    for text in files {
        let read = serde_saphyr::from_multiple::<Value>(text);
        let read = read.map_err(|e| Error::Yaml(found.len() + 1, e.to_string()))?;
        for document in read {
            let is_list = document["kind"]
                .as_str()
                .is_some_and(|k| k.ends_with("List"));
            match document["items"].as_array() {
                Some(items) if is_list => found.extend(items.iter().cloned()),
                _ if document.is_null() => {}
                _ => found.push(document),
            }
        }
    }
    Ok(found)
}

fn read<K: DeserializeOwned>(value: Value) -> Result<K, Error> {
    let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
    let (kind, name) = (text(&value["kind"]), text(&value["metadata"]["name"]));
    serde_json::from_value(value).map_err(|e| Error::Object {
        kind,
        name,
        why: e.to_string(),
    })
}

/// Loads objects; returns the kinds that are ignored.
fn load(state: &mut State, files: &[String], now: Timestamp) -> Result<BTreeSet<String>, Error> {
    let mut ignored = BTreeSet::new();
    let mut servers: Vec<Server> = Vec::new();
    for mut value in documents(files)? {
        let kind = value["kind"].as_str().unwrap_or("?").to_owned();
        let cluster_wide = [
            "Host",
            "HostAggregate",
            "Flavor",
            "SchedulerPolicy",
            "PriorityClass",
        ];
        if !cluster_wide.contains(&kind.as_str()) && value["metadata"]["namespace"].is_null() {
            value["metadata"]["namespace"] = "default".into();
        }
        match kind.as_str() {
            "Host" => state.host_applied(&assume_ready(read(value)?, now)?),
            "HostAggregate" => state.aggregate_applied(read::<HostAggregate>(value)?),
            "Flavor" => state.flavor_applied(read::<Flavor>(value)?),
            "Image" => state.image_applied(read::<Image>(value)?),
            "ServerGroup" => state.group_applied(read::<ServerGroup>(value)?),
            "SchedulerPolicy" => state.policy_applied(read::<SchedulerPolicy>(value)?),
            "PriorityClass" => state.priority_class_applied(&read::<PriorityClass>(value)?),
            "Instance" => state.instance_applied(&read::<Instance>(value)?),
            "Server" => servers.push(read(value)?),
            _ => {
                ignored.insert(kind);
            }
        }
    }
    for server in &servers {
        let (namespace, name) = image_key(server);
        if !state
            .catalogue
            .images
            .contains_key(&(namespace.clone(), name.clone()))
        {
            // An image that is not in the files is assumed to fit on all hosts.
            let mut image = Image::new(&name, ImageSpec::default());
            image.metadata.namespace = Some(namespace);
            state.image_applied(image);
        }
    }
    for server in servers {
        state.server_applied(as_admitted(server));
    }
    Ok(ignored)
}

/// The Host, with Ready assumed unless its status says otherwise.
fn assume_ready(mut host: Host, now: Timestamp) -> Result<Host, Error> {
    let name = host.name_any();
    let status = host.status.get_or_insert_default();
    if status.capacity.is_none() {
        return Err(Error::NoCapacity(name));
    }
    let ready = conditions::find(&status.conditions, ConditionType::Ready);
    if ready.is_none_or(|c| c.reason == Reason::Pending.as_str()) {
        status.conditions = vec![Condition {
            type_: ConditionType::Ready.as_str().to_owned(),
            status: "True".to_owned(),
            reason: Reason::Heartbeat.as_str().to_owned(),
            message: "assumed".to_owned(),
            observed_generation: None,
            last_transition_time: Time(now),
        }];
    }
    Ok(host)
}

/// The Server, with the fields that the API server and the manager would have set.
fn as_admitted(mut server: Server) -> Server {
    let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
    let meta = server.meta_mut();
    meta.uid
        .get_or_insert_with(|| format!("{namespace}/{name}"));
    meta.resource_version.get_or_insert_with(|| "1".to_owned());
    let finalizers = meta.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == MANAGER_FINALIZER) {
        finalizers.push(MANAGER_FINALIZER.to_owned());
    }
    server
}

fn answer(state: &mut State, question: &Question, now: Timestamp) -> Result<Answer, Error> {
    let mut text = String::new();
    let drained = drain(state, &question.drain)?;
    let why = decide_until_stable(state, now);
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut nowhere = Vec::new();
    for ((namespace, name), server) in &state.servers {
        let placed = server.status.as_ref().and_then(|s| s.placement.as_ref());
        let key = (namespace.clone(), name.clone());
        // The answer of a drain covers only the Servers of the drained hosts.
        if !question.drain.is_empty() && !drained.contains(&key) {
            continue;
        }
        let host = placed.map_or("-", |p| p.host.as_str());
        rows.push([format!("{namespace}/{name}"), host.to_owned()]);
        if placed.is_none() {
            let why = why
                .get(&key)
                .map_or("its flavor is not in the files", String::as_str);
            nowhere.push(format!("{namespace}/{name}: {why}"));
        }
    }
    let wide = rows.iter().map(|[name, _]| name.len()).max();
    let wide = wide.unwrap_or(0).max("SERVER".len());
    let _ = writeln!(text, "{:wide$}  HOST", "SERVER");
    for [name, host] in &rows {
        let _ = writeln!(text, "{name:wide$}  {host}");
    }
    let (all, placed) = (rows.len(), rows.len() - nowhere.len());
    for why in &nowhere {
        let _ = writeln!(text, "\n{why}");
    }
    if question.drain.is_empty() {
        let _ = writeln!(text, "\n{placed} of {all} Servers have a host.");
    } else {
        let hosts = question.drain.join(", ");
        let can = if nowhere.is_empty() { "can" } else { "cannot" };
        let _ = writeln!(
            text,
            "\n{hosts} {can} be drained: {placed} of {all} Servers fit on other hosts."
        );
    }
    if let Some(goal) = question.advise {
        let _ = write!(text, "\n{}", advice::advise(state, goal, now));
    }
    Ok(Answer {
        text,
        all_fit: nowhere.is_empty(),
    })
}

/// Sets hosts into maintenance and withdraws the placements of their Servers.
fn drain(state: &mut State, hosts: &[String]) -> Result<BTreeSet<Key>, Error> {
    let mut drained = BTreeSet::new();
    for name in hosts {
        let Some(mut host) = state.hosts.get(name).cloned() else {
            return Err(Error::NoHost(name.clone()));
        };
        host.spec.maintenance = true;
        if let Some(status) = &mut host.status {
            status.orphans.clear();
        }
        state.host_applied(&host);
        for key in state.instances.on_host(name) {
            state.instance_deleted(&key);
        }
        let on_it: Vec<_> = state
            .servers
            .iter()
            .filter(|(_, s)| {
                let placement = s.status.as_ref().and_then(|s| s.placement.as_ref());
                placement.is_some_and(|p| p.host == *name)
            })
            .map(|(key, server)| (key.clone(), (**server).clone()))
            .collect();
        for (key, mut server) in on_it {
            if let Some(status) = &mut server.status {
                status.placement = None;
                status.preemption = None;
            }
            state.server_applied(server);
            drained.insert(key);
        }
    }
    Ok(drained)
}

/// Decides until nothing changes any more, as if every write succeeded. Returns why each
/// remaining Server has no host.
fn decide_until_stable(state: &mut State, now: Timestamp) -> BTreeMap<Key, String> {
    let mut why = BTreeMap::new();
    for _ in 0..MAX_ROUNDS {
        let writes = state.decide(now);
        if writes.is_empty() {
            break;
        }
        for write in writes {
            if write.status.placement.is_none() {
                let message = write.status.conditions.first().map(|c| c.message.clone());
                why.insert(write.key.clone(), message.unwrap_or_default());
            }
            let server = Arc::new(after_write(&write));
            state.write_finished(&write, Outcome::Written(server), now);
        }
    }
    why
}

/// The Server after the write.
fn after_write(write: &StatusWrite) -> Server {
    let mut server = (*write.server).clone();
    let version = server
        .resource_version()
        .and_then(|v| v.parse::<u64>().ok());
    server.metadata.resource_version = Some(version.unwrap_or(0).saturating_add(1).to_string());
    let status = server.status.get_or_insert_default();
    status.placement.clone_from(&write.status.placement);
    status.refusals.clone_from(&write.status.refusals);
    status.nomination.clone_from(&write.status.nomination);
    status.preemption.clone_from(&write.status.preemption);
    status.conditions.clone_from(&write.status.conditions);
    server
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: pileus.dev/v1alpha1
  kind: Host
  metadata: {name: h1}
  spec: {}
  status: {capacity: {vcpus: 8, memoryMiB: 4096, diskGiB: 100}}
- apiVersion: pileus.dev/v1alpha1
  kind: Host
  metadata: {name: h2}
  spec: {}
  status: {capacity: {vcpus: 8, memoryMiB: 2048, diskGiB: 100}}
";

    fn server(name: &str, memory: &str, status: &str) -> String {
        format!(
            "
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {{name: {name}}}
spec: {{resources: {{vcpus: 1, memory: {memory}, disk: 1Gi}}, image: {{name: any}}}}
status: {status}
"
        )
    }

    fn ask(texts: &[String], question: &Question) -> Answer {
        simulate(texts, question, Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn servers_of_files_are_placed_or_explained() {
        let servers = server("big", "3Gi", "{}") + &server("huge", "8Gi", "{}");
        let network =
            "\n---\napiVersion: pileus.dev/v1alpha1\nkind: Network\nmetadata: {name: n}\n";
        let texts = [HOSTS.to_owned(), servers + network];
        let answer = ask(&texts, &Question::default());
        for line in [
            "SERVER        HOST\ndefault/big   h1\ndefault/huge  -\n",
            "default/huge: 0 of 2 hosts fit: RamFilter rejected 2 (needs 8192 MiB",
            "1 of 2 Servers have a host.",
            "Ignored kinds: Network.",
        ] {
            assert!(
                answer.text.contains(line),
                "{line}\nis missing in\n{}",
                answer.text
            );
        }
        assert!(!answer.all_fit);
        assert_eq!(
            ask(&texts, &Question::default()),
            answer,
            "the same each time"
        );
    }

    #[test]
    fn a_drain_answers_whether_all_servers_fit_on_other_hosts() {
        let on = |host: &str| {
            format!(
                "{{placement: {{host: {host}, epoch: 1, claim: {{vcpus: 1, memoryMiB: 1024, diskGiB: 1}}}}}}"
            )
        };
        let mut servers = server("a", "1Gi", &on("h2")) + &server("b", "1Gi", &on("h1"));
        let question = Question {
            drain: vec!["h2".into()],
            advise: None,
        };
        let answer = ask(&[HOSTS.to_owned(), servers.clone()], &question);
        assert!(answer.all_fit);
        assert!(answer.text.contains("default/a  h1"), "{}", answer.text);
        assert!(
            !answer.text.contains("default/b"),
            "it is not on the drained host"
        );
        assert!(
            answer.text.contains("h2 can be drained: 1 of 1 Servers"),
            "{}",
            answer.text
        );
        servers += &server("c", "3Gi", &on("h2"));
        servers += &server("pending", "9Gi", "{}");
        let answer = ask(&[HOSTS.to_owned(), servers], &question);
        assert!(!answer.all_fit);
        assert!(!answer.text.contains("pending"), "{}", answer.text);
        let unknown = Question {
            drain: vec!["h9".into()],
            advise: None,
        };
        let error = simulate(&[HOSTS.to_owned()], &unknown, Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(error.to_string().contains("no Host h9"));
    }

    #[test]
    fn errors_name_the_object() {
        let fails = |text: &str| {
            let question = Question::default();
            simulate(&[text.to_owned()], &question, Timestamp::UNIX_EPOCH)
                .unwrap_err()
                .to_string()
        };
        assert!(fails("a: [").contains("document 1 of the files is not YAML"));
        let host = "apiVersion: pileus.dev/v1alpha1\nkind: Host\nmetadata: {name: h}\nspec: {}";
        assert!(fails(host).contains("Host h has no status.capacity"));
        let server = "apiVersion: pileus.dev/v1alpha1\nkind: Server\nmetadata: {name: s}\nspec: 1";
        assert!(fails(server).contains("Server s cannot be read"));
    }
}
