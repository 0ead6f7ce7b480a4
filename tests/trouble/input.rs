//! Bad input on two real hosts: each fault is named in a condition with its way out, what
//! can be mended by others heals without hands, and a neighbour notices nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::too_many_lines, clippy::similar_names)] // lists of cases

use std::process::Command;
use std::sync::atomic::Ordering;

use futures::future::join_all;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use pileus_tests::lab::{self, Lab, Project};
use pileus_tests::trouble::{
    Conditions, KEY, Neighbour, TIMEOUT, TINY, image, image_of_tiny, objects, stopped,
};
use pileus_tests::web::Web;
use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;

/// What `qemu-img create` makes of its arguments, and its checksum.
fn disk(arguments: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let done = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .args(&arguments[..arguments.len() - 1])
        .arg("disk")
        .arg(arguments[arguments.len() - 1])
        .current_dir(dir.path())
        .status();
    assert!(done.unwrap().success(), "{arguments:?}");
    std::fs::read(dir.path().join("disk")).unwrap()
}

fn sum(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An Image that cannot be used, and what is to be said of it.
struct Bad {
    name: &'static str,
    url: String,
    checksum: String,
    reason: &'static str,
    parts: Vec<String>,
}

fn bad_images(web: &Web) -> Vec<Bad> {
    let good = disk(&["1M"]);
    let big = disk(&["3G"]);
    let backed = disk(&["-b", "/etc/passwd", "-F", "raw", "-u", "1M"]);
    let split = disk(&["-o", "data_file=other.raw,data_file_raw=on", "1M"]);
    let page = b"<!DOCTYPE html><title>Moved</title>".to_vec();
    let junk = vec![7_u8; MIB];
    for (name, bytes) in [
        ("good", &good),
        ("big", &big),
        ("backed", &backed),
        ("split", &split),
        ("page", &page),
        ("junk", &junk),
        ("cut", &good),
    ] {
        web.put(name, bytes.clone());
    }
    let zeros = format!("sha256:{}", "0".repeat(64));
    let bad = |name, path: &str, bytes: &[u8], reason, parts: &[&str]| Bad {
        name,
        url: if path.contains("://") {
            path.to_owned()
        } else {
            web.url(path)
        },
        checksum: sum(bytes),
        reason,
        parts: parts.iter().map(ToString::to_string).collect(),
    };
    let mut wrong_sum = bad("wrong-sum", "ok/good", &good, "ChecksumMismatch", &[]);
    wrong_sum.parts = vec![zeros.clone(), sum(&good), "make a new Image".to_owned()];
    wrong_sum.checksum = zeros;
    vec![
        wrong_sum,
        bad("none", "ok/late", &good, "NotFound", &["ok/late", "404"]),
        bad(
            "cut",
            "cut/cut",
            &good,
            "Truncated",
            &["cut/cut", "bytes", "tried again"],
        ),
        bad(
            "loopback",
            "https://127.0.0.1/x",
            &good,
            "ForbiddenAddress",
            &["127.0.0.1", "allow"],
        ),
        bad(
            "redirect",
            "metadata/x",
            &good,
            "ForbiddenAddress",
            &["redirects", "169.254.169.254"],
        ),
        bad(
            "to-file",
            "to-file/x",
            &good,
            "ForbiddenUrl",
            &["to-file/x", "/etc/passwd"],
        ),
        bad(
            "page",
            "ok/page",
            &page,
            "NotAnImage",
            &["web page", "new Image"],
        ),
        bad(
            "junk",
            "ok/junk",
            &junk,
            "NotAnImage",
            &["qcow2", "new Image"],
        ),
        bad(
            "backed",
            "ok/backed",
            &backed,
            "HasBackingFile",
            &["/etc/passwd", "backing file", "convert"],
        ),
        bad(
            "split",
            "ok/split",
            &split,
            "HasBackingFile",
            &["data file", "convert"],
        ),
        bad(
            "big",
            "ok/big",
            &big,
            "ImageTooLarge",
            &["/big", "3221225472", "1073741824", "flavor"],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_used_says_why_and_heals_where_it_can() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-bad-images").await;
    let seen = Conditions {
        lab: &lab,
        project: &project,
    };
    let neighbour = Neighbour::start(&project, "neighbour", 1).await;
    let prefix = std::fs::read_to_string("/var/lib/pileus-devstack/prefix").unwrap();
    let web = Web::start_at(format!("{}.1", prefix.trim()).parse().unwrap()).await;
    let bad = bad_images(&web);
    let mut yaml = String::new();
    for (index, bad) in bad.iter().enumerate() {
        let size = format!(
            "  resources: {{vcpus: 1, memory: 64Mi, disk: 1Gi}}\n  image: {{name: {}}}\n",
            bad.name
        );
        yaml += &image(bad.name, &bad.url, &bad.checksum);
        yaml += &stopped(bad.name, index % 2 + 1, &size);
    }
    // A format that is not taken yet needs no host to be refused.
    yaml += &image("vmdk", "https://example.org/x.vmdk", &bad[0].checksum);
    yaml += "  diskFormat: vmdk\n";
    yaml += &stopped("vmdk", 1, "  flavor: m1.nano\n  image: {name: vmdk}\n");
    project.apply(&yaml);
    join_all(bad.iter().map(async |bad| {
        let parts: Vec<&str> = bad.parts.iter().map(String::as_str).collect();
        seen.refused(("Server", bad.name), bad.reason, &parts).await;
        // The Image says it too, unless it is only too big for this Server.
        if bad.reason != "ImageTooLarge" {
            let verified = ["Verified", "False", bad.reason];
            seen.says(("Image", bad.name), verified, &["host host"])
                .await;
        }
    }))
    .await;
    seen.refused(
        ("Server", "vmdk"),
        "UnsupportedFormat",
        &["vmdk", "qemu-img convert"],
    )
    .await;
    // Only a person can help with wrong bytes; a server's trouble passes.
    seen.says(
        ("Server", "wrong-sum"),
        ["Stalled", "True", "ChecksumMismatch"],
        &[],
    )
    .await;
    seen.says(("Server", "none"), ["Stalled", "False", "NotFound"], &[])
        .await;

    // The web server is mended: nobody lends a hand to Pileus.
    web.put("late", disk(&["1M"]));
    web.files.mended.store(true, Ordering::Relaxed);
    for name in ["none", "cut"] {
        project.phase(name, "Stopped", TIMEOUT).await;
        seen.says(("Image", name), ["Verified", "True", "Verified"], &[])
            .await;
    }
    let resumed = web
        .requests()
        .into_iter()
        .any(|(path, range)| path == "cut/cut" && range.is_some());
    assert!(resumed, "the rest was not asked for by a range");
    neighbour.noticed_nothing(&project).await;
    project.leaves_nothing().await;
}

/// All that the Servers of the next test lack.
fn what_was_missing() -> String {
    let image = image_of_tiny();
    format!(
        r##"
apiVersion: pileus.dev/v1alpha1
kind: Flavor
metadata: {{name: e2e-late}}
spec: {{vcpus: 1, memory: 128Mi, disk: 1Gi}}
---
apiVersion: pileus.dev/v1alpha1
kind: Network
metadata: {{name: late}}
spec: {{}}
---
apiVersion: pileus.dev/v1alpha1
kind: Subnet
metadata: {{name: late}}
spec: {{network: late, cidr: 10.41.0.0/24}}
---
apiVersion: pileus.dev/v1alpha1
kind: SecurityGroup
metadata: {{name: late}}
spec: {{rules: [{{name: out, direction: Egress}}]}}
---
apiVersion: pileus.dev/v1alpha1
kind: KeyPair
metadata: {{name: late}}
spec: {{publicKey: {KEY}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: late}}
stringData: {{script: "#!/bin/sh\necho told by a secret\n"}}
---
{image}
"##
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_and_its_arrival_is_enough() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-missing").await;
    let seen = Conditions {
        lab: &lab,
        project: &project,
    };
    let neighbour = Neighbour::start(&project, "neighbour", 1).await;
    let nics = |rest: &str| format!("{TINY}  networks: [{{name: eth0, {rest}}}]\n");
    let cases = [
        (
            "flavor",
            "  flavor: e2e-late\n  image: {name: tiny, namespace: default}\n".to_owned(),
            "FlavorNotFound",
            ["spec.flavor", "e2e-late"],
        ),
        (
            "image",
            "  flavor: m1.nano\n  image: {name: late}\n".to_owned(),
            "ImageNotFound",
            ["spec.image", "late"],
        ),
        (
            "network",
            nics("network: {name: late}"),
            "NetworkNotFound",
            ["spec.networks[eth0]", "late"],
        ),
        (
            "key",
            format!("{TINY}  keyPairs: [late]\n"),
            "KeyPairNotFound",
            ["spec.keyPairs", "late"],
        ),
        (
            "secret",
            format!("{TINY}  userDataFrom: {{name: late, key: script}}\n"),
            "SecretNotFound",
            ["spec.userDataFrom", "late"],
        ),
    ];
    let mut yaml: String = cases
        .iter()
        .map(|case| stopped(case.0, 2, &case.1))
        .collect();
    // One that lacks everything, and runs in the end.
    let all = stopped(
        "all",
        2,
        "  flavor: e2e-late\n  image: {name: late}\n  keyPairs: [late]\n  userDataFrom: {name: late, key: script}\n  networks: [{name: eth0, network: {name: late}, securityGroups: [late]}]\n",
    );
    yaml += &all.replace("  runState: Stopped\n", "");
    project.apply(&yaml);
    join_all(
        cases
            .iter()
            .map(|case| seen.refused(("Server", case.0), case.2, &case.3)),
    )
    .await;
    // Its message has all of it at once.
    let parts = [
        "Flavor `e2e-late`",
        "Image `late`",
        "KeyPair `late`",
        "Network `late`",
    ];
    seen.refused(("Server", "all"), "FlavorNotFound", &parts)
        .await;

    project.apply(&what_was_missing());
    join_all(
        cases
            .iter()
            .map(|case| project.phase(case.0, "Stopped", TIMEOUT)),
    )
    .await;
    project.phase("all", "Active", TIMEOUT).await;
    project
        .console("all")
        .await
        .says("told by a secret", TIMEOUT)
        .await;
    neighbour.noticed_nothing(&project).await;

    // The Flavor is cluster-wide: it stays while the Servers use it, and an event says who.
    seen.delete("Flavor", "e2e-late").await;
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    lab::eventually("an event names the Flavor's users", TIMEOUT, async || {
        let all = events
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let told = |e: &Event| {
            let about = e.regarding.as_ref().is_some_and(|r| {
                r.kind.as_deref() == Some("Flavor") && r.name.as_deref() == Some("e2e-late")
            });
            let note = e.note.as_deref().unwrap_or_default();
            about && note.contains("e2e-missing/all") && note.contains("e2e-missing/flavor")
        };
        all.iter()
            .any(told)
            .then_some(())
            .ok_or_else(|| "no such event".to_owned())
    })
    .await;
    assert!(
        objects(&lab, "Flavor", None)
            .get_opt("e2e-late")
            .await
            .unwrap()
            .is_some()
    );
    for name in ["all", "flavor"] {
        seen.delete("Server", name).await;
    }
    seen.gone("Flavor", "e2e-late").await;
    project.leaves_nothing().await;
}
