//! What Pileus needs of libvirt and the crate `virt` 0.5 does not have: events with their
//! callbacks, the end of a connection, and jobs on disks and file systems. On the declarations
//! of `virt-sys`; the only place with `unsafe`.

mod events;
mod jobs;

pub use events::{Handler, Notification, Session};
pub use jobs::{
    BlockJob, abort_block_job, abort_job, begin_backup, block_commit, block_copy, block_job,
    freeze_filesystems, thaw_filesystems,
};

use std::ffi::c_int;

use virt::error::Error;

/// The result of a call that is negative on failure. Must follow the call at once: libvirt keeps
/// the last error of each thread, until the thread's next call.
fn check(result: c_int) -> Result<c_int, Error> {
    if result < 0 {
        return Err(Error::last_error());
    }
    Ok(result)
}
