//! Crashes: in each round something is killed at a random moment while several Servers are
//! made, stopped, started or deleted. In the end every Server is as its spec says, has
//! exactly one domain, and nothing is left over.
//!
//! The seed is printed; `PILEUS_SEED` repeats a run, `PILEUS_ROUNDS` sets its length.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::DeleteParams;
use pileus_tests::lab::{self, Lab, Project, devstack, in_host};
use pileus_tests::random::{Random, from_environment};
use serde_json::json;

/// Enough for each kind of kill to come once or twice; hack/soak runs the long ones.
const ROUNDS: u32 = 15;
const SERVERS: u32 = 4;
/// How long anything may take; no more than a few seconds are needed on a quiet machine.
const TIMEOUT: Duration = Duration::from_secs(240);

fn server(name: &str) -> String {
    format!(
        r"
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {{name: {name}}}
spec:
  flavor: m1.nano
  image: {{name: tiny, namespace: default}}
  networks: [{{name: eth0, network: {{name: lan}}}}]
  shutdownTimeoutSeconds: 3
"
    )
}

const LAN: &str = r"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: lan}
spec: {network: lan, cidr: 10.40.0.0/24}
";

/// Kills something, and starts it again after a moment.
fn strike(kind: u64, host: &str, pause: Duration) {
    let commands: (Vec<&str>, Vec<&str>) = match kind {
        0 => (
            vec!["role", "manager", "kill"],
            vec!["role", "manager", "start"],
        ),
        1 => (
            vec!["role", "scheduler", "kill"],
            vec!["role", "scheduler", "start"],
        ),
        2 => (
            vec!["role", "agent", host, "kill"],
            vec!["role", "agent", host, "start"],
        ),
        3 => (
            vec!["daemon", "libvirtd", host, "kill"],
            vec!["daemon", "libvirtd", host, "start"],
        ),
        4 => (
            vec!["role", "stacks", "kill"],
            vec!["role", "stacks", "start"],
        ),
        5 => (vec!["host", host, "cut"], vec!["host", host, "heal"]),
        _ => (
            vec!["daemon", "apiserver", "kill"],
            vec!["daemon", "apiserver", "start"],
        ),
    };
    devstack(&commands.0);
    std::thread::sleep(pause);
    devstack(&commands.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_at_whatever_moment_the_end_is_as_specified() {
    let rounds = from_environment("PILEUS_ROUNDS").map_or(ROUNDS, |n| u32::try_from(n).unwrap());
    println!("PILEUS_ROUNDS={rounds}");
    let mut random = Random::printed();
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-crash").await;
    project.apply(LAN);
    // What each Server should be: absent, or running or not.
    let mut wanted: BTreeMap<String, Option<bool>> =
        (0..SERVERS).map(|n| (format!("s{n}"), None)).collect();

    for round in 0..rounds {
        let kind = random.below(7);
        let host = (1 + random.below(2)).to_string();
        let delay = Duration::from_millis(random.below(1500));
        let pause = Duration::from_millis(random.below(800));
        let striker = tokio::task::spawn_blocking(move || {
            std::thread::sleep(delay);
            strike(kind, &host, pause);
        });
        let mut said = Vec::new();
        for (name, now) in &mut wanted {
            let next = match (*now, random.below(3)) {
                (None, 0) => None,
                (None, _) => Some(true),
                (Some(_), 0) => None,
                (Some(running), _) => Some(!running),
            };
            said.push(format!("{name}: {now:?} -> {next:?}"));
            change(&project, name, *now, next).await;
            *now = next;
        }
        println!(
            "round {round}: strike {kind} after {delay:?}; {}",
            said.join(", ")
        );
        striker.await.unwrap();
        if round % 10 == 9 {
            settled(&project, &wanted).await;
        }
    }
    settled(&project, &wanted).await;
    project.leaves_nothing().await;
}

/// Asks for a change; the API server may be down just now, and a user asks again.
async fn change(project: &Project, name: &str, now: Option<bool>, next: Option<bool>) {
    let servers = project.servers();
    let what = format!("the wish for {name} is taken");
    lab::eventually(&what, TIMEOUT, async || {
        match (now, next) {
            (None, None) => Ok(()),
            (None, Some(_)) => {
                // One of the same name may still be on its way out.
                let object: pileus_api::Server = serde_saphyr::from_str(&server(name)).unwrap();
                match servers
                    .create(&kube::api::PostParams::default(), &object)
                    .await
                {
                    Ok(_) => Ok(()),
                    Err(kube::Error::Api(s)) if s.is_already_exists() => {
                        let there = servers.get(name).await.map_err(|e| e.to_string())?;
                        if there.metadata.deletion_timestamp.is_some() {
                            Err("still being deleted".to_owned())
                        } else {
                            Ok(())
                        }
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
            (Some(_), None) => match servers.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(s)) if s.is_not_found() => Ok(()),
                done => done.map(drop).map_err(|e| e.to_string()),
            },
            (Some(_), Some(running)) => {
                let state = if running { "Running" } else { "Stopped" };
                let patch = json!({"spec": {"runState": state}});
                servers
                    .patch(name, &Default::default(), &kube::api::Patch::Merge(&patch))
                    .await
                    .map(drop)
                    .map_err(|e| e.to_string())
            }
        }
    })
    .await;
}

/// Waits until every Server is as it should be, with exactly one domain each.
async fn settled(project: &Project, wanted: &BTreeMap<String, Option<bool>>) {
    let mut domains = Vec::new();
    for (name, state) in wanted {
        match state {
            None => {
                let gone = async || match project.servers().get_opt(name).await {
                    Ok(None) => Ok(()),
                    Ok(Some(server)) => Err(format!("{:?}", server.status)),
                    Err(error) => Err(error.to_string()),
                };
                lab::eventually(&format!("{name} is gone"), TIMEOUT, gone).await;
            }
            Some(running) => {
                let phase = if *running { "Active" } else { "Stopped" };
                let server = project.phase(name, phase, TIMEOUT).await;
                let id = server.status.unwrap().instance_id.unwrap();
                domains.push((format!("pileus-{id}"), *running));
            }
        }
    }
    let mut found: Vec<_> = (1..=2)
        .flat_map(|host| {
            let list = |which| {
                let names = in_host(host, &["virsh", "list", which, "--name"]);
                let names = names.split_whitespace().map(str::to_owned);
                names.collect::<Vec<_>>()
            };
            let on = list("--state-running");
            let all = list("--all");
            all.into_iter().map(move |name| {
                let running = on.contains(&name);
                (name, running)
            })
        })
        .collect();
    found.sort();
    domains.sort();
    assert_eq!(found, domains, "not exactly one domain for each Server");
    let processes = processes();
    let mut running: Vec<_> = domains.iter().filter(|(_, on)| *on).collect();
    running.sort();
    let running: Vec<_> = running.into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        processes.iter().collect::<Vec<_>>(),
        running,
        "not exactly one QEMU for each Server that runs"
    );
}

/// Names of the guests that QEMU runs on any host, with libvirt's knowledge or without it.
fn processes() -> Vec<String> {
    let mut names = Vec::new();
    for host in 1..=2 {
        let pids = lab::run("ip", &["netns", "pids", &format!("pileus-host{host}")]);
        for pid in pids.split_whitespace() {
            // Ended meanwhile: it was no guest of a Server that runs.
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let name = line
                .split_once("guest=")
                .and_then(|(_, rest)| rest.split([',', '\0']).next());
            names.extend(name.map(str::to_owned));
        }
    }
    names.sort();
    names
}
