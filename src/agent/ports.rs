//! Whether the flows of a port are installed on this host: ovn-controller says so on the
//! port's interface in the host's Open vSwitch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::drivers::ovn::controller;
use crate::drivers::ovsdb::{Client, EndpointError, Monitor, Options, Row, View, parse_endpoints};

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
            ("Interface", &["name", "external_ids"] as &[_]),
            ("Bridge", &["name", "datapath_type"] as &[_]),
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

    /// Waits until all of `ports` have their flows, at most `patience`.
    pub async fn wait_installed(&self, ports: &[String], patience: Duration) -> bool {
        let mut views = self.client.watch();
        let all = async {
            // The sender lives as long as the client, so the wait cannot fail.
            let _ = views
                .wait_for(|view| installed(view, ports) == Some(true))
                .await;
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    /// Whether packets are switched in userspace, which never completes the checksums that
    /// a guest leaves to its network card.
    #[must_use]
    pub fn in_userspace(&self) -> bool {
        let view = self.client.view();
        integration(&view).and_then(|row| row.get("datapath_type")?.as_str()) == Some("netdev")
    }

    /// Why the host's network cannot be used, if so.
    pub async fn trouble(&self) -> Option<String> {
        let view = self.client.view();
        if !view.is_connected() {
            return Some(format!(
                "Open vSwitch does not answer at {}",
                self.client.endpoint()
            ));
        }
        if let Some(trouble) = controller::trouble(&self.ovn_run_dir).await {
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
