//! Addresses that cannot be had and things in use, on two real hosts: each is named in a
//! condition with its way out, and a neighbour notices nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::too_many_lines, clippy::similar_names)] // lists of cases

use futures::future::join_all;
use pileus_tests::lab::{Lab, Project};
use pileus_tests::trouble::{Conditions, KEY, Neighbour, TIMEOUT, TINY, image_of_tiny, stopped};
use serde_json::json;

const ADDRESSES: &str = r#"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: lan}
spec: {network: lan, cidr: 10.42.0.0/24}
---
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: tight}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: tight}
spec:
  network: tight
  cidr: 10.42.1.0/24
  # One for DHCP, one for a Port.
  allocationPools: [{name: few, start: 10.42.1.20, end: 10.42.1.21}]
---
apiVersion: pileus.dev/v1alpha1
kind: Port
metadata: {name: first}
spec: {network: {name: lan}, macAddress: "52:54:00:12:34:56", fixedIPs: [{name: a, address: 10.42.0.50}]}
---
apiVersion: pileus.dev/v1alpha1
kind: Port
metadata: {name: only}
spec: {network: {name: tight}}
"#;

/// A Port or Subnet by the rest of its spec.
fn of(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: pileus.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_cannot_be_had_are_refused_with_the_way_out() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-addresses").await;
    let seen = Conditions {
        lab: &lab,
        project: &project,
    };
    project.apply(ADDRESSES);
    let neighbour = Neighbour::start(&project, "neighbour", 1).await;
    seen.ready("Port", "first").await;
    seen.ready("Port", "only").await;
    let lan = "network: {name: lan}";
    let fixed = |address: &str| format!("{lan}, fixedIPs: [{{name: a, address: \"{address}\"}}]");
    let cases: [(&str, &str, String, &str, &[&str]); 11] = [
        (
            "Port",
            "outside",
            fixed("10.99.0.5"),
            "AddressOutsideSubnet",
            &[
                "fixedIPs[a]",
                "10.99.0.5",
                "10.42.0.1 to 10.42.0.254",
                "lan",
            ],
        ),
        (
            "Port",
            "taken",
            fixed("10.42.0.50"),
            "AddressInUse",
            &["10.42.0.50", "first", "choose another"],
        ),
        (
            "Port",
            "gateway",
            fixed("10.42.0.1"),
            "AddressInUse",
            &["10.42.0.1", "choose another"],
        ),
        (
            "Port",
            "malformed",
            fixed("10.42.0.999"),
            "InvalidSpec",
            &["fixedIPs[a]", "10.42.0.999", "not an IP address"],
        ),
        (
            "Port",
            "same-mac",
            format!("{lan}, macAddress: \"52:54:00:12:34:56\""),
            "MacInUse",
            &["52:54:00:12:34:56", "first", "choose"],
        ),
        (
            "Port",
            "no-mac",
            format!("{lan}, macAddress: \"52:54:00:12:34\""),
            "InvalidSpec",
            &["macAddress", "52:54:00:12:34"],
        ),
        (
            "Port",
            "no-group",
            format!("{lan}, securityGroups: [absent]"),
            "SecurityGroupNotFound",
            &["absent", "securityGroups"],
        ),
        (
            "Port",
            "exhausted",
            "network: {name: tight}".to_owned(),
            "SubnetExhausted",
            &["tight", "10.42.1.0/24", "allocationPools"],
        ),
        (
            "Subnet",
            "overlap",
            "network: lan, cidr: 10.42.0.128/25".to_owned(),
            "SubnetOverlap",
            &["10.42.0.128/25", "10.42.0.0/24", "Subnet lan"],
        ),
        (
            "Subnet",
            "host-bits",
            "network: lan, cidr: 10.42.9.1/24".to_owned(),
            "InvalidSpec",
            &["cidr", "10.42.9.1/24", "did you mean `10.42.9.0/24`"],
        ),
        (
            "Subnet",
            "far-gateway",
            "network: lan, cidr: 10.42.8.0/24, gatewayIP: 10.9.9.9".to_owned(),
            "InvalidSpec",
            &["gatewayIP", "10.9.9.9", "10.42.8.0/24"],
        ),
    ];
    let yaml: String = cases
        .iter()
        .map(|case| of(case.0, case.1, &case.2))
        .collect();
    let nic = |rest: &str| format!("{TINY}  networks: [{{name: eth0, {rest}}}]\n");
    let outside = |address| nic(&format!("network: {{name: lan}}, fixedIP: {address}"));
    let servers = [
        stopped("outside", 2, &outside("10.99.0.9")),
        stopped("exhausted", 2, &nic("network: {name: tight}")),
        stopped(
            "talkative",
            2,
            &format!("{TINY}  userDataFrom: {{name: long, key: data}}\n"),
        ),
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: long}}\nstringData: {{data: {}}}\n",
            "x".repeat(64 * 1024 + 1)
        ),
    ];
    project.apply(&(yaml + &servers.concat()));
    join_all(
        cases
            .iter()
            .map(|case| seen.refused((case.0, case.1), case.3, case.4)),
    )
    .await;
    let at = [
        "spec.networks[eth0]",
        "10.99.0.9",
        "10.42.0.1 to 10.42.0.254",
    ];
    seen.refused(("Server", "outside"), "PortNotReady", &at)
        .await;
    let at = ["spec.networks[eth0]", "no address is left in Subnet tight"];
    seen.refused(("Server", "exhausted"), "PortNotReady", &at)
        .await;
    let at = ["spec.userDataFrom", "65537"];
    seen.refused(("Server", "talkative"), "UserDataTooLarge", &at)
        .await;
    // Written into the spec itself it is refused at once.
    let long = json!({"userData": "x".repeat(64 * 1024 + 1)});
    let patch = kube::api::Patch::Merge(json!({"spec": long}));
    let refused = project
        .servers()
        .patch("neighbour", &Default::default(), &patch)
        .await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("spec.userData") && refused.contains("65535"),
        "{refused}"
    );

    // The ways out that the messages name.
    seen.delete("Port", "exhausted").await;
    seen.delete("Port", "only").await;
    project.phase("exhausted", "Stopped", TIMEOUT).await;
    seen.delete("Port", "first").await;
    seen.ready("Port", "taken").await;
    seen.ready("Port", "same-mac").await;
    seen.delete("Subnet", "overlap").await;
    project.apply(&stopped("outside", 2, &outside("10.42.0.60")));
    let mended = project.phase("outside", "Stopped", TIMEOUT).await;
    assert_eq!(mended.status.unwrap().addresses[0].ips, ["10.42.0.60"]);
    neighbour.noticed_nothing(&project).await;
    project.leaves_nothing().await;
}

const IN_USE: &str = r#"
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec: {}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {name: lan}
spec: {network: lan, cidr: 10.43.0.0/24}
---
apiVersion: pileus.dev/v1alpha1
kind: SecurityGroup
metadata: {name: lan}
spec: {rules: [{name: out, direction: Egress}]}
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {name: user}
spec:
  flavor: m1.nano
  image: {name: late}
  keyPairs: [me]
  networks: [{name: eth0, network: {name: lan}, securityGroups: [lan]}]
  placement: {hostSelector: {lab.pileus.dev/host: host1}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_server_uses_stays_and_what_cannot_change_in_place_is_told() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-in-use").await;
    let seen = Conditions {
        lab: &lab,
        project: &project,
    };
    let pair = format!(
        "apiVersion: pileus.dev/v1alpha1\nkind: KeyPair\nmetadata: {{name: me}}\nspec: {{publicKey: {KEY}}}\n"
    );
    project.apply(&[&pair, &image_of_tiny(), "---", IN_USE].concat());
    let user = Neighbour::of(&project, "user", 1).await;

    // Changes that need a rebuild are named, and the guest goes on.
    let built = json!({"flavor": "m1.nano", "image": {"name": "late", "namespace": null}, "userData": null, "keyPairs": ["me"],
        "networks": [{"name": "eth0", "network": {"name": "lan"}, "securityGroups": ["lan"]}]});
    let changed = json!({"flavor": "m1.small", "image": {"name": "tiny", "namespace": "default"}, "userData": "x", "keyPairs": [],
        "networks": [{"name": "eth0", "network": {"name": "lan"}, "securityGroups": ["lan"]}, {"name": "eth1", "network": {"name": "lan"}}]});
    project.patch_server("user", changed).await;
    let rebuild = ["UpToDate", "False", "RebuildRequired"];
    let parts = [
        "size",
        "image",
        "default/tiny asked for",
        "networks",
        "userData",
        "goes on",
    ];
    seen.says(("Server", "user"), rebuild, &parts).await;
    project.patch_server("user", built).await;
    seen.says(("Server", "user"), ["UpToDate", "True", "UpToDate"], &[])
        .await;
    user.noticed_nothing(&project).await;

    let used = [
        ("Image", "late"),
        ("Network", "lan"),
        ("Subnet", "lan"),
        ("SecurityGroup", "lan"),
        ("KeyPair", "me"),
    ];
    for (kind, name) in used {
        seen.delete(kind, name).await;
    }
    join_all(
        used.iter()
            .map(|object| seen.refused(*object, "InUse", &["user"])),
    )
    .await;
    user.noticed_nothing(&project).await;
    seen.delete("Server", "user").await;
    join_all(used.iter().map(|(kind, name)| seen.gone(kind, name))).await;
    project.leaves_nothing().await;
}
