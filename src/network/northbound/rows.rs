//! Desired rows of the Northbound database.
//!
//! Columns that are ours, by table; the rest belongs to northd or to the operator:
//!
//! | table | ours | not ours |
//! |---|---|---|
//! | `Logical_Switch` | `name`, our keys of `other_config`, our members of `ports` | `acls`, `qos_rules`, `load_balancer`, … |
//! | `Logical_Switch_Port` | `name`, `type`, `addresses`, `port_security`, `enabled`, `options`, `parent_name`, `tag_request`, `dhcpv4_options`, `dhcpv6_options` | `up`, `tag`, `dynamic_addresses` (northd), `mirror_rules`, `ha_chassis_group` |
//! | `DHCP_Options` | `cidr`, `options` | |
//! | `Port_Group` | `name`, our members of `ports` and `acls` | members of others |
//! | `ACL` | `name`, `priority`, `direction`, `match`, `action` | `log`, `severity`, `meter`, `label`, `options` |
//! | `Address_Set` | `name`, `addresses` | |
//!
//! Of `external_ids` only keys that begin with `pileus.dev/` are ours.

use std::collections::{BTreeMap, BTreeSet};

use crate::ovsdb::{Datum, Row};
use pileus_values::{ClusterId, Owner};

/// The rows that the Northbound database should have, as far as they are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// By name, which is unique for us though not for OVN.
    pub switches: BTreeMap<String, LogicalSwitch>,
    /// By name, which is the interface id on the host.
    pub ports: BTreeMap<String, LogicalSwitchPort>,
    /// By a key that is unique within the cluster; see [`DhcpOptions::key`].
    pub dhcp_options: BTreeMap<String, DhcpOptions>,
    /// By name: letters, digits and underscores, since matches refer to it.
    pub port_groups: BTreeMap<String, PortGroup>,
    /// By name, as for port groups.
    pub address_sets: BTreeMap<String, AddressSet>,
}

impl Desired {
    /// Whose rows these are; some more than once.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        let groups = self.port_groups.values().flat_map(|group| {
            std::iter::once(&group.owner).chain(group.acls.values().map(|acl| &acl.owner))
        });
        let switches = self.switches.values().map(|row| &row.owner);
        switches
            .chain(self.ports.values().map(|row| &row.owner))
            .chain(self.dhcp_options.values().map(|row| &row.owner))
            .chain(self.address_sets.values().map(|row| &row.owner))
            .chain(groups)
    }

    /// The rows of one owner; a group of another owner only if it holds ACLs of this one, and
    /// without its ports.
    #[must_use]
    pub fn of(&self, uid: &str) -> Self {
        fn own<T: Clone>(
            rows: &BTreeMap<String, T>,
            is_own: impl Fn(&T) -> bool,
        ) -> BTreeMap<String, T> {
            rows.iter()
                .filter(|(_, row)| is_own(row))
                .map(|(key, row)| (key.clone(), row.clone()))
                .collect()
        }
        let groups = self.port_groups.iter().filter_map(|(name, group)| {
            let acls = own(&group.acls, |acl| acl.owner.uid == uid);
            (group.owner.uid == uid || !acls.is_empty()).then(|| {
                let owner = group.owner.clone();
                let ports = BTreeSet::new();
                (name.clone(), PortGroup { owner, ports, acls })
            })
        });
        Self {
            switches: own(&self.switches, |row| row.owner.uid == uid),
            ports: own(&self.ports, |row| row.owner.uid == uid),
            dhcp_options: own(&self.dhcp_options, |row| row.owner.uid == uid),
            address_sets: own(&self.address_sets, |row| row.owner.uid == uid),
            port_groups: groups.collect(),
        }
    }
}

/// A row of `Logical_Switch`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogicalSwitch {
    /// Whose row it is.
    pub owner: Owner,
    /// Keys of `other_config` that are set; others stay as they are.
    pub other_config: BTreeMap<String, String>,
}

/// A row of `Logical_Switch_Port`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogicalSwitchPort {
    /// Whose row it is.
    pub owner: Owner,
    /// Name of the switch, a key of [`Desired::switches`].
    pub switch: String,
    /// `MAC IP…`, or `unknown`.
    pub addresses: BTreeSet<String>,
    /// `MAC IP…`; everything passes when empty.
    pub port_security: BTreeSet<String>,
    /// No packet passes, wherever the port is bound.
    pub disabled: bool,
    /// Options such as `requested-chassis`.
    pub options: BTreeMap<String, String>,
    /// Key of [`Desired::dhcp_options`] for IPv4.
    pub dhcpv4: Option<String>,
    /// Key of [`Desired::dhcp_options`] for IPv6.
    pub dhcpv6: Option<String>,
}

/// A row of `DHCP_Options`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DhcpOptions {
    /// Whose row it is.
    pub owner: Owner,
    /// The range served, as a CIDR.
    pub cidr: String,
    /// The options, by OVN's names.
    pub options: BTreeMap<String, String>,
}

/// A row of `Port_Group`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortGroup {
    /// Whose row it is.
    pub owner: Owner,
    /// Names of the member ports, keys of [`Desired::ports`].
    pub ports: BTreeSet<String>,
    /// The group's ACLs, by a key that is unique within the group.
    pub acls: BTreeMap<String, Acl>,
}

/// A row of `ACL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// Whose row it is.
    pub owner: Owner,
    /// For people and for logs; at most 63 characters.
    pub name: String,
    /// Packets that come from a port (`from-lport`), rather than packets to one.
    pub from_port: bool,
    /// 0 to 32767; the highest that matches wins.
    pub priority: i64,
    /// The match, in OVN's expression language.
    pub matches: String,
    /// What happens.
    pub action: AclAction,
}

/// What an ACL does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclAction {
    /// Lets the packet pass.
    Allow,
    /// Lets the packet pass, and all that belongs to its connection.
    AllowRelated,
    /// Drops the packet.
    Drop,
}

/// A row of `Address_Set`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    /// Whose row it is.
    pub owner: Owner,
    /// Addresses or CIDRs.
    pub addresses: BTreeSet<String>,
}

impl DhcpOptions {
    /// The key of a subnet's options.
    #[must_use]
    pub fn key(owner: &Owner) -> String {
        format!("{}/{}/{}", owner.kind, owner.namespace, owner.name)
    }
}

impl AclAction {
    /// The action as OVN spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::AllowRelated => "allow-related",
            Self::Drop => "drop",
        }
    }
}

pub(super) const CLUSTER: &str = "pileus.dev/cluster";
pub(super) const KIND: &str = "pileus.dev/kind";
pub(super) const NAMESPACE: &str = "pileus.dev/namespace";
pub(super) const NAME: &str = "pileus.dev/name";
pub(super) const UID: &str = "pileus.dev/uid";
/// Distinguishes the rows of one owner.
pub(super) const PART: &str = "pileus.dev/part";

/// The owner of a row as keys of `external_ids`.
pub(super) fn owner_metadata<'a>(owner: &'a Owner, part: &'a str) -> [(&'static str, &'a str); 6] {
    [
        (CLUSTER, &owner.cluster.0),
        (KIND, &owner.kind),
        (NAMESPACE, &owner.namespace),
        (NAME, &owner.name),
        (UID, &owner.uid),
        (PART, part),
    ]
}

/// The owner of a row by its metadata.
pub(super) fn owner_of(row: &Row) -> Option<Owner> {
    let ids = row.get("external_ids")?;
    let text = |key| ids.get(key).map(str::to_owned);
    Some(Owner {
        cluster: ClusterId(text(CLUSTER)?),
        kind: text(KIND).unwrap_or_default(),
        namespace: text(NAMESPACE).unwrap_or_default(),
        name: text(NAME).unwrap_or_default(),
        uid: text(UID).unwrap_or_default(),
    })
}

/// The columns of a desired row that are compared and set as a whole.
pub(super) type Columns = BTreeMap<&'static str, Datum>;

fn map(pairs: &BTreeMap<String, String>) -> Datum {
    Datum::string_map(pairs)
}

impl LogicalSwitchPort {
    pub(super) fn columns(&self, name: &str) -> Columns {
        BTreeMap::from([
            ("name", Datum::atom(name)),
            ("type", Datum::atom("")),
            ("addresses", Datum::set(self.addresses.iter().cloned())),
            (
                "port_security",
                Datum::set(self.port_security.iter().cloned()),
            ),
            ("enabled", Datum::set(self.disabled.then_some(false))),
            ("parent_name", Datum::Set(BTreeSet::new())),
            ("tag_request", Datum::Set(BTreeSet::new())),
            ("options", map(&self.options)),
        ])
    }
}

impl DhcpOptions {
    pub(super) fn columns(&self) -> Columns {
        BTreeMap::from([
            ("cidr", Datum::atom(self.cidr.as_str())),
            ("options", map(&self.options)),
        ])
    }
}

impl Acl {
    pub(super) fn columns(&self) -> Columns {
        let direction = if self.from_port {
            "from-lport"
        } else {
            "to-lport"
        };
        BTreeMap::from([
            ("name", Datum::set([self.name.as_str()])),
            ("priority", Datum::atom(self.priority)),
            ("direction", Datum::atom(direction)),
            ("match", Datum::atom(self.matches.as_str())),
            ("action", Datum::atom(self.action.as_str())),
        ])
    }
}

impl AddressSet {
    pub(super) fn columns(&self, name: &str) -> Columns {
        BTreeMap::from([
            ("name", Datum::atom(name)),
            ("addresses", Datum::set(self.addresses.iter().cloned())),
        ])
    }
}
