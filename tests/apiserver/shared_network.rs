//! Networks that are shared with other namespaces, and what of a range is whose, on a real API server
//! and a real Northbound database.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use pileus_api::ip_allocation::allocation_name;
use pileus_api::port::AddressPair;
use pileus_api::subnet::AllocationPool;
use pileus_api::{IPAllocation, IPAllocationSpec, Network, Port, PortStatus, Subnet};
use pileus_tests::apiserver::{TestServer, until};
use pileus_tests::ovn::Ovn;
use serde_json::json;

use super::network::{
    Manager, NAMESPACE, api, count, gone, make, network, port, reason, subnet, with_address,
};

const GUEST: &str = "guest";

fn namespaced<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), namespace)
}

/// A Network with a Subnet, and a namespace beside that of its owner.
struct World {
    server: TestServer,
    ovn: Ovn,
    manager: Manager,
    client: Client,
    /// Those of the guest.
    ports: Api<Port>,
}

impl World {
    async fn start(pool: Option<AllocationPool>) -> Self {
        let server = TestServer::start().await;
        server.namespace(NAMESPACE).await;
        server.namespace(GUEST).await;
        let ovn = Ovn::start();
        drop(ovn.connect().await);
        let client = server.client();
        let manager = Manager::start(&server, &ovn, "a").await;
        make(&client, network("net")).await;
        let mut range = subnet("v4", "net", "10.32.0.0/24");
        range.spec.allocation_pools.extend(pool);
        make(&client, range).await;
        reason::<Subnet>(&client, "v4", "Ready").await;
        let ports = namespaced(&client, GUEST);
        Self {
            server,
            ovn,
            manager,
            client,
            ports,
        }
    }

    async fn share(&self, with: &[&str]) {
        let spec = json!({"spec": {"sharedWith": {"namespaces": with}}});
        let networks = api::<Network>(&self.client);
        let params = PatchParams::default();
        networks
            .patch("net", &params, &Patch::Merge(&spec))
            .await
            .unwrap();
    }

    async fn make_theirs(&self, name: &str, pairs: Vec<AddressPair>) {
        let mut it = port(name, "net");
        it.spec.network.namespace = Some(NAMESPACE.into());
        it.spec.allowed_address_pairs = pairs;
        self.ports
            .create(&PostParams::default(), &it)
            .await
            .unwrap();
    }

    /// The status of a Port of the guest's, once its condition has that reason.
    async fn theirs(&self, name: &str, wanted: &str) -> PortStatus {
        let found = until(&self.ports, name, wanted, |port| {
            let conditions = port.status.as_ref().map(|s| s.conditions.as_slice());
            let mut conditions = conditions.unwrap_or_default().iter();
            conditions.any(|c| c.reason == wanted)
        });
        found.await.status.unwrap()
    }

    async fn stop(self) {
        self.manager.stop().await;
        drop(self.server);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_of_a_network_have_what_its_owner_gives_and_as_long() {
    let world = World::start(None).await;
    // As if there were none, in the very words.
    world.make_theirs("a", Vec::new()).await;
    let strange = world.theirs("a", "NetworkNotFound").await;
    let message = &strange.conditions[0].message;
    assert!(message.contains("does not exist, or"), "{message}");
    world.share(&[GUEST]).await;
    let first = world.theirs("a", "Ready").await;
    let pair = AddressPair {
        name: "gateway".into(),
        address: "10.32.0.1".into(),
        mac_address: None,
    };
    world.make_theirs("greedy", vec![pair]).await;
    world.theirs("greedy", "Forbidden").await;
    assert_eq!(count(&world.ovn, "Logical_Switch_Port"), 1);

    world.share(&[]).await;
    let unplugged = world.theirs("a", "NetworkNotFound").await;
    assert_eq!(unplugged.addresses, first.addresses);
    assert_eq!(unplugged.mac_address, first.mac_address);
    assert_eq!(count(&world.ovn, "Logical_Switch_Port"), 0);
    let networks = api::<Network>(&world.client);
    until(&networks, "net", "tells its owner", |network| {
        let status = network.status.as_ref().unwrap();
        status.unplugged_namespaces == [GUEST]
    })
    .await;
    world.share(&[GUEST]).await;
    let again = world.theirs("a", "Ready").await;
    assert_eq!(again.fixed_ips, first.fixed_ips);
    assert_eq!(count(&world.ovn, "Logical_Switch_Port"), 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_of_a_network_never_hold_its_owner_up() {
    let world = World::start(None).await;
    let client = &world.client;
    world.share(&[GUEST]).await;
    world.make_theirs("a", Vec::new()).await;
    let first = world.theirs("a", "Ready").await;
    // What a guest makes in its own namespace holds nothing of the Network.
    let subnet = api::<Subnet>(client).get("v4").await.unwrap();
    let theirs = namespaced::<IPAllocation>(client, GUEST);
    for host in 1..=254_u8 {
        let address = IpAddr::from([10, 32, 0, host]);
        let name = allocation_name(&subnet.uid().unwrap(), address);
        let spec = IPAllocationSpec {
            address: address.to_string(),
            subnet: "v4".into(),
            port: Some("a".into()),
            ..IPAllocationSpec::default()
        };
        let forged = IPAllocation::new(&name, spec);
        theirs
            .create(&PostParams::default(), &forged)
            .await
            .unwrap();
    }
    make(client, port("own", "net")).await;
    reason::<Port>(client, "own", "Ready").await;
    let (every, none) = (ListParams::default(), DeleteParams::default());
    api::<Port>(client).delete("own", &none).await.unwrap();
    gone::<Port>(client).await;

    // The owner's namespace goes: everything in it at once.
    let allocations = api::<IPAllocation>(client);
    allocations.delete_collection(&none, &every).await.unwrap();
    let subnets = api::<Subnet>(client);
    subnets.delete_collection(&none, &every).await.unwrap();
    let networks = api::<Network>(client);
    networks.delete_collection(&none, &every).await.unwrap();
    gone::<Network>(client).await;
    gone::<Subnet>(client).await;
    gone::<IPAllocation>(client).await;
    let left = world.theirs("a", "NetworkNotFound").await;
    assert_eq!(left.addresses, first.addresses);
    for table in ["Logical_Switch", "Logical_Switch_Port", "DHCP_Options"] {
        assert_eq!(count(&world.ovn, table), 0, "{table}");
    }
    world.ports.delete_collection(&none, &every).await.unwrap();
    let begun = Instant::now();
    while !world.ports.list(&every).await.unwrap().items.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "Ports hang");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_outside_of_the_pools_is_the_users() {
    let pool = AllocationPool {
        name: "all".into(),
        start: "10.32.0.10".into(),
        end: "10.32.0.250".into(),
    };
    let world = World::start(Some(pool)).await;
    make(&world.client, with_address("router", "net", "10.32.0.254")).await;
    reason::<Port>(&world.client, "router", "Ready").await;
    let subnet = api::<Subnet>(&world.client).get("v4").await.unwrap();
    let service = subnet.status.unwrap().service_ip;
    assert_eq!(service.as_deref(), Some("10.32.0.250"));
    let arguments = ["--bare", "--columns=options", "list", "DHCP_Options"];
    let options = world.ovn.nbctl(&arguments);
    assert!(options.contains("server_id=10.32.0.250"), "{options}");
    world.stop().await;
}
