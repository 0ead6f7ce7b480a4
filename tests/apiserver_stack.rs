//! Stacks on a real API server. What Stacks are made of becomes ready by a hand of the
//! test's own, which writes what the other controllers would write, and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Client, Resource, ResourceExt};
use pileus::api::names::{MANAGER, MANAGER_FINALIZER, STACK_UID_LABEL};
use pileus::api::stack::StackResource;
use pileus::api::{
    ConditionType, Image, KeyPair, Network, Port, SecurityGroup, SecurityGroupRule, Server, Stack,
    Subnet, conditions,
};
use pileus::controllers::{Config, Manager, stack, stores, worker};
use pileus::kube_ext::{Context, Metrics};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::apiserver::{TestServer, create, until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "demo";
/// How long the manager may take for a step on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An API server, the controller of Stacks, and a hand that makes things ready.
struct Cloud {
    server: TestServer,
    controller: Option<Controller>,
}

struct Controller {
    stop: CancellationToken,
    running: JoinHandle<()>,
}

/// Writes what the controllers of the other kinds would.
struct Hand {
    client: Client,
}

impl Cloud {
    async fn start() -> Self {
        let server = TestServer::start().await;
        server.namespace(NAMESPACE).await;
        let hand = Hand {
            client: server.client(),
        };
        tokio::spawn(async move {
            loop {
                hand.pass().await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        let mut cloud = Self {
            server,
            controller: None,
        };
        cloud.start_controller().await;
        cloud
    }

    async fn start_controller(&mut self) {
        let context = Context::with_client(self.server.client(), MANAGER, Metrics::default());
        let context = context.await.unwrap();
        let (stores, wiring) = stores::watch(&context.client);
        let manager = Arc::new(Manager {
            context,
            stores,
            config: Config {
                ovn_nb: "unix:/nonexistent/ovnnb_db.sock".into(),
                underlay_mtu: 1500,
                underlay_ipv6: false,
                identity: "test".into(),
            },
            stacks: stack::Shared::default(),
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let running = tokio::spawn(async move {
            manager.stores.ready().await;
            worker::run(
                &manager,
                wiring.stacks,
                8,
                stack::reconcile,
                "stack",
                stopped,
            )
            .await;
        });
        self.controller = Some(Controller { stop, running });
    }

    /// Ends the controller at whatever point it is.
    fn kill_controller(&mut self) {
        if let Some(controller) = self.controller.take() {
            controller.running.abort();
            controller.stop.cancel();
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.server.client(), NAMESPACE)
    }

    async fn stack(&self, name: &str, spec: Value) -> Stack {
        create(
            &self.api::<Stack>(),
            json!({"metadata": {"name": name}, "spec": spec}),
        )
        .await
    }

    async fn change(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        let api = self.api::<Stack>();
        api.patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    async fn becomes(&self, name: &str, word: &str) -> Stack {
        until(&self.api::<Stack>(), name, word, |stack: &Stack| {
            word_of(stack) == word && is_observed(stack)
        })
        .await
    }

    /// How many objects of a kind the stacks have made.
    async fn count<K>(&self) -> usize
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let made = ListParams::default().labels(STACK_UID_LABEL);
        self.api::<K>().list(&made).await.unwrap().items.len()
    }

    async fn delete(&self, name: &str) {
        let api = self.api::<Stack>();
        api.delete(name, &DeleteParams::default()).await.unwrap();
        let start = Instant::now();
        while let Some(stack) = api.get_opt(name).await.unwrap() {
            assert!(start.elapsed() < PATIENCE, "{name} stays: {stack:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(self.count::<Server>().await, 0);
        assert_eq!(self.count::<Port>().await, 0);
        assert_eq!(self.count::<Network>().await, 0);
        assert_eq!(self.count::<Subnet>().await, 0);
        assert_eq!(self.count::<Secret>().await, 0);
    }
}

impl Hand {
    async fn pass(&self) {
        self.ready::<Network>(&|_| json!({"mtu": 1442})).await;
        self.ready::<Subnet>(&|_| json!({"gatewayIP": "10.20.0.1"}))
            .await;
        self.ready::<Port>(&|object| {
            let address = object["spec"]["fixedIPs"][0]["address"]
                .as_str()
                .unwrap_or("10.20.0.9");
            json!({"macAddress": "52:54:00:00:00:01",
                "fixedIPs": [{"subnet": "s", "address": address, "allocation": "a"}]})
        })
        .await;
        self.ready::<SecurityGroup>(&|_| json!({})).await;
        self.ready::<SecurityGroupRule>(&|_| json!({})).await;
        self.ready::<KeyPair>(&|_| json!({})).await;
        self.ready::<Image>(&|_| json!({})).await;
        self.ready::<Server>(&|_| {
            json!({"phase": "Active", "addresses": [
                {"name": "nic-0", "port": "p", "macAddress": "52:54:00:00:00:01", "ips": ["10.20.0.9"]}]})
        })
        .await;
    }

    /// Makes every object of a kind ready that its last change has not been seen of; a Server
    /// of the flavor `none` never can be.
    async fn ready<K>(&self, more: &(dyn Fn(&Value) -> Value + Sync))
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        let kind = ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &kind);
        let Ok(list) = api.list(&ListParams::default()).await else {
            return;
        };
        for object in list {
            let value = serde_json::to_value(&object).unwrap();
            let generation = object.metadata.generation;
            if value["status"]["observedGeneration"].as_i64() == generation {
                continue;
            }
            let good = value["spec"]["flavor"] != "none";
            let condition = |name: &str, holds: bool| {
                json!({"type": name, "status": if holds { "True" } else { "False" },
                    "reason": if good { "Ready" } else { "FlavorNotFound" },
                    "message": if good { "as asked" } else { "there is no Flavor `none`" },
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            };
            let mut status = more(&value);
            status["observedGeneration"] = json!(generation);
            status["conditions"] = json!([condition("Ready", good), condition("Stalled", !good)]);
            let patch = Patch::Merge(json!({"status": status}));
            // It may have gone meanwhile.
            let _ = api
                .patch_status(&object.name_any(), &PatchParams::default(), &patch)
                .await;
        }
    }
}

fn word_of(stack: &Stack) -> String {
    let status = stack.status.as_ref();
    status
        .and_then(|s| s.stack_status.clone())
        .unwrap_or_default()
}

fn is_observed(stack: &Stack) -> bool {
    let status = stack.status.as_ref();
    status.and_then(|s| s.observed_generation) == stack.metadata.generation
}

fn resources(stack: &Stack) -> BTreeMap<String, StackResource> {
    let rows = stack.status.clone().unwrap_or_default().resources;
    rows.into_iter()
        .map(|row| (row.name.clone(), row))
        .collect()
}

fn output(stack: &Stack, name: &str) -> Option<Value> {
    let outputs = stack.status.clone().unwrap_or_default().outputs;
    outputs
        .into_iter()
        .find(|output| output.name == name)?
        .value
}

fn ready(stack: &Stack) -> (String, String, String) {
    let conditions = stack.status.clone().unwrap_or_default().conditions;
    let ready = conditions::find(&conditions, ConditionType::Ready).unwrap();
    (
        ready.status.clone(),
        ready.reason.clone(),
        ready.message.clone(),
    )
}

fn object_name(row: &StackResource) -> String {
    let object = row.object.clone().unwrap();
    object.split_once('/').unwrap().1.to_owned()
}

const WEB: &str = r#"
heat_template_version: 2021-04-16
parameters:
  flavor: {type: string, default: small}
  password: {type: string, hidden: true, default: hunter2-and-more}
resources:
  network: {type: OS::Neutron::Net, properties: {name: private}}
  subnet:
    type: OS::Neutron::Subnet
    properties: {network: {get_resource: network}, cidr: 10.20.0.0/24}
  group:
    type: OS::Neutron::SecurityGroup
    properties: {rules: [{protocol: tcp, port_range_min: 22, port_range_max: 22}]}
  port:
    type: OS::Neutron::Port
    properties:
      network: {get_resource: network}
      fixed_ips: [{subnet: {get_resource: subnet}}]
      security_groups: [{get_resource: group}]
  key:
    type: OS::Nova::KeyPair
    properties: {name: web-key, public_key: ssh-ed25519 AAAA alice}
  word: {type: OS::Heat::RandomString, properties: {length: 12}}
  wait: {type: OS::Heat::Delay, properties: {min_wait: 0.2}}
  server:
    type: OS::Nova::Server
    depends_on: wait
    properties:
      image: tiny
      flavor: {get_param: flavor}
      key_name: {get_resource: key}
      networks: [{port: {get_resource: port}}]
      user_data_format: RAW
      user_data:
        str_replace:
          template: "echo $password"
          params: {$password: {get_param: password}}
outputs:
  address: {value: {get_attr: [server, first_address]}}
  mac: {value: {get_attr: [port, mac_address]}}
  word: {value: {get_attr: [word, value]}}
  secret: {value: {str_replace: {template: "p=$p", params: {$p: {get_param: password}}}}}
  digest: {value: {digest: [md5, {get_param: password}]}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_is_made_replaced_and_goes_without_a_trace() {
    let cloud = Cloud::start().await;
    cloud.stack("web", json!({"template": WEB})).await;
    let made = cloud.becomes("web", "CREATE_COMPLETE").await;
    assert_eq!(made.finalizers(), [MANAGER_FINALIZER]);
    assert_eq!(ready(&made).0, "True", "{made:#?}");
    assert_eq!(output(&made, "address"), Some(json!("10.20.0.9")));
    assert_eq!(output(&made, "mac"), Some(json!("52:54:00:00:00:01")));
    let word = output(&made, "word").unwrap();
    assert_eq!(word.as_str().map(str::len), Some(12));
    // What comes from hidden parameters is nowhere in the Stack.
    assert_eq!(output(&made, "secret"), Some(json!("******")));
    assert_eq!(output(&made, "digest"), Some(json!("******")));
    let status = serde_json::to_string(&made.status).unwrap();
    assert!(!status.contains("hunter2"), "{status}");
    // A Stack at rest is not written, which would wake its controller again and again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let at_rest = cloud.api::<Stack>().get("web").await.unwrap();
    assert_eq!(at_rest.resource_version(), made.resource_version());
    let first = resources(&made);
    assert_eq!(first.len(), 8, "{first:#?}");
    let server = cloud
        .api::<Server>()
        .get(&object_name(&first["server"]))
        .await
        .unwrap();
    assert_eq!(server.uid(), first["server"].physical_id);
    assert_eq!(server.owner_references()[0].uid, made.uid().unwrap());
    assert_eq!(server.spec.key_pairs, ["web-key"]);
    let data = server.spec.user_data_from.clone().unwrap();
    let secret = cloud.api::<Secret>().get(&data.name).await.unwrap();
    assert_eq!(secret.data.unwrap()["userData"].0, b"echo hunter2-and-more");

    // Another flavor: the Port cannot have two Servers, so the old one goes first.
    cloud
        .change("web", json!({"parameters": {"flavor": "large"}}))
        .await;
    let updated = cloud.becomes("web", "UPDATE_COMPLETE").await;
    let second = resources(&updated);
    assert_ne!(second["server"].physical_id, first["server"].physical_id);
    for kept in ["network", "subnet", "port", "group", "key"] {
        assert_eq!(second[kept].physical_id, first[kept].physical_id, "{kept}");
    }
    assert_eq!(cloud.count::<Server>().await, 1);
    assert_eq!(output(&updated, "word"), Some(word));
    cloud.delete("web").await;
}

/// Tenants can write the Secret with the record; it must not lend them the manager's rights.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_reaches_nothing_beyond_the_stack() {
    let cloud = Cloud::start().await;
    let template =
        "{heat_template_version: 2021-04-16, resources: {word: {type: OS::Heat::RandomString}}}";
    let stack = cloud.stack("forged", json!({"template": template})).await;
    cloud.becomes("forged", "CREATE_COMPLETE").await;

    let uid = stack.uid().unwrap();
    let elsewhere: Api<Secret> = Api::namespaced(cloud.server.client(), "default");
    let labels = json!({STACK_UID_LABEL: uid});
    create(
        &elsewhere,
        json!({"metadata": {"name": "victim", "labels": labels}}),
    )
    .await;
    let own: Api<Secret> = cloud.api();
    let mut record = own.get(&format!("stack-{uid}")).await.unwrap();
    let bytes = &mut record.data.as_mut().unwrap().get_mut("record").unwrap().0;
    let mut ledger: Value = serde_json::from_slice(bytes).unwrap();
    let mut entry = ledger["entries"]["word#1"].clone();
    entry["objects"] = json!([
        {"api_version": "v1", "kind": "Secret", "namespace": "default", "name": "victim"}]);
    ledger["entries"]["other#1"] = entry;
    *bytes = serde_json::to_vec(&ledger).unwrap();
    own.replace(&record.name_any(), &PostParams::default(), &record)
        .await
        .unwrap();

    cloud.delete("forged").await;
    let victim = elsewhere.get("victim").await.unwrap();
    assert!(victim.metadata.deletion_timestamp.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_is_told_before_anything_is() {
    let cloud = Cloud::start().await;
    let template = "heat_template_version: newton\nresources:\n  net: {type: OS::Neutron::Net}\n  router: {type: OS::Neutron::Router}\n";
    cloud.stack("refused", json!({"template": template})).await;
    let api = cloud.api::<Stack>();
    let told = |stack: &Stack, part: &str| is_observed(stack) && ready(stack).2.contains(part);
    until(&api, "refused", "names the type", |s| {
        told(s, "OS::Neutron::Router")
    })
    .await;
    assert_eq!(cloud.count::<Network>().await, 0);

    let template = "heat_template_version: newton\nresources:\n  net: {type: OS::Neutron::Net, properties: {qos_policy: gold}}\n";
    cloud.change("refused", json!({"template": template})).await;
    until(&api, "refused", "names the property", |s| {
        told(s, "qos_policy")
    })
    .await;
    let template = "heat_template_version: newton\nresources:\n  f: {type: OS::Nova::Flavor, properties: {ram: 64, vcpus: 1}}\n";
    cloud.change("refused", json!({"template": template})).await;
    until(&api, "refused", "asks for an account", |s| {
        told(s, "serviceAccountName")
    })
    .await;

    // What is missing is looked for again.
    cloud
        .change(
            "refused",
            json!({"template": null, "templateFrom": {"name": "t", "key": "t.yaml"}}),
        )
        .await;
    until(&api, "refused", "names the ConfigMap", |s| told(s, "`t`")).await;
    let template = "heat_template_version: newton\nresources: {net: {type: OS::Neutron::Net}}\n";
    create(
        &cloud.api::<ConfigMap>(),
        json!({"metadata": {"name": "t"}, "data": {"t.yaml": template}}),
    )
    .await;
    cloud.change("refused", json!({"tags": ["again"]})).await;
    cloud.becomes("refused", "CREATE_COMPLETE").await;
    cloud.delete("refused").await;
}

const SERVER: &str = "heat_template_version: newton
parameters: {image: {type: string}, flavor: {type: string}}
resources:
  word: {type: OS::Heat::RandomString, properties: {length: 8}}
  server:
    type: OS::Nova::Server
    properties: {image: {get_param: image}, flavor: {get_param: flavor}, metadata: {word: {get_attr: [word, value]}}}
outputs:
  address: {value: {get_attr: [server, first_address]}}
";

const GROUP: &str = "heat_template_version: newton
parameters: {count: {type: number, default: 3}, flavor: {type: string, default: small}}
resources:
  net: {type: OS::Neutron::Net}
  group:
    type: OS::Heat::ResourceGroup
    properties:
      count: {get_param: count}
      resource_def:
        type: server.yaml
        properties: {image: tiny, flavor: {get_param: flavor}}
outputs:
  addresses: {value: {get_attr: [group, address]}}
";

fn group(count: i64, flavor: &str) -> Value {
    json!({"template": GROUP, "files": {"server.yaml": SERVER}, "onFailure": "Rollback",
        "parameters": {"count": count, "flavor": flavor}})
}

/// uids of the Servers, by the resource that each stands for.
async fn servers(cloud: &Cloud) -> BTreeMap<String, String> {
    let list = cloud
        .api::<Server>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let row = |server: Server| {
        let path = server.annotations()["pileus.dev/stack-resource"].clone();
        (path, server.uid().unwrap())
    };
    list.into_iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_shrinks_and_returns_from_a_failed_update() {
    let cloud = Cloud::start().await;
    cloud.stack("many", group(3, "small")).await;
    let made = cloud.becomes("many", "CREATE_COMPLETE").await;
    assert_eq!(
        output(&made, "addresses"),
        Some(json!(["10.20.0.9", "10.20.0.9", "10.20.0.9"]))
    );
    let three = servers(&cloud).await;
    assert_eq!(
        three.keys().collect::<Vec<_>>(),
        ["group/0/server", "group/1/server", "group/2/server"]
    );

    cloud.change("many", group(5, "small")).await;
    cloud.becomes("many", "UPDATE_COMPLETE").await;
    let five = servers(&cloud).await;
    assert_eq!(five.len(), 5);
    assert!(three.iter().all(|(path, uid)| five[path] == *uid));

    cloud.change("many", group(2, "small")).await;
    let start = Instant::now();
    while servers(&cloud).await.len() != 2 {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let shrunk = cloud.becomes("many", "UPDATE_COMPLETE").await;
    let two = servers(&cloud).await;
    assert!(two.iter().all(|(path, uid)| three[path] == *uid));
    assert_eq!(
        output(&shrunk, "addresses"),
        Some(json!(["10.20.0.9", "10.20.0.9"]))
    );

    // No Server of this flavor can be: the old ones are still there, and stay.
    cloud.change("many", group(2, "none")).await;
    let back = cloud.becomes("many", "ROLLBACK_COMPLETE").await;
    assert_eq!(servers(&cloud).await, two);
    assert_eq!(ready(&back).0, "False");
    cloud.change("many", group(2, "large")).await;
    cloud.becomes("many", "UPDATE_COMPLETE").await;
    let large = servers(&cloud).await;
    assert!(
        large.iter().all(|(path, uid)| two[path] != *uid),
        "{large:?}"
    );
    cloud.delete("many").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_at_any_moment_leaves_no_mark() {
    let mut cloud = Cloud::start().await;
    let rounds = std::env::var("PILEUS_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = std::env::var("PILEUS_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("PILEUS_SEED={seed}");
    cloud.stack("many", group(3, "small")).await;
    for round in 0..rounds.unwrap_or(6) {
        // A linear congruence is random enough for moments.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(seed >> 33 & 0x1ff)).await;
        cloud.kill_controller();
        let flavor = if round % 2 == 0 { "small" } else { "large" };
        let count = i64::try_from(seed >> 40 & 3).unwrap() + 1;
        cloud.change("many", group(count, flavor)).await;
        cloud.start_controller().await;
    }
    cloud.change("many", group(4, "small")).await;
    let api = cloud.api::<Stack>();
    until(&api, "many", "comes to its end", |stack: &Stack| {
        is_observed(stack) && ready(stack).0 == "True"
    })
    .await;
    assert_eq!(servers(&cloud).await.len(), 4);
    assert_eq!(cloud.count::<Server>().await, 4);
    assert_eq!(cloud.count::<Network>().await, 1);
    cloud.delete("many").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_pileus_is_made_with_the_accounts_rights_only() {
    let cloud = Cloud::start().await;
    let account = json!({"metadata": {"name": "maker"}});
    create(&cloud.api::<ServiceAccount>(), account).await;
    let template = "heat_template_version: newton
resources:
  settings:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {a: b}}
outputs:
  kind: {value: {get_attr: [settings, object, data, a]}}
";
    let spec = json!({"template": template, "serviceAccountName": "maker"});
    cloud.stack("objects", spec).await;
    let failed = cloud.becomes("objects", "CREATE_FAILED").await;
    let why = &resources(&failed)["settings"].reason.clone().unwrap();
    assert!(why.contains("system:serviceaccount:demo:maker"), "{why}");

    let role = json!({"metadata": {"name": "maker"}, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "patch", "delete"]}]});
    create(&cloud.api::<Role>(), role).await;
    let binding = json!({"metadata": {"name": "maker"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "maker"},
        "subjects": [{"kind": "ServiceAccount", "name": "maker", "namespace": NAMESPACE}]});
    create(&cloud.api::<RoleBinding>(), binding).await;
    cloud
        .change("objects", json!({"healRequestedAt": "1"}))
        .await;
    let made = cloud.becomes("objects", "UPDATE_COMPLETE").await;
    assert_eq!(output(&made, "kind"), Some(json!("b")));
    let maps = cloud.api::<ConfigMap>();
    let first = maps.get("settings").await.unwrap();

    // A change in place, and one of the name, which is another object.
    cloud
        .change(
            "objects",
            json!({"template": template.replace("a: b", "a: c")}),
        )
        .await;
    until(&maps, "settings", "is changed", |map: &ConfigMap| {
        map.data.as_ref().is_some_and(|data| data["a"] == "c")
    })
    .await;
    cloud.becomes("objects", "UPDATE_COMPLETE").await;
    assert_eq!(maps.get("settings").await.unwrap().uid(), first.uid());
    cloud
        .change(
            "objects",
            json!({"template": template.replace("name: settings", "name: other")}),
        )
        .await;
    until(&maps, "other", "is made", |_: &ConfigMap| true).await;
    cloud.becomes("objects", "UPDATE_COMPLETE").await;
    assert!(maps.get_opt("settings").await.unwrap().is_none());
    cloud.delete("objects").await;
    assert!(maps.get_opt("other").await.unwrap().is_none());
}
