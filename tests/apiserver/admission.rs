//! What roles cannot keep apart is refused by admission policies, on a real API server.
#![allow(clippy::too_many_lines, reason = "one server, many cases")]

use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use pileus_api::names::{AGENT_FINALIZER, MANAGER_FINALIZER, SERVER_UID_LABEL, host_namespace};
use pileus_api::{
    Host, Image, Instance, KeyPair, Network, Port, SecurityGroup, SecurityGroupRule, Server,
    ServerGroup, Stack, Subnet,
};
use pileus_tests::apiserver::{TestServer, create};
use pileus_tests::servers::KEY;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const MANAGER: &str = "system:serviceaccount:pileus-system:manager";

/// An API server with roles and policies, where `alice` may write everything in `demo`, and with
/// the policies in force.
async fn server() -> TestServer {
    let server = TestServer::start().await;
    for namespace in ["demo", "pileus-host-h1", "pileus-host-h2"] {
        server.namespace(namespace).await;
    }
    for file in [
        "config/rbac/manager.yaml",
        "config/rbac/tenants.yaml",
        "config/admission/metadata.yaml",
        "config/admission/servers.yaml",
        "config/admission/agents.yaml",
    ] {
        server.apply(file).await;
    }
    for role in ["pileus-view", "pileus-edit"] {
        bind(&server, "demo", "alice", role).await;
    }
    let servers: Api<Server> = Api::namespaced(server.client_of("alice"), "demo");
    let pairs: Api<KeyPair> = Api::namespaced(server.client_of("alice"), "demo");
    let agent = server.client_of(&agent("h1"));
    let leases: Api<Lease> = Api::namespaced(agent, &host_namespace("h1"));
    let everything = json!({"metadata": {"name": "agents"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": "pileus-host-h1"}]});
    create(&Api::<ClusterRoleBinding>::all(server.client()), everything).await;
    let start = Instant::now();
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    // The API server takes a moment to put policies into force.
    loop {
        let label = json!({"name": "p", "labels": {SERVER_UID_LABEL: "x"}});
        let pair = object(json!({"metadata": label, "spec": {"publicKey": KEY}}));
        let toleration = json!({"tolerations": [{"name": "*"}]});
        let tried = object(json!({"metadata": {"name": "s"}, "spec": spec(&toleration)}));
        let lease = object(json!({"metadata": {"name": "other"}}));
        let refused = [
            pairs.create(&dry, &pair).await.is_err(),
            servers.create(&dry, &tried).await.is_err(),
            leases.create(&dry, &lease).await.is_err(),
        ];
        if refused == [true; 3] {
            return server;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "{refused:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn agent(host: &str) -> String {
    format!("system:serviceaccount:{}:agent", host_namespace(host))
}

async fn bind(server: &TestServer, namespace: &str, user: &str, role: &str) {
    let api: Api<RoleBinding> = Api::namespaced(server.client(), namespace);
    let binding = json!({"metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]});
    create(&api, binding).await;
}

fn object<K: Resource<DynamicType = ()> + DeserializeOwned>(mut value: Value) -> K {
    value["apiVersion"] = K::api_version(&()).into();
    value["kind"] = K::kind(&()).into();
    serde_json::from_value(value).unwrap()
}

fn spec(placement: &Value) -> Value {
    json!({"flavor": "small", "image": {"name": "tiny"}, "placement": placement})
}

/// What the API server says of a request that it forbids.
fn forbidden<T: Debug>(answer: kube::Result<T>) -> String {
    match answer {
        Err(kube::Error::Api(status)) if status.is_forbidden() => status.message,
        other => panic!("it is not forbidden: {other:?}"),
    }
}

async fn try_patch<K>(client: &Client, namespace: &str, name: &str, patch: Value) -> kube::Result<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(patch);
    api.patch(name, &PatchParams::default(), &patch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_touch_the_metadata_of_pileus() {
    let server = server().await;
    let alice = server.client_of("alice");
    let manager = server.client_of(MANAGER);
    let pairs: Api<KeyPair> = Api::namespaced(alice.clone(), "demo");
    let post = PostParams::default();
    let pair = |metadata: Value| {
        object::<KeyPair>(json!({"metadata": metadata, "spec": {"publicKey": KEY}}))
    };
    for (metadata, named) in [
        (
            json!({"labels": {"pileus.dev/server-uid": "u"}}),
            "pileus.dev/server-uid",
        ),
        (
            json!({"labels": {"pileus.dev/anything": "u"}}),
            "pileus.dev/anything",
        ),
        (
            json!({"annotations": {"pileus.dev/built-from": "{}"}}),
            "pileus.dev/built-from",
        ),
        (
            json!({"annotations": {"pileus.dev/stack-digest": "d"}}),
            "pileus.dev/stack-digest",
        ),
        (
            json!({"finalizers": [MANAGER_FINALIZER]}),
            MANAGER_FINALIZER,
        ),
        (json!({"finalizers": [AGENT_FINALIZER]}), AGENT_FINALIZER),
    ] {
        let mut metadata = metadata;
        metadata["name"] = json!("forged");
        let why = forbidden(pairs.create(&post, &pair(metadata)).await);
        assert!(why.contains(named) && why.contains("only Pileus"), "{why}");
    }
    // What is theirs: their own labels, and what they ask of Stacks.
    let fine = json!({"name": "mine", "labels": {"app": "x", "lab.pileus.dev/a": "b"},
        "annotations": {"pileus.dev/clear-hooks": "*", "pileus.dev/rebuild-record": "x"}});
    pairs.create(&post, &pair(fine)).await.unwrap();

    // The manager takes it over; the tenant goes on with everything else.
    let ours = json!({"metadata": {"finalizers": [MANAGER_FINALIZER],
        "labels": {"pileus.dev/stack-uid": "u"}, "annotations": {"pileus.dev/stack-digest": "d"}}});
    try_patch::<KeyPair>(&manager, "demo", "mine", ours)
        .await
        .unwrap();
    let other = json!({"metadata": {"labels": {"app": "y", "more": "z"}, "annotations":
        {"a": "b", "pileus.dev/clear-hooks": null}}});
    try_patch::<KeyPair>(&alice, "demo", "mine", other)
        .await
        .unwrap();
    for change in [
        json!({"finalizers": null}),
        json!({"finalizers": ["example.org/mine"]}),
        json!({"labels": {"pileus.dev/stack-uid": null}}),
        json!({"labels": {"pileus.dev/stack-uid": "another"}}),
        json!({"labels": null}),
        json!({"annotations": null}),
        json!({"annotations": {"pileus.dev/stack-digest": null}}),
    ] {
        let told = change.to_string();
        let patched =
            try_patch::<KeyPair>(&alice, "demo", "mine", json!({"metadata": change})).await;
        let why = forbidden(patched);
        assert!(
            why.contains("only Pileus") && why.contains("pileus.dev/"),
            "{told}: {why}"
        );
    }
    // A finalizer of one's own goes beside ours, and what is deleted goes when the manager lets it.
    let both = json!({"metadata": {"finalizers": [MANAGER_FINALIZER, "example.org/mine"]}});
    try_patch::<KeyPair>(&alice, "demo", "mine", both)
        .await
        .unwrap();
    pairs
        .delete("mine", &DeleteParams::foreground())
        .await
        .unwrap();
    let held = pairs.get("mine").await.unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    let without: Vec<_> = held
        .metadata
        .finalizers
        .unwrap()
        .into_iter()
        .filter(|f| f == MANAGER_FINALIZER)
        .collect();
    try_patch::<KeyPair>(
        &alice,
        "demo",
        "mine",
        json!({"metadata": {"finalizers": without}}),
    )
    .await
    .unwrap();
    try_patch::<KeyPair>(
        &manager,
        "demo",
        "mine",
        json!({"metadata": {"finalizers": null}}),
    )
    .await
    .unwrap();
    assert!(pairs.get_opt("mine").await.unwrap().is_none());

    // Kubernetes' garbage collector removes owners and its own finalizers.
    let collector = "system:serviceaccount:kube-system:generic-garbage-collector";
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u"}]);
    let metadata = json!({"name": "owned", "ownerReferences": owner, "finalizers": ["orphan"]});
    pairs.create(&post, &pair(metadata)).await.unwrap();
    let freed = json!({"metadata": {"ownerReferences": null, "finalizers": null}});
    try_patch::<KeyPair>(&server.client_of(collector), "demo", "owned", freed)
        .await
        .unwrap();

    // An administrator has the last word.
    let admin = server.client();
    let repaired = json!({"metadata": {"finalizers": [MANAGER_FINALIZER]}});
    try_patch::<KeyPair>(&admin, "demo", "owned", repaired)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_that_tenants_write_keeps_the_metadata_of_pileus() {
    let server = server().await;
    let alice = server.client_of("alice");
    macro_rules! refused {
        ($kind:ty, $spec:expr) => {
            let api: Api<$kind> = Api::namespaced(alice.clone(), "demo");
            let label = json!({"name": "forged", "labels": {SERVER_UID_LABEL: "u"}});
            let forged = object::<$kind>(json!({"metadata": label, "spec": $spec}));
            let why = forbidden(api.create(&PostParams::default(), &forged).await);
            assert!(why.contains(SERVER_UID_LABEL), "{why}");
        };
    }
    refused!(Server, json!({"flavor": "f", "image": {"name": "i"}}));
    refused!(ServerGroup, json!({"policy": "Affinity"}));
    refused!(KeyPair, json!({"publicKey": KEY}));
    refused!(
        Image,
        json!({"source": {"url": "https://images.example/a"}})
    );
    refused!(Network, json!({}));
    refused!(Subnet, json!({"network": "n", "cidr": "10.0.0.0/24"}));
    refused!(Port, json!({"network": {"name": "n"}}));
    refused!(SecurityGroup, json!({}));
    refused!(SecurityGroupRule, json!({"securityGroup": "g"}));
    refused!(Stack, json!({"template": "heat_template_version: newton"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_choose_hosts_or_push_others_away_need_a_permission() {
    let server = server().await;
    let alice = server.client_of("alice");
    let servers: Api<Server> = Api::namespaced(alice.clone(), "demo");
    let post = PostParams::default();
    let with = |name: &str, placement: &Value| {
        object::<Server>(json!({"metadata": {"name": name}, "spec": spec(placement)}))
    };
    let privileged = [
        (
            json!({"hostSelector": {"zone": "secure"}}),
            "use-host-selector",
        ),
        (json!({"hostCIDR": "10.1.0.0/16"}), "use-host-selector"),
        (
            json!({"query": "[\">=\", \"$free_ram_mb\", 1024]"}),
            "use-host-selector",
        ),
        (
            json!({"tolerations": [{"name": "reserved"}]}),
            "use-tolerations",
        ),
        (
            json!({"priorityClass": "system-node-critical"}),
            "system-node-critical",
        ),
        (json!({"priorityClass": "gold"}), "gold"),
    ];
    for (placement, named) in &privileged {
        let why = forbidden(servers.create(&post, &with("no", placement)).await);
        assert!(
            why.contains(named) && why.contains("administrator"),
            "{why}"
        );
    }
    let allowed = json!({"availabilityZone": "a", "serverGroup": "g", "sameHost": ["x"], "differentHost": ["y"],
        "spread": {"set": "s", "over": [{"name": "rack"}]}, "hostSelector": {}, "tolerations": []});
    servers
        .create(&post, &with("plain", &allowed))
        .await
        .unwrap();
    servers
        .create(
            &post,
            &object(json!({"metadata": {"name": "none"},
        "spec": {"flavor": "f", "image": {"name": "i"}}})),
        )
        .await
        .unwrap();
    for (placement, _) in &privileged {
        let patch = json!({"spec": {"placement": placement}});
        forbidden(try_patch::<Server>(&alice, "demo", "plain", patch).await);
    }

    // What an administrator gave stays; the tenant changes the rest, and takes it away.
    let given = json!({"hostSelector": {"zone": "secure", "rack": "1"}, "tolerations": [{"name": "a"}, {"name": "b"}],
        "priorityClass": "gold", "query": "[\"=\", 1, 1]", "hostCIDR": "10.1.0.0/16"});
    let all: Api<Server> = Api::namespaced(server.client(), "demo");
    all.create(&post, &with("given", &given)).await.unwrap();
    for fine in [
        json!({"runState": "Stopped"}),
        json!({"placement": {"hostSelector": {"rack": null}, "tolerations": [{"name": "b"}]}}),
        json!({"placement": {"priorityClass": null}}),
    ] {
        try_patch::<Server>(&alice, "demo", "given", json!({"spec": fine}))
            .await
            .unwrap();
    }
    for more in [
        json!({"hostSelector": {"zone": "other"}}),
        json!({"hostSelector": {"disk": "ssd"}}),
        json!({"tolerations": [{"name": "b"}, {"name": "c"}]}),
        json!({"priorityClass": "gold"}),
        json!({"query": "[\"=\", 1, 2]"}),
    ] {
        let patch = json!({"spec": {"placement": more}});
        forbidden(try_patch::<Server>(&alice, "demo", "given", patch).await);
    }
    try_patch::<Server>(
        &alice,
        "demo",
        "given",
        json!({"spec": {"placement": null}}),
    )
    .await
    .unwrap();

    // Permissions: by the shipped role, and by class.
    bind(&server, "demo", "alice", "pileus-placement").await;
    let roles: Api<Role> = Api::namespaced(server.client(), "demo");
    let role = json!({"metadata": {"name": "gold"}, "rules": [{"apiGroups": ["scheduling.k8s.io"],
        "resources": ["priorityclasses"], "resourceNames": ["gold"], "verbs": ["use"]}]});
    create(&roles, role).await;
    let bindings: Api<RoleBinding> = Api::namespaced(server.client(), "demo");
    let binding = json!({"metadata": {"name": "gold"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "gold"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}]});
    create(&bindings, binding).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (number, (placement, named)) in privileged.iter().enumerate() {
        let answer = servers
            .create(&post, &with(&format!("may-{number}"), placement))
            .await;
        if *named == "system-node-critical" {
            forbidden(answer);
        } else {
            answer.unwrap();
        }
    }
    // The manager's own writes are not refused.
    let finalizers = json!({"metadata": {"finalizers": [MANAGER_FINALIZER]}});
    let manager = server.client_of(MANAGER);
    try_patch::<Server>(&manager, "demo", "may-0", finalizers)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_writes_of_its_own_host_alone_whatever_roles_it_has() {
    let server = server().await;
    let admin = server.client();
    let agent = server.client_of(&agent("h1"));
    let hosts: Api<Host> = Api::all(agent.clone());
    let post = PostParams::default();
    for name in ["h1", "h2"] {
        create(
            &Api::<Host>::all(admin.clone()),
            json!({"metadata": {"name": name}, "spec": {}}),
        )
        .await;
        let api: Api<Instance> = Api::namespaced(admin.clone(), &host_namespace(name));
        create(&api, instance()).await;
    }
    let params = PatchParams::default();
    let status = |status: Value| Patch::Merge(json!({"status": status}));
    let own =
        status(json!({"bootID": "b", "capacity": {"vcpus": 4, "memoryMiB": 1, "diskGiB": 1}}));
    hosts.patch_status("h1", &params, &own).await.unwrap();
    let apply = json!({"apiVersion": "pileus.dev/v1alpha1", "kind": "Host", "metadata": {"name": "h1"},
        "status": {"bootID": "c"}});
    let as_agent = PatchParams::apply("pileus-agent").force();
    hosts
        .patch_status("h1", &as_agent, &Patch::Apply(&apply))
        .await
        .unwrap();

    let why = forbidden(hosts.patch_status("h2", &params, &own).await);
    assert!(why.contains("agent of h1") && why.contains("h2"), "{why}");
    forbidden(
        hosts
            .patch_status(
                "h1",
                &params,
                &status(json!({"allocationRatios": {"cpu": "99"}})),
            )
            .await,
    );
    forbidden(
        hosts
            .patch_status(
                "h1",
                &params,
                &status(json!({"wantedMetrics": ["cpu.percent"]})),
            )
            .await,
    );
    let ready = json!([{"type": "Ready", "status": "True", "reason": "Ok", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    forbidden(
        hosts
            .patch_status("h1", &params, &status(json!({"conditions": ready})))
            .await,
    );
    forbidden(
        hosts
            .patch(
                "h1",
                &params,
                &Patch::Merge(json!({"spec": {"taints": []}})),
            )
            .await,
    );
    let label = Patch::Merge(json!({"metadata": {"labels": {"zone": "secure"}}}));
    let why = forbidden(hosts.patch("h1", &params, &label).await);
    assert!(why.contains("not hosts"), "{why}");
    forbidden(
        hosts
            .create(
                &post,
                &object(json!({"metadata": {"name": "h3"}, "spec": {}})),
            )
            .await,
    );
    let gone = hosts.delete("h1", &DeleteParams::default()).await;
    assert!(matches!(gone, Err(kube::Error::Api(status)) if status.is_forbidden()));

    let here = host_namespace("h1");
    let finalizers = json!({"metadata": {"finalizers": [AGENT_FINALIZER]}});
    try_patch::<Instance>(&agent, &here, "i", finalizers.clone())
        .await
        .unwrap();
    try_patch::<Instance>(
        &agent,
        &here,
        "i",
        json!({"metadata": {"finalizers": null}}),
    )
    .await
    .unwrap();
    forbidden(try_patch::<Instance>(&agent, &host_namespace("h2"), "i", finalizers).await);
    for change in [
        json!({"spec": {"epoch": 2}}),
        json!({"spec": {"runState": "Stopped"}}),
        json!({"spec": {"image": {"disk": {"digest": "sha256:00"}}}}),
        json!({"metadata": {"labels": {SERVER_UID_LABEL: "another"}}}),
        json!({"metadata": {"annotations": {"a": "b"}}}),
    ] {
        let why = forbidden(try_patch::<Instance>(&agent, &here, "i", change).await);
        assert!(why.contains("finalizers of Instances"), "{why}");
    }
    let instances = |host: &str| Api::<Instance>::namespaced(agent.clone(), &host_namespace(host));
    let report = status(json!({"powerState": "Running"}));
    instances("h1")
        .patch_status("i", &params, &report)
        .await
        .unwrap();
    forbidden(instances("h2").patch_status("i", &params, &report).await);
    let mut second = instance();
    second["metadata"]["name"] = json!("j");
    forbidden(instances("h1").create(&post, &object(second)).await);

    pileus_kube_ext::lease::heartbeat(&agent, &here, "h1")
        .await
        .unwrap();
    pileus_kube_ext::lease::heartbeat(&agent, &here, "h1")
        .await
        .unwrap();
    let other = pileus_kube_ext::lease::heartbeat(&agent, &host_namespace("h2"), "h1").await;
    assert!(other.is_err());
    let pairs: Api<KeyPair> = Api::namespaced(agent.clone(), "demo");
    let pair = object(json!({"metadata": {"name": "x"}, "spec": {"publicKey": KEY}}));
    forbidden(pairs.create(&post, &pair).await);
}

fn instance() -> Value {
    json!({"metadata": {"name": "i"}, "spec": {
        "server": {"namespace": "demo", "name": "s", "uid": "u"}, "host": "h1", "epoch": 1,
        "instanceID": "00000000-0000-0000-0000-000000000001",
        "claim": {"vcpus": 1, "memoryMiB": 64, "diskGiB": 1},
        "image": {"name": "tiny", "uid": "u", "diskFormat": "qcow2", "disk": {"url": "https://images.example/a"}}}})
}
