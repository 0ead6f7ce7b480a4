//! The network's task on a real API server and a real Northbound database.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at its first surprise"
)]

use pileus_tests::ovn;
use std::collections::HashSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::port::FixedIp;
use pileus_api::{
    IPAllocation, Network, NetworkSpec, ObjectName, Port, PortSpec, SecurityGroup, Server, Subnet,
    SubnetSpec,
};
use pileus_kube_ext::{Context, Metrics};
use pileus_manager::Caches;
use pileus_manager::network::caches::NetworkCaches;
use pileus_manager::network::pass::{NetworkConfig, run_network};
use pileus_tests::apiserver::TestServer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

pub(super) const NAMESPACE: &str = "demo";

pub(super) struct Manager {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Manager {
    pub(super) async fn start(server: &TestServer, ovn: &ovn::Ovn, identity: &str) -> Self {
        let context = Context::with_client(server.client(), "pileus-manager", Metrics::default())
            .await
            .unwrap();
        let config = NetworkConfig {
            ovn_nb: format!("unix:{}", ovn.path("nb.sock").display()),
            ovn_tls: None,
            underlay_mtu: 1500,
            underlay_ipv6: false,
            identity: identity.to_owned(),
            // Leaders of a test are named in the order of the alphabet.
            generation: identity.bytes().map(i64::from).sum(),
        };
        let stop = CancellationToken::new();
        let caches = NetworkCaches::of(&Caches::watch(&context));
        let until = stop.clone();
        let task = tokio::spawn(async move {
            run_network(config, context, caches, until).await.unwrap();
        });
        Self { stop, task }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

pub(super) fn api<K>(client: &Client) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), NAMESPACE)
}

pub(super) async fn make<K>(client: &Client, object: K) -> K
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    api(client)
        .create(&PostParams::default(), &object)
        .await
        .unwrap()
}

pub(super) fn network(name: &str) -> Network {
    Network::new(name, NetworkSpec::default())
}

pub(super) fn subnet(name: &str, network: &str, cidr: &str) -> Subnet {
    Subnet::new(
        name,
        SubnetSpec {
            network: network.into(),
            cidr: cidr.into(),
            ..SubnetSpec::default()
        },
    )
}

pub(super) fn port(name: &str, network: &str) -> Port {
    Port::new(
        name,
        PortSpec {
            network: ObjectName {
                name: network.into(),
                namespace: None,
            },
            ..PortSpec::default()
        },
    )
}

pub(super) fn with_address(name: &str, network: &str, address: &str) -> Port {
    let mut it = port(name, network);
    it.spec.fixed_ips = vec![FixedIp {
        name: "a".into(),
        subnet: None,
        address: Some(address.into()),
    }];
    it
}

/// Waits until the object's condition Ready has the reason; returns the message.
pub(super) async fn reason<K>(client: &Client, name: &str, wanted: &str) -> String
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let start = Instant::now();
    loop {
        let object = api::<K>(client).get_opt(name).await.unwrap();
        let value = serde_json::to_value(&object).unwrap();
        let condition = value["status"]["conditions"]
            .as_array()
            .and_then(|all| all.iter().find(|c| c["type"] == "Ready").cloned())
            .unwrap_or_default();
        if condition["reason"] == wanted {
            return condition["message"].as_str().unwrap().to_owned();
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} {name} is not {wanted}: {condition}",
            K::kind(&())
        );
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

pub(super) async fn gone<K>(client: &Client)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let start = Instant::now();
    loop {
        let left = api::<K>(client).list(&ListParams::default()).await.unwrap();
        if left.items.is_empty() {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{} left: {:?}",
            left.items.len(),
            left.items[0]
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn delete_all<K>(client: &Client)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let api = api::<K>(client);
    for object in api.list(&ListParams::default()).await.unwrap() {
        let _ = api
            .delete(&object.name_any(), &DeleteParams::default())
            .await;
    }
}

pub(super) fn count(ovn: &ovn::Ovn, table: &str) -> usize {
    ovn.nbctl(&["--no-headings", "--columns=_uuid", "--bare", "list", table])
        .split_whitespace()
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_ports_get_addresses_of_their_own_and_leave_nothing() {
    let server = TestServer::start().await;
    server.namespace(NAMESPACE).await;
    let ovn = ovn::Ovn::start();
    drop(ovn.connect().await);
    let client = server.client();
    let manager = Manager::start(&server, &ovn, "a").await;

    make(&client, network("net")).await;
    make(&client, subnet("v4", "net", "10.0.0.0/24")).await;
    reason::<Subnet>(&client, "v4", "Ready").await;
    let start = Instant::now();
    for n in 0..50 {
        let mut it = port(&format!("p{n}"), "net");
        it.metadata.finalizers = Some(vec![MANAGER_FINALIZER.to_owned()]);
        make(&client, it).await;
    }
    for n in 0..50 {
        reason::<Port>(&client, &format!("p{n}"), "Ready").await;
    }
    eprintln!("50 ports in {:?}", start.elapsed());
    let ports = api::<Port>(&client)
        .list(&ListParams::default())
        .await
        .unwrap();
    let addresses: HashSet<_> = ports
        .iter()
        .map(|p| p.status.as_ref().unwrap().fixed_ips[0].address.clone())
        .collect();
    let macs: HashSet<_> = ports
        .iter()
        .map(|p| p.status.as_ref().unwrap().mac_address.clone().unwrap())
        .collect();
    assert_eq!((addresses.len(), macs.len()), (50, 50));
    let allocations = api::<IPAllocation>(&client)
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(allocations.items.len(), 52);
    assert_eq!(count(&ovn, "Logical_Switch"), 1);
    assert_eq!(count(&ovn, "Logical_Switch_Port"), 50);
    assert_eq!(count(&ovn, "DHCP_Options"), 1);
    let before: HashSet<_> = ports.iter().map(ResourceExt::resource_version).collect();

    // An idle manager, and one that starts again, write nothing.
    manager.stop().await;
    let manager = Manager::start(&server, &ovn, "b").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ports = api::<Port>(&client)
        .list(&ListParams::default())
        .await
        .unwrap();
    let after: HashSet<_> = ports.iter().map(ResourceExt::resource_version).collect();
    assert_eq!(before, after);

    // Damage by hand is repaired.
    let id = ports.items[0]
        .status
        .as_ref()
        .unwrap()
        .port_id
        .clone()
        .unwrap();
    ovn.nbctl(&["lsp-del", &id]);
    let start = Instant::now();
    while count(&ovn, "Logical_Switch_Port") != 50 {
        assert!(start.elapsed() < Duration::from_secs(10), "not repaired");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // What is in use stays and says by whom.
    api::<Network>(&client)
        .delete("net", &DeleteParams::default())
        .await
        .unwrap();
    let message = reason::<Network>(&client, "net", "InUse").await;
    assert!(message.contains("and 46 more"), "{message}");
    api::<Subnet>(&client)
        .delete("v4", &DeleteParams::default())
        .await
        .unwrap();
    reason::<Subnet>(&client, "v4", "InUse").await;
    delete_all::<SecurityGroup>(&client).await;
    reason::<SecurityGroup>(&client, "default", "InUse").await;

    delete_all::<Port>(&client).await;
    gone::<Port>(&client).await;
    gone::<Subnet>(&client).await;
    gone::<Network>(&client).await;
    gone::<SecurityGroup>(&client).await;
    gone::<IPAllocation>(&client).await;
    for table in ["Logical_Switch", "Logical_Switch_Port", "DHCP_Options"] {
        assert_eq!(count(&ovn, table), 0, "{table}");
    }
    // A default group that its user deleted is not made again.
    make(&client, network("net")).await;
    make(&client, port("late", "net")).await;
    reason::<Port>(&client, "late", "NoSubnet").await;
    gone::<SecurityGroup>(&client).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_port_takes_three_writes() {
    let server = TestServer::start().await;
    server.namespace(NAMESPACE).await;
    let ovn = ovn::Ovn::start();
    drop(ovn.connect().await);
    let client = server.client();
    let manager = Manager::start(&server, &ovn, "a").await;
    make(&client, network("net")).await;
    make(&client, subnet("v4", "net", "10.0.0.0/24")).await;
    reason::<Subnet>(&client, "v4", "Ready").await;
    // Made by a user, so without a finalizer: finalizer, IPAllocation, status.
    make(&client, port("p", "net")).await;
    reason::<Port>(&client, "p", "Ready").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let port = api::<Port>(&client).get("p").await.unwrap();
    // The API server counts writes of an object's metadata and status in its managed
    // fields: one entry for each writer and subresource, and each write moves its time.
    let entries = port.metadata.managed_fields.clone().unwrap();
    assert!(entries.len() <= 3, "{entries:#?}");
    let first: u64 = port.resource_version().unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let port = api::<Port>(&client).get("p").await.unwrap();
    let last: u64 = port.resource_version().unwrap().parse().unwrap();
    assert_eq!(first, last);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_reported_and_affects_nothing_else() {
    let server = TestServer::start().await;
    server.namespace(NAMESPACE).await;
    let ovn = ovn::Ovn::start();
    drop(ovn.connect().await);
    let client = server.client();
    let manager = Manager::start(&server, &ovn, "a").await;

    let mut big = network("big");
    big.spec.mtu = Some(9000);
    make(&client, big).await;
    let message = reason::<Network>(&client, "big", "InvalidSpec").await;
    assert!(
        message.contains("9000") && message.contains("1442"),
        "{message}"
    );

    // A Port that comes before everything it needs.
    make(&client, port("early", "net")).await;
    reason::<Port>(&client, "early", "NetworkNotFound").await;
    make(&client, network("net")).await;
    reason::<Port>(&client, "early", "NoSubnet").await;
    make(&client, subnet("host-bits", "net", "10.0.0.7/29")).await;
    let message = reason::<Subnet>(&client, "host-bits", "InvalidSpec").await;
    assert!(message.contains("10.0.0.0/29"), "{message}");
    make(&client, subnet("small", "net", "10.0.0.0/29")).await;
    reason::<Port>(&client, "early", "Ready").await;
    make(&client, subnet("overlap", "net", "10.0.0.0/24")).await;
    let message = reason::<Subnet>(&client, "overlap", "SubnetOverlap").await;
    assert!(message.contains("Subnet small"), "{message}");

    let early = api::<Port>(&client).get("early").await.unwrap();
    let status = early.status.unwrap();
    let address = status.addresses.unwrap();
    make(&client, with_address("taken", "net", &address)).await;
    let message = reason::<Port>(&client, "taken", "AddressInUse").await;
    assert!(message.contains("Port demo/early"), "{message}");
    make(&client, with_address("outside", "net", "10.9.0.1")).await;
    reason::<Port>(&client, "outside", "AddressOutsideSubnet").await;
    make(&client, with_address("malformed", "net", "10.0.0")).await;
    reason::<Port>(&client, "malformed", "InvalidSpec").await;
    let mut same = port("same-mac", "net");
    same.spec.mac_address = status.mac_address;
    make(&client, same).await;
    let message = reason::<Port>(&client, "same-mac", "MacInUse").await;
    assert!(message.contains("demo/early"), "{message}");
    let mut groupless = port("groupless", "net");
    groupless.spec.security_groups = Some(vec!["nobody".into()]);
    make(&client, groupless).await;
    reason::<Port>(&client, "groupless", "SecurityGroupNotFound").await;
    for n in 0..3 {
        make(&client, port(&format!("fill{n}"), "net")).await;
    }
    let full = reason_of_any(&client, &["fill0", "fill1", "fill2"], "SubnetExhausted").await;
    // Room frees: the one that waits gets it.
    api::<Port>(&client)
        .delete("groupless", &DeleteParams::default())
        .await
        .unwrap();
    reason::<Port>(&client, &full, "Ready").await;

    // OVN away: what is new says so and recovers by itself; what is there keeps its word.
    let mut ovn = ovn;
    ovn.kill_nb();
    make(&client, network("waiting")).await;
    reason::<Network>(&client, "waiting", "NetworkUnavailable").await;
    reason::<Port>(&client, "early", "Ready").await;
    ovn.restart_nb();
    reason::<Network>(&client, "waiting", "Ready").await;
    manager.stop().await;
    let servers: Api<Server> = api(&client);
    assert!(
        servers
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

async fn reason_of_any(client: &Client, names: &[&str], wanted: &str) -> String {
    let start = Instant::now();
    loop {
        for name in names {
            let port = api::<Port>(client).get(name).await.unwrap();
            let conditions = port.status.unwrap_or_default().conditions;
            if conditions.iter().any(|c| c.reason == wanted) {
                return (*name).to_owned();
            }
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "none is {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Makes the API server refuse to release the addresses of the Port `stuck`.
async fn refuse_release(client: &Client) -> Api<ValidatingAdmissionPolicyBinding> {
    let rule = serde_json::json!({
        "apiGroups": ["pileus.dev"], "apiVersions": ["*"], "operations": ["DELETE"],
        "resources": ["ipallocations"],
    });
    let policy = serde_json::json!({
        "metadata": {"name": "stuck"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "oldObject.spec.?port.orValue('') != 'stuck'"}],
        },
    });
    let binding = serde_json::json!({
        "metadata": {"name": "stuck"},
        "spec": {"policyName": "stuck", "validationActions": ["Deny"]},
    });
    let policies = Api::<ValidatingAdmissionPolicy>::all(client.clone());
    let policy = serde_json::from_value(policy).unwrap();
    policies
        .create(&PostParams::default(), &policy)
        .await
        .unwrap();
    let bindings = Api::all(client.clone());
    let binding = serde_json::from_value(binding).unwrap();
    bindings
        .create(&PostParams::default(), &binding)
        .await
        .unwrap();
    // It comes into force a moment later.
    let allocations = api::<IPAllocation>(client)
        .list(&ListParams::default())
        .await
        .unwrap();
    let stuck = allocations.items.iter();
    let mut stuck = stuck.filter(|a| a.spec.port.as_deref() == Some("stuck"));
    let name = stuck.next().unwrap().name_any();
    let dry = DeleteParams {
        dry_run: true,
        ..DeleteParams::default()
    };
    let start = Instant::now();
    while api::<IPAllocation>(client)
        .delete(&name, &dry)
        .await
        .is_ok()
    {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bindings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_cannot_be_released_keeps_nobody_elses_finalizer() {
    let server = TestServer::start().await;
    server.namespace(NAMESPACE).await;
    let ovn = ovn::Ovn::start();
    drop(ovn.connect().await);
    let client = server.client();
    let manager = Manager::start(&server, &ovn, "a").await;
    make(&client, network("net")).await;
    make(&client, subnet("v4", "net", "10.0.0.0/24")).await;
    for name in ["stuck", "free"] {
        make(&client, port(name, "net")).await;
        reason::<Port>(&client, name, "Ready").await;
    }
    let bindings = refuse_release(&client).await;
    let ports = api::<Port>(&client);
    for name in ["stuck", "free"] {
        ports.delete(name, &DeleteParams::default()).await.unwrap();
    }
    let message = reason::<Port>(&client, "stuck", "Retrying").await;
    assert!(message.contains("could not be released"), "{message}");
    let start = Instant::now();
    while ports.get_opt("free").await.unwrap().is_some() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it waits for another"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bindings
        .delete("stuck", &DeleteParams::default())
        .await
        .unwrap();
    gone::<Port>(&client).await;
    manager.stop().await;
}
