//! The data that a guest gets: metadata, network data and user data in OpenStack's layout, on
//! a drive labelled `config-2`. Pure: values in, bytes out.

pub mod config_drive;
pub mod data;
mod fat;
pub mod metadata;
pub mod network_data;

pub use config_drive::config_drive;
pub use data::{Error, GuestData, Link, LinkNetwork, MAX_USER_DATA, Route};
