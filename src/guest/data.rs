//! The guest's data as the manager hands it to the agent, in a Secret.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use pileus_values::Mac;

/// Most bytes of user data, as in Nova's documentation (64 KiB).
pub const MAX_USER_DATA: usize = 64 * 1024;

/// Why guest data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More user data than a guest can be given.
    #[error("user data has {0} bytes; the most is {MAX_USER_DATA}")]
    UserDataTooLarge(usize),
    /// A document could not be written.
    #[error("cannot write {0}")]
    Document(&'static str, #[source] serde_json::Error),
    /// The file system could not be written.
    #[error("cannot write the config drive")]
    Drive(#[source] std::io::Error),
}

/// All data that a guest gets at boot.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestData {
    /// The instance-id: the same for the Server's life, so that cloud-init runs once.
    pub instance_id: Uuid,
    /// Name of the Server.
    pub name: String,
    /// The host name that its spec gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Namespace of the Server, given as the project.
    pub namespace: String,
    /// Availability zone of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability_zone: Option<String>,
    /// Public keys by the name of their `KeyPair`.
    #[serde(default)]
    pub ssh_keys: BTreeMap<String, String>,
    /// The Server's metadata.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// User data, in base64 in the Secret.
    #[serde(
        default,
        with = "base64_bytes",
        skip_serializing_if = "Option::is_none"
    )]
    pub user_data: Option<Vec<u8>>,
    /// Interfaces, in the order that the guest sees.
    #[serde(default)]
    pub links: Vec<Link>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The logical port's id.
    pub id: String,
    /// Ethernet address.
    pub mac: Mac,
    /// Largest packet in bytes.
    pub mtu: i32,
    /// Addresses.
    pub networks: Vec<LinkNetwork>,
}

/// One address of an interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkNetwork {
    /// uid of the Network.
    pub network_id: String,
    /// The address.
    pub address: IpAddr,
    /// The subnet.
    pub cidr: IpNet,
    /// Whether DHCP gives it.
    pub dhcp: bool,
    /// The gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Further routes.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Where packets go.
    pub next_hop: IpAddr,
}

impl GuestData {
    /// Checks the limits.
    ///
    /// # Errors
    /// When there is too much user data.
    pub fn validate(&self) -> Result<(), Error> {
        match &self.user_data {
            Some(data) if data.len() > MAX_USER_DATA => Err(Error::UserDataTooLarge(data.len())),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for GuestData {
    /// Shows the size of the user data, never its content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestData")
            .field("instance_id", &self.instance_id)
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .field("user_data_bytes", &self.user_data.as_ref().map(Vec::len))
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::ref_option, reason = "the shape that serde calls")]
    pub fn serialize<S: Serializer>(data: &Option<Vec<u8>>, s: S) -> Result<S::Ok, S::Error> {
        match data {
            Some(bytes) => s.serialize_str(&STANDARD.encode(bytes)),
            None => s.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<u8>>, D::Error> {
        Option::<String>::deserialize(d)?
            .map(|text| STANDARD.decode(text).map_err(serde::de::Error::custom))
            .transpose()
    }
}
