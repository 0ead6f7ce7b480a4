//! The ports of guests in the host's Open vSwitch: whether ovn-controller has installed their
//! flows, and the removal of what libvirt left there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use pileus_network::northbound::controller;
use pileus_network::ovsdb::{
    Client, Datum, EndpointError, Error, Monitor, Mutation, Mutator, Operation, Options, Replica,
    Row, RowId, View, parse_endpoints,
};

/// The host's Open vSwitch, watched, and its ovn-controller.
#[derive(Clone)]
pub struct Ports {
    client: Client,
    ovn_run_dir: PathBuf,
}

impl Ports {
    /// Watches the database at `endpoint`, such as `unix:/run/openvswitch/db.sock`;
    /// ovn-controller has its control socket in `ovn_run_dir`.
    ///
    /// # Errors
    /// When the endpoint is malformed.
    pub fn watch(endpoint: &str, ovn_run_dir: PathBuf) -> Result<Self, EndpointError> {
        let tables: BTreeMap<&'static str, &'static [&'static str]> = [
            ("Open_vSwitch", &["external_ids"] as &[_]),
            ("Interface", &["name", "external_ids"] as &[_]),
            ("Port", &["interfaces"] as &[_]),
            ("Bridge", &["name", "datapath_type", "ports"] as &[_]),
        ]
        .into();
        let monitor = Monitor {
            database: "Open_vSwitch".to_owned(),
            tables,
        };
        let client = Client::start(parse_endpoints(endpoint)?, monitor, Options::default());
        Ok(Self {
            client,
            ovn_run_dir,
        })
    }

    /// Whether all of `ports` have their flows; `None` when Open vSwitch does not answer.
    #[must_use]
    pub fn installed(&self, ports: &[String]) -> Option<bool> {
        installed(&self.client.view(), ports)
    }

    /// Waits until all of `ports` have their flows, at most `timeout`.
    pub async fn wait_installed(&self, ports: &[String], timeout: Duration) -> bool {
        let mut views = self.client.watch();
        let all = async {
            // The sender lives as long as the client, so the wait cannot fail.
            let _ = views
                .wait_for(|view| installed(view, ports) == Some(true))
                .await;
        };
        tokio::time::timeout(timeout, all).await.is_ok()
    }

    /// Removes the ports that a guest has left. libvirt does so itself when a guest ends, but
    /// not one that it was adding or removing when it died, or when the host did.
    ///
    /// Only for a guest whose domain is gone. When Open vSwitch does not answer for a while,
    /// the ports stay: they have no device any more and do no harm, and a Server that cannot
    /// be deleted would.
    ///
    /// # Errors
    /// When Open vSwitch does not make the change.
    pub async fn remove(&self, guest: Uuid, timeout: Duration) -> Result<(), Error> {
        let mut views = self.client.watch();
        // The sender lives as long as the client, so only the time can end the wait.
        let connected = views.wait_for(View::is_connected);
        if tokio::time::timeout(timeout, connected).await.is_err() {
            tracing::warn!(%guest, "Open vSwitch does not answer: ports may be left in it");
            return Ok(());
        }
        let operations = removal(&self.client.view().replica, guest);
        if operations.is_empty() {
            return Ok(());
        }
        tracing::info!(%guest, "ports that libvirt left are removed");
        self.client.transact(operations).await.map(drop)
    }

    /// Name of the host's chassis in OVN, which is its Open vSwitch's `system-id`.
    #[must_use]
    pub fn chassis(&self) -> Option<String> {
        let view = self.client.view();
        let (_, row) = view.replica.rows("Open_vSwitch").next()?;
        let ids = row.get("external_ids")?;
        ids.get("system-id").map(str::to_owned)
    }

    /// Whether packets are switched in userspace, which never completes the checksums that
    /// a guest leaves to its network card.
    #[must_use]
    pub fn is_in_userspace(&self) -> bool {
        let view = self.client.view();
        integration(&view).and_then(|row| row.get("datapath_type")?.as_str()) == Some("netdev")
    }

    /// What is wrong with the host's network, if anything.
    pub async fn problem(&self) -> Option<String> {
        let view = self.client.view();
        if !view.is_connected() {
            return Some(format!(
                "Open vSwitch does not answer at {}",
                self.client.endpoint()
            ));
        }
        if let Some(trouble) = controller::problem(&self.ovn_run_dir).await {
            return Some(trouble);
        }
        integration(&view).is_none().then(|| {
            "Open vSwitch has no bridge br-int, which ovn-controller makes; see its log".to_owned()
        })
    }
}

fn integration(view: &View) -> Option<&Row> {
    let bridges = view.replica.rows("Bridge").map(|(_, row)| row);
    bridges
        .into_iter()
        .find(|row| row.get("name").and_then(|n| n.as_str()) == Some("br-int"))
}

/// Takes the ports of a guest from the bridges that hold them; what no bridge holds, Open
/// vSwitch removes by itself. libvirt writes a domain's id on each interface that it makes
/// (`virNetDevOpenvswitchAddPort`).
fn removal(replica: &Replica, guest: Uuid) -> Vec<Operation> {
    let guest = guest.to_string();
    let is_guests = |interface: Uuid| {
        let row = replica.row("Interface", interface);
        let ids = row.and_then(|row| row.get("external_ids"));
        ids.and_then(|ids| ids.get("vm-id")) == Some(guest.as_str())
    };
    let ports: BTreeSet<Uuid> = replica
        .rows("Port")
        .filter(|(_, row)| {
            let mut interfaces = row.get("interfaces").into_iter().flat_map(Datum::row_ids);
            interfaces.any(is_guests)
        })
        .map(|(id, _)| id)
        .collect();
    let bridges = replica.rows("Bridge").filter_map(|(bridge, row)| {
        let held = row.get("ports").into_iter().flat_map(Datum::row_ids);
        let held: Vec<RowId> = held
            .filter(|port| ports.contains(port))
            .map(RowId::Uuid)
            .collect();
        (!held.is_empty()).then(|| {
            let mutation = Mutation {
                column: "ports",
                mutator: Mutator::Delete,
                value: Datum::set(held),
            };
            Operation::mutate("Bridge", bridge, vec![mutation])
        })
    });
    bridges.collect()
}

fn installed(view: &View, ports: &[String]) -> Option<bool> {
    if !view.is_connected() {
        return None;
    }
    Some(ports.iter().all(|port| {
        view.replica
            .rows("Interface")
            .filter_map(|(_, row)| row.get("external_ids"))
            .any(|ids| {
                ids.get("iface-id") == Some(port) && ids.get("ovn-installed") == Some("true")
            })
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn row<const N: usize>(columns: [(&'static str, Datum); N]) -> Arc<Row> {
        Arc::new(columns.map(|(name, value)| (Arc::from(name), value)).into())
    }

    fn refer(ids: &[u128]) -> Datum {
        Datum::set(ids.iter().map(|id| RowId::Uuid(Uuid::from_u128(*id))))
    }

    #[test]
    fn only_the_ports_of_the_guest_are_taken_from_their_bridge() {
        let guest = Uuid::from_u128(0x1234);
        let of = |guest: Uuid| {
            let id = guest.to_string();
            row([("external_ids", Datum::string_map([("vm-id", id.as_str())]))])
        };
        let table = |rows: Vec<(u128, Arc<Row>)>| {
            let rows = rows.into_iter();
            rows.map(|(id, row)| (Uuid::from_u128(id), row)).collect()
        };
        let port = |interface| row([("interfaces", refer(&[interface]))]);
        let replica = Replica::from_tables([
            (
                "Interface",
                table(vec![
                    (1, of(guest)),
                    (2, of(Uuid::from_u128(0x5678))),
                    (3, row([])),
                    (4, of(guest)),
                ]),
            ),
            ("Port", table((1..=4).map(|n| (10 + n, port(n))).collect())),
            (
                "Bridge",
                table(vec![
                    (21, row([("ports", refer(&[11, 12, 13, 14]))])),
                    (22, row([("ports", refer(&[]))])),
                ]),
            ),
        ]);
        let mutation = Mutation {
            column: "ports",
            mutator: Mutator::Delete,
            value: refer(&[11, 14]),
        };
        let bridge = Uuid::from_u128(21);
        let expected = [Operation::mutate("Bridge", bridge, vec![mutation])];
        assert_eq!(removal(&replica, guest), expected);
        assert_eq!(removal(&replica, Uuid::from_u128(9)), []);
    }
}
