//! From the rows that are to the rows that should be, in one transaction. Pure.
//!
//! **Absence is never evidence.** A row with our marks whose owner is not among the desired
//! rows is an [`Orphan`]: reported and kept, with all that belongs to it. It is removed only
//! if its owner's uid is in `removed`, that is if the owner's deletion was observed (a
//! finalizer of ours held it). Of an orphaned port even the memberships in port groups stay,
//! so that an empty cache opens or closes no running guest. ACLs are the exception: they are
//! a part of their port group, so while the group is desired, its ACLs are exactly the
//! desired ones.
//!
//! Rows of others are never touched: their ports in our switches, their members and ACLs in
//! our groups stay, and a row of ours that holds rows of others is not removed.

mod groups;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::rows::{Columns, Desired, marks, owner_of};
use crate::ovsdb::{Atom, Datum, Mutation, Mutator, Operation, Replica, Row, RowId};
use pileus_values::{ClusterId, Owner};

const SWITCH: &str = "Logical_Switch";
const PORT: &str = "Logical_Switch_Port";
const DHCP: &str = "DHCP_Options";
const ACL: &str = "ACL";
const GROUP: &str = "Port_Group";
const ADDRESSES: &str = "Address_Set";

/// A row with our marks that nobody asks for. If the owner was made anew and deleted again
/// before the row got its new uid, the marks still have the old one: whoever observed the
/// deletion by namespace and name may then put [`Owner::uid`] of the orphan into `removed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Name of the table.
    pub table: &'static str,
    /// Id of the row.
    pub row: Uuid,
    /// Its owner by its marks.
    pub owner: Owner,
}

/// What stands in the way and is not ours to clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// A row of somebody else has a name that we need.
    NameTaken {
        /// Name of the table.
        table: &'static str,
        /// The name.
        name: String,
        /// Who needs it.
        owner: Owner,
    },
    /// A row should go, but holds rows that should not.
    Occupied {
        /// Name of the table.
        table: &'static str,
        /// Whose row it is.
        owner: Owner,
        /// How many rows it holds that must stay.
        rows: usize,
    },
    /// A port whose switch is not among the desired ones.
    NoSwitch {
        /// Name of the port.
        port: String,
        /// Whose port it is.
        owner: Owner,
    },
}

/// The way to the desired rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// One transaction; empty if all is as it should be.
    pub operations: Vec<Operation>,
    /// Kept, to be reported.
    pub orphans: Vec<Orphan>,
    /// To be reported.
    pub conflicts: Vec<Conflict>,
}

/// What is to be done to reach `desired` from `current`. See the module's head for what
/// is kept; `removed` holds the uids of owners whose deletion was observed.
#[must_use]
pub fn diff(
    current: &Replica,
    cluster: &ClusterId,
    desired: &Desired,
    removed: &BTreeSet<String>,
) -> Diff {
    let mut differ = Differ {
        current,
        cluster,
        removed,
        out: Diff::default(),
        names: 0,
    };
    differ.run(desired);
    differ.out
}

struct Differ<'a> {
    current: &'a Replica,
    cluster: &'a ClusterId,
    removed: &'a BTreeSet<String>,
    out: Diff,
    names: usize,
}

/// Rows of a table that are ours, by the key that desired rows have.
struct Ours {
    by_key: HashMap<String, Uuid>,
    /// Further rows with the same key, which only a hand can have made.
    doubles: Vec<Uuid>,
    /// Keys that rows of others hold.
    taken: HashSet<String>,
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
        let address_sets = self.ours_by_name(ADDRESSES);
        self.address_sets(desired, &address_sets);
        let ports = self.ours_by_name(PORT);
        let port_ids = self.ports(desired, &ports, &dhcp);
        self.switches(desired, &ports, &port_ids);
        self.groups(desired, &ports, &port_ids);
    }

    /// A row is ours by its marks; without any marks, by a name that only we derive (the
    /// caller asks about such names only).
    fn is_ours(&self, row: &Row) -> Option<bool> {
        owner_of(row).map(|owner| owner.cluster == *self.cluster)
    }

    fn ours_by_name(&self, table: &'static str) -> Ours {
        let key = |row: &Row| Some(text(row, "name").to_owned());
        self.ours(table, key)
    }

    fn ours(&self, table: &'static str, key: impl Fn(&Row) -> Option<String>) -> Ours {
        let mut ours = Ours {
            by_key: HashMap::with_capacity(self.current.len(table)),
            doubles: Vec::new(),
            taken: HashSet::new(),
        };
        for (id, row) in self.current.rows(table) {
            let Some(key) = key(row) else { continue };
            match self.is_ours(row) {
                Some(false) => {
                    ours.taken.insert(key);
                }
                Some(true) | None => {
                    if let Some(other) = ours.by_key.get(&key).copied() {
                        // Names are unique but for switches; a marked one goes first.
                        let other_marked = self
                            .current
                            .row(table, other)
                            .is_some_and(|row| owner_of(row).is_some());
                        if other_marked {
                            ours.doubles.push(id);
                        } else {
                            ours.doubles.push(other);
                            ours.by_key.insert(key, id);
                        }
                    } else {
                        ours.by_key.insert(key, id);
                    }
                }
            }
        }
        ours
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
        row.insert("external_ids", Datum::string_map(marks(owner, part)));
        let name = self.fresh_name();
        self.out.operations.push(Operation::Insert {
            table,
            row,
            name: name.clone(),
        });
        RowId::Named(name)
    }

    /// Sets back what differs in columns that are wholly ours, and in the marks.
    fn repair(
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
        self.repair_keys(table, id, "external_ids", marks(owner, part));
    }

    /// Sets keys of a map that others may write to as well.
    fn repair_keys<'k>(
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
        take: BTreeSet<Atom>,
    ) {
        let mutations: Vec<_> = [(Mutator::Delete, take), (Mutator::Insert, add)]
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

    fn name_taken(&mut self, table: &'static str, name: &str, owner: &Owner) {
        self.out.conflicts.push(Conflict::NameTaken {
            table,
            name: name.to_owned(),
            owner: owner.clone(),
        });
    }

    /// Rows with our marks that are not desired: whether they may go. Orphans are noted.
    fn leftovers(&mut self, table: &'static str, kept: &HashSet<Uuid>) -> Vec<(Uuid, Owner)> {
        let mut going = Vec::new();
        for (id, row) in self.current.rows(table) {
            if kept.contains(&id) {
                continue;
            }
            let Some(owner) = owner_of(row).filter(|owner| owner.cluster == *self.cluster) else {
                continue;
            };
            if self.removed.contains(&owner.uid) {
                going.push((id, owner));
            } else {
                self.out.orphans.push(Orphan {
                    table,
                    row: id,
                    owner,
                });
            }
        }
        going
    }

    fn delete_doubles(&mut self, table: &'static str, doubles: &[Uuid]) {
        for id in doubles {
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
        let ours = self.ours(DHCP, dhcp_key);
        let mut ids = HashMap::new();
        let mut kept: HashSet<Uuid> = ours.doubles.iter().copied().collect();
        for (key, want) in &desired.dhcp_options {
            let id = if let Some(id) = ours.by_key.get(key).copied() {
                kept.insert(id);
                self.repair(DHCP, id, want.columns(), &want.owner, "dhcp");
                RowId::Uuid(id)
            } else {
                self.insert(DHCP, want.columns(), &want.owner, "dhcp")
            };
            ids.insert(key.clone(), id);
        }
        self.delete_doubles(DHCP, &ours.doubles);
        for (id, _) in self.leftovers(DHCP, &kept) {
            self.out.operations.push(Operation::delete(DHCP, id));
        }
        ids
    }

    fn address_sets(&mut self, desired: &Desired, ours: &Ours) {
        let mut kept = HashSet::new();
        for (name, want) in &desired.address_sets {
            if let Some(id) = ours.by_key.get(name).copied() {
                kept.insert(id);
                self.repair(ADDRESSES, id, want.columns(name), &want.owner, "");
            } else if ours.taken.contains(name) {
                self.name_taken(ADDRESSES, name, &want.owner);
            } else {
                self.insert(ADDRESSES, want.columns(name), &want.owner, "");
            }
        }
        for (id, _) in self.leftovers(ADDRESSES, &kept) {
            self.out.operations.push(Operation::delete(ADDRESSES, id));
        }
    }

    /// Makes and repairs ports; membership in switches comes later.
    fn ports(
        &mut self,
        desired: &Desired,
        ours: &Ours,
        dhcp: &HashMap<String, RowId>,
    ) -> BTreeMap<String, RowId> {
        let mut ids = BTreeMap::new();
        for (name, want) in &desired.ports {
            if !desired.switches.contains_key(&want.switch) {
                self.out.conflicts.push(Conflict::NoSwitch {
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
            let id = if let Some(id) = ours.by_key.get(name).copied() {
                self.repair(PORT, id, columns, &want.owner, "");
                RowId::Uuid(id)
            } else if ours.taken.contains(name) {
                self.name_taken(PORT, name, &want.owner);
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
        ours_ports: &Ours,
        port_ids: &BTreeMap<String, RowId>,
    ) {
        let ours = self.ours_by_name(SWITCH);
        // What each switch should hold, and which ports are wanted at all.
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
            .filter_map(|name| ours_ports.by_key.get(name).copied())
            .collect();
        let going: HashSet<Uuid> = self
            .leftovers(PORT, &known)
            .into_iter()
            .map(|(id, _)| id)
            .collect();

        let mut kept: HashSet<Uuid> = HashSet::new();
        for (name, want) in &desired.switches {
            let members = wanted.remove(name.as_str()).unwrap_or_default();
            if let Some(id) = ours.by_key.get(name).copied() {
                kept.insert(id);
                let columns = BTreeMap::from([("name", Datum::atom(name.as_str()))]);
                self.repair(SWITCH, id, columns, &want.owner, "");
                let config = want.other_config.iter();
                let config = config.map(|(k, v)| (k.as_str(), v.as_str()));
                self.repair_keys(SWITCH, id, "other_config", config);
                self.switch_members(id, &members, &placed, &going);
            } else {
                let columns = BTreeMap::from([
                    ("name", Datum::atom(name.as_str())),
                    ("other_config", Datum::string_map(&want.other_config)),
                    ("ports", Datum::Set(members)),
                ]);
                self.insert(SWITCH, columns, &want.owner, "");
            }
        }
        // Ports that should go or live elsewhere may sit in any other switch.
        for (id, row) in self.current.rows(SWITCH) {
            if kept.contains(&id) {
                continue;
            }
            let take: BTreeSet<Atom> = reference_ids(row, "ports")
                .filter(|port| placed.contains(port) || going.contains(port))
                .map(Atom::from)
                .collect();
            self.members(SWITCH, id, "ports", BTreeSet::new(), take);
        }
        for (id, owner) in self.leftovers(SWITCH, &kept) {
            let holds = self.current.row(SWITCH, id).map_or(0, |row| {
                reference_ids(row, "ports")
                    .filter(|port| !placed.contains(port) && !going.contains(port))
                    .count()
            });
            if holds == 0 {
                self.out.operations.push(Operation::delete(SWITCH, id));
            } else {
                self.out.conflicts.push(Conflict::Occupied {
                    table: SWITCH,
                    owner,
                    rows: holds,
                });
            }
        }
    }

    fn switch_members(
        &mut self,
        id: Uuid,
        members: &BTreeSet<Atom>,
        placed: &HashSet<Uuid>,
        going: &HashSet<Uuid>,
    ) {
        let Some(row) = self.current.row(SWITCH, id) else {
            return;
        };
        let present: BTreeSet<Atom> = reference_ids(row, "ports").map(Atom::from).collect();
        let take: BTreeSet<Atom> = reference_ids(row, "ports")
            .filter(|port| going.contains(port) || placed.contains(port))
            .map(Atom::from)
            .filter(|port| !members.contains(port))
            .collect();
        let add: BTreeSet<Atom> = members.difference(&present).cloned().collect();
        // A port that nothing refers to any more is collected by the database.
        self.members(SWITCH, id, "ports", add, take);
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
