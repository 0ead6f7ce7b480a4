//! What a system with nothing to do writes: Leases and nothing else.
//!
//! `idle [SECONDS]`, by default 120.

#[allow(dead_code, reason = "each bench uses a part of what they share")]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use kube::core::{ApiResource, GroupVersionKind};

use support::lab::Lab;
use support::record::Recording;
use support::{Result, verdict};

#[tokio::main]
async fn main() -> Result<()> {
    let seconds: u64 = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(120);
    let lab = Lab::find().await?;
    let group = kube::discovery::group(&lab.client, "pileus.dev").await?;
    let mut kinds: Vec<ApiResource> = group
        .recommended_resources()
        .into_iter()
        .map(|(resource, _)| resource)
        .collect();
    let pileus = kinds.len();
    for (group, version, kind) in [
        ("", "v1", "Event"),
        ("", "v1", "Secret"),
        ("", "v1", "ConfigMap"),
        ("", "v1", "Namespace"),
        ("coordination.k8s.io", "v1", "Lease"),
    ] {
        kinds.push(ApiResource::from_gvk(&GroupVersionKind::gvk(
            group, version, kind,
        )));
    }
    let recording = Recording::start(&lab.client, &kinds).await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;

    let entries = recording.entries();
    let mut written: BTreeMap<String, usize> = BTreeMap::new();
    for entry in &entries {
        let line = format!("{:14} {:8} {}", entry.kind, entry.action, entry.key());
        *written.entry(line).or_default() += 1;
    }
    println!("\nwrites in {seconds} s");
    for (line, times) in &written {
        println!("  {times:4} × {line}");
    }
    let leases = entries.iter().filter(|e| e.kind == "Lease").count();
    let others = entries.len() - leases;
    println!(
        "bench idle seconds={seconds} kinds_of_pileus={pileus} writes={others} lease_writes={leases} goal=0 {}",
        verdict(others == 0),
    );
    Ok(())
}
