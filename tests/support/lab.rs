//! A cloud of real hosts on this machine, driven by `hack/devstack`: the same code that
//! people use.
//!
//! A test works in a namespace of its own ([`Project`]) and ends with
//! [`Project::leaves_nothing`], which deletes all and looks for what was left behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot have its lab is over"
)]
#![allow(dead_code, reason = "each test crate uses its own part of this module")]

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use pileus_api::conditions::{self, ConditionType};
use pileus_api::names::{STACKS_TENANT_ROLE, USER_DATA_ROLE};
use pileus_api::{Host, IPAllocation, Instance, Port, Server};

const STATE: &str = "/var/lib/pileus-devstack";
const NB: &str = "unix:/run/pileus-devstack/ovn/ovnnb_db.sock";

/// Label that tells the hosts apart for placement.
pub const HOST_LABEL: &str = "lab.pileus.dev/host";

/// The lab.
pub struct Lab {
    /// As its administrator.
    pub client: Client,
}

fn repository() -> PathBuf {
    crate::program::root().to_owned()
}

/// Runs a program and gives what it says; panics with that when it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let (ok, said) = try_run(program, arguments, None);
    assert!(ok, "{program} {arguments:?} failed:\n{said}");
    said
}

fn try_run(program: &str, arguments: &[&str], input: Option<&str>) -> (bool, String) {
    let mut child = Command::new(program)
        .args(arguments)
        // The lab is to have a control plane of its own: tests stop it and wipe its data.
        .env_remove("KUBECONFIG")
        .current_dir(repository())
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    if let Some(input) = input {
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        (true, said)
    } else {
        (false, said + &String::from_utf8_lossy(&output.stderr))
    }
}

/// Runs `hack/devstack`.
pub fn devstack(arguments: &[&str]) -> String {
    run("hack/devstack", arguments)
}

/// Runs a program inside a host.
pub fn in_host(host: usize, command: &[&str]) -> String {
    let number = host.to_string();
    let mut arguments = vec!["exec", &number, "--"];
    arguments.extend(command);
    devstack(&arguments)
}

/// Asks OVN's Northbound database; gives bare values.
pub fn northbound(arguments: &[&str]) -> String {
    let database = format!("--db={NB}");
    run("ovn-nbctl", &[&[&database, "--bare"], arguments].concat())
}

impl Lab {
    /// The lab that is up, or one of two hosts.
    pub async fn get() -> Self {
        let config = PathBuf::from(STATE).join("kubeconfig/admin");
        if !Path::new(STATE).join("hosts/host2").exists() {
            devstack(&["up", "--hosts", "2", "--no-quickstart"]);
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(administrator(config).await).unwrap();
        let lab = Self { client };
        for number in 1..=2 {
            let name = format!("host{number}");
            let label = serde_json::json!({"metadata": {"labels": {HOST_LABEL: name}}});
            let hosts: Api<Host> = Api::all(lab.client.clone());
            hosts
                .patch(&name, &PatchParams::default(), &Patch::Merge(&label))
                .await
                .unwrap();
            lab.host_ready(number).await;
        }
        lab
    }

    /// A client as a user who has what rights he was given, and no groups.
    pub async fn client_as(&self, user: &str) -> Client {
        let config = PathBuf::from(STATE).join("kubeconfig/admin");
        let mut config = administrator(config).await;
        config.auth_info.impersonate = Some(user.to_owned());
        Client::try_from(config).unwrap()
    }

    /// Keeps this much of a host's memory in MiB from Servers, or none.
    pub async fn reserve_memory(&self, host: &str, mib: Option<i64>) {
        let reserved =
            mib.map(|mib| serde_json::json!({"vcpus": 0, "memoryMiB": mib, "diskGiB": 0}));
        let patch = Patch::Merge(serde_json::json!({"spec": {"reserved": reserved}}));
        let hosts: Api<Host> = Api::all(self.client.clone());
        let done = hosts.patch(host, &PatchParams::default(), &patch).await;
        done.unwrap();
    }

    /// Waits until a host can take Servers.
    pub async fn host_ready(&self, number: usize) {
        let hosts: Api<Host> = Api::all(self.client.clone());
        let name = format!("host{number}");
        eventually(
            &format!("{name} is ready"),
            Duration::from_secs(90),
            async || {
                let host = hosts.get(&name).await.map_err(|e| e.to_string())?;
                let status = host.status.unwrap_or_default();
                if conditions::is_true(&status.conditions, ConditionType::Ready) {
                    Ok(())
                } else {
                    Err(format!("{:?}", status.conditions))
                }
            },
        )
        .await;
    }
}

async fn administrator(kubeconfig: PathBuf) -> kube::Config {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await;
    config.unwrap()
}

/// Whether every Host is Ready.
pub async fn hosts_ready(client: &Client) -> bool {
    let hosts: Api<Host> = Api::all(client.clone());
    let hosts = hosts.list(&ListParams::default()).await.unwrap();
    let is_ready = |host: &Host| {
        let status = host.status.as_ref();
        status.is_some_and(|s| conditions::is_true(&s.conditions, ConditionType::Ready))
    };
    hosts.items.iter().all(is_ready)
}

/// Tries until it succeeds; panics with the last answer when that takes too long.
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + patience;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(answer) if Instant::now() > end => {
                panic!("not in {patience:?}: {what}; the last answer: {answer}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// A namespace of a test's own.
pub struct Project {
    /// Its name.
    pub name: String,
    client: Client,
}

impl Project {
    /// A new, empty one; what an earlier, killed run left under the name goes first.
    pub async fn new(lab: &Lab, name: &str) -> Self {
        let project = Self {
            name: name.to_owned(),
            client: lab.client.clone(),
        };
        project.delete_all().await;
        kubectl_apply(
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"),
            "",
        );
        for (role, account) in [(STACKS_TENANT_ROLE, "stacks"), (USER_DATA_ROLE, "manager")] {
            kubectl_apply(
                &format!(
                    "apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {role}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {role}}}
subjects: [{{kind: ServiceAccount, name: {account}, namespace: pileus-system}}]
"
                ),
                name,
            );
        }
        project
    }

    /// Applies YAML, as a user does.
    pub fn apply(&self, yaml: &str) {
        kubectl_apply(yaml, &self.name);
    }

    /// The Servers.
    pub fn servers(&self) -> Api<Server> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Changes a Server's spec.
    pub async fn patch_server(&self, name: &str, spec: serde_json::Value) {
        let patch = serde_json::json!({"spec": spec});
        let done = self
            .servers()
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        done.unwrap();
    }

    /// Waits until a Server is Ready with a phase.
    pub async fn phase(&self, name: &str, phase: &str, patience: Duration) -> Server {
        eventually(&format!("Server {name} is {phase}"), patience, async || {
            let server = self.servers().get(name).await.map_err(|e| e.to_string())?;
            let status = server.status.clone().unwrap_or_default();
            let fresh = status.observed_generation == server.metadata.generation;
            if fresh
                && conditions::is_true(&status.conditions, ConditionType::Ready)
                && status.phase.as_deref() == Some(phase)
            {
                Ok(server)
            } else {
                Err(format!("{:?} {:?}", status.phase, status.conditions))
            }
        })
        .await
    }

    /// Waits until Ready is False for a reason; gives the message.
    pub async fn reason(&self, name: &str, reason: &str, patience: Duration) -> String {
        eventually(
            &format!("Server {name} says {reason}"),
            patience,
            async || {
                let server = self.servers().get(name).await.map_err(|e| e.to_string())?;
                let status = server.status.unwrap_or_default();
                match conditions::find(&status.conditions, ConditionType::Ready) {
                    Some(ready) if ready.reason == reason => Ok(ready.message.clone()),
                    other => Err(format!("{other:?}")),
                }
            },
        )
        .await
    }

    /// The console of a Server that runs.
    pub async fn console(&self, name: &str) -> Console {
        let server = self.servers().get(name).await.unwrap();
        Console::open(&server)
    }

    async fn delete_all(&self) {
        let all = DeleteParams::default();
        let listed = ListParams::default();
        let servers = self.servers();
        let _ = servers.delete_collection(&all, &listed).await;
        eventually(
            "the Servers are gone",
            Duration::from_secs(120),
            async || {
                let left = servers
                    .list(&listed)
                    .await
                    .map_err(|e| e.to_string())?
                    .items;
                if left.is_empty() {
                    return Ok(());
                }
                let say = |s: &Server| format!("{}: {:?}", s.name_any(), s.status);
                Err(left.iter().map(say).collect::<Vec<_>>().join("\n"))
            },
        )
        .await;
        let (ok, said) = try_run(
            "kubectl",
            &[
                "--kubeconfig",
                &format!("{STATE}/kubeconfig/admin"),
                "delete",
                "namespace",
                &self.name,
                "--ignore-not-found",
                "--timeout=180s",
            ],
            None,
        );
        assert!(ok, "{said}");
    }

    /// Deletes everything.
    pub async fn end(self) {
        self.delete_all().await;
    }

    /// Deletes everything, and finds what that left anywhere.
    pub async fn leaves_nothing(self) {
        let namespace = self.name.clone();
        self.delete_all().await;
        let client = self.client.clone();
        eventually("nothing is left", Duration::from_secs(30), async || {
            let left = leftovers(&client, &namespace).await;
            if left.is_empty() {
                Ok(())
            } else {
                Err(left.join("\n"))
            }
        })
        .await;
    }
}

impl Drop for Project {
    /// A test that failed leaves the lab's room to the others, if it can.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let config = format!("{STATE}/kubeconfig/admin");
            let arguments = ["--kubeconfig", &config, "delete", "namespace", &self.name];
            let _ = try_run(
                "kubectl",
                &[&arguments[..], &["--timeout=120s"]].concat(),
                None,
            );
        }
    }
}

fn kubectl_apply(yaml: &str, namespace: &str) {
    let config = format!("{STATE}/kubeconfig/admin");
    let mut arguments = vec!["--kubeconfig", &config, "apply", "-f", "-"];
    if !namespace.is_empty() {
        arguments.extend(["--namespace", namespace]);
    }
    let (ok, said) = try_run("kubectl", &arguments, Some(yaml));
    assert!(ok, "{said}\n{yaml}");
}

/// What is left of a namespace after everything in it was deleted: on the hosts, in OVN, in
/// the API.
pub async fn leftovers(client: &Client, namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    let instances: Api<Instance> = Api::all(client.clone());
    for instance in instances.list(&ListParams::default()).await.unwrap() {
        if instance.spec.server.namespace == namespace {
            found.push(format!("Instance {}", instance.name_any()));
        }
    }
    let ports: Api<Port> = Api::namespaced(client.clone(), namespace);
    for port in ports.list(&ListParams::default()).await.unwrap() {
        found.push(format!("Port {}", port.name_any()));
    }
    let allocations: Api<IPAllocation> = Api::namespaced(client.clone(), namespace);
    for allocation in allocations.list(&ListParams::default()).await.unwrap() {
        found.push(format!("IPAllocation {}", allocation.spec.address));
    }
    for host in 1..=2 {
        found.extend(host_leftovers(host, namespace));
    }
    for table in [
        "Logical_Switch",
        "Logical_Switch_Port",
        "DHCP_Options",
        "Port_Group",
    ] {
        let condition = format!("external_ids:pileus.dev/namespace={namespace}");
        let rows = northbound(&["--columns=_uuid", "find", table, &condition]);
        found.extend(rows.split_whitespace().map(|row| format!("{table} {row}")));
    }
    found
}

fn host_leftovers(host: usize, namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut running_taps = Vec::new();
    for domain in in_host(host, &["virsh", "list", "--all", "--name"]).split_whitespace() {
        let xml = in_host(host, &["virsh", "dumpxml", domain]);
        if xml.contains(&format!("namespace='{namespace}'"))
            || xml.contains(&format!("namespace=\"{namespace}\""))
        {
            found.push(format!("host{host}: domain {domain}"));
        }
        running_taps.extend(
            xml.split("<target dev='tap")
                .skip(1)
                .filter_map(|t| Some(format!("tap{}", t.split('\'').next()?))),
        );
    }
    for tap in in_host(host, &["ovs-vsctl", "list-ports", "br-int"]).split_whitespace() {
        if tap.starts_with("tap") && !running_taps.iter().any(|t| t == tap) {
            found.push(format!("host{host}: tap {tap}"));
        }
    }
    let instances = format!("{STATE}/hosts/host{host}/lib-pileus/instances");
    for entry in std::fs::read_dir(instances).into_iter().flatten().flatten() {
        let marks = std::fs::read_to_string(entry.path().join("marks.json")).unwrap_or_default();
        if marks.is_empty() || marks.contains(&format!("\"namespace\":\"{namespace}\"")) {
            found.push(format!("host{host}: {}", entry.path().display()));
        }
    }
    found
}

/// The serial console of a guest: what it says, and a shell to give it commands.
pub struct Console {
    log: PathBuf,
    writer: std::fs::File,
    heard: Arc<Mutex<Vec<u8>>>,
    commands: u32,
}

impl Console {
    fn open(server: &Server) -> Self {
        let status = server.status.as_ref().unwrap();
        let host = &status.placement.as_ref().unwrap().host;
        let id = status.instance_id.as_ref().unwrap();
        let number: usize = host.trim_start_matches("host").parse().unwrap();
        let pty = in_host(number, &["virsh", "ttyconsole", &format!("pileus-{id}")]);
        let pty = pty.trim().to_owned();
        let writer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&pty)
            .unwrap();
        let mut reader = writer.try_clone().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        // Ends when the guest's QEMU does; a console that nobody reads would hold it up.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = reader.read(&mut buffer) {
                if n == 0 {
                    break;
                }
                sink.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        let log = format!("{STATE}/hosts/{host}/lib-pileus/instances/{id}/console.log");
        Self {
            log: log.into(),
            writer,
            heard,
            commands: 0,
        }
    }

    /// All that the guest has said since it was made.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).replace('\r', "")
    }

    /// Waits until the guest has said something.
    pub async fn says(&self, text: &str, patience: Duration) {
        self.says_times(text, 1, patience).await;
    }

    /// Waits until the guest has said something that many times.
    pub async fn says_times(&self, text: &str, times: usize, patience: Duration) {
        eventually(&format!("the guest says `{text}`"), patience, async || {
            let log = self.log();
            if log.matches(text).count() >= times {
                Ok(())
            } else {
                Err(log
                    .chars()
                    .skip(log.chars().count().saturating_sub(1500))
                    .collect())
            }
        })
        .await;
    }

    /// Runs a command in the guest's shell; gives its exit code and what it said.
    pub async fn try_shell(&mut self, command: &str, patience: Duration) -> (i32, String) {
        self.commands += 1;
        let mark = format!("MARK{}", self.commands);
        self.heard.lock().unwrap().clear();
        // Put together by the shell, so that its echo is not taken for its answer.
        let line = format!("{command}; echo \"$(echo MA)RK{}-$?-\"\n", self.commands);
        self.writer.write_all(line.as_bytes()).unwrap();
        let heard = self.heard.clone();
        eventually(
            &format!("the guest runs `{command}`"),
            patience,
            async || {
                let text = String::from_utf8_lossy(&heard.lock().unwrap()).replace('\r', "");
                let done = text
                    .rsplit_once(&format!("{mark}-"))
                    .and_then(|(before, after)| {
                        let code = after.split_once('-')?.0.parse().ok()?;
                        Some((code, before.to_owned()))
                    });
                done.ok_or(text)
            },
        )
        .await
    }

    /// Runs a command in the guest's shell, which must succeed.
    pub async fn shell(&mut self, command: &str) -> String {
        let (code, said) = self.try_shell(command, Duration::from_secs(60)).await;
        assert_eq!(code, 0, "`{command}` in the guest:\n{said}");
        said
    }
}

/// Paths and checksums of a guest image, as `hack/guest-image` prints them.
pub struct GuestImage(Vec<(String, String)>);

impl GuestImage {
    /// Builds or finds one.
    pub fn of(kind: &str) -> Self {
        let said = run("hack/guest-image", &[kind]);
        let pair = |line: &str| {
            line.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
        };
        Self(said.lines().filter_map(pair).collect())
    }

    /// A value by its key.
    pub fn get(&self, key: &str) -> &str {
        let found = self.0.iter().find(|(k, _)| k == key);
        &found
            .unwrap_or_else(|| panic!("hack/guest-image printed no {key}"))
            .1
    }
}
