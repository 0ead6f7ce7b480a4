//! Jobs of a domain (migration, save, backup), jobs on its disks, and its frozen file systems.
//! Every call blocks.

use std::ffi::{CString, c_char, c_int, c_uint};
use std::ptr;

use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use super::check;

/// Progress of a job on a disk. A job that has done everything (`done == total`) still runs: a
/// copy, or a commit of the active layer, goes on until it is aborted with or without `PIVOT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockJob {
    /// Work done, in units that libvirt chooses.
    pub done: u64,
    /// Work in all; it may grow. 0 while it is not known.
    pub total: u64,
}

/// Aborts the job of the domain that is under way: a migration, a save, a dump or a backup.
///
/// # Errors
/// libvirt's; `OperationInvalid` if there is no job.
pub fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: `domain` is a valid domain during the call.
    check(unsafe { sys::virDomainAbortJob(domain.as_ptr()) }).map(drop)
}

/// Starts to copy a disk of a running domain to what the XML element `<disk>` in `destination`
/// describes. `disk` is a target (`vda`) or a path; `flags` are `VIR_DOMAIN_BLOCK_COPY_…`.
///
/// # Errors
/// libvirt's.
pub fn block_copy(
    domain: &Domain,
    disk: &str,
    destination: &str,
    flags: sys::virDomainBlockCopyFlags,
) -> Result<(), Error> {
    let (disk, destination) = (CString::new(disk)?, CString::new(destination)?);
    // SAFETY: `domain` is a valid domain and the texts live during the call; there are no
    // parameters.
    check(unsafe {
        sys::virDomainBlockCopy(
            domain.as_ptr(),
            disk.as_ptr(),
            destination.as_ptr(),
            ptr::null_mut(),
            0,
            flags,
        )
    })
    .map(drop)
}

/// Starts to merge the layers of a disk of a running domain from `top` (the active layer if
/// `None`) down into `base` (the lowest if `None`). `bandwidth` is in MiB/s, 0 for no limit;
/// `flags` are `VIR_DOMAIN_BLOCK_COMMIT_…`.
///
/// # Errors
/// libvirt's.
pub fn block_commit(
    domain: &Domain,
    disk: &str,
    base: Option<&str>,
    top: Option<&str>,
    bandwidth: u32,
    flags: sys::virDomainBlockCommitFlags,
) -> Result<(), Error> {
    let disk = CString::new(disk)?;
    let base = base.map(CString::new).transpose()?;
    let top = top.map(CString::new).transpose()?;
    // SAFETY: `domain` is a valid domain and the texts live during the call; null stands for the
    // lowest and the active layer.
    check(unsafe {
        sys::virDomainBlockCommit(
            domain.as_ptr(),
            disk.as_ptr(),
            or_null(base.as_ref()),
            or_null(top.as_ref()),
            bandwidth.into(),
            flags,
        )
    })
    .map(drop)
}

/// The job on a disk, if there is one.
///
/// # Errors
/// libvirt's.
pub fn block_job(domain: &Domain, disk: &str) -> Result<Option<BlockJob>, Error> {
    let disk = CString::new(disk)?;
    let mut info = sys::virDomainBlockJobInfo {
        type_: 0,
        bandwidth: 0,
        cur: 0,
        end: 0,
    };
    // SAFETY: `domain` is a valid domain; `disk` and `info` live during the call.
    let found = check(unsafe {
        sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &raw mut info, 0)
    })?;
    Ok((found > 0).then_some(BlockJob {
        done: info.cur,
        total: info.end,
    }))
}

/// Ends the job on a disk; with `VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT` in `flags` the domain goes on
/// with the copy, or with the layer that was committed into.
///
/// # Errors
/// libvirt's; with `PIVOT`, `BlockCopyActive` while the job is not ready.
pub fn abort_block_job(
    domain: &Domain,
    disk: &str,
    flags: sys::virDomainBlockJobAbortFlags,
) -> Result<(), Error> {
    let disk = CString::new(disk)?;
    // SAFETY: `domain` is a valid domain and `disk` lives during the call.
    check(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) }).map(drop)
}

/// Starts a backup of a running domain, as the XML `<domainbackup>` describes it, together with a
/// checkpoint for the next incremental one. `flags` are `VIR_DOMAIN_BACKUP_BEGIN_…`. A backup is
/// a job of the domain, which `abort_job` ends.
///
/// # Errors
/// libvirt's.
pub fn begin_backup(
    domain: &Domain,
    backup: &str,
    checkpoint: Option<&str>,
    flags: sys::virDomainBackupBeginFlags,
) -> Result<(), Error> {
    let backup = CString::new(backup)?;
    let checkpoint = checkpoint.map(CString::new).transpose()?;
    // SAFETY: `domain` is a valid domain and the texts live during the call; null stands for no
    // checkpoint.
    check(unsafe {
        sys::virDomainBackupBegin(
            domain.as_ptr(),
            backup.as_ptr(),
            or_null(checkpoint.as_ref()),
            flags,
        )
    })
    .map(drop)
}

/// Freezes file systems of the guest through its agent, all of them if `mountpoints` is empty;
/// returns how many were frozen.
///
/// # Errors
/// libvirt's, also if the guest has no agent.
pub fn freeze_filesystems(domain: &Domain, mountpoints: &[&str]) -> Result<u32, Error> {
    on_filesystems(domain, mountpoints, sys::virDomainFSFreeze)
}

/// Thaws all frozen file systems of the guest through its agent (libvirt's QEMU driver accepts no
/// selection); returns how many were thawed.
///
/// # Errors
/// libvirt's, also if the guest has no agent.
pub fn thaw_filesystems(domain: &Domain) -> Result<u32, Error> {
    on_filesystems(domain, &[], sys::virDomainFSThaw)
}

type FilesystemCall =
    unsafe extern "C" fn(sys::virDomainPtr, *mut *const c_char, c_uint, c_uint) -> c_int;

/// `call` is `virDomainFSFreeze` or `virDomainFSThaw`.
fn on_filesystems(
    domain: &Domain,
    mountpoints: &[&str],
    call: FilesystemCall,
) -> Result<u32, Error> {
    let texts: Vec<CString> = mountpoints
        .iter()
        .map(|mountpoint| CString::new(*mountpoint))
        .collect::<Result<_, _>>()?;
    let mut pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
    // libvirt refuses a list without members.
    let list = if pointers.is_empty() {
        ptr::null_mut()
    } else {
        pointers.as_mut_ptr()
    };
    let count = c_uint::try_from(pointers.len()).unwrap_or_default();
    // SAFETY: `domain` is a valid domain; the list has `count` members and lives, as the texts in
    // it do, during the call. Both functions want no more.
    let result = check(unsafe { call(domain.as_ptr(), list, count, 0) })?;
    Ok(result.unsigned_abs())
}

fn or_null(text: Option<&CString>) -> *const c_char {
    text.map_or(ptr::null(), |text| text.as_ptr())
}
