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
//!
//! An owner can be left out ([`Scope`]), because the database refuses its rows or cannot even carry
//! their texts: then its rows stay as they are, and everything else is done.

mod groups;
mod scope;
mod texts;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use uuid::Uuid;

pub use scope::Scope;
pub use texts::not_carried;

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
    /// A port whose switch is not among the desired ones, or is left out itself.
    MissingSwitch {
        /// Name of the port.
        port: String,
        /// Whose port it is.
        owner: Owner,
    },
    /// A rule of a port group, or a port in it, and the group is left out.
    MissingGroup {
        /// The security group.
        group: Owner,
        /// Whose rule or port it is.
        owner: Owner,
    },
    /// The database refuses the rows of this owner, or cannot carry them. What it had stays as it
    /// is.
    Refused {
        /// Whose rows they are.
        owner: Owner,
        /// Why, in the words of the database where it has any.
        message: String,
    },
}

impl NotApplied {
    /// Whose rows are left out.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        match self {
            Self::NameInUse { owner, .. }
            | Self::HoldsOtherRows { owner, .. }
            | Self::MissingSwitch { owner, .. }
            | Self::MissingGroup { owner, .. }
            | Self::Refused { owner, .. } => owner,
        }
    }
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
    /// Whose rows the operations change, by uid.
    pub changed: BTreeMap<String, Owner>,
    /// When to apply again without any other cause: an owner that was refused is tried again.
    pub retry_after: Option<Duration>,
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
    diff_within(current, cluster, desired, deleted, &Scope::default())
}

/// As [`diff`], without the changes of the owners that are left out. An owner with a text that the
/// database cannot carry is left out as well, and reported.
#[must_use]
pub fn diff_within(
    current: &Replica,
    cluster: &ClusterId,
    desired: &Desired,
    deleted: &BTreeSet<String>,
    scope: &Scope,
) -> Diff {
    let mut scope = scope.clone();
    let mut refused = Vec::new();
    loop {
        let mut differ = Differ {
            current,
            cluster,
            deleted,
            scope: &scope,
            unfit: BTreeMap::new(),
            out: Diff::default(),
            names: 0,
        };
        differ.run(desired);
        let Differ { mut out, unfit, .. } = differ;
        if unfit.is_empty() {
            out.not_applied.extend(refused);
            return out;
        }
        // They leave the scope, so that this ends.
        for (uid, (owner, message)) in unfit {
            scope.leave_out(uid);
            refused.push(NotApplied::Refused { owner, message });
        }
    }
}

struct Differ<'a> {
    current: &'a Replica,
    cluster: &'a ClusterId,
    deleted: &'a BTreeSet<String>,
    scope: &'a Scope,
    /// Owners with a text that the database cannot carry, by uid, each with what is wrong.
    unfit: BTreeMap<String, (Owner, String)>,
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
        let switches = self.own_rows_by_name(SWITCH);
        let port_ids = self.ports(desired, &ports, &switches, &dhcp);
        self.switches(desired, &switches, &ports, &port_ids);
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

    /// Adds an operation that changes rows of an owner.
    fn operation(&mut self, owner: &Owner, operation: Operation) {
        if let Some(message) = texts::problem(&operation) {
            let unfit = (owner.clone(), message);
            self.unfit.insert(owner.uid.clone(), unfit);
        }
        self.changes(owner);
        self.out.operations.push(operation);
    }

    fn changes(&mut self, owner: &Owner) {
        if !self.out.changed.contains_key(&owner.uid) {
            let uid = owner.uid.clone();
            self.out.changed.insert(uid, owner.clone());
        }
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
        let operation = Operation::Insert {
            table,
            row,
            name: name.clone(),
        };
        self.operation(owner, operation);
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
            self.operation(owner, Operation::update(table, id, changed));
        }
        let metadata = owner_metadata(owner, part);
        self.correct_keys(table, id, "external_ids", owner, metadata);
    }

    /// Sets keys of a map that others may write to as well.
    fn correct_keys<'k>(
        &mut self,
        table: &'static str,
        id: Uuid,
        column: &'static str,
        owner: &Owner,
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
        let mutations = vec![
            // `insert` leaves the value of a key that is there.
            mutation(Mutator::Delete, Datum::set(wrong.iter().map(|(k, _)| *k))),
            mutation(Mutator::Insert, Datum::string_map(wrong)),
        ];
        self.operation(owner, Operation::mutate(table, id, mutations));
    }

    /// Changes which rows a row refers to. The owners of those make the change, not the owner of
    /// the row.
    fn members(
        &mut self,
        table: &'static str,
        id: Uuid,
        column: &'static str,
        add: BTreeSet<Atom>,
        remove: BTreeSet<Atom>,
    ) {
        let of = if column == "acls" { ACL } else { PORT };
        let rows = remove.iter().chain(&add).filter_map(|member| match member {
            // A new row is counted where it is inserted.
            Atom::Uuid(RowId::Uuid(id)) => self.current.row(of, *id),
            _ => None,
        });
        let owners: Vec<Owner> = rows.filter_map(owner_of).collect();
        for owner in owners {
            self.changes(&owner);
        }
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
            if self.scope.leaves_out(&owner.uid) {
                continue;
            }
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
            if let Some(owner) = self.current.row(table, *id).and_then(owner_of)
                && !self.scope.leaves_out(&owner.uid)
            {
                self.operation(&owner, Operation::delete(table, *id));
            }
        }
    }

    fn dhcp(&mut self, desired: &Desired) -> HashMap<String, RowId> {
        let own = self.own_rows(DHCP, dhcp_key);
        let mut ids = HashMap::new();
        let mut kept: HashSet<Uuid> = own.duplicates.iter().copied().collect();
        for (key, want) in &desired.dhcp_options {
            let left_out = self.scope.leaves_out(&want.owner.uid);
            let id = if let Some(id) = own.by_key.get(key).copied() {
                kept.insert(id);
                if !left_out {
                    self.correct(DHCP, id, want.columns(), &want.owner, "dhcp");
                }
                RowId::Uuid(id)
            } else if left_out {
                continue;
            } else {
                self.insert(DHCP, want.columns(), &want.owner, "dhcp")
            };
            ids.insert(key.clone(), id);
        }
        self.delete_duplicates(DHCP, &own.duplicates);
        for (id, owner) in self.rows_to_delete(DHCP, &kept) {
            self.operation(&owner, Operation::delete(DHCP, id));
        }
        ids
    }

    fn address_sets(&mut self, desired: &Desired, own: &OwnRows) {
        let mut kept = HashSet::new();
        for (name, want) in &desired.address_sets {
            let left_out = self.scope.leaves_out(&want.owner.uid);
            if let Some(id) = own.by_key.get(name).copied() {
                kept.insert(id);
                if left_out {
                    continue;
                }
                self.correct(ADDRESSES, id, want.columns(name), &want.owner, "");
            } else if own.of_others.contains(name) {
                self.name_in_use(ADDRESSES, name, &want.owner);
            } else if !left_out {
                self.insert(ADDRESSES, want.columns(name), &want.owner, "");
            }
        }
        for (id, owner) in self.rows_to_delete(ADDRESSES, &kept) {
            self.operation(&owner, Operation::delete(ADDRESSES, id));
        }
    }

    /// Creates and corrects ports; their membership in switches is set later. Those of owners that
    /// are left out are not among the result, so that nothing is done with them.
    fn ports(
        &mut self,
        desired: &Desired,
        own: &OwnRows,
        switches: &OwnRows,
        dhcp: &HashMap<String, RowId>,
    ) -> BTreeMap<String, RowId> {
        let mut ids = BTreeMap::new();
        for (name, want) in &desired.ports {
            if self.scope.leaves_out(&want.owner.uid) {
                continue;
            }
            if !self.has_switch(desired, switches, &want.switch) {
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

    /// Whether a switch is there once the operations are done.
    fn has_switch(&self, desired: &Desired, own: &OwnRows, name: &str) -> bool {
        desired.switches.get(name).is_some_and(|switch| {
            own.by_key.contains_key(name) || !self.scope.leaves_out(&switch.owner.uid)
        })
    }

    /// The rows of desired ports, but for those of owners that are left out.
    fn rows_in_scope(&self, desired: &Desired, own_ports: &OwnRows) -> HashSet<Uuid> {
        desired
            .ports
            .iter()
            .filter(|(_, port)| !self.scope.leaves_out(&port.owner.uid))
            .filter_map(|(name, _)| own_ports.by_key.get(name).copied())
            .collect()
    }

    fn switches(
        &mut self,
        desired: &Desired,
        own: &OwnRows,
        own_ports: &OwnRows,
        port_ids: &BTreeMap<String, RowId>,
    ) {
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
            let left_out = self.scope.leaves_out(&want.owner.uid);
            if let Some(id) = own.by_key.get(name).copied() {
                kept.insert(id);
                if !left_out {
                    let columns = BTreeMap::from([("name", Datum::atom(name.as_str()))]);
                    self.correct(SWITCH, id, columns, &want.owner, "");
                    let config = want.other_config.iter();
                    let config = config.map(|(k, v)| (k.as_str(), v.as_str()));
                    self.correct_keys(SWITCH, id, "other_config", &want.owner, config);
                }
                self.switch_members(id, &members, &placed, &to_delete);
            } else if !left_out {
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
                self.operation(&owner, Operation::delete(SWITCH, id));
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
