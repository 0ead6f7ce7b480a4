//! What each role may do is what docs/security.md says, by the API server's own word.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Api, PostParams};
use pileus_api::names::{STACKS_TENANT_ROLE, USER_DATA_ROLE};
use pileus_tests::apiserver::{TestServer, create};
use pileus_tests::program;
use serde_json::json;

/// A right: what it is on (`resource.group`, with the names it is limited to), and the verb.
type Rights = BTreeSet<(String, String)>;

/// The namespaces by which the document distinguishes rights, and what they are here.
const PLACES: [(&str, &str); 4] = [
    ("any namespace", "other"),
    ("pileus-system", "pileus-system"),
    ("a namespace that opted in", "demo"),
    ("the namespace of a host", "pileus-host-h1"),
];

async fn rights(server: &TestServer, account: &str, namespace: &str) -> Rights {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.to_owned()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let api: Api<SelfSubjectRulesReview> = Api::all(server.client_of(account));
    let answer = api.create(&PostParams::default(), &review).await.unwrap();
    let status = answer.status.unwrap();
    assert!(!status.incomplete, "{account}: {status:?}");
    let mut found = Rights::new();
    for rule in status.resource_rules {
        let mut names = rule.resource_names.unwrap_or_default();
        names.sort();
        for group in rule.api_groups.unwrap_or_default() {
            for resource in rule.resources.clone().unwrap_or_default() {
                let mut what = match group.as_str() {
                    "" => resource,
                    group => format!("{resource}.{group}"),
                };
                if !names.is_empty() {
                    write!(what, " {}", names.join(" ")).unwrap();
                }
                found.extend(rule.verbs.iter().map(|verb| (what.clone(), verb.clone())));
            }
        }
    }
    found
}

/// As in the document: one line for all that has the same verbs.
fn text(account: &str, place: &str, rights: &Rights) -> String {
    let mut verbs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (what, verb) in rights {
        verbs.entry(what).or_default().push(verb);
    }
    let mut lines: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
    for (what, verbs) in verbs {
        lines.entry(verbs).or_default().push(what);
    }
    let mut text = format!("```\n{account}, {place}\n");
    for (verbs, what) in lines {
        writeln!(text, "  {}: {}", verbs.join(" "), what.join(", ")).unwrap();
    }
    text + "```\n"
}

async fn bind(server: &TestServer, role: &str, account: &str) {
    let api: Api<RoleBinding> = Api::namespaced(server.client(), "demo");
    let binding = json!({"metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "pileus-system"}]});
    create(&api, binding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_says_what_each_role_may_do() {
    let server = TestServer::start().await;
    for (_, namespace) in PLACES {
        server.namespace(namespace).await;
    }
    for role in ["manager", "scheduler", "stacks", "tenants"] {
        server.apply(&format!("config/rbac/{role}.yaml")).await;
    }
    let of_host = |text: &str| text.replace("HOST", "h1");
    server
        .apply_changed("config/rbac/agent.yaml", of_host)
        .await;
    bind(&server, STACKS_TENANT_ROLE, "stacks").await;
    bind(&server, USER_DATA_ROLE, "manager").await;
    let accounts = [
        ("manager", "system:serviceaccount:pileus-system:manager"),
        ("scheduler", "system:serviceaccount:pileus-system:scheduler"),
        ("stacks", "system:serviceaccount:pileus-system:stacks"),
        ("agent", "system:serviceaccount:pileus-host-h1:agent"),
    ];
    // What was bound last is in force a moment later.
    let start = Instant::now();
    while rights(&server, accounts[0].1, "demo").await
        == rights(&server, accounts[0].1, "other").await
    {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let document = fs::read_to_string(program::root().join("docs/security.md")).unwrap();
    let mut missing = String::new();
    let everybodys = rights(&server, "system:serviceaccount:other:nobody", "other").await;
    for (account, user) in accounts {
        let everywhere = rights(&server, user, "other").await;
        for (place, namespace) in PLACES {
            let here = rights(&server, user, namespace).await;
            let less = if place == "any namespace" {
                &everybodys
            } else {
                &everywhere
            };
            let more: Rights = here.difference(less).cloned().collect();
            let text = text(account, place, &more).replace(" h1", " HOST");
            let told = document.contains(&text);

            let header = format!("```\n{account}, {place}\n");
            if more.is_empty() {
                assert!(
                    !document.contains(&header),
                    "docs/security.md: nothing comes with {header}"
                );
            } else if !told {
                missing += &text;
            }
        }
    }
    assert!(
        missing.is_empty(),
        "docs/security.md does not say this, or says otherwise:\n{missing}"
    );
}
