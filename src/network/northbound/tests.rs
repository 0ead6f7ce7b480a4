//! What the diff does not change; the rest of it is tested on a real database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::rows::owner_metadata;
use super::{Desired, LogicalSwitch, LogicalSwitchPort, NotApplied, diff};
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
fn rows_of_another_cluster_are_neither_changed_nor_orphans() {
    let theirs = owner("c2", "a");
    let ids = Datum::string_map(owner_metadata(&theirs, ""));
    let current = Replica::from_tables([(
        "Logical_Switch_Port",
        Table::from([(Uuid::from_u128(1), row("p", ids))]),
    )]);
    let cluster = ClusterId("c1".into());
    let deleted = BTreeSet::from([theirs.uid.clone()]);
    let found = diff(&current, &cluster, &desired(), &deleted);
    assert!(found.orphans.is_empty());
    assert!(matches!(
        found.not_applied.as_slice(),
        [NotApplied::NameInUse { name, .. }] if name == "p"
    ));
    // Only the switch is created: the port's name is in use by others.
    assert!(matches!(
        found.operations.as_slice(),
        [Operation::Insert {
            table: "Logical_Switch",
            ..
        }]
    ));
}

#[test]
fn a_port_without_its_switch_is_reported_and_not_created() {
    let mut desired = desired();
    desired.switches.clear();
    let cluster = ClusterId("c1".into());
    let found = diff(&Replica::default(), &cluster, &desired, &BTreeSet::new());
    assert_eq!(found.operations, []);
    assert!(
        matches!(found.not_applied.as_slice(), [NotApplied::MissingSwitch { port, .. }] if port == "p")
    );
}

#[test]
fn a_row_without_its_metadata_is_recognised_by_its_name() {
    let current = Replica::from_tables([(
        "Logical_Switch_Port",
        Table::from([(Uuid::from_u128(1), row("p", Datum::Map(BTreeMap::new())))]),
    )]);
    let cluster = ClusterId("c1".into());
    let found = diff(&current, &cluster, &desired(), &BTreeSet::new());
    assert!(found.not_applied.is_empty());
    assert!(!found.operations.iter().any(
        |op| matches!(op, Operation::Insert { table, .. } if *table == "Logical_Switch_Port")
    ));
}
