//! What the roles that tenants get allow, on a real API server.

use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Client;
use kube::api::{Api, PostParams};
use pileus_tests::apiserver::{TestServer, create};
use serde_json::json;

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
/// The kinds that tenants write.
const OWN: [&str; 10] = [
    "servers",
    "servergroups",
    "keypairs",
    "images",
    "networks",
    "subnets",
    "ports",
    "securitygroups",
    "securitygrouprules",
    "stacks",
];

/// Whether the user of the client may do it, as the API server says.
async fn may(client: &Client, verb: &str, resource: &str, namespace: Option<&str>) -> bool {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (resource, None),
    };
    let group = match resource {
        "priorityclasses" => "scheduling.k8s.io",
        "clusterroles" => "rbac.authorization.k8s.io",
        _ => pileus_api::GROUP,
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(verb.to_owned()),
                namespace: namespace.map(str::to_owned),
                name: (group == "rbac.authorization.k8s.io")
                    .then(|| "pileus-stacks-tenant".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await.unwrap();
    answer.status.unwrap().allowed
}

async fn bind(server: &TestServer, user: &str, role: &str) {
    let api: Api<RoleBinding> = Api::namespaced(server.client(), "demo");
    let binding = json!({"metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]});
    create(&api, binding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn view_edit_and_admin_of_a_namespace_reach_what_tenants_own_and_no_more() {
    let mut server = TestServer::start().await;
    server.namespace("demo").await;
    server.namespace("other").await;
    server.apply("config/rbac/tenants.yaml").await;
    server.start_controllers("clusterrole-aggregation-controller");
    for role in ["view", "edit", "admin"] {
        bind(&server, role, role).await;
    }
    let edit = server.client_of("edit");
    let start = Instant::now();
    // Kubernetes adds our roles to its own a moment later.
    while !may(&edit, "create", "servers", Some("demo")).await
        || !may(&edit, "get", "stacks", Some("demo")).await
    {
        assert!(start.elapsed() < Duration::from_mins(1), "not aggregated");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let kinds = pileus_api::crd::all();
    let plurals = kinds.iter().map(|crd| crd.spec.names.plural.clone());
    let plurals: Vec<_> = plurals.chain(["reservedmetadata".to_owned()]).collect();
    for own in OWN {
        assert!(plurals.iter().any(|kind| kind == own), "{own} is no kind");
    }
    let special = ["use-host-selector", "use-tolerations", "use", "bind"];
    for user in ["view", "edit", "admin", "nobody"] {
        let client = server.client_of(user);
        for kind in &plurals {
            for subresource in ["", "/status", "/finalizers", "/scale"] {
                let resource = format!("{kind}{subresource}");
                for verb in READ.iter().chain(&WRITE).chain(&special) {
                    for namespace in [Some("demo"), Some("other"), None] {
                        let is_read = READ.contains(verb);
                        let own = OWN.contains(&resource.as_str())
                            && namespace == Some("demo")
                            && match user {
                                "view" => is_read,
                                "nobody" => false,
                                _ => is_read || WRITE.contains(verb),
                            };
                        // Everybody may read Flavors.
                        let wanted = own || resource == "flavors" && is_read;
                        let allowed = may(&client, verb, &resource, namespace).await;
                        assert_eq!(allowed, wanted, "{user} {verb} {resource} {namespace:?}");
                    }
                }
            }
        }
        let may_bind = may(&client, "bind", "clusterroles", Some("demo")).await;
        assert_eq!(may_bind, user == "admin", "{user}");
        assert!(!may(&client, "bind", "clusterroles", Some("other")).await);
        assert!(!may(&client, "use", "priorityclasses", Some("demo")).await);
    }
}
