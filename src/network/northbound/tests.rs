//! What the diff leaves alone; the rest of it is tested on a real database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::rows::marks;
use super::{Conflict, Desired, LogicalSwitch, LogicalSwitchPort, diff};
use crate::ovsdb::{Datum, Operation, Replica, Row, Table};
use pileus_values::{ClusterId, Owner};

fn owner(cluster: &str, name: &str) -> Owner {
    Owner {
        cluster: ClusterId(cluster.into()),
        kind: "Port".into(),
        namespace: "team".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
    }
}

fn row(name: &str, ids: Datum) -> Arc<Row> {
    Arc::new(Row::from([
        (Arc::from("name"), Datum::atom(name)),
        (Arc::from("external_ids"), ids),
    ]))
}

fn desired() -> Desired {
    let ours = owner("c1", "a");
    Desired {
        switches: BTreeMap::from([(
            "s".into(),
            LogicalSwitch {
                owner: ours.clone(),
                ..LogicalSwitch::default()
            },
        )]),
        ports: BTreeMap::from([(
            "p".into(),
            LogicalSwitchPort {
                owner: ours,
                switch: "s".into(),
                ..LogicalSwitchPort::default()
            },
        )]),
        ..Desired::default()
    }
}

#[test]
fn rows_of_another_cluster_are_neither_taken_nor_orphans() {
    let theirs = owner("c2", "a");
    let ids = Datum::string_map(marks(&theirs, ""));
    let current = Replica::from_tables([(
        "Logical_Switch_Port",
        Table::from([(Uuid::from_u128(1), row("p", ids))]),
    )]);
    let cluster = ClusterId("c1".into());
    let removed = BTreeSet::from([theirs.uid.clone()]);
    let found = diff(&current, &cluster, &desired(), &removed);
    assert!(found.orphans.is_empty());
    assert!(matches!(
        found.conflicts.as_slice(),
        [Conflict::NameTaken { name, .. }] if name == "p"
    ));
    // Only the switch is made: the port's name is theirs.
    assert!(matches!(
        found.operations.as_slice(),
        [Operation::Insert {
            table: "Logical_Switch",
            ..
        }]
    ));
}

#[test]
fn a_port_without_its_switch_is_reported_and_not_made() {
    let mut desired = desired();
    desired.switches.clear();
    let cluster = ClusterId("c1".into());
    let found = diff(&Replica::default(), &cluster, &desired, &BTreeSet::new());
    assert_eq!(found.operations, []);
    assert!(matches!(found.conflicts.as_slice(), [Conflict::NoSwitch { port, .. }] if port == "p"));
}

#[test]
fn a_row_that_lost_its_marks_is_known_by_its_name() {
    let current = Replica::from_tables([(
        "Logical_Switch_Port",
        Table::from([(Uuid::from_u128(1), row("p", Datum::Map(BTreeMap::new())))]),
    )]);
    let cluster = ClusterId("c1".into());
    let found = diff(&current, &cluster, &desired(), &BTreeSet::new());
    assert!(found.conflicts.is_empty());
    assert!(!found.operations.iter().any(
        |op| matches!(op, Operation::Insert { table, .. } if *table == "Logical_Switch_Port")
    ));
}
