//! Stacks are made real only in namespaces that have opted in, on a real API server and with the
//! rights that the role is installed with.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use pileus_api::names::STACKS_TENANT_ROLE;
use pileus_api::{KeyPair, Stack};
use pileus_tests::apiserver::{create, until};
use pileus_tests::stacks::{Cloud, ready};
use serde_json::json;

const TEMPLATE: &str = "heat_template_version: newton
resources:
  key: {type: OS::Nova::KeyPair, properties: {name: ops, public_key: ssh-ed25519 AAAA}}
  settings:
    type: Kubernetes::Object
    properties:
      manifest: {apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {a: b}}
";

fn says_how(stack: &Stack) -> bool {
    let has_conditions = stack
        .status
        .as_ref()
        .is_some_and(|s| !s.conditions.is_empty());
    has_conditions
        && {
            let (status, reason, message) = ready(stack);
            let command = "kubectl create rolebinding pileus-stacks-tenant --namespace demo --clusterrole \
                       pileus-stacks-tenant --serviceaccount pileus-system:stacks";
            status == "Unknown" && reason == "NotOptedIn" && message.contains(command)
        }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_opts_in_and_out() {
    let cloud = Cloud::start_with_the_roles_rights().await;
    cloud.account("maker", "", &["configmaps"]).await;
    let spec = json!({"template": TEMPLATE, "serviceAccountName": "maker"});
    let stacks = cloud.api::<Stack>();
    cloud.stack("waits", spec.clone()).await;
    cloud.stack("leaves", spec).await;
    until(&stacks, "waits", "says how to opt in", says_how).await;
    until(&stacks, "leaves", "says how to opt in", says_how).await;
    assert_eq!(cloud.count::<KeyPair>().await, 0);
    // One that has made nothing goes without asking.
    cloud.delete("leaves").await;

    cloud.opt_in().await;
    cloud.becomes("waits", "CREATE_COMPLETE").await;
    assert_eq!(cloud.count::<ConfigMap>().await, 1);

    // The right is taken away: nothing is touched, and the Stack stays until it is given again.
    let bindings = cloud.api::<RoleBinding>();
    let delete = DeleteParams::default();
    bindings.delete(STACKS_TENANT_ROLE, &delete).await.unwrap();
    stacks.delete("waits", &delete).await.unwrap();
    until(&stacks, "waits", "says how to opt in", says_how).await;
    assert_eq!(cloud.count::<KeyPair>().await, 1);
    cloud.opt_in().await;
    cloud.wait_until_deleted("waits").await;
    assert_eq!(cloud.count::<ConfigMap>().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_or_made_beside_the_namespaces_that_opted_in() {
    let cloud = Cloud::start_with_the_roles_rights().await;
    cloud.opt_in().await;
    cloud.server.namespace("other").await;
    let role = cloud
        .server
        .client_of("system:serviceaccount:pileus-system:stacks");
    let forbidden =
        |error: kube::Error| matches!(error, kube::Error::Api(status) if status.is_forbidden());
    for namespace in ["other", "kube-system", "pileus-system"] {
        let secrets: Api<Secret> = Api::namespaced(role.clone(), namespace);
        assert!(forbidden(secrets.get("any").await.unwrap_err()));
        let maps: Api<ConfigMap> = Api::namespaced(role.clone(), namespace);
        assert!(forbidden(maps.get("any").await.unwrap_err()));
        let pairs: Api<KeyPair> = Api::namespaced(role.clone(), namespace);
        let pair = KeyPair::new(
            "x",
            pileus_api::key_pair::KeyPairSpec {
                public_key: "k".into(),
            },
        );
        assert!(forbidden(
            pairs
                .create(&PostParams::default(), &pair)
                .await
                .unwrap_err()
        ));
        // Nor with the rights of an account there.
        let mut config = cloud.server.config();
        config.auth_info.impersonate = Some("system:serviceaccount:pileus-system:stacks".into());
        let as_role = kube::Client::try_from(config).unwrap();
        let review = json!({"spec": {"resourceAttributes": {"namespace": namespace, "verb": "impersonate",
            "resource": "serviceaccounts", "name": "default"}}});
        let api: Api<k8s_openapi::api::authorization::v1::SelfSubjectAccessReview> =
            Api::all(as_role);
        let answer = create(&api, review).await;
        assert!(!answer.status.unwrap().allowed);
    }
}
