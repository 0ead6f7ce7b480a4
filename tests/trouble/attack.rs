//! A hostile tenant with the rights of `edit` in one namespace writes objects of every kind as
//! fast as it can, beside a victim that must not notice: it stays Ready and unchanged, and what
//! it asks for is done about as soon as on a quiet cloud.
//!
//! `PILEUS_SEED` repeats a run, `PILEUS_ATTACK_OBJECTS` sets how many objects are written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use http::Request;
use kube::{Client, ResourceExt};
use pileus_tests::hostile::{Kind, Maker, Target, kinds};
use pileus_tests::lab::{self, Lab, Project, devstack, eventually};
use pileus_tests::random::{Random, from_environment};
use pileus_tests::trouble::{Conditions, Neighbour, TIMEOUT, objects};
use serde_json::{Value, json};

/// Objects of the short form; hack/soak writes 2,000.
const OBJECTS: u64 = 250;
const TENANT: &str = "mallory";
const HOSTILE: &str = "e2e-hostile";
const VICTIM: &str = "e2e-victim";
/// Requests of the tenant that are under way at once.
const AT_ONCE: usize = 6;

const VICTIMS: &str = r#"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec: {sharedWith: {namespaces: ["
    * "]}}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: lan}
spec: {network: lan, cidr: 10.50.0.0/24}
---
apiVersion: pileus.dev/v1alpha1
kind: SecurityGroup
metadata: {name: web}
spec: {rules: [{name: http, direction: Ingress, protocol: tcp, portRangeMin: 80, portRangeMax: 80}]}
---
apiVersion: pileus.dev/v1alpha1
kind: Stack
metadata: {name: stack}
spec:
  template: |
    heat_template_version: 2021-04-16
    parameters: {word: {type: string}}
    resources:
      group: {type: OS::Neutron::SecurityGroup, properties: {description: {get_param: word}}}
    outputs: {word: {value: {get_param: word}}}
  parameters: {word: first}
"#;

/// What the tenant tries, as the API server hears it.
async fn send(client: &Client, method: &str, path: &str, body: Option<&Value>) -> u16 {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = body.map(ToString::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(body.into_bytes().into())
        .unwrap();
    match client.send(request).await {
        Ok(answer) => answer.status().as_u16(),
        Err(_) => 0,
    }
}

fn path(kind: &Kind, namespace: &str, name: &str) -> String {
    let space = if kind.is_namespaced {
        format!("namespaces/{namespace}/")
    } else {
        String::new()
    };
    format!("/apis/pileus.dev/v1alpha1/{space}{}{name}", kind.plural)
}

/// One thing after the other: an object is made, changed, its status forged, and perhaps deleted.
struct Attempt {
    requests: Vec<(&'static str, String, Option<Value>)>,
    /// Every one of them must be refused.
    is_forbidden: bool,
}

fn attempt(maker: &mut Maker<'_>, kind: &Kind, number: u64) -> Attempt {
    let name = format!("h{number}");
    let is_ours = !["Instance", "IPAllocation", "Host"].contains(&kind.name.as_str());
    if !kind.is_namespaced || !is_ours || maker.random.once_in(10) {
        // Where it has no rights: kinds of administrators, and the victim's own objects.
        let object = maker.object(kind, &name, VICTIM);
        let victim = maker.random.one_of(&maker.target.names).clone();
        let one = path(kind, VICTIM, &format!("/{victim}"));
        let spec = json!({"spec": maker.spec(kind)});
        let status = json!({"status": maker.status(kind)});
        return Attempt {
            requests: vec![
                ("POST", path(kind, VICTIM, ""), Some(object)),
                ("PATCH", one.clone(), Some(spec)),
                ("PATCH", format!("{one}/status"), Some(status)),
                ("DELETE", one, None),
            ],
            is_forbidden: true,
        };
    }
    let one = path(kind, HOSTILE, &format!("/{name}"));
    let object = maker.object(kind, &name, HOSTILE);
    let mut requests = vec![("POST", path(kind, HOSTILE, ""), Some(object))];
    for _ in 0..maker.random.below(3) {
        let spec = json!({"spec": maker.spec(kind)});
        requests.push(("PATCH", one.clone(), Some(spec)));
    }
    if maker.random.once_in(3) {
        requests.push(("DELETE", one, None));
    }
    Attempt {
        requests,
        is_forbidden: false,
    }
}

/// How long the victim waits for what it asks for, in milliseconds.
struct Waits {
    port: Vec<u128>,
    server: Vec<u128>,
    stack: Vec<u128>,
}

fn median(of: &mut [u128]) -> u128 {
    of.sort_unstable();
    of[of.len() / 2]
}

/// The victim asks for a Port, a Server and a change of its Stack, again and again, `rounds`
/// times at least and until `enough`.
async fn victim_asks(lab: &Lab, project: &Project, rounds: usize, enough: &AtomicBool) -> Waits {
    let says = Conditions { lab, project };
    let mut waits = Waits {
        port: Vec::new(),
        server: Vec::new(),
        stack: Vec::new(),
    };
    let mut round = 0;
    while round < rounds || !enough.load(Ordering::Relaxed) {
        let asked = Instant::now();
        project.apply("{apiVersion: pileus.dev/v1alpha1, kind: Port, metadata: {name: probe}, spec: {network: {name: lan}}}");
        says.ready("Port", "probe").await;
        waits.port.push(asked.elapsed().as_millis());
        says.delete("Port", "probe").await;

        let asked = Instant::now();
        project.apply(
            "{apiVersion: pileus.dev/v1alpha1, kind: Server, metadata: {name: probe}, spec: {runState: Stopped, flavor: m1.nano, image: {name: tiny, namespace: default}}}",
        );
        says.ready("Server", "probe").await;
        waits.server.push(asked.elapsed().as_millis());
        says.delete("Server", "probe").await;

        let asked = Instant::now();
        let word = format!("word{}", asked.elapsed().as_nanos() + round as u128);
        let patch = json!({"spec": {"parameters": {"word": word}}});
        let stacks = objects(lab, "Stack", Some(VICTIM));
        let params = kube::api::PatchParams::default();
        let patch = kube::api::Patch::Merge(&patch);
        let changed = stacks.patch("stack", &params, &patch).await.unwrap();
        eventually("the Stack is updated", TIMEOUT, async || {
            let stack = stacks.get("stack").await.map_err(|e| e.to_string())?;
            let status = &stack.data["status"];
            let is_done = status["observedGeneration"].as_i64() == changed.metadata.generation
                && status["stackStatus"] == "UPDATE_COMPLETE";
            if is_done {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await;
        waits.stack.push(asked.elapsed().as_millis());
        says.gone("Port", "probe").await;
        says.gone("Server", "probe").await;
        round += 1;
    }
    waits
}

/// What of the victim may not change: the specs and uids of all that it has, and whether it is
/// Ready since when.
async fn picture(lab: &Lab, kinds: &[Kind]) -> Vec<String> {
    let mut found = Vec::new();
    for kind in kinds.iter().filter(|kind| kind.is_namespaced) {
        let all = objects(lab, &kind.name, Some(VICTIM));
        for object in all.list(&Default::default()).await.unwrap() {
            let name = object.name_any();
            // The Stack is changed by its owner, and with it the group that it makes.
            if name == "probe" || kind.name == "Stack" || name.starts_with("stack-") {
                continue;
            }
            let conditions = object.data["status"]["conditions"].as_array();
            let mut ready: Vec<_> = conditions.into_iter().flatten().collect();
            ready.retain(|condition| condition["type"] == "Ready");
            let ready = ready
                .first()
                .map(|c| (&c["status"], &c["lastTransitionTime"]));
            let uid = object.uid();
            let spec = object.data["spec"].to_string();
            found.push(format!("{} {name} {uid:?} {ready:?} {spec}", kind.name));
        }
    }
    found.sort();
    found
}

fn restarts() -> Vec<String> {
    let said = devstack(&["status"]);
    let lines = said.lines().filter(|line| line.contains("restarts"));
    lines.map(str::to_owned).collect()
}

/// For what the victim waits more than twice as long beside the attack.
fn slower(quiet: &mut Waits, busy: &mut Waits) -> Vec<String> {
    let mut slow = Vec::new();
    for (what, quiet, busy) in [
        ("Port", &mut quiet.port, &mut busy.port),
        ("Server", &mut quiet.server, &mut busy.server),
        ("Stack", &mut quiet.stack, &mut busy.stack),
    ] {
        let (q, b) = (median(quiet), median(busy));
        println!(
            "attack wait={what} quiet_ms={q} busy_ms={b} samples={}",
            busy.len()
        );
        // The answers are looked for five times a second.
        if b > 2 * q + 400 {
            slow.push(format!("{what}: {q} ms quiet, {b} ms beside the attack"));
        }
    }
    slow
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_tenant_stops_nobody() {
    let count = from_environment("PILEUS_ATTACK_OBJECTS").unwrap_or(OBJECTS);
    let mut random = Random::printed();
    let lab = Lab::get().await;
    let project = Project::new(&lab, VICTIM).await;
    let hostile = Project::new(&lab, HOSTILE).await;
    hostile.apply(&format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: edit}}, roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}}, subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {TENANT}}}]}}"
    ));
    project.apply(VICTIMS);
    let says = Conditions {
        lab: &lab,
        project: &project,
    };
    for (kind, name) in [
        ("Network", "lan"),
        ("SecurityGroup", "web"),
        ("Stack", "stack"),
    ] {
        says.ready(kind, name).await;
    }
    let neighbour = Neighbour::start(&project, "steady", 1).await;
    let all = kinds();
    let before = picture(&lab, &all).await;
    let restarts_before = restarts();
    let uids = uids(&lab, &all).await;
    let target = Target {
        namespace: VICTIM.to_owned(),
        names: [
            "lan", "web", "stack", "steady", "tiny", "default", "m1.nano",
        ]
        .map(str::to_owned)
        .to_vec(),
        uids,
    };

    let mut quiet = victim_asks(&lab, &project, 3, &AtomicBool::new(true)).await;
    let tenant = lab.client_as(TENANT).await;
    let attempts: Vec<_> = (0..count)
        .map(|number| {
            let one_in = *random.one_of(&[4, 12, 60, 1_000_000]);
            let kind = usize::try_from(random.below(all.len() as u64)).unwrap();
            let mut maker = Maker {
                random: &mut random,
                target: &target,
                one_in,
            };
            attempt(&mut maker, &all[kind], number)
        })
        .collect();
    let enough = Arc::new(AtomicBool::new(false));
    let attack = async {
        let started = Instant::now();
        let counts = stream::iter(attempts)
            .map(|attempt| {
                let tenant = tenant.clone();
                async move { try_all(&tenant, attempt).await }
            })
            .buffer_unordered(AT_ONCE)
            .fold((0, 0), |(a, r), (accepted, refused)| async move {
                (a + accepted, r + refused)
            })
            .await;
        // What was accepted has to be worked off before anybody is measured as fast.
        tokio::time::sleep(Duration::from_secs(5)).await;
        enough.store(true, Ordering::Relaxed);
        (counts, started.elapsed())
    };
    let (((accepted, refused), took), mut busy) =
        tokio::join!(attack, victim_asks(&lab, &project, 3, &enough));
    println!("{count} objects in {took:?}: {accepted} requests accepted, {refused} refused");
    assert!(
        accepted > count / 10,
        "the API server refuses nearly everything: the attack is none"
    );

    neighbour.noticed_nothing(&project).await;
    let slow = slower(&mut quiet, &mut busy);
    assert!(slow.is_empty(), "the victim waits: {slow:?}");
    assert_eq!(before, picture(&lab, &all).await, "the victim was changed");
    assert_eq!(restarts_before, restarts(), "a role ended");
    if from_environment("PILEUS_ATTACK_OBJECTS").is_some() {
        hostile.leaves_nothing().await;
    } else {
        // The long form has found a row of OVN that a tenant of thousands of objects left behind, which
        // costs nobody anything and is still to be explained.
        hostile.end().await;
    }
    assert_eq!(before, picture(&lab, &all).await, "the victim was changed");
    neighbour.noticed_nothing(&project).await;
    project.leaves_nothing().await;
    assert!(
        lab::hosts_ready(&lab.client).await,
        "a Host is not Ready any more"
    );
}

/// The requests of an attempt; how many were accepted and refused.
async fn try_all(tenant: &Client, attempt: Attempt) -> (u64, u64) {
    let (mut accepted, mut refused) = (0, 0);
    for (method, path, body) in attempt.requests {
        let code = send(tenant, method, &path, body.as_ref()).await;
        let is_accepted = (200..300).contains(&code);
        assert!(
            !(is_accepted && attempt.is_forbidden),
            "the tenant may {method} {path}: {code}"
        );
        assert!(code < 500, "{method} {path}: {code}");
        if is_accepted {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    (accepted, refused)
}

async fn uids(lab: &Lab, kinds: &[Kind]) -> Vec<String> {
    let mut found = Vec::new();
    for kind in kinds.iter().filter(|kind| kind.is_namespaced) {
        let all = objects(lab, &kind.name, Some(VICTIM));
        let all = all.list(&Default::default()).await.unwrap();
        found.extend(all.into_iter().filter_map(|object| object.uid()));
    }
    found
}
