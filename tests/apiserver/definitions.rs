//! The definitions on a real API server: what CEL refuses, what may change, `kubectl apply` in both
//! ways, field selectors, admission policies, and who owns which field.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Client, ResourceExt};
use pileus_api::server::{Placement, ServerStatus};
use pileus_api::{Network, Server};
use pileus_kube_ext::report::apply_status;
use pileus_tests::apiserver::{TestServer, create};
use pileus_tests::program::root;
use serde_json::{Value, json};

const NAMESPACE: &str = "demo";

/// Asks until there is an answer: the API server's own caches take moments.
async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..300 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: not within 30 s");
}

async fn start() -> TestServer {
    let server = TestServer::start().await;
    server.namespace(NAMESPACE).await;
    server
}

fn objects(client: &Client, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(pileus_api::GROUP, pileus_api::VERSION, kind);
    let plural = match kind {
        "IPAllocation" => "ipallocations".to_owned(),
        _ => format!("{}s", kind.to_lowercase()),
    };
    let resource = ApiResource::from_gvk_with_plural(&gvk, &plural);
    if kind == "Flavor" || kind == "Host" {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), NAMESPACE, &resource)
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": format!("{}/{}", pileus_api::GROUP, pileus_api::VERSION), "kind": kind,
        "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

/// What the API server says against a spec; empty when it takes it. Nothing is kept.
async fn fault(client: &Client, kind: &str, spec: &Value) -> String {
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match objects(client, kind)
        .create(&params, &object(kind, "x", spec))
        .await
    {
        Ok(_) => String::new(),
        Err(kube::Error::Api(status)) => status.message,
        Err(error) => panic!("{kind} {spec}: {error}"),
    }
}

fn merged(base: &Value, more: &Value) -> Value {
    let mut all = base.clone();
    let fields = more.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(fields);
    all
}

#[tokio::test]
async fn what_roles_could_not_read_or_pass_on_is_refused() {
    let server = start().await;
    let client = server.client();
    let built = json!({"flavor": "f", "image": {"name": "i"}});
    let rule = |name: &str| json!({"rules": [{"name": name, "direction": "Egress"}]});
    let names: Vec<_> = (0..1025).map(|n| format!("n{n}")).collect();
    let many: serde_json::Map<_, _> = (0..257).map(|n| (format!("k{n}"), json!("v"))).collect();
    let (control, long) = ("should match", "may not be more than");
    for (kind, spec, why) in [
        (
            "Network",
            json!({"mtu": 3_000_000_000_i64}),
            "less than or equal to",
        ),
        (
            "Network",
            json!({"mtu": -3_000_000_000_i64}),
            "greater than or equal to",
        ),
        (
            "Network",
            json!({"sharedWith": {"namespaces": names}}),
            "at most 1024 items",
        ),
        ("SecurityGroup", rule("a"), ""),
        ("SecurityGroup", rule("öffentlich 1"), ""),
        ("SecurityGroup", rule("a\u{0}b"), control),
        ("SecurityGroup", rule("a\nb"), control),
        ("SecurityGroup", rule("a\u{7f}"), control),
        ("SecurityGroup", json!({"description": "two\nlines"}), ""),
        ("SecurityGroup", json!({"description": "a\u{0}"}), control),
        (
            "Image",
            json!({"source": {"url": "https://a/\u{0}"}}),
            control,
        ),
        (
            "Image",
            json!({"source": {"url": "https://a/b"}, "properties": many}),
            "at most 256 items",
        ),
        (
            "Image",
            json!({"source": {"url": "https://a/b"}, "properties": {"a": "v".repeat(1025)}}),
            long,
        ),
        (
            "Server",
            merged(&built, &json!({"userData": "a\u{0}\u{1}b\n"})),
            "",
        ),
        (
            "Server",
            merged(&built, &json!({"metadata": {"a": "two\nlines"}})),
            "",
        ),
        (
            "Server",
            merged(&built, &json!({"metadata": {"a": "\u{1b}"}})),
            control,
        ),
        (
            "Server",
            merged(&built, &json!({"keyPairs": ["k".repeat(254)]})),
            long,
        ),
        (
            "Server",
            merged(&built, &json!({"placement": {"hostCIDR": "10.0.0.0/8\n"}})),
            control,
        ),
        (
            "Stack",
            json!({"template": "heat_template_version: newton\n", "files": {"f": "\u{1}\n"}}),
            "",
        ),
        (
            "Port",
            json!({"network": {"name": "n"}, "fixedIPs": [{"name": "a", "address": "\u{0}"}]}),
            control,
        ),
    ] {
        let said = fault(&client, kind, &spec).await;
        let fits = if why.is_empty() {
            said.is_empty()
        } else {
            said.contains(why)
        };
        assert!(fits, "{kind} {spec}: {said}");
    }
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
async fn what_fields_rule_out_is_refused_with_the_way_out() {
    let server = start().await;
    let client = server.client();
    let image = json!({"image": {"name": "i"}});
    let built = merged(&image, &json!({"flavor": "f"}));
    let size = json!({"vcpus": 1, "memory": "1Gi"});
    let nic = |nic: Value| merged(&built, &json!({"networks": [nic]}));
    let long = "k".repeat(256);
    let many: Value = (0..129)
        .map(|n| (format!("k{n}"), json!("v")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let url = "https://example.org/a";
    let plain = "http://example.org/a";
    let checksum = format!("sha256:{}", "a".repeat(64));
    let port = json!({"network": {"name": "n"}});
    let open = merged(&port, &json!({"portSecurity": "Disabled"}));
    let either_size = "give either flavor or resources";
    let either_data = "give either userData or userDataFrom";
    let either_nic = "give either network or port";
    let of_port = "fixedIP and securityGroups belong to the Port when port is given";
    let cases = [
        ("Server", built.clone(), ""),
        ("Server", merged(&image, &json!({"resources": size})), ""),
        ("Server", image.clone(), either_size),
        (
            "Server",
            merged(&built, &json!({"resources": size})),
            either_size,
        ),
        ("Server", merged(&built, &json!({"userData": "a"})), ""),
        (
            "Server",
            merged(
                &built,
                &json!({"userData": "a", "userDataFrom": {"name": "s"}}),
            ),
            either_data,
        ),
        (
            "Server",
            nic(json!({"name": "a", "network": {"name": "n"}})),
            "",
        ),
        ("Server", nic(json!({"name": "a", "port": "p"})), ""),
        ("Server", nic(json!({"name": "a"})), either_nic),
        (
            "Server",
            nic(json!({"name": "a", "port": "p", "network": {"name": "n"}})),
            either_nic,
        ),
        (
            "Server",
            nic(json!({"name": "a", "port": "p", "fixedIP": "10.0.0.1"})),
            of_port,
        ),
        (
            "Server",
            nic(json!({"name": "a", "port": "p", "securityGroups": []})),
            of_port,
        ),
        (
            "Server",
            merged(
                &built,
                &json!({"networks": [{"name": "a", "port": "p"}, {"name": "b", "port": "p"}]}),
            ),
            "a port is given twice",
        ),
        (
            "Server",
            merged(
                &built,
                &json!({"networks": [{"name": "a", "port": "p"}, {"name": "a", "port": "q"}]}),
            ),
            "Duplicate value",
        ),
        (
            "Server",
            merged(&built, &json!({"metadata": {"k": long}})),
            "may not be more than 255",
        ),
        (
            "Server",
            merged(&built, &json!({"metadata": {long.clone(): "v"}})),
            "at most 255 characters",
        ),
        (
            "Server",
            merged(&built, &json!({"metadata": many})),
            "must have at most 128",
        ),
        ("Image", json!({"source": {"url": url}}), ""),
        (
            "Image",
            json!({"source": {"url": plain}}),
            "a source with http:// needs a checksum",
        ),
        (
            "Image",
            json!({"source": {"url": plain, "checksum": checksum}}),
            "",
        ),
        (
            "Image",
            json!({"source": {"url": url}, "initrd": {"url": url}}),
            "initrd needs a kernel",
        ),
        (
            "Image",
            json!({"source": {"url": url}, "kernelCommandLine": "quiet"}),
            "needs a kernel",
        ),
        (
            "Image",
            json!({"source": {"url": url}, "kernel": {"url": url}, "initrd": {"url": url}}),
            "",
        ),
        ("Port", merged(&open, &json!({"securityGroups": []})), ""),
        (
            "Port",
            merged(&open, &json!({"securityGroups": ["g"]})),
            "need portSecurity Enabled",
        ),
        (
            "Port",
            merged(
                &open,
                &json!({"allowedAddressPairs": [{"name": "a", "address": "10.0.0.1"}]}),
            ),
            "allowedAddressPairs need portSecurity Enabled",
        ),
        (
            "ServerGroup",
            json!({"policy": "AntiAffinity", "maxServersPerHost": 2}),
            "",
        ),
        (
            "ServerGroup",
            json!({"policy": "Affinity", "maxServersPerHost": 2}),
            "belongs to policy AntiAffinity",
        ),
        ("Stack", json!({"template": "a: b"}), ""),
        ("Stack", json!({}), "give either template or templateFrom"),
        (
            "Stack",
            json!({"template": "a: b", "environments": [{"name": "e"}]}),
            "give either text or from",
        ),
        (
            "Host",
            json!({"reserved": {"vcpus": -1, "memoryMiB": 0, "diskGiB": 0}}),
            "a reservation is not below 0",
        ),
    ];
    for (kind, spec, part) in cases {
        let said = fault(&client, kind, &spec).await;
        assert_eq!(said.is_empty(), part.is_empty(), "{kind} {spec}: {said}");
        assert!(said.contains(part), "{kind} {spec}: {said}");
    }
}

#[tokio::test]
async fn what_others_were_built_by_cannot_be_changed() {
    let server = start().await;
    let client = server.client();
    let image = |url: &str, min: &str| json!({"source": {"url": url}, "minDisk": min});
    let subnet = |cidr: &str, dns: &str| json!({"network": "n", "cidr": cidr, "dnsServers": [dns]});
    let port = |network: &str, more: Value| merged(&json!({"network": {"name": network}}), &more);
    let mac = json!({"macAddress": "52:54:00:00:00:01"});
    let url = "https://a.org/1";
    let cidr = "10.0.0.0/24";
    let cases = [
        (
            "Flavor",
            json!({"vcpus": 1, "memory": "1Gi"}),
            json!({"vcpus": 1, "memory": "2Gi"}),
            "make a new one",
        ),
        (
            "Image",
            image(url, "1Gi"),
            image("https://a.org/2", "1Gi"),
            "make a new Image",
        ),
        ("Image", image(url, "1Gi"), image(url, "2Gi"), ""),
        (
            "KeyPair",
            json!({"publicKey": "ssh-ed25519 A"}),
            json!({"publicKey": "ssh-ed25519 B"}),
            "make a new KeyPair",
        ),
        (
            "Subnet",
            subnet(cidr, "192.0.2.1"),
            subnet("10.0.1.0/24", "192.0.2.1"),
            "make a new Subnet",
        ),
        (
            "Subnet",
            subnet(cidr, "192.0.2.1"),
            subnet(cidr, "192.0.2.2"),
            "",
        ),
        (
            "Port",
            port("a", json!({})),
            port("b", json!({})),
            "make a new Port",
        ),
        ("Port", port("a", json!({})), port("a", mac.clone()), ""),
        (
            "Port",
            port("a", mac),
            port("a", json!({})),
            "macAddress cannot be changed",
        ),
        (
            "ServerGroup",
            json!({"policy": "Affinity"}),
            json!({"policy": "AntiAffinity"}),
            "make a new one",
        ),
        (
            "IPAllocation",
            json!({"address": "10.0.0.1", "subnet": "s"}),
            json!({"address": "10.0.0.2", "subnet": "s"}),
            "cannot be changed",
        ),
    ];
    for (number, (kind, old, new, part)) in cases.into_iter().enumerate() {
        let api = objects(&client, kind);
        let name = format!("o{number}");
        let made = api
            .create(&PostParams::default(), &object(kind, &name, &old))
            .await
            .unwrap();
        let replace = async |spec: &Value| {
            let mut next = object(kind, &name, spec);
            next.metadata.resource_version = made.resource_version();
            let params = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            match api.replace(&name, &params, &next).await {
                Ok(_) => String::new(),
                Err(kube::Error::Api(status)) => status.message,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(
            replace(&old).await,
            "",
            "{kind}: no change is always possible"
        );
        let said = replace(&new).await;
        assert_eq!(said.is_empty(), part.is_empty(), "{kind}: {said}");
        assert!(said.contains(part), "{kind}: {said}");
    }
}

/// What people write who leave out all that has a default.
const SHORT: &str = r#"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: short, namespace: demo}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: SecurityGroup
metadata: {name: short, namespace: demo}
spec: {rules: [{name: ssh, protocol: tcp, portRangeMin: 22, portRangeMax: 22}]}
---
apiVersion: pileus.dev/v1alpha1
kind: SecurityGroup
metadata: {name: shortest, namespace: demo}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Stack
metadata: {name: short, namespace: demo}
spec: {templateFrom: {name: cm, key: tpl}, parametersFrom: [{name: cm}]}
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {name: short, namespace: demo}
spec:
  image: {name: i}
  flavor: f
  placement: {spread: {set: web, over: [{name: zone}]}}
---
apiVersion: pileus.dev/v1alpha1
kind: Host
metadata: {name: short}
spec: {taints: [{name: dedicated}]}
"#;

/// The files of `config/samples`.
fn samples() -> Vec<std::path::PathBuf> {
    let folder = root().join("config/samples");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_changes_nothing_says_so_for_every_sample() {
    let server = start().await;
    let apply = |file: &Path, more: &[&str]| {
        let file = file.display().to_string();
        let mut arguments = vec!["apply", "-f", &file];
        arguments.extend(more);
        let (text, errors, done) = server.kubectl(&arguments);
        assert!(done, "{arguments:?}: {text}{errors}");
        assert!(errors.is_empty(), "{arguments:?}: {errors}");
        text
    };
    let directory = tempfile::tempdir().unwrap();
    let short = directory.path().join("short.yaml");
    std::fs::write(&short, SHORT).unwrap();
    let files = || samples().into_iter().chain([short.clone()]);
    for file in files() {
        apply(&file, &[]);
        let again = apply(&file, &[]);
        let all_unchanged = again.lines().all(|line| line.ends_with("unchanged"));
        assert!(all_unchanged, "{}: {again}", file.display());
        let path = file.display().to_string();
        let (differences, _, same) = server.kubectl(&["diff", "-f", &path]);
        assert!(same && differences.is_empty(), "{path}: {differences}");
    }
    // From client-side to server-side apply, as people do who adopt GitOps.
    for file in files() {
        apply(&file, &["--server-side", "--force-conflicts"]);
        let path = file.display().to_string();
        let versions = || {
            let output = "jsonpath={..resourceVersion}";
            let (text, _, _) = server.kubectl(&["get", "-f", &path, "-o", output]);
            let mut versions: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            versions.sort();
            versions
        };
        let before = versions();
        apply(&file, &["--server-side"]);
        assert_eq!(versions(), before, "{path}");
    }
}

#[tokio::test]
async fn servers_are_selected_by_their_host() {
    let server = start().await;
    let servers: Api<Server> = Api::namespaced(server.client(), NAMESPACE);
    for (name, host) in [("a", "h1"), ("b", "h2"), ("c", "h1")] {
        let spec = json!({"image": {"name": "i"}, "flavor": "f"});
        let made = create(&servers, json!({"metadata": {"name": name}, "spec": spec})).await;
        let status = ServerStatus {
            placement: Some(Placement {
                host: host.into(),
                epoch: 1,
                ..Placement::default()
            }),
            ..ServerStatus::default()
        };
        apply_status(&servers, "tests", &made, &status)
            .await
            .unwrap();
    }
    let chosen = eventually("two of the host", async || {
        let on = ListParams::default().fields("status.placement.host=h1");
        let found = servers.list(&on).await.unwrap();
        let names: Vec<_> = found.iter().map(ResourceExt::name_any).collect();
        (names.len() == 2).then_some(names)
    })
    .await;
    assert_eq!(chosen, ["a", "c"]);
    let (text, errors, done) = server.kubectl(&[
        "get",
        "servers",
        "-n",
        NAMESPACE,
        "--field-selector",
        "status.placement.host=h2",
        "-o",
        "name",
    ]);
    assert!(done && text == "server.pileus.dev/b\n", "{text}{errors}");
}

#[tokio::test]
async fn the_owner_of_a_cluster_adds_rules_by_admission_policies() {
    let server = start().await;
    let client = server.client();
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    create(&policies, json!({
        "metadata": {"name": "images-of-the-house"},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["pileus.dev"], "apiVersions": ["*"],
                "operations": ["CREATE", "UPDATE"], "resources": ["servers"]}]},
            "validations": [{
                "expression": "has(object.spec.image.namespace) && object.spec.image.namespace == 'images'",
                "message": "Servers are made from images of the namespace images"}],
        },
    }))
    .await;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    create(
        &bindings,
        json!({
            "metadata": {"name": "images-of-the-house"},
            "spec": {"policyName": "images-of-the-house", "validationActions": ["Deny"]},
        }),
    )
    .await;
    let other = json!({"image": {"name": "i"}, "flavor": "f"});
    let said = eventually("the policy is in force", async || {
        Some(fault(&client, "Server", &other).await).filter(|said| !said.is_empty())
    })
    .await;
    assert!(
        said.contains("Servers are made from images of the namespace images"),
        "{said}"
    );
    let house = json!({"image": {"name": "i", "namespace": "images"}, "flavor": "f"});
    assert_eq!(fault(&client, "Server", &house).await, "");
}

#[tokio::test]
async fn whoever_reports_owns_the_status_alone() {
    let server = start().await;
    let networks: Api<Network> = Api::namespaced(server.client(), NAMESPACE);
    let user = PatchParams::apply("gitops");
    let wanted = json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Network",
        "metadata": {"name": "n"}, "spec": {"portSecurity": "Enabled"},
    });
    let made = networks
        .patch("n", &user, &Patch::Apply(&wanted))
        .await
        .unwrap();
    let status = pileus_api::NetworkStatus {
        mtu: Some(1442),
        ..Default::default()
    };
    apply_status(&networks, "pileus-manager", &made, &status)
        .await
        .unwrap();
    // The user's next apply neither conflicts with the manager nor takes anything from it.
    let now = networks
        .patch("n", &user, &Patch::Apply(&wanted))
        .await
        .unwrap();
    assert_eq!(now.status.as_ref().and_then(|s| s.mtu), Some(1442));
    for entry in now.metadata.managed_fields.unwrap() {
        let fields = serde_json::to_value(entry.fields_v1).unwrap();
        let top: Vec<_> = fields.as_object().unwrap().keys().cloned().collect();
        match entry.manager.as_deref() {
            Some("gitops") => assert_eq!(top, ["f:spec"]),
            Some("pileus-manager") => assert_eq!(top, ["f:status"]),
            other => panic!("{other:?} owns {top:?}"),
        }
    }
}
