//! Port groups and their ACLs, which security groups become in OVN.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::{ACL, Differ, GROUP, NotApplied, OwnRows, reference_ids};
use crate::northbound::PortGroup;
use crate::northbound::rows::{Desired, PART, owner_of};
use crate::ovsdb::{Atom, Datum, Operation, Row, RowId};

impl Differ<'_> {
    pub(super) fn groups(
        &mut self,
        desired: &Desired,
        own_ports: &OwnRows,
        port_ids: &BTreeMap<String, RowId>,
    ) {
        let own = self.own_rows_by_name(GROUP);
        let known = self.rows_in_scope(desired, own_ports);
        let mut kept = HashSet::new();
        for (name, want) in &desired.port_groups {
            let members: BTreeSet<Atom> = want
                .ports
                .iter()
                .filter_map(|port| port_ids.get(port).cloned())
                .map(Atom::Uuid)
                .collect();
            if own.of_others.contains(name) {
                self.name_in_use(GROUP, name, &want.owner);
                continue;
            }
            let left_out = self.scope.leaves_out(&want.owner.uid);
            let Some(id) = own.by_key.get(name).copied() else {
                if left_out {
                    self.group_missing(desired, want);
                    continue;
                }
                let scope = self.scope;
                let acls = want.acls.iter();
                let acls: Vec<RowId> = acls
                    .filter(|(_, acl)| !scope.leaves_out(&acl.owner.uid))
                    .map(|(key, acl)| self.insert(ACL, acl.columns(), &acl.owner, key))
                    .collect();
                let columns = BTreeMap::from([
                    ("name", Datum::atom(name.as_str())),
                    ("ports", Datum::Set(members)),
                    ("acls", Datum::set(acls)),
                ]);
                self.insert(GROUP, columns, &want.owner, "");
                continue;
            };
            kept.insert(id);
            if !left_out {
                let columns = BTreeMap::from([("name", Datum::atom(name.as_str()))]);
                self.correct(GROUP, id, columns, &want.owner, "");
            }
            let Some(row) = self.current.row(GROUP, id) else {
                continue;
            };
            let present: BTreeSet<Atom> = reference_ids(row, "ports").map(Atom::from).collect();
            let remove = reference_ids(row, "ports")
                .filter(|port| known.contains(port))
                .map(Atom::from)
                .filter(|port| !members.contains(port))
                .collect();
            let add = members.difference(&present).cloned().collect();
            self.members(GROUP, id, "ports", add, remove);
            self.acls(id, row, want);
        }
        for (id, owner) in self.rows_to_delete(GROUP, &kept) {
            let foreign = self.current.row(GROUP, id).map_or(0, |row| {
                reference_ids(row, "acls")
                    .filter(|acl| !self.is_our_acl(*acl))
                    .count()
            });
            if foreign == 0 {
                self.operation(&owner, Operation::delete(GROUP, id));
            } else {
                self.out.not_applied.push(NotApplied::HoldsOtherRows {
                    table: GROUP,
                    owner,
                    rows: foreign,
                });
            }
        }
    }

    /// Reports all that needs a group which is not made.
    fn group_missing(&mut self, desired: &Desired, group: &PortGroup) {
        let ports = group
            .ports
            .iter()
            .filter_map(|name| desired.ports.get(name));
        let owners = ports.map(|port| &port.owner);
        let owners = owners.chain(group.acls.values().map(|acl| &acl.owner));
        for owner in owners.filter(|owner| **owner != group.owner) {
            self.out.not_applied.push(NotApplied::MissingGroup {
                group: group.owner.clone(),
                owner: owner.clone(),
            });
        }
    }

    fn is_our_acl(&self, id: Uuid) -> bool {
        let row = self.current.row(ACL, id);
        row.and_then(|row| self.is_ours(row)) == Some(true)
    }

    fn acls(&mut self, group: Uuid, row: &Row, want: &PortGroup) {
        let mut present: HashMap<&str, Uuid> = HashMap::new();
        let mut remove = BTreeSet::new();
        for id in reference_ids(row, "acls") {
            let Some(acl) = self.current.row(ACL, id) else {
                continue;
            };
            if self.is_ours(acl) != Some(true) {
                continue;
            }
            let left_out = owner_of(acl).is_some_and(|o| self.scope.leaves_out(&o.uid));
            let key = acl.get("external_ids").and_then(|ids| ids.get(PART));
            let wanted = key.filter(|key| want.acls.contains_key(*key));
            match wanted {
                Some(key) if !present.contains_key(key) => {
                    present.insert(key, id);
                }
                _ if left_out => {}
                _ => {
                    remove.insert(Atom::from(id));
                }
            }
        }
        let mut add = BTreeSet::new();
        for (key, acl) in &want.acls {
            if self.scope.leaves_out(&acl.owner.uid) {
                continue;
            }
            if let Some(id) = present.get(key.as_str()).copied() {
                self.correct(ACL, id, acl.columns(), &acl.owner, key);
            } else {
                let id = self.insert(ACL, acl.columns(), &acl.owner, key);
                add.insert(Atom::Uuid(id));
            }
        }
        self.members(GROUP, group, "acls", add, remove);
    }
}
