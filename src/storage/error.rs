//! What can go wrong with images and disks, in words for people.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Why an image or disk is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no URL that can be fetched.
    #[error("`{url}` is not allowed: {why}")]
    ForbiddenUrl {
        /// The URL without credentials and query.
        url: String,
        /// What rule it breaks, and the way out.
        why: String,
    },
    /// The URL leads to an address that may not be reached.
    #[error(
        "{url} leads to the address {address}, which the fetch policy forbids; offer the file at a public address, or have an administrator allow this one (--allow-fetch of the hosts' agents)"
    )]
    ForbiddenAddress {
        /// The URL without credentials and query; after a redirect, from where to where.
        url: String,
        /// The address.
        address: IpAddr,
    },
    /// The server answers that the file does not exist.
    #[error(
        "{url} answers {status}; put the file there, or make a new Image with the right URL. It is tried again"
    )]
    NotFound {
        /// The URL without credentials and query.
        url: String,
        /// HTTP status, or "no such file".
        status: String,
    },
    /// The download failed for now.
    #[error("cannot download {url}: {why}")]
    DownloadFailed {
        /// The URL without credentials and query.
        url: String,
        /// Why.
        why: String,
    },
    /// The server sent fewer bytes than it announced.
    #[error(
        "{url} ended after {got} of {expected} bytes; it is tried again, from there on where the server can"
    )]
    Truncated {
        /// The URL without credentials and query.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The server sends so slowly, or for so long, that the download was ended.
    #[error("the download of {url} was ended: {why}")]
    TooSlow {
        /// The URL without credentials and query.
        url: String,
        /// What was too slow, by figures.
        why: String,
    },
    /// The file is bigger than this host fetches.
    #[error(
        "{url} has {size} bytes or more, and this host fetches at most {limit}; make a new Image of a smaller file, or have an administrator allow more (--max-image-download-gib of the hosts' agents)"
    )]
    FileTooBig {
        /// The URL without credentials and query.
        url: String,
        /// Bytes announced, or received so far.
        size: u64,
        /// Most bytes.
        limit: u64,
    },
    /// The disk in the image is bigger than this host makes from images.
    #[error(
        "the image's disk has {size} bytes, and this host takes images of at most {limit}; make a new Image with a smaller disk, or have an administrator allow more (--max-image-disk-gib of the hosts' agents)"
    )]
    DiskTooBig {
        /// Size of the image's disk.
        size: u64,
        /// Most bytes.
        limit: u64,
    },
    /// The bytes are not the ones asked for.
    #[error(
        "the checksum of {url} is {found}, but {expected} was asked for; make a new Image with the right checksum, or the right URL"
    )]
    ChecksumMismatch {
        /// The URL without credentials and query.
        url: String,
        /// What was asked for.
        expected: String,
        /// What came.
        found: String,
    },
    /// The bytes are not the ones that other hosts have.
    #[error(
        "{url} now gives {found}, but the first import fixed {expected}; make a new Image for the new bytes"
    )]
    DigestMismatch {
        /// The URL without credentials and query.
        url: String,
        /// What the first import fixed.
        expected: String,
        /// What came.
        found: String,
    },
    /// The bytes are no disk image of the format said.
    #[error("not a usable disk image: {0}; make a new Image that is one")]
    NotAnImage(String),
    /// The image refers to other files, which would be files of the host.
    #[error(
        "the image names the file `{0}` as its {1}; flatten it with `qemu-img convert -O qcow2` and make a new Image"
    )]
    HasBackingFile(String, &'static str),
    /// The format cannot be used yet.
    #[error(
        "disk format {0} cannot be used yet; convert the image with `qemu-img convert -O qcow2` and make a new Image"
    )]
    UnsupportedFormat(String),
    /// The image does not fit on the root disk.
    #[error(
        "the image's disk has {image} bytes, the root disk only {disk}; use a flavor with a bigger disk"
    )]
    ImageTooLarge {
        /// Size of the image's disk.
        image: u64,
        /// Size of the root disk.
        disk: u64,
    },
    /// Another disk is where the root disk goes.
    #[error(
        "{path} is not the root disk that would be made here: {why}. Nothing is overwritten; move the file away to have the disk made, or put the right one in its place. Deleting the Server removes it"
    )]
    WrongDisk {
        /// Path of the file.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// The host's file system is full.
    #[error("no space left in {0}; free some on the host, it is tried again")]
    NoSpace(Shortage),
    /// Something on the host failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {message}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it said.
        message: String,
    },
}

/// Where space is missing, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Where.
    pub path: PathBuf,
    /// Bytes that are needed, and bytes that may be used, when known beforehand.
    pub bytes: Option<(u64, u64)>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.bytes {
            Some((need, available)) => {
                write!(f, " ({need} bytes are needed, {available} may be used)")
            }
            None => Ok(()),
        }
    }
}

impl Error {
    /// For `map_err`: names what was tried on which path; a full disk has its own error.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            let full = [Errno::ENOSPC, Errno::EDQUOT]
                .iter()
                .any(|e| source.raw_os_error() == Some(*e as i32));
            if full {
                Self::NoSpace(Shortage { path, bytes: None })
            } else {
                Self::Io {
                    action,
                    path,
                    source,
                }
            }
        }
    }

    /// Whether an attempt that ends so has cost much: it is tried again ever more rarely.
    #[must_use]
    pub fn is_costly(&self) -> bool {
        matches!(self, Self::NoSpace(_) | Self::TooSlow { .. })
    }

    /// Whether trying again is of no use until somebody changes the input.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::ForbiddenUrl { .. }
            | Self::FileTooBig { .. }
            | Self::DiskTooBig { .. }
            | Self::ForbiddenAddress { .. }
            | Self::ChecksumMismatch { .. }
            | Self::DigestMismatch { .. }
            | Self::NotAnImage(_)
            | Self::HasBackingFile(..)
            | Self::UnsupportedFormat(_)
            | Self::ImageTooLarge { .. }
            | Self::WrongDisk { .. } => true,
            Self::NotFound { .. }
            | Self::DownloadFailed { .. }
            | Self::TooSlow { .. }
            | Self::Truncated { .. }
            | Self::NoSpace(_)
            | Self::Io { .. }
            | Self::Program { .. } => false,
        }
    }
}
