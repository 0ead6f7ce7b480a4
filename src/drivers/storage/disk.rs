//! The directory of an Instance: marks, root disk, config drive.
//!
//! ```text
//! DIR/instances/ID/marks.json   whose it is, and which images it uses
//! DIR/instances/ID/disk.qcow2   overlay over the image
//! DIR/instances/ID/config.img   config drive, mode 0600
//! DIR/instances/ID/console.log  written by virtlogd
//! ```

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use uuid::Uuid;

use super::store::{entries, sync_directory, write_atomically};
use super::{Error, ImageStore, StoredImage, qcow2};
use crate::model::Owner;

/// Whose a directory is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectoryMarks {
    /// Whose it is.
    pub owner: Owner,
    /// Epoch of the placement that it was made for.
    pub epoch: i64,
    /// Digests of kernel and initial RAM disk, which no backing chain shows.
    #[serde(default)]
    pub uses: Vec<String>,
}

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Whose it is; a directory without readable marks is nobody's.
    pub marks: Option<DirectoryMarks>,
    /// The directory exists.
    pub directory: bool,
    /// The root disk exists.
    pub disk: bool,
    /// The config drive exists.
    pub config_drive: bool,
}

/// Room in the file system of the disks, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// Left for us.
    pub available: u64,
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
        self.directory(id).join("disk.qcow2")
    }

    /// Path of a config drive.
    #[must_use]
    pub fn config_drive(&self, id: Uuid) -> PathBuf {
        self.directory(id).join("config.img")
    }

    /// Looks at an Instance's directory.
    #[must_use]
    pub fn look(&self, id: Uuid) -> Contents {
        let directory = self.directory(id);
        Contents {
            directory: directory.is_dir(),
            marks: read_marks(&directory),
            disk: self.root_disk(id).is_file(),
            config_drive: self.config_drive(id).is_file(),
        }
    }

    /// All directories, with their marks.
    #[must_use]
    pub fn list(&self) -> Vec<(Uuid, Option<DirectoryMarks>)> {
        let instances = self.dir.join("instances");
        entries(&instances)
            .filter_map(|name| {
                let id = name.parse().ok()?;
                Some((id, read_marks(&instances.join(name))))
            })
            .collect()
    }

    /// Makes the directory and the root disk: an overlay over `image`, `size` bytes big, or
    /// as big as the image's disk when that is 0. Made under another name first, so that a
    /// disk that is there is whole.
    ///
    /// # Errors
    /// When the image is gone or bigger than the disk, or the disk cannot be written.
    pub async fn create(
        &self,
        store: &ImageStore,
        id: Uuid,
        marks: &DirectoryMarks,
        image: &StoredImage,
        size: u64,
    ) -> Result<(), Error> {
        let size = if size == 0 { image.virtual_size } else { size };
        if size < image.virtual_size {
            return Err(Error::ImageTooLarge {
                image: image.virtual_size,
                disk: size,
            });
        }
        let directory = self.directory(id);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&directory)
            .map_err(Error::io("make", &directory))?;
        self.mark(id, marks)?;
        let disk = self.root_disk(id);
        if disk.is_file() {
            return Ok(());
        }
        // Held until the disk names the image: until then nothing tells that it is needed.
        let guard = store.in_use().await?;
        let backing = store.path(&image.digest);
        if !backing.is_file() {
            return Err(Error::NotFound {
                url: backing.display().to_string(),
                status: "the image is no longer stored; it is fetched again".to_owned(),
            });
        }
        let temporary = directory.join("disk.new");
        let _ = fs::remove_file(&temporary);
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", &image.format, "-b"])
            .arg(&backing)
            .arg(&temporary)
            .arg(size.to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(Error::io("run qemu-img for", &disk))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let _ = fs::remove_file(&temporary);
            return Err(if message.contains("No space left") {
                Error::NoSpace(directory)
            } else {
                Error::Program {
                    program: "qemu-img",
                    message,
                }
            });
        }
        fs::rename(&temporary, &disk).map_err(Error::io("make", &disk))?;
        sync_directory(&disk)?;
        drop(guard);
        Ok(())
    }

    /// Writes the marks of a directory that is there.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn mark(&self, id: Uuid, marks: &DirectoryMarks) -> Result<(), Error> {
        let path = self.directory(id).join("marks.json");
        if read_marks(&self.directory(id)).as_ref() == Some(marks) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(marks).unwrap_or_default();
        write_atomically(&path, &bytes, 0o644)
    }

    /// Writes the config drive, unless it is there: it is written once for a Server's life.
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
    /// the marks.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, id: Uuid) -> Result<(), Error> {
        let directory = self.directory(id);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(Error::io("remove", &directory)),
        }
    }

    /// Room in the file system.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn space(&self) -> Result<Space, Error> {
        let stat = nix::sys::statvfs::statvfs(self.dir.as_path())
            .map_err(|e| Error::io("look at", &self.dir)(e.into()))?;
        let block = stat.fragment_size();
        Ok(Space {
            total: stat.blocks() * block,
            available: stat.blocks_available() * block,
        })
    }
}

fn read_marks(directory: &Path) -> Option<DirectoryMarks> {
    serde_json::from_slice(&fs::read(directory.join("marks.json")).ok()?).ok()
}

/// Paths (by backing chain) and digests (by marks) of the images in use on this host.
pub(super) fn images_in_use(dir: &Path) -> Result<Vec<String>, Error> {
    let mut used = Vec::new();
    let instances = dir.join("instances");
    for name in entries(&instances) {
        let directory = instances.join(name);
        if let Some(marks) = read_marks(&directory) {
            used.extend(marks.uses);
        }
        for file in entries(&directory).filter(|f| f.starts_with("disk.")) {
            if let Some(header) = qcow2::read(&directory.join(file))? {
                used.extend(header.backing_file);
            }
        }
    }
    Ok(used)
}
