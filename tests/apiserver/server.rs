//! The manager's Servers on a real API server. Hosts and placements are driven by hand:
//! the test writes what a scheduler and an agent would write, and nothing else.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends its test")]

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, Secret};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use pileus_api::names::{GUEST_DATA_KEY, host_namespace, instance_name};
use pileus_api::{
    ConditionType, Flavor, Host, Image, Instance, KeyPair, Network, Port, Server, conditions,
};
use pileus_tests::apiserver::{create, refused, until};
use pileus_tests::servers::*;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_becomes_active_in_five_writes_and_goes_in_order() {
    let cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.image("tiny", https()).await;
    let images = cloud.api::<Image>();
    let servers = cloud.api::<Server>();
    until(&images, "tiny", "has its finalizer", |i| {
        !i.finalizers().is_empty()
    })
    .await;

    // Each write of either object is an event of a watch.
    let writes = watch_writes(&cloud);
    let begun = Instant::now();
    let (server, instance) = cloud.active("web", plain()).await;
    // What takes half a minute on a busy machine is reported in between.
    let told_between = usize::from(begun.elapsed() > Duration::from_secs(25));
    let status = server.status.clone().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Active"));
    assert_eq!(status.instance.as_deref(), Some(instance.as_str()));
    assert_eq!(status.placement.as_ref().map(|p| p.epoch), Some(1));
    assert!(status.hardware.is_some() && status.instance_id.is_some());
    // The digest is fixed by the first import, and confirmed to the agent.
    let image = until(&images, "tiny", "has its digest", |i| {
        i.status.as_ref().is_some_and(|s| s.digest.is_some())
    })
    .await;
    assert_eq!(image.status.unwrap().digest.as_deref(), Some(DIGEST));
    let built = until(&cloud.instances(), &instance, "knows the digest", |i| {
        i.spec.image.disk.digest.is_some()
    })
    .await;
    assert_eq!(built.spec.image.disk.digest.as_deref(), Some(DIGEST));
    // Its domain is defined, so its config drive is made: what that was made from goes.
    let secrets: Api<Secret> = Api::namespaced(cloud.client(), &host_namespace(HOST));
    until(&cloud.instances(), &instance, "needs no data", |i| {
        i.spec.guest_data.is_none()
    })
    .await;
    until_gone(&secrets, &instance).await;

    // A while of silence, then the sum: creation, the image's first digest and the end of the
    // guest's data aside.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let seen = writes.lock().unwrap().clone();
    let without_creation = seen.len() - 1;
    let (first_import, data_removed) = (1, 1);
    assert!(
        without_creation - first_import - data_removed <= 5 + told_between,
        "{seen:#?}"
    );

    delete(&servers, "web").await;
    until(&cloud.instances(), &instance, "is being deleted", |i| {
        i.metadata.deletion_timestamp.is_some()
    })
    .await;
    // As long as the host has not let go, the Server does not go.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(servers.get_opt("web").await.unwrap().is_some());
    cloud.let_instance_go(&instance).await;
    until_gone(&servers, "web").await;
    cloud.stop().await;
}

type Writes = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

fn watch_writes(cloud: &Cloud) -> Writes {
    use futures::TryStreamExt;
    use kube::runtime::{WatchStreamExt, watcher};
    let writes = Writes::default();
    let (client, seen) = (cloud.client(), writes.clone());
    tokio::spawn(async move {
        let of = |kind: &'static str| {
            move |object: Value| {
                let managers = object["metadata"]["managedFields"].as_array();
                let last = managers
                    .and_then(|m| m.last())
                    .map(|m| m["manager"].to_string());
                format!(
                    "{kind} {} by {last:?}: {}",
                    object["metadata"]["resourceVersion"], object["status"]
                )
            }
        };
        let server = watcher(
            Api::<Server>::all(client.clone()),
            watcher::Config::default(),
        )
        .applied_objects()
        .map_ok(|o| of("Server")(serde_json::to_value(o).unwrap()));
        let instance = watcher(Api::<Instance>::all(client), watcher::Config::default())
            .applied_objects()
            .map_ok(|o| of("Instance")(serde_json::to_value(o).unwrap()));
        let all = futures::stream::select(Box::pin(server), Box::pin(instance));
        let done = all.try_for_each(|line| {
            seen.lock().unwrap().push(line);
            std::future::ready(Ok(()))
        });
        let _ = done.await;
    });
    writes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_and_waited_for() {
    let cloud = Cloud::start().await;
    let servers = cloud.api::<Server>();
    cloud
        .server(
            "web",
            json!({
                "flavor": "small", "image": {"name": "tiny"}, "keyPairs": ["alice"],
                "networks": [{"name": "a", "network": {"name": "private"}}, {"name": "b", "port": "kept"}],
            }),
        )
        .await;
    let all = until(&servers, "web", "says what is missing", |s| {
        is(s, "False", "FlavorNotFound")
    })
    .await;
    let message = ready(&all).unwrap().2;
    for culprit in ["`small`", "`tiny`", "`alice`", "`private`", "`kept`"] {
        assert!(
            message.contains(culprit),
            "{culprit} is missing in: {message}"
        );
    }
    assert_eq!(
        all.status.as_ref().unwrap().phase.as_deref(),
        Some("Pending")
    );
    let says = async |reason: &'static str| {
        until(&servers, "web", reason, |s| is(s, "False", reason)).await;
    };
    cloud.flavor("small").await;
    says("ImageNotFound").await;
    cloud.image("tiny", https()).await;
    says("KeyPairNotFound").await;
    create(
        &cloud.api::<KeyPair>(),
        json!({"metadata": {"name": "alice"}, "spec": {"publicKey": KEY}}),
    )
    .await;
    says("NetworkNotFound").await;
    create(
        &cloud.api::<Network>(),
        json!({"metadata": {"name": "private"}, "spec": {}}),
    )
    .await;
    says("PortNotFound").await;
    create(
        &cloud.api::<Port>(),
        json!({"metadata": {"name": "kept"}, "spec": {"network": {"name": "private"}}}),
    )
    .await;
    // The Port for the inline network is made, and is the Server's.
    let port = until(&cloud.api::<Port>(), "web-a", "is made", |_| true).await;
    assert_eq!(port.owner_references()[0].uid, all.uid().unwrap());
    let instances = cloud
        .instances()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert!(
        instances.items.is_empty(),
        "nothing is built before it is placed"
    );
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_named_and_waited_for() {
    let cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.image("tiny", https()).await;
    let servers = cloud.api::<Server>();
    let mut spec = plain();
    spec["userDataFrom"] = json!({"name": "cloud-init"});
    let made = cloud.server("web", spec).await;
    until(&servers, "web", "has its finalizer", |s| {
        !s.finalizers().is_empty()
    })
    .await;
    let says = async |reason: &'static str| {
        until(&servers, "web", reason, |s| is(s, "False", reason)).await
    };
    let seen = says("SecretNotFound").await;
    assert!(ready(&seen).unwrap().2.contains("`cloud-init`"));
    let secrets = cloud.api::<Secret>();
    create(
        &secrets,
        json!({"metadata": {"name": "cloud-init"}, "stringData": {"other": "x"}}),
    )
    .await;
    says("SecretKeyNotFound").await;
    let large = "x".repeat(64 * 1024 + 1);
    let patch = Patch::Merge(json!({"stringData": {"userData": large}}));
    secrets
        .patch("cloud-init", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let seen = says("UserDataTooLarge").await;
    let (_, _, message) = ready(&seen).unwrap();
    assert!(message.contains("`cloud-init`"), "{message}");
    // All of this was reported before the scheduler acted.
    cloud.place("web", 1).await;
    let secret_words = "#!/bin/sh\necho hunter2";
    let patch = Patch::Merge(json!({"stringData": {"userData": secret_words}}));
    secrets
        .patch("cloud-init", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let instance = instance_name(&made.uid().unwrap(), 1);
    let made = until(&cloud.instances(), &instance, "is made", |_| true).await;
    // It lies in the host's namespace and is the Instance's, so that nothing can leave it behind.
    let at_host: Api<Secret> = Api::namespaced(cloud.client(), &host_namespace(HOST));
    let data = until(&at_host, &instance, "is the Instance's", |secret| {
        let owners = secret.owner_references();
        owners
            .iter()
            .any(|owner| Some(&owner.uid) == made.uid().as_ref())
    })
    .await;
    assert!(data.data.unwrap().contains_key(GUEST_DATA_KEY));
    // Credentials of the cluster are no guest's, whoever names them.
    let token = json!({
        "metadata": {"name": "token",
            "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token", "stringData": {"userData": "hunter2"},
    });
    create(&secrets, token).await;
    let mut spec = plain();
    spec["userDataFrom"] = json!({"name": "token"});
    cloud.server("thief", spec).await;
    let seen = until(&servers, "thief", "is refused", |s| {
        is(s, "False", "SecretNotAllowed")
    })
    .await;
    let (_, _, message) = ready(&seen).unwrap();
    assert!(message.contains("service-account-token"), "{message}");
    // Nobody but the host gets the data itself.
    let events: Api<Event> = Api::all(cloud.client());
    let events = events.list(&ListParams::default()).await.unwrap();
    let told = serde_json::to_string(&events.items).unwrap();
    assert!(!told.contains("hunter2"));
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_server_is_told_why_and_nothing_is_made_of_it() {
    let cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.image("tiny", https()).await;
    let servers = cloud.api::<Server>();
    let mut spec = plain();
    spec["networks"] = json!([{"name": "a", "network": {"name": "net"}, "fixedIP": "10.0.0"}]);
    cloud.server("web", spec).await;
    let seen = until(&servers, "web", "is refused", |s| {
        is(s, "False", "InvalidSpec")
    })
    .await;
    let (_, _, message) = ready(&seen).unwrap();
    assert!(
        message.contains("spec.networks[a].fixedIP: `10.0.0`"),
        "{message}"
    );
    assert_eq!(seen.status.unwrap().phase.as_deref(), Some("Error"));
    let ports = cloud.api::<Port>().list(&ListParams::default()).await;
    assert!(ports.unwrap().items.is_empty());
    // A spec that is right again is all it takes.
    let patch = Patch::Merge(json!({"spec": {"networks": []}}));
    servers
        .patch("web", &PatchParams::default(), &patch)
        .await
        .unwrap();
    until(&servers, "web", "waits for the scheduler", |s| {
        is(s, "False", "Pending")
    })
    .await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_serves_one_server_and_the_other_is_told_which() {
    let cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.image("tiny", https()).await;
    create(
        &cloud.api::<Network>(),
        json!({"metadata": {"name": "n"}, "spec": {}}),
    )
    .await;
    create(
        &cloud.api::<Port>(),
        json!({"metadata": {"name": "p"}, "spec": {"network": {"name": "n"}}}),
    )
    .await;
    let mut spec = plain();
    spec["networks"] = json!([{"name": "a", "port": "p"}]);
    let servers = cloud.api::<Server>();
    cloud.server("first", spec.clone()).await;
    // Creation times have whole seconds only; the first must be the older one.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    cloud.server("second", spec).await;
    let second = until(&servers, "second", "is refused", |s| {
        is(s, "False", "PortInUse")
    })
    .await;
    assert!(ready(&second).unwrap().2.contains("`first`"));
    delete(&servers, "first").await;
    until_gone(&servers, "first").await;
    until(&servers, "second", "takes over", |s| {
        !is(s, "False", "PortInUse")
    })
    .await;
    // A named Port is the user's and outlives its Servers.
    assert!(cloud.api::<Port>().get_opt("p").await.unwrap().is_some());
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_use_is_kept_until_they_are_gone() {
    let cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.image("tiny", https()).await;
    let (flavors, images) = (Api::<Flavor>::all(cloud.client()), cloud.api::<Image>());
    let (pairs, servers) = (cloud.api::<KeyPair>(), cloud.api::<Server>());
    create(
        &pairs,
        json!({"metadata": {"name": "alice"}, "spec": {"publicKey": KEY}}),
    )
    .await;
    let pair = until(&pairs, "alice", "has a fingerprint", |p| {
        p.status.as_ref().is_some_and(|s| s.fingerprint.is_some())
    })
    .await;
    assert_eq!(
        pair.status.unwrap().key_type.as_deref(),
        Some("ssh-ed25519")
    );
    until(&flavors, "small", "has its finalizer", |f| {
        !f.finalizers().is_empty()
    })
    .await;
    until(&images, "tiny", "has its finalizer", |i| {
        !i.finalizers().is_empty()
    })
    .await;
    let mut spec = plain();
    spec["keyPairs"] = json!(["alice"]);
    cloud.server("web", spec).await;
    until(&servers, "web", "has its finalizer", |s| {
        !s.finalizers().is_empty()
    })
    .await;
    delete(&flavors, "small").await;
    delete(&images, "tiny").await;
    delete(&pairs, "alice").await;
    let in_use = |conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]| {
        conditions::find(conditions, ConditionType::Ready)
            .is_some_and(|c| c.reason == "InUse" && c.message.contains("web"))
    };
    until(&images, "tiny", "says who uses it", |i| {
        i.status.as_ref().is_some_and(|s| in_use(&s.conditions))
    })
    .await;
    until(&pairs, "alice", "says who uses it", |p| {
        p.status.as_ref().is_some_and(|s| in_use(&s.conditions))
    })
    .await;
    assert!(flavors.get_opt("small").await.unwrap().is_some());
    delete(&servers, "web").await;
    until_gone(&servers, "web").await;
    until_gone(&images, "tiny").await;
    until_gone(&pairs, "alice").await;
    until_gone(&flavors, "small").await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_reaches_the_host_and_other_changes_wait_for_a_rebuild() {
    let cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.flavor("large").await;
    cloud.image("tiny", https()).await;
    let servers = cloud.api::<Server>();
    let (_, instance) = cloud.active("web", plain()).await;
    let patch = async |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        servers
            .patch("web", &PatchParams::default(), &patch)
            .await
            .unwrap();
    };
    patch(json!({"runState": "Stopped"})).await;
    until(&cloud.instances(), &instance, "is asked to stop", |i| {
        i.spec.run_state == pileus_api::server::RunState::Stopped
    })
    .await;
    let stopping = until(&servers, "web", "is stopping", |s| !is(s, "True", "Active")).await;
    assert_eq!(stopping.status.unwrap().phase.as_deref(), Some("Stopping"));
    cloud.run_instance(&instance, "Stopped").await;
    until(&servers, "web", "is stopped", |s| is(s, "True", "Stopped")).await;

    patch(json!({"flavor": "large", "metadata": {"a": "b"}})).await;
    let outdated = until(&servers, "web", "tells of the change", |s| {
        let conditions = s.status.as_ref().map(|s| s.conditions.clone());
        conditions::find(&conditions.unwrap_or_default(), ConditionType::UpToDate)
            .is_some_and(|c| c.status == "False")
    })
    .await;
    let conditions = outdated.status.as_ref().unwrap().conditions.clone();
    let why = conditions::find(&conditions, ConditionType::UpToDate).unwrap();
    assert!(
        why.message.contains("128 MiB") && why.message.contains("metadata"),
        "{}",
        why.message
    );
    assert!(
        is(&outdated, "True", "Stopped"),
        "it goes on as it was built"
    );
    patch(json!({"flavor": "small", "metadata": null})).await;
    until(&servers, "web", "is up to date again", |s| {
        conditions::is_true(
            &s.status.as_ref().unwrap().conditions,
            ConditionType::UpToDate,
        )
    })
    .await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_instance_is_made_again_also_by_a_new_manager() {
    let mut cloud = Cloud::start().await;
    cloud.flavor("small").await;
    cloud.image("tiny", https()).await;
    let (server, instance) = cloud.active("web", plain()).await;
    let old = cloud.instances().get(&instance).await.unwrap();
    cloud.stop.cancel();
    (&mut cloud.manager).await.unwrap().unwrap();
    // As after a restore of etcd from a backup: the finalizer kept no one.
    cloud.let_instance_go(&instance).await;
    delete(&cloud.instances(), &instance).await;
    until_gone(&cloud.instances(), &instance).await;
    (cloud.stop, cloud.manager) = start_manager(&cloud.server).await;
    let new = until(&cloud.instances(), &instance, "is made again", |_| true).await;
    assert_eq!(new.spec.epoch, old.spec.epoch);
    assert_eq!(new.spec.instance_id, old.spec.instance_id);
    assert_eq!(new.spec.server.uid, server.uid().unwrap());
    cloud.run_instance(&instance, "Active").await;
    until(&cloud.api::<Server>(), "web", "is active again", |s| {
        is(s, "True", "Active")
    })
    .await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_say_what_is_wrong_with_them() {
    let cloud = Cloud::start().await;
    let images = cloud.api::<Image>();
    let mut iso = https();
    iso["diskFormat"] = "iso".into();
    cloud.image("iso", iso).await;
    let plain_http = json!({"source": {"url": "http://images.example/a.qcow2"}});
    let plain = json!({"metadata": {"name": "plain"}, "spec": plain_http});
    let message = refused(&images, plain).await;
    assert!(
        message.contains("spec.source") && message.contains("needs a checksum"),
        "{message}"
    );
    let reason = "UnsupportedFormat";
    until(&images, "iso", reason, |i| {
        let conditions = i.status.as_ref().map(|s| s.conditions.clone());
        conditions::find(&conditions.unwrap_or_default(), ConditionType::Ready).is_some_and(|c| {
            c.status == "False" && c.reason == reason && c.message.contains("qemu-img convert")
        })
    })
    .await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_gets_its_namespace_and_waits_for_its_heartbeat() {
    let cloud = Cloud::start().await;
    let hosts: Api<Host> = Api::all(cloud.client());
    create(&hosts, json!({"metadata": {"name": "h2"}, "spec": {}})).await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(cloud.client());
    until(&namespaces, &host_namespace("h2"), "is made", |_| true).await;
    let host = hosts.get("h2").await.unwrap();
    let conditions = host.status.unwrap_or_default().conditions;
    assert!(!conditions::is_true(&conditions, ConditionType::Ready));
    cloud.stop().await;
}
