//! Images and disks of one host: what is fetched, checked, stored by digest, and the
//! directories that Instances have their disks in. Knows nothing of Kubernetes.

pub mod blocking;
pub mod disk;
pub mod error;
pub mod fetch;
pub mod limits;
pub mod policy;
pub mod probe;
pub mod qcow2;
mod sink;
mod slots;
pub mod store;

pub use blocking::blocking;
pub use disk::{DirectoryMetadata, Disks};
pub use error::Error;
pub use limits::Limits;
pub use policy::FetchPolicy;
pub use store::{Content, DownloadProgress, ImageStore, Request, StoredImage};
