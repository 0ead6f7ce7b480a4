//! Servers in the state and the queue, without an API server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::fixtures::{after, bound, host, image, now, server, state};
use pileus_api::ServerStatus;
use pileus_api::common::Claim;
use pileus_api::host::Orphan;

#[test]
fn a_placement_is_assumed_from_the_decision_on_and_forgotten_after_a_conflict() {
    let mut state = state(&[host("h", 1000)]);
    state.server_applied(server("a", 1, "600Mi"));
    let writes = state.decide(now(1));
    assert_eq!(bound(&writes[0]), ("h", 1));
    state.server_applied(server("b", 2, "600Mi"));
    let why = state.decide(now(1));
    assert_eq!(why[0].status.placement, None);
    let message = &why[0].status.conditions[0].message;
    // Neither names of hosts nor what is free on them.
    assert_eq!(
        message,
        "0 of 1 hosts fit: RamFilter rejected 1 (needs 600 MiB of memory)"
    );
    let answer = Arc::new(after(&why[0], 3));
    state.write_finished(&why[0], Outcome::Written(answer), now(1));
    assert!(state.decide(now(1)).is_empty());

    // The write conflicted: the allocation stays until the newer version arrives.
    state.write_finished(&writes[0], Outcome::Conflict, now(1));
    assert_eq!(state.snapshot().placed_on("uid-a"), Some("h"));
    assert!(state.decide(now(1)).is_empty());
    let mut deleted = server("a", 4, "600Mi");
    deleted.metadata.deletion_timestamp = Some(Time(now(2)));
    state.server_applied(deleted);
    assert_eq!(state.snapshot().placed_on("uid-a"), None);
    let writes = state.decide(now(2));
    assert_eq!((writes.len(), bound(&writes[0])), (1, ("h", 1)));
}

#[test]
fn an_event_older_than_the_response_of_a_write_is_ignored() {
    let mut state = state(&[host("h", 1000)]);
    state.server_applied(server("a", 1, "600Mi"));
    let writes = state.decide(now(1));
    let placed = after(&writes[0], 5);
    state.write_finished(
        &writes[0],
        Outcome::Written(Arc::new(placed.clone())),
        now(1),
    );
    state.server_applied(server("a", 1, "600Mi"));
    assert!(state.decide(now(1)).is_empty());
    assert_eq!(state.snapshot().placed_on("uid-a"), Some("h"));
    state.server_applied(placed);
    assert!(state.decide(now(1)).is_empty());
    assert_eq!(state.queue_length(), 0);
}

#[test]
fn a_server_being_deleted_counts_until_it_is_deleted() {
    let mut state = state(&[host("h", 1000)]);
    state.server_applied(server("a", 1, "600Mi"));
    let write = state.decide(now(1)).remove(0);
    let mut placed = after(&write, 2);
    state.write_finished(&write, Outcome::Written(Arc::new(placed.clone())), now(1));
    state.server_applied(server("b", 3, "600Mi"));
    let why = state.decide(now(1)).remove(0);
    let explained = after(&why, 4);
    state.write_finished(&why, Outcome::Written(Arc::new(explained)), now(1));
    placed.metadata.deletion_timestamp = Some(Time(now(1)));
    placed.metadata.resource_version = Some("5".into());
    state.server_applied(placed);
    assert!(state.decide(now(2)).is_empty());
    state.server_deleted(&("ns".into(), "a".into()));
    assert_eq!(bound(&state.decide(now(2))[0]), ("h", 1));
}

#[test]
fn a_waiting_server_is_decided_again_by_events_that_help_and_reports_nothing_twice() {
    let mut state = state(&[]);
    state.server_applied(server("a", 1, "600Mi"));
    let why = state.decide(now(1)).remove(0);
    assert_eq!(why.decision, Decision::Unscheduled { transition: true });
    let answer = after(&why, 2);
    state.write_finished(&why, Outcome::Written(Arc::new(answer.clone())), now(1));
    assert!(state.decide(now(1)).is_empty());
    state.server_applied(answer);
    assert!(state.decide(now(1)).is_empty());
    assert!(state.decide(now(70)).is_empty(), "the message is the same");
    // A host that is too small: a new message, no transition.
    state.host_applied(&host("h", 100));
    let why = state.decide(now(80)).remove(0);
    assert_eq!(why.decision, Decision::Unscheduled { transition: false });
    let answer = after(&why, 3);
    state.write_finished(&why, Outcome::Written(Arc::new(answer)), now(80));
    // Only the numbers change: reported after ten seconds, then twenty, and so on.
    state.host_applied(&host("h3", 101));
    assert!(state.decide(now(81)).is_empty());
    assert!(state.decide(now(99)).is_empty());
    assert_eq!(state.decide(now(100)).len(), 1);
    state.host_applied(&host("h2", 1000));
    // A write is in flight: one at a time.
    assert!(state.decide(now(102)).is_empty());
}

#[test]
fn a_missing_image_is_not_reported_by_the_scheduler() {
    let mut state = State::default();
    state.host_applied(&host("h", 1000));
    state.server_applied(server("a", 1, "600Mi"));
    assert!(state.decide(now(1)).is_empty());
    assert_eq!(state.queue_length(), 1);
    state.image_applied(image());
    assert_eq!(bound(&state.decide(now(1))[0]), ("h", 1));
}

#[test]
fn a_server_whose_vm_is_on_a_host_is_placed_there_with_a_higher_epoch() {
    let mut full = host("full", 10);
    full.status.as_mut().unwrap().orphans = vec![Orphan {
        name: "dom".into(),
        server_namespace: "ns".into(),
        server_name: "a".into(),
        epoch: 4,
        ..Orphan::default()
    }];
    let mut state = state(&[full, host("empty", 10_000)]);
    state.server_applied(server("a", 1, "600Mi"));
    assert_eq!(bound(&state.decide(now(1))[0]), ("full", 5));
}

#[test]
fn the_epoch_is_higher_than_that_of_the_last_instance() {
    let mut server = server("a", 1, "1Mi");
    let status = server.status.get_or_insert_default();
    status.instance = Some("uid-a-7".into());
    let state = State::default();
    assert_eq!(state.epoch(&server, None), 8);
    assert_eq!(state.epoch(&server, Some(9)), 10);
    server.status.get_or_insert_default().instance = Some("uid-b-7".into());
    assert_eq!(state.epoch(&server, None), 1);
}

#[test]
fn a_server_without_finalizer_or_with_a_placement_is_left_alone() {
    let mut state = state(&[host("h", 1000)]);
    let mut fresh = server("a", 1, "1Mi");
    fresh.metadata.finalizers = None;
    state.server_applied(fresh);
    let mut restored = server("b", 2, "900Mi");
    restored.metadata.finalizers = None;
    restored.status = Some(ServerStatus {
        placement: Some(Placement {
            host: "h".into(),
            epoch: 3,
            claim: Claim {
                vcpus: 1,
                memory_mib: 900,
                disk_gib: 1,
            },
            ..Placement::default()
        }),
        ..ServerStatus::default()
    });
    state.server_applied(restored);
    assert!(state.decide(now(1)).is_empty());
    assert_eq!(state.snapshot().placed_on("uid-b"), Some("h"));
}

#[test]
fn servers_that_are_not_in_a_new_list_are_deleted() {
    let mut state = state(&[host("h", 1000)]);
    state.server_applied(server("a", 1, "600Mi"));
    let write = state.decide(now(1)).remove(0);
    state.write_finished(&write, Outcome::Written(Arc::new(after(&write, 2))), now(1));
    state.servers_listed(vec![server("b", 9, "600Mi")], &BTreeSet::new());
    assert_eq!(bound(&state.decide(now(1))[0]), ("h", 1));
    state.hosts_listed(&[], &BTreeSet::new());
    assert!(state.snapshot().hosts().next().is_none());
}

/// Two thousand hosts, so that fifty Servers with a query each are what one namespace may have in a
/// pass.
fn many_hosts() -> Vec<Host> {
    (0..2000)
        .map(|i| host(&format!("h{i:04}"), 100_000))
        .collect()
}

fn asking(namespace: &str, i: i64) -> Server {
    let mut server = server(&format!("{namespace}-{i}"), 1, "100Mi");
    server.metadata.namespace = Some(namespace.into());
    server.spec.image.namespace = Some("ns".into());
    let query = format!("[\">=\", \"$free_ram_mb\", {i}]");
    server.spec.placement = Some(pileus_api::server::PlacementConstraints {
        query: Some(query),
        ..Default::default()
    });
    server
}

#[test]
fn what_is_expensive_for_one_namespace_does_not_hold_up_others() {
    let mut state = state(&many_hosts());
    let mut image = image();
    image.spec.shared_with = Some(pileus_api::Sharing {
        namespaces: vec!["*".into()],
    });
    state.image_applied(image);
    for i in 0..300 {
        state.server_applied(asking("hog", i));
    }
    let mut other = asking("other", 1);
    other.spec.placement = None;
    other.metadata.creation_timestamp = Some(Time(now(100)));
    state.server_applied(other);
    let first = state.decide(now(200));
    let of = |writes: &[StatusWrite], namespace: &str| {
        writes.iter().filter(|w| w.key.0 == namespace).count()
    };
    assert_eq!(of(&first, "other"), 1, "in the first pass");
    assert!(
        (40..=60).contains(&of(&first, "hog")),
        "{}",
        of(&first, "hog")
    );
    let mut decided = of(&first, "hog");
    let mut passes = 1;
    while state.has_deferred() {
        let writes = state.decide(now(200));
        assert!(of(&writes, "hog") <= 60);
        decided += of(&writes, "hog");
        passes += 1;
        assert!(passes < 20);
    }
    assert_eq!(decided, 300, "all of them, over several passes");
}
