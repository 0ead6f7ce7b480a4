//! From the current rows to the desired rows, in one transaction. Pure.
//!
//! **Absence is never evidence.** A row with our metadata whose owner is not among the desired
//! rows is an [`Orphan`]: reported and kept, with all that belongs to it. It is removed only
//! if its owner's uid is in `deleted`, that is if the owner's deletion was observed (it
//! had our finalizer). Of an orphaned port even the memberships in port groups stay,
//! so that an empty cache opens or closes no running guest. ACLs are the exception: they are
//! a part of their port group, so while the group is desired, its ACLs are exactly the
//! desired ones.
//!
//! Rows of others are never changed: their ports in our switches, their members and ACLs in
//! our groups stay, and a row of ours that holds rows of others is not removed.

mod groups;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::rows::{Columns, Desired, owner_metadata, owner_of};
use crate::ovsdb::{Atom, Datum, Mutation, Mutator, Operation, Replica, Row, RowId};
use pileus_values::{ClusterId, Owner};

const SWITCH: &str = "Logical_Switch";
const PORT: &str = "Logical_Switch_Port";
const DHCP: &str = "DHCP_Options";
const ACL: &str = "ACL";
const GROUP: &str = "Port_Group";
const ADDRESSES: &str = "Address_Set";

/// A row with our metadata that is not desired. If the owner was created again and deleted again
/// before the row got its new uid, the row still has the old one: whoever observed the
/// deletion by namespace and name may then put [`Owner::uid`] of the orphan into `deleted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Name of the table.
    pub table: &'static str,
    /// Id of the row.
    pub row: Uuid,
    /// Its owner by its metadata.
    pub owner: Owner,
}

/// What cannot be applied, because of rows that we may not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotApplied {
    /// A row of somebody else has a name that we need.
    NameInUse {
        /// Name of the table.
        table: &'static str,
        /// The name.
        name: String,
        /// Who needs it.
        owner: Owner,
    },
    /// A row is to be removed, but holds rows that must stay.
    HoldsOtherRows {
        /// Name of the table.
        table: &'static str,
        /// Whose row it is.
        owner: Owner,
        /// How many rows it holds that must stay.
        rows: usize,
    },
    /// A port whose switch is not among the desired ones.
    MissingSwitch {
        /// Name of the port.
        port: String,
        /// Whose port it is.
        owner: Owner,
    },
}

/// How to get to the desired rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// One transaction; empty if the rows are the desired ones.
    pub operations: Vec<Operation>,
    /// Rows that are kept, to be reported.
    pub orphans: Vec<Orphan>,
    /// What is left out, to be reported.
    pub not_applied: Vec<NotApplied>,
}

/// What is to be done to reach `desired` from `current`. See the module's comment for what
/// is kept; `deleted` holds the uids of owners whose deletion was observed.
#[must_use]
pub fn diff(
    current: &Replica,
    cluster: &ClusterId,
    desired: &Desired,
    deleted: &BTreeSet<String>,
) -> Diff {
    let mut differ = Differ {
        current,
        cluster,
        deleted,
        out: Diff::default(),
        names: 0,
    };
    differ.run(desired);
    differ.out
}

struct Differ<'a> {
    current: &'a Replica,
    cluster: &'a ClusterId,
    deleted: &'a BTreeSet<String>,
    out: Diff,
    names: usize,
}

/// Our rows of a table, by the key that desired rows have.
struct OwnRows {
    by_key: HashMap<String, Uuid>,
    /// Further rows with the same key, which only a person can have made.
    duplicates: Vec<Uuid>,
    /// Keys that rows of others have.
    of_others: HashSet<String>,
}

fn text<'r>(row: &'r Row, column: &str) -> &'r str {
    row.get(column).and_then(Datum::as_str).unwrap_or_default()
}

fn dhcp_key(row: &Row) -> Option<String> {
    let owner = owner_of(row)?;
    Some(super::DhcpOptions::key(&owner))
}

impl Differ<'_> {
    fn run(&mut self, desired: &Desired) {
        let dhcp = self.dhcp(desired);
        let address_sets = self.own_rows_by_name(ADDRESSES);
        self.address_sets(desired, &address_sets);
        let ports = self.own_rows_by_name(PORT);
        let port_ids = self.ports(desired, &ports, &dhcp);
        self.switches(desired, &ports, &port_ids);
        self.groups(desired, &ports, &port_ids);
    }

    /// A row is ours by its metadata; without any, by a name that only we derive (the
    /// caller asks about such names only).
    fn is_ours(&self, row: &Row) -> Option<bool> {
        owner_of(row).map(|owner| owner.cluster == *self.cluster)
    }

    fn own_rows_by_name(&self, table: &'static str) -> OwnRows {
        let key = |row: &Row| Some(text(row, "name").to_owned());
        self.own_rows(table, key)
    }

    fn own_rows(&self, table: &'static str, key: impl Fn(&Row) -> Option<String>) -> OwnRows {
        let mut own = OwnRows {
            by_key: HashMap::with_capacity(self.current.len(table)),
            duplicates: Vec::new(),
            of_others: HashSet::new(),
        };
        for (id, row) in self.current.rows(table) {
            let Some(key) = key(row) else { continue };
            match self.is_ours(row) {
                Some(false) => {
                    own.of_others.insert(key);
                }
                Some(true) | None => {
                    if let Some(other) = own.by_key.get(&key).copied() {
                        // Names are unique but for switches; one with metadata is preferred.
                        let other_has_owner = self
                            .current
                            .row(table, other)
                            .is_some_and(|row| owner_of(row).is_some());
                        if other_has_owner {
                            own.duplicates.push(id);
                        } else {
                            own.duplicates.push(other);
                            own.by_key.insert(key, id);
                        }
                    } else {
                        own.by_key.insert(key, id);
                    }
                }
            }
        }
        own
    }

    fn fresh_name(&mut self) -> String {
        self.names += 1;
        format!("new{}", self.names)
    }

    fn insert(
        &mut self,
        table: &'static str,
        mut row: Columns,
        owner: &Owner,
        part: &str,
    ) -> RowId {
        row.insert(
            "external_ids",
            Datum::string_map(owner_metadata(owner, part)),
        );
        let name = self.fresh_name();
        self.out.operations.push(Operation::Insert {
            table,
            row,
            name: name.clone(),
        });
        RowId::Named(name)
    }

    /// Corrects what differs in columns that are wholly ours, and in the owner's metadata.
    fn correct(
        &mut self,
        table: &'static str,
        id: Uuid,
        columns: Columns,
        owner: &Owner,
        part: &str,
    ) {
        let Some(row) = self.current.row(table, id) else {
            return;
        };
        let changed: Columns = columns
            .into_iter()
            .filter(|(name, value)| row.get(*name) != Some(value))
            .collect();
        if !changed.is_empty() {
            self.out
                .operations
                .push(Operation::update(table, id, changed));
        }
        self.correct_keys(table, id, "external_ids", owner_metadata(owner, part));
    }

    /// Sets keys of a map that others may write to as well.
    fn correct_keys<'k>(
        &mut self,
        table: &'static str,
        id: Uuid,
        column: &'static str,
        pairs: impl IntoIterator<Item = (&'k str, &'k str)>,
    ) {
        let Some(map) = self.current.row(table, id).and_then(|row| row.get(column)) else {
            return;
        };
        let wrong: Vec<_> = pairs
            .into_iter()
            .filter(|(k, v)| map.get(k) != Some(*v))
            .collect();
        if wrong.is_empty() {
            return;
        }
        let mutation = |mutator, value| Mutation {
            column,
            mutator,
            value,
        };
        self.out.operations.push(Operation::mutate(
            table,
            id,
            vec![
                // `insert` leaves the value of a key that is there.
                mutation(Mutator::Delete, Datum::set(wrong.iter().map(|(k, _)| *k))),
                mutation(Mutator::Insert, Datum::string_map(wrong)),
            ],
        ));
    }

    fn members(
        &mut self,
        table: &'static str,
        id: Uuid,
        column: &'static str,
        add: BTreeSet<Atom>,
        remove: BTreeSet<Atom>,
    ) {
        let mutations: Vec<_> = [(Mutator::Delete, remove), (Mutator::Insert, add)]
            .into_iter()
            .filter(|(_, members)| !members.is_empty())
            .map(|(mutator, members)| Mutation {
                column,
                mutator,
                value: Datum::Set(members),
            })
            .collect();
        if !mutations.is_empty() {
            self.out
                .operations
                .push(Operation::mutate(table, id, mutations));
        }
    }

    fn name_in_use(&mut self, table: &'static str, name: &str, owner: &Owner) {
        self.out.not_applied.push(NotApplied::NameInUse {
            table,
            name: name.to_owned(),
            owner: owner.clone(),
        });
    }

    /// Of the rows with our metadata that are not desired, those to delete. The others are reported
    /// as orphans.
    fn rows_to_delete(&mut self, table: &'static str, kept: &HashSet<Uuid>) -> Vec<(Uuid, Owner)> {
        let mut to_delete = Vec::new();
        for (id, row) in self.current.rows(table) {
            if kept.contains(&id) {
                continue;
            }
            let Some(owner) = owner_of(row).filter(|owner| owner.cluster == *self.cluster) else {
                continue;
            };
            if self.deleted.contains(&owner.uid) {
                to_delete.push((id, owner));
            } else {
                self.out.orphans.push(Orphan {
                    table,
                    row: id,
                    owner,
                });
            }
        }
        to_delete
    }

    fn delete_duplicates(&mut self, table: &'static str, duplicates: &[Uuid]) {
        for id in duplicates {
            if self
                .current
                .row(table, *id)
                .is_some_and(|row| owner_of(row).is_some())
            {
                self.out.operations.push(Operation::delete(table, *id));
            }
        }
    }

    fn dhcp(&mut self, desired: &Desired) -> HashMap<String, RowId> {
        let own = self.own_rows(DHCP, dhcp_key);
        let mut ids = HashMap::new();
        let mut kept: HashSet<Uuid> = own.duplicates.iter().copied().collect();
        for (key, want) in &desired.dhcp_options {
            let id = if let Some(id) = own.by_key.get(key).copied() {
                kept.insert(id);
                self.correct(DHCP, id, want.columns(), &want.owner, "dhcp");
                RowId::Uuid(id)
            } else {
                self.insert(DHCP, want.columns(), &want.owner, "dhcp")
            };
            ids.insert(key.clone(), id);
        }
        self.delete_duplicates(DHCP, &own.duplicates);
        for (id, _) in self.rows_to_delete(DHCP, &kept) {
            self.out.operations.push(Operation::delete(DHCP, id));
        }
        ids
    }

    fn address_sets(&mut self, desired: &Desired, own: &OwnRows) {
        let mut kept = HashSet::new();
        for (name, want) in &desired.address_sets {
            if let Some(id) = own.by_key.get(name).copied() {
                kept.insert(id);
                self.correct(ADDRESSES, id, want.columns(name), &want.owner, "");
            } else if own.of_others.contains(name) {
                self.name_in_use(ADDRESSES, name, &want.owner);
            } else {
                self.insert(ADDRESSES, want.columns(name), &want.owner, "");
            }
        }
        for (id, _) in self.rows_to_delete(ADDRESSES, &kept) {
            self.out.operations.push(Operation::delete(ADDRESSES, id));
        }
    }

    /// Creates and corrects ports; their membership in switches is set later.
    fn ports(
        &mut self,
        desired: &Desired,
        own: &OwnRows,
        dhcp: &HashMap<String, RowId>,
    ) -> BTreeMap<String, RowId> {
        let mut ids = BTreeMap::new();
        for (name, want) in &desired.ports {
            if !desired.switches.contains_key(&want.switch) {
                self.out.not_applied.push(NotApplied::MissingSwitch {
                    port: name.clone(),
                    owner: want.owner.clone(),
                });
                continue;
            }
            let mut columns = want.columns(name);
            for (column, key) in [
                ("dhcpv4_options", &want.dhcpv4),
                ("dhcpv6_options", &want.dhcpv6),
            ] {
                let reference = key.as_ref().and_then(|key| dhcp.get(key)).cloned();
                columns.insert(column, Datum::set(reference));
            }
            let id = if let Some(id) = own.by_key.get(name).copied() {
                self.correct(PORT, id, columns, &want.owner, "");
                RowId::Uuid(id)
            } else if own.of_others.contains(name) {
                self.name_in_use(PORT, name, &want.owner);
                continue;
            } else {
                self.insert(PORT, columns, &want.owner, "")
            };
            ids.insert(name.clone(), id);
        }
        ids
    }

    fn switches(
        &mut self,
        desired: &Desired,
        own_ports: &OwnRows,
        port_ids: &BTreeMap<String, RowId>,
    ) {
        let own = self.own_rows_by_name(SWITCH);
        // The ports of each switch.
        let mut wanted: HashMap<&str, BTreeSet<Atom>> = HashMap::new();
        for (name, id) in port_ids {
            if let Some(port) = desired.ports.get(name) {
                let members = wanted.entry(port.switch.as_str()).or_default();
                members.insert(Atom::Uuid(id.clone()));
            }
        }
        let placed: HashSet<Uuid> = port_ids.values().filter_map(row_uuid).collect();
        let known: HashSet<Uuid> = desired
            .ports
            .keys()
            .filter_map(|name| own_ports.by_key.get(name).copied())
            .collect();
        let to_delete: HashSet<Uuid> = self
            .rows_to_delete(PORT, &known)
            .into_iter()
            .map(|(id, _)| id)
            .collect();

        let mut kept: HashSet<Uuid> = HashSet::new();
        for (name, want) in &desired.switches {
            let members = wanted.remove(name.as_str()).unwrap_or_default();
            if let Some(id) = own.by_key.get(name).copied() {
                kept.insert(id);
                let columns = BTreeMap::from([("name", Datum::atom(name.as_str()))]);
                self.correct(SWITCH, id, columns, &want.owner, "");
                let config = want.other_config.iter();
                let config = config.map(|(k, v)| (k.as_str(), v.as_str()));
                self.correct_keys(SWITCH, id, "other_config", config);
                self.switch_members(id, &members, &placed, &to_delete);
            } else {
                let columns = BTreeMap::from([
                    ("name", Datum::atom(name.as_str())),
                    ("other_config", Datum::string_map(&want.other_config)),
                    ("ports", Datum::Set(members)),
                ]);
                self.insert(SWITCH, columns, &want.owner, "");
            }
        }
        // Ports to delete, or that belong to another switch, may be members of any switch.
        for (id, row) in self.current.rows(SWITCH) {
            if kept.contains(&id) {
                continue;
            }
            let remove: BTreeSet<Atom> = reference_ids(row, "ports")
                .filter(|port| placed.contains(port) || to_delete.contains(port))
                .map(Atom::from)
                .collect();
            self.members(SWITCH, id, "ports", BTreeSet::new(), remove);
        }
        for (id, owner) in self.rows_to_delete(SWITCH, &kept) {
            let others = self.current.row(SWITCH, id).map_or(0, |row| {
                reference_ids(row, "ports")
                    .filter(|port| !placed.contains(port) && !to_delete.contains(port))
                    .count()
            });
            if others == 0 {
                self.out.operations.push(Operation::delete(SWITCH, id));
            } else {
                self.out.not_applied.push(NotApplied::HoldsOtherRows {
                    table: SWITCH,
                    owner,
                    rows: others,
                });
            }
        }
    }

    fn switch_members(
        &mut self,
        id: Uuid,
        members: &BTreeSet<Atom>,
        placed: &HashSet<Uuid>,
        to_delete: &HashSet<Uuid>,
    ) {
        let Some(row) = self.current.row(SWITCH, id) else {
            return;
        };
        let present: BTreeSet<Atom> = reference_ids(row, "ports").map(Atom::from).collect();
        let remove: BTreeSet<Atom> = reference_ids(row, "ports")
            .filter(|port| to_delete.contains(port) || placed.contains(port))
            .map(Atom::from)
            .filter(|port| !members.contains(port))
            .collect();
        let add: BTreeSet<Atom> = members.difference(&present).cloned().collect();
        // The database deletes a port that nothing refers to any more.
        self.members(SWITCH, id, "ports", add, remove);
    }
}

fn row_uuid(id: &RowId) -> Option<Uuid> {
    match id {
        RowId::Uuid(id) => Some(*id),
        RowId::Named(_) => None,
    }
}

fn reference_ids<'r>(row: &'r Row, column: &str) -> impl Iterator<Item = Uuid> + use<'r> {
    row.get(column).into_iter().flat_map(Datum::row_ids)
}
