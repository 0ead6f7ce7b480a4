//! The directory of an Instance: metadata, root disk, config drive.
//!
//! ```text
//! DIR/instances/ID/marks.json   its owner, and which images it uses
//! DIR/instances/ID/disk.qcow2   overlay over the image
//! DIR/instances/ID/config.img   config drive, mode 0600
//! DIR/instances/ID/console.log  written by virtlogd
//! DIR/instances/ID/shutdown-asked  when the guest was asked to shut down
//! ```

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use uuid::Uuid;

use super::blocking::blocking;
use super::error::Shortage;
use super::store::{entries, file_name, sync_directory, write_atomically};
use super::{Error, ImageStore, StoredImage, qcow2};
use pileus_values::Owner;

/// Name of the file with the metadata.
const METADATA_FILE: &str = "marks.json";
/// What an overlay takes before a guest has written anything, in bytes: header, reference
/// counts and their table, first level, of one cluster of 64 KiB each.
const EMPTY_OVERLAY: u64 = 4 * 64 * 1024;
/// Name of the root disk.
pub(super) const ROOT_DISK: &str = "disk.qcow2";
/// Mode of a root disk: it is QEMU's alone.
pub(super) const DISK_MODE: u32 = 0o600;
/// Name of a disk that is being made.
const NEW_DISK: &str = "disk.new";
/// An empty file, made when the guest is asked to shut down.
const SHUTDOWN_FILE: &str = "shutdown-asked";

/// The owner of a directory, and the images that it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectoryMetadata {
    /// Whose it is.
    pub owner: Owner,
    /// Epoch of the placement that it was made for.
    pub epoch: i64,
    /// Digests of kernel and initial RAM disk, which no backing chain shows.
    #[serde(default)]
    pub uses: Vec<String>,
}

/// A disk that is to be made.
struct NewDisk {
    id: Uuid,
    metadata: DirectoryMetadata,
    /// Path of its image.
    backing: PathBuf,
    /// Paths of its kernel and initial RAM disk.
    uses: Vec<PathBuf>,
    /// Sizes that it may have; a new one has the first.
    sizes: [u64; 2],
}

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Its owner; a directory without readable metadata has none.
    pub metadata: Option<DirectoryMetadata>,
    /// The directory exists.
    pub directory: bool,
    /// The root disk exists.
    pub disk: bool,
    /// The config drive exists.
    pub config_drive: bool,
    /// When the guest was last asked to shut down, since it was last started.
    pub shutdown_requested: Option<SystemTime>,
}

/// Space in the file system of the disks, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// Left for Pileus.
    pub available: u64,
}

impl Space {
    /// What new images and disks may use. A twentieth of the whole, at most 5 GiB, is left for
    /// the disks of running guests, which grow.
    #[must_use]
    pub fn usable(&self) -> u64 {
        self.available
            .saturating_sub((self.total / 20).min(5 << 30))
    }
}

/// The disks of one host.
#[derive(Clone, Debug)]
pub struct Disks {
    dir: Arc<PathBuf>,
}

impl Disks {
    /// The disks in `dir`, which an [`ImageStore`] has been opened on.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: Arc::new(dir.to_owned()),
        }
    }

    /// Directory of an Instance.
    #[must_use]
    pub fn directory(&self, id: Uuid) -> PathBuf {
        self.dir.join("instances").join(id.to_string())
    }

    /// Path of a root disk.
    #[must_use]
    pub fn root_disk(&self, id: Uuid) -> PathBuf {
        self.directory(id).join(ROOT_DISK)
    }

    /// Path of a config drive.
    #[must_use]
    pub fn config_drive(&self, id: Uuid) -> PathBuf {
        self.directory(id).join("config.img")
    }

    /// What an Instance's directory contains.
    #[must_use]
    pub fn contents(&self, id: Uuid) -> Contents {
        let directory = self.directory(id);
        Contents {
            directory: directory.is_dir(),
            metadata: read_metadata(&directory),
            disk: self.root_disk(id).is_file(),
            config_drive: self.config_drive(id).is_file(),
            shutdown_requested: fs::metadata(directory.join(SHUTDOWN_FILE))
                .and_then(|file| file.modified())
                .ok(),
        }
    }

    /// All directories, with their metadata.
    #[must_use]
    pub fn list(&self) -> Vec<(Uuid, Option<DirectoryMetadata>)> {
        let instances = self.dir.join("instances");
        entries(&instances)
            .filter_map(|name| {
                let id = name.parse().ok()?;
                Some((id, read_metadata(&instances.join(name))))
            })
            .collect()
    }

    /// Makes the directory and the root disk: an overlay over `image`, `size` bytes big, or
    /// as big as the image's disk, in whole GiB, when that is 0. Made under another name first, so that a
    /// disk that exists is complete. An existing one is kept when it is such an overlay, and
    /// refused otherwise: what an interrupted pass leaves never has that name.
    ///
    /// # Errors
    /// When the image is gone or bigger than the disk, the disk cannot be written, or another
    /// disk is in its place.
    pub async fn create(
        &self,
        store: &ImageStore,
        id: Uuid,
        metadata: &DirectoryMetadata,
        image: &StoredImage,
        size: u64,
    ) -> Result<(), Error> {
        // One that was made before sizes were rounded up is as big as the image's to the byte.
        let sizes = match size {
            0 => [rounded_up(image.virtual_size), image.virtual_size],
            size => [size; 2],
        };
        let size = sizes[0];
        if size < image.virtual_size {
            return Err(Error::ImageTooLarge {
                image: image.virtual_size,
                disk: size,
            });
        }
        let directory = self.directory(id);
        let made = directory.clone();
        blocking(move || {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o711);
            builder.create(&made).map_err(Error::io("make", &made))
        })
        .await?;
        // Locked until metadata and disk name the images that they need: until then these look
        // unused.
        let guard = store.in_use().await?;
        let new = NewDisk {
            id,
            metadata: metadata.clone(),
            backing: store.path(&image.digest),
            uses: metadata.uses.iter().map(|d| store.path(d)).collect(),
            sizes,
        };
        let this = self.clone();
        if blocking(move || this.prepare(&new)).await? {
            return Ok(());
        }
        let disk = self.root_disk(id);
        let temporary = directory.join(NEW_DISK);
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", &image.format, "-b"])
            .arg(store.path(&image.digest))
            .arg(&temporary)
            .arg(size.to_string())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(Error::io("run qemu-img for", &disk))?;
        let done = blocking(move || {
            if output.status.success() {
                return put_in_place(&temporary, &disk);
            }
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let _ = fs::remove_file(&temporary);
            Err(if message.contains("No space left") {
                let left = space_of(&directory).ok();
                Error::NoSpace(Shortage {
                    path: directory,
                    bytes: left.map(|left| (EMPTY_OVERLAY, left.available)),
                })
            } else {
                Error::Program {
                    program: "qemu-img",
                    message,
                }
            })
        })
        .await;
        drop(guard);
        done
    }

    /// Writes the metadata, and checks that the disk can be made. Whether it is there already.
    fn prepare(&self, new: &NewDisk) -> Result<bool, Error> {
        let disk = self.root_disk(new.id);
        // Not only a file: anything of that name is refused, also a dangling link.
        let there = disk.symlink_metadata().is_ok();
        if there {
            check_overlay(&disk, &new.backing, new.sizes)?;
        }
        self.set_metadata(new.id, &new.metadata)?;
        if there {
            return Ok(true);
        }
        for path in std::iter::once(&new.backing).chain(&new.uses) {
            if !path.is_file() {
                return Err(Error::DownloadFailed {
                    url: path.display().to_string(),
                    why: "the image is no longer stored; it is fetched again".to_owned(),
                });
            }
            // Collection goes by the time of the last use. Best effort: an image is only kept longer.
            let _ = fs::File::open(path).and_then(|f| f.set_modified(SystemTime::now()));
        }
        let directory = self.directory(new.id);
        let space = space_of(&directory)?;
        if space.usable() < EMPTY_OVERLAY {
            // What is left is for the disks that are there, which grow.
            return Err(Error::NoSpace(Shortage {
                path: directory,
                bytes: Some((EMPTY_OVERLAY, space.usable())),
            }));
        }
        let _ = fs::remove_file(directory.join(NEW_DISK));
        Ok(false)
    }

    /// Writes the metadata of a directory that exists.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn set_metadata(&self, id: Uuid, metadata: &DirectoryMetadata) -> Result<(), Error> {
        let path = self.directory(id).join(METADATA_FILE);
        if read_metadata(&self.directory(id)).as_ref() == Some(metadata) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(metadata).unwrap_or_default();
        write_atomically(&path, &bytes, 0o644)
    }

    /// Writes the config drive, unless it exists: it is written once in a Server's life.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config_drive(&self, id: Uuid, bytes: &[u8]) -> Result<(), Error> {
        let path = self.config_drive(id);
        if path.is_file() {
            Ok(())
        } else {
            write_atomically(&path, bytes, 0o600)
        }
    }

    /// Removes an Instance's directory; one that is gone is fine. The caller has checked
    /// the metadata, which is removed last: what an interrupted removal leaves still has its
    /// owner.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, id: Uuid) -> Result<(), Error> {
        let directory = self.directory(id);
        let names = match entries_or_error(&directory) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(());
            }
            other => other?,
        };
        for name in names.iter().filter(|name| *name != METADATA_FILE) {
            let path = directory.join(name);
            let done = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            done.map_err(Error::io("remove", &path))?;
        }
        fs::remove_dir_all(&directory).map_err(Error::io("remove", &directory))
    }

    /// Records that the guest is asked to shut down now.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn record_shutdown_request(&self, id: Uuid) -> Result<(), Error> {
        let path = self.directory(id).join(SHUTDOWN_FILE);
        fs::write(&path, b"").map_err(Error::io("write", &path))
    }

    /// Removes the record of [`Self::record_shutdown_request`]; none is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear_shutdown_request(&self, id: Uuid) -> Result<(), Error> {
        let path = self.directory(id).join(SHUTDOWN_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Space in the file system of the disks, which may be a file system of its own.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn space(&self) -> Result<Space, Error> {
        let disks = self.dir.join("instances");
        space_of(if disks.is_dir() { &disks } else { &self.dir })
    }
}

/// The size of a disk that is as big as its image's: in whole GiB, as capacity is counted.
fn rounded_up(size: u64) -> u64 {
    size.checked_next_multiple_of(1 << 30).unwrap_or(size)
}

/// A disk that exists must be complete, also after a loss of power, and is nobody's but QEMU's, to
/// whose user libvirt gives it when the guest starts.
fn put_in_place(temporary: &Path, disk: &Path) -> Result<(), Error> {
    let written = fs::set_permissions(temporary, fs::Permissions::from_mode(DISK_MODE))
        .and_then(|()| fs::File::open(temporary)?.sync_all());
    written.map_err(Error::io("write", temporary))?;
    fs::rename(temporary, disk).map_err(Error::io("make", disk))?;
    sync_directory(disk)
}

/// Whether the file at `disk` is what [`Disks::create`] makes. Backing files are compared by
/// name, which is their digest: the state directory may have been known by another path.
fn check_overlay(disk: &Path, backing: &Path, sizes: [u64; 2]) -> Result<(), Error> {
    let other = |why: String| Error::WrongDisk {
        path: disk.to_owned(),
        why,
    };
    let kind = disk
        .symlink_metadata()
        .map_err(Error::io("look at", disk))?;
    if !kind.is_file() {
        return Err(other("it is no regular file".to_owned()));
    }
    let header = match qcow2::read(disk) {
        Err(Error::NotAnImage(why)) => return Err(other(why)),
        header => header?.ok_or_else(|| other("it is no qcow2 image".to_owned()))?,
    };
    if header.data_file {
        return Err(other("its data lies in another file".to_owned()));
    }
    if header.encrypted {
        return Err(other("it is encrypted".to_owned()));
    }
    let wanted = backing.file_name().unwrap_or_default();
    let found = header.backing_file.as_deref().map(Path::new);
    if found.and_then(Path::file_name) != Some(wanted) {
        let found = found.map_or("no image".into(), Path::to_string_lossy);
        return Err(other(format!(
            "it lies over {found}, not over {}",
            backing.display()
        )));
    }
    if !sizes.contains(&header.virtual_size) {
        let (found, wanted) = (header.virtual_size, sizes[0]);
        return Err(other(format!("it has {found} bytes, not {wanted}")));
    }
    Ok(())
}

/// Space in the file system of `path`.
pub(super) fn space_of(path: &Path) -> Result<Space, Error> {
    let stat =
        nix::sys::statvfs::statvfs(path).map_err(|e| Error::io("look at", path)(e.into()))?;
    let block = stat.fragment_size();
    Ok(Space {
        total: stat.blocks() * block,
        available: stat.blocks_available() * block,
    })
}

fn read_metadata(directory: &Path) -> Option<DirectoryMetadata> {
    serde_json::from_slice(&fs::read(directory.join(METADATA_FILE)).ok()?).ok()
}

/// File names in the store of the images in use on this host, by backing chains and by metadata.
/// By name and not by path: the state directory may have been known by another path when the
/// disk was made.
///
/// # Errors
/// When anything cannot be read: an image that was not found must not count as unused.
pub(super) fn images_in_use(dir: &Path) -> Result<BTreeSet<OsString>, Error> {
    let mut used = BTreeSet::new();
    let instances = dir.join("instances");
    for name in entries_or_error(&instances)? {
        let directory = instances.join(name);
        let names = match entries_or_error(&directory) {
            // Removed meanwhile, or a file that is not ours.
            Err(Error::Io { source, .. })
                if matches!(
                    source.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory
                ) =>
            {
                continue;
            }
            other => other?,
        };
        for name in names {
            let path = directory.join(&name);
            if name == METADATA_FILE {
                let metadata = unless_gone(fs::read(&path).map_err(Error::io("read", &path)))?
                    .map(|bytes| serde_json::from_slice::<DirectoryMetadata>(&bytes))
                    .transpose()
                    .map_err(|e| Error::io("understand", &path)(e.into()))?;
                let kernels = metadata.map(|m| m.uses).unwrap_or_default();
                used.extend(kernels.iter().map(|digest| file_name(digest).into()));
            } else if name.to_string_lossy().starts_with("disk.") {
                let backing = unless_gone(qcow2::read(&path))?
                    .flatten()
                    .and_then(|header| header.backing_file);
                if let Some(backing) = backing {
                    let name = Path::new(&backing).file_name().map(OsString::from);
                    used.extend(name);
                }
            }
        }
    }
    Ok(used)
}

/// `None` when the file was removed after its directory was listed.
fn unless_gone<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// All names in a directory; unlike [`entries`] it fails when it cannot read them.
fn entries_or_error(dir: &Path) -> Result<Vec<OsString>, Error> {
    fs::read_dir(dir)
        .and_then(|all| all.map(|entry| Ok(entry?.file_name())).collect())
        .map_err(Error::io("list", dir))
}
