//! A leader that was stopped past its lease acts no more.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pileus_api::KeyPair;
use pileus_tests::apiserver::{TestServer, create, until};
use pileus_tests::program::program;
use pileus_tests::servers::{KEY, start_manager};
use serde_json::json;

/// A manager in a process of its own, killed on drop.
struct Process(Child);

impl Process {
    fn start(server: &TestServer, identity: &str) -> Self {
        let mut command = Command::new("setpriv");
        let command = command.args(["--pdeathsig", "KILL"]).arg(program("pileus"));
        let command = command.arg("manager").stdin(Stdio::null());
        let command = command.env("KUBECONFIG", server.kubeconfig());
        let command = command.env("PILEUS_IDENTITY", identity);
        let command = command.env("PILEUS_LISTEN", "127.0.0.1:0");
        let command = command.env("PILEUS_OVN_NB", "unix:/nonexistent/nb.sock");
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_past_its_lease_writes_nothing_and_ends() {
    let server = TestServer::start().await;
    server.namespace("demo").await;
    let client = server.client();
    let leases: Api<Lease> = Api::namespaced(client.clone(), "pileus-system");
    let pairs: Api<KeyPair> = Api::namespaced(client.clone(), "demo");
    let pair = |name: &str| json!({"metadata": {"name": name}, "spec": {"publicKey": KEY}});
    let is_held_by = |lease: &Lease, who: &str| {
        let spec = lease.spec.as_ref();
        spec.and_then(|spec| spec.holder_identity.as_deref()) == Some(who)
    };
    let mut first = Process::start(&server, "first");
    create(&pairs, pair("before")).await;
    until(&pairs, "before", "is reported", |p| p.status.is_some()).await;
    until(&leases, "pileus-manager", "is the first's", |lease| {
        is_held_by(lease, "first")
    })
    .await;
    first.signal(Signal::SIGSTOP);

    // The lease lasts 30 s.
    let (stop, second) = start_manager(&server).await;
    let start = Instant::now();
    while !is_held_by(&leases.get("pileus-manager").await.unwrap(), "test") {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "nobody took over"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(start.elapsed() > Duration::from_secs(20), "taken too early");
    stop.cancel();
    second.await.unwrap().unwrap();

    // Nobody leads, and there is work to do.
    create(&pairs, pair("after")).await;
    first.signal(Signal::SIGCONT);
    let start = Instant::now();
    let ended = loop {
        if let Some(ended) = first.0.try_wait().unwrap() {
            break ended;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "it goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(!ended.success());
    let after = pairs.get("after").await.unwrap();
    let writers = after.metadata.managed_fields.iter().flatten();
    let mut writers = writers.filter_map(|entry| entry.manager.as_deref());
    assert!(writers.all(|writer| writer != "pileus-manager"));
    assert!(after.metadata.finalizers.is_none(), "{after:?}");
    let lease = leases.get("pileus-manager").await.unwrap();
    assert!(is_held_by(&lease, ""), "{lease:?}");
}
