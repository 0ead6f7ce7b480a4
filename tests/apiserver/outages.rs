//! A network that swallows every byte stops nobody for ever, and shows.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use pileus_kube_ext::connection::Deadlines;
use pileus_kube_ext::{Context, Metrics, Readiness};
use pileus_manager::Config;
use pileus_tests::apiserver::TestServer;
use pileus_tests::proxy::Proxy;
use pileus_tests::servers::start_manager;
use tokio_util::sync::CancellationToken;

async fn context(client: Client) -> Context {
    let deadlines = Deadlines {
        request: Duration::from_secs(3),
        silence: Duration::from_secs(5),
    };
    let (metrics, ready) = (Metrics::default(), Readiness::default());
    Context::with(client, "pileus-test", metrics, ready, deadlines)
        .await
        .unwrap()
}

async fn within(seconds: u64, what: &str, done: impl AsyncFn() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(now) = done().await {
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(seconds), "{what}: {now}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_swallows_bytes_stops_nobody_for_ever() {
    let server = TestServer::start().await;
    let target = server.url().strip_prefix("https://").unwrap().to_owned();
    let proxy = Proxy::start(target).await;
    let mut config = server.config();
    config.cluster_url = format!("https://{}", proxy.address).parse().unwrap();
    let proxied = || pileus_kube_ext::connection::client(config.clone()).unwrap();

    // One manager leads behind the proxy; another waits that reaches the API server.
    let stop = CancellationToken::new();
    let leading = context(proxied()).await;
    let settings = Config {
        ovn_nb: "unix:/nonexistent/ovnnb_db.sock".into(),
        ovn_tls: None,
        underlay_mtu: 1500,
        underlay_ipv6: false,
        identity: "cut-off".into(),
    };
    let ready = leading.ready.clone();
    let manager = pileus_manager::run(settings, leading, ready.clone(), stop.clone());
    let manager = tokio::spawn(manager);
    // A scheduler that needs no lease.
    let scheduling = context(proxied()).await;
    let scheduler_ready = scheduling.ready.clone();
    let told = scheduler_ready.clone();
    let alone = pileus_scheduler::Config { identity: None };
    let begun = move || told.set(true);
    let scheduler = pileus_scheduler::run(alone, scheduling, begun, stop.clone());
    let scheduler = tokio::spawn(scheduler);
    let is_ready = |ready: Readiness| async move {
        let (is_ready, text) = ready.report();
        is_ready.then_some(()).ok_or(text)
    };
    within(30, "the manager works", || is_ready(ready.clone())).await;
    within(30, "the scheduler works", || {
        is_ready(scheduler_ready.clone())
    })
    .await;
    let leases: Api<Lease> = Api::namespaced(server.client(), "pileus-system");
    let holder = || async {
        let lease = leases
            .get("pileus-manager")
            .await
            .map_err(|e| e.to_string())?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        Ok::<_, String>(holder.unwrap_or_default())
    };
    let holds = |who: &'static str| {
        let holder = &holder;
        move || async move {
            let now = holder().await?;
            (now == who).then_some(()).ok_or(now)
        }
    };
    within(30, "the lease is held", holds("cut-off")).await;
    let (other_stop, other) = start_manager(&server).await;

    proxy.swallow(true);
    let cut = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(30), manager).await;
    let error = ended.expect("it goes on").unwrap().unwrap_err();
    assert!(error.to_string().contains("leadership lost"), "{error}");
    within(60, "another leads", holds("test")).await;
    // The scheduler says by name what it hears nothing of.
    within(60, "it shows", || async {
        let (is_ready, text) = scheduler_ready.report();
        let named = "[-]watch/apis/pileus.dev/v1alpha1/servers failed";
        (!is_ready && text.contains(named))
            .then_some(())
            .ok_or(text)
    })
    .await;
    assert!(cut.elapsed() < Duration::from_secs(90));

    proxy.swallow(false);
    within(60, "it recovers by itself", || {
        is_ready(scheduler_ready.clone())
    })
    .await;
    stop.cancel();
    scheduler.await.unwrap().unwrap();
    other_stop.cancel();
    other.await.unwrap().unwrap();
}
