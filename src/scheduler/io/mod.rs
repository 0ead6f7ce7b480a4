//! Everything that talks to the API server while the scheduler runs.

pub(crate) mod object_status;
pub(crate) mod server_status;
pub(crate) mod watch;
