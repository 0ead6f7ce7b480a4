//! The host's images, stored by the digest of their bytes.
//!
//! ```text
//! DIR/store.lock              shared while a disk is made from an image, exclusive while
//!                             images are collected
//! DIR/partial/KEY[.etag]      a download; KEY is a hash of its namespace, URL and checksum
//! DIR/images/sha256-HEX       the bytes, complete and checked: they appear by rename
//! DIR/images/sha256-HEX.json  what they are
//! DIR/sources/KEY.json        which bytes a source gave to a namespace, so that it is fetched once
//! DIR/instances/ID/           see `disk`
//! ```
//!
//! Bytes are stored once, but to know a digest is no key to them: a namespace uses stored bytes only
//! under a URL that has given them to this very namespace before.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::blocking::blocking;
use super::fetch::{self, Digests};
use super::policy::redact;
use super::slots::Slots;
use super::{Error, FetchPolicy, disk, probe};

pub use super::fetch::DownloadProgress;

/// How long the digest of a URL without a checksum stays cached.
const SOURCE_TTL: Duration = Duration::from_hours(1);
/// QEMU's user passes through to the files that are its own, and lists none.
const DIRECTORY_MODE: u32 = 0o711;
/// How many of the bytes that one URL gave over time are remembered.
const MAX_GIVEN: usize = 16;
/// Images are read by QEMU alone, to whose user libvirt gives them when a guest starts.
const IMAGE_MODE: u32 = 0o440;
/// After this time a download that was not resumed is removed.
const ABANDONED_AFTER: Duration = Duration::from_hours(24);

/// What is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The namespace of the Image, which must have been given the bytes, or fetches them.
    pub namespace: String,
    /// Where they come from.
    pub url: String,
    /// `sha256:…` or `sha512:…` that the user gave.
    pub checksum: Option<String>,
    /// `sha256:…` that the first import fixed.
    pub digest: Option<String>,
    /// What they must be.
    pub content: Content,
}

/// What bytes must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// A disk of this format.
    Disk(String),
    /// Anything: a kernel or an initial RAM disk.
    Blob,
}

/// Bytes in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredImage {
    /// `sha256:…` of the bytes.
    pub digest: String,
    /// Number of bytes.
    pub size: u64,
    /// Size of the disk in bytes; 0 for a blob.
    pub virtual_size: u64,
    /// Format of the disk; empty for a blob.
    pub format: String,
    /// URL that they came from, without the parts that may be secret.
    pub source: String,
}

/// The store of one host.
#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: Arc<PathBuf>,
    policy: Arc<FetchPolicy>,
    slots: Arc<Slots>,
}

/// Keeps images from being collected while it lives.
#[must_use]
pub struct InUse(#[allow(dead_code, reason = "unlocked when it is dropped")] Flock<fs::File>);

impl ImageStore {
    /// The store in `dir`, made when it is not there.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(dir: &Path, policy: FetchPolicy) -> Result<Self, Error> {
        for name in ["images", "partial", "sources", "instances"] {
            let path = dir.join(name);
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(DIRECTORY_MODE);
            builder.create(&path).map_err(Error::io("make", &path))?;
            set_mode(&path, DIRECTORY_MODE);
        }
        // Those that an earlier version has made were everybody's to read.
        let images = dir.join("images");
        for name in entries(&images).filter(|name| !name.contains('.')) {
            set_mode(&images.join(name), IMAGE_MODE);
        }
        let instances = dir.join("instances");
        for name in entries(&instances) {
            set_mode(&instances.join(name).join(disk::ROOT_DISK), disk::DISK_MODE);
        }
        Ok(Self {
            dir: Arc::new(dir.to_owned()),
            slots: Slots::new(&policy.limits),
            policy: Arc::new(policy),
        })
    }

    /// Where the bytes of a digest are, or would be.
    #[must_use]
    pub fn path(&self, digest: &str) -> PathBuf {
        self.dir.join("images").join(file_name(digest))
    }

    /// The requested bytes, when they are stored already and the same namespace has fetched them
    /// from the same source; reads the disk, never the network.
    #[must_use]
    pub fn find(&self, request: &Request) -> Option<StoredImage> {
        let path = self.source(&key(request));
        let source: Source = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let digest = match known_digest(request) {
            Some(known) => source.gave.into_iter().find(|gave| *gave == known),
            // Without a checksum the bytes behind a URL may change at any time: good only until
            // the manager has fixed the digest.
            None if request.checksum.is_none() && !younger_than(&path, SOURCE_TTL) => None,
            None => source.gave.into_iter().next(),
        };
        self.get_as(&digest?, &request.content)
    }

    /// The requested bytes for a guest whose disk lies over them already: it has them, wherever
    /// they came from.
    #[must_use]
    pub fn find_for_disk(&self, request: &Request) -> Option<StoredImage> {
        let known = known_digest(request);
        let stored = known.and_then(|digest| self.get_as(&digest, &request.content));
        stored.or_else(|| self.find(request))
    }

    fn get_as(&self, digest: &str, content: &Content) -> Option<StoredImage> {
        let stored = self.get(digest)?;
        let fits = match content {
            Content::Disk(format) => stored.format == *format,
            Content::Blob => true,
        };
        fits.then_some(stored)
    }

    fn source(&self, key: &str) -> PathBuf {
        self.dir.join("sources").join(format!("{key}.json"))
    }

    /// What is stored under a digest.
    #[must_use]
    pub fn get(&self, digest: &str) -> Option<StoredImage> {
        let path = self.path(digest);
        if !path.is_file() {
            return None;
        }
        let sidecar = path.with_extension("json");
        serde_json::from_slice(&fs::read(sidecar).ok()?).ok()
    }

    /// Digests of all stored disks, sorted.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        let mut all: Vec<_> = entries(&self.dir.join("images"))
            .filter(|name| !name.contains('.'))
            .filter_map(|name| {
                self.get(
                    &name
                        .strip_prefix("sha256-")
                        .map(|h| format!("sha256:{h}"))?,
                )
            })
            .filter(|stored| !stored.format.is_empty())
            .map(|stored| stored.digest)
            .collect();
        all.sort();
        all
    }

    /// Fetches, checks and stores the bytes, unless they are stored already. Two imports of the same
    /// source at once fetch it once; a crash at any point leaves a download to resume.
    ///
    /// # Errors
    /// When the bytes do not come or are not what was asked for.
    pub async fn import(
        &self,
        request: &Request,
        progress: &DownloadProgress,
    ) -> Result<StoredImage, Error> {
        if let Content::Disk(format) = &request.content
            && !matches!(format.as_str(), "raw" | "qcow2")
        {
            return Err(Error::UnsupportedFormat(format.clone()));
        }
        let key = key(request);
        let partial = self.dir.join("partial").join(&key);
        let _lock = lock_when_free(&partial.with_extension("lock")).await?;
        let (this, asked) = (self.clone(), request.clone());
        if let Some(stored) = blocking(move || this.find(&asked)).await {
            return Ok(stored);
        }
        progress.waiting.store(true, Ordering::Relaxed);
        let _slot = self.slots.acquire(&request.namespace).await;
        progress.waiting.store(false, Ordering::Relaxed);
        let mut resumed = false;
        let fetched = loop {
            let fetched = self.fetch(request, &partial, progress, &mut resumed).await;
            match fetched {
                // The part of an earlier attempt may be wrong: fetch all bytes before refusing them.
                Err(
                    Error::ChecksumMismatch { .. }
                    | Error::DigestMismatch { .. }
                    | Error::NotAnImage(_),
                ) if resumed => discard_later(&partial).await,
                other => break other,
            }
        };
        match fetched {
            Ok(stored) => self.store(key, partial, stored).await,
            Err(error) => {
                // A full disk may be full of this very file; refused bytes are of no use.
                if error.is_terminal() || matches!(error, Error::NoSpace(_)) {
                    discard_later(&partial).await;
                }
                Err(error)
            }
        }
    }

    async fn fetch(
        &self,
        request: &Request,
        partial: &Path,
        progress: &DownloadProgress,
        resumed: &mut bool,
    ) -> Result<StoredImage, Error> {
        let has_checksum = request.checksum.is_some();
        *resumed = false;
        let digests =
            fetch::fetch(&self.policy, &request.url, has_checksum, partial, progress).await?;
        *resumed = digests.resumed;
        self.check(request, partial, &digests).await
    }

    async fn check(
        &self,
        request: &Request,
        partial: &Path,
        digests: &Digests,
    ) -> Result<StoredImage, Error> {
        let url = || redact(&request.url);
        if let Some(expected) = request.checksum.as_deref().map(str::to_ascii_lowercase) {
            let found = if expected.starts_with("sha512:") {
                &digests.sha512
            } else {
                &digests.sha256
            };
            if *found != expected {
                let found = found.clone();
                return Err(Error::ChecksumMismatch {
                    url: url(),
                    expected,
                    found,
                });
            }
        }
        if let Some(expected) = &request.digest
            && *expected != digests.sha256
        {
            return Err(Error::DigestMismatch {
                url: url(),
                expected: expected.clone(),
                found: digests.sha256.clone(),
            });
        }
        let (virtual_size, format) = match &request.content {
            Content::Disk(format) => (probe::probe(partial, format).await?, format.clone()),
            Content::Blob => (0, String::new()),
        };
        let limit = self.policy.limits.disk;
        if virtual_size > limit {
            let size = virtual_size;
            return Err(Error::DiskTooBig { size, limit });
        }
        Ok(StoredImage {
            digest: digests.sha256.clone(),
            size: digests.size,
            virtual_size,
            format,
            source: url(),
        })
    }

    async fn store(
        &self,
        key: String,
        partial: PathBuf,
        stored: StoredImage,
    ) -> Result<StoredImage, Error> {
        // So that it is neither collected meanwhile, nor written by another import.
        let _in_use = self.in_use().await?;
        let _lock = lock(&self.dir.join("keep.lock"), FlockArg::LockExclusiveNonblock).await?;
        let this = self.clone();
        blocking(move || this.store_locked(&key, &partial, stored)).await
    }

    fn store_locked(
        &self,
        key: &str,
        partial: &Path,
        mut stored: StoredImage,
    ) -> Result<StoredImage, Error> {
        let path = self.path(&stored.digest);
        if let Some(known) = self.get(&stored.digest)
            && stored.format.is_empty()
        {
            // The same bytes may be a kernel for one and a disk for another; the probed facts stay.
            stored = known;
        }
        write_atomically(&path.with_extension("json"), &to_json(&stored), 0o640)?;
        if path.is_file() {
            // Another namespace's: guests that run have it open. Only its last use is noted.
            let _ = fs::File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        } else {
            fs::set_permissions(partial, fs::Permissions::from_mode(IMAGE_MODE))
                .map_err(Error::io("set the mode of", partial))?;
            fs::rename(partial, &path).map_err(Error::io("store", &path))?;
            sync_directory(&path)?;
        }
        discard(partial);
        let path = self.source(key);
        let known: Option<Source> = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let source = known.unwrap_or_default().with(&stored.digest);
        write_atomically(&path, &to_json(&source), 0o640)?;
        Ok(stored)
    }

    /// Keeps every image where it is until the guard is dropped.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub async fn in_use(&self) -> Result<InUse, Error> {
        let path = self.dir.join("store.lock");
        lock(&path, FlockArg::LockSharedNonblock).await.map(InUse)
    }

    /// Removes the images that no disk on this host has in its backing chain, that no
    /// Instance names as its kernel, and that are older than `grace`; and downloads that
    /// were not resumed for a day. Returns the removed digests.
    ///
    /// # Errors
    /// When the lock cannot be taken; a disk that cannot be read keeps every image.
    pub async fn collect(&self, grace: Duration) -> Result<Vec<String>, Error> {
        let guard = lock(
            &self.dir.join("store.lock"),
            FlockArg::LockExclusiveNonblock,
        )
        .await?;
        let this = self.clone();
        let removed = blocking(move || this.collect_locked(grace)).await;
        drop(guard);
        removed
    }

    fn collect_locked(&self, grace: Duration) -> Result<Vec<String>, Error> {
        let used = disk::images_in_use(&self.dir)?;
        let mut removed = Vec::new();
        let images = self.dir.join("images");
        for name in entries(&images).filter(|name| !name.contains('.')) {
            let path = images.join(&name);
            if used.contains(OsStr::new(&name)) || younger_than(&path, grace) {
                continue;
            }
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            let _ = fs::remove_file(path.with_extension("json"));
            removed.push(name.replacen('-', ":", 1));
        }
        self.collect_partials();
        for name in entries(&self.dir.join("sources")) {
            let path = self.dir.join("sources").join(name);
            let source: Option<Source> = fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let gave = source.unwrap_or_default().gave;
            // As long as the bytes are here, so is the proof of who was given them.
            let is_kept = gave.iter().any(|digest| self.path(digest).is_file());
            if !is_kept && !younger_than(&path, ABANDONED_AFTER) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(removed)
    }

    fn collect_partials(&self) {
        let partials = self.dir.join("partial");
        let keys: BTreeSet<String> = entries(&partials)
            .filter_map(|name| name.split('.').next().map(str::to_owned))
            .collect();
        for key in keys {
            let partial = partials.join(key);
            let lock = partial.with_extension("lock");
            let abandoned = [&partial, &lock]
                .into_iter()
                .all(|path| !path.exists() || !younger_than(path, ABANDONED_AFTER));
            // An import that waits for its server writes nothing, but has the lock.
            let locked = || {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&lock)
                    .ok()?;
                Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
            };
            if abandoned && let Some(_locked) = locked() {
                discard(&partial);
                let _ = fs::remove_file(&lock);
            }
        }
    }
}

/// What a source has given to a namespace.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Source {
    /// Digests, the last one first: the bytes behind a URL may change.
    gave: Vec<String>,
}

impl Source {
    fn with(mut self, digest: &str) -> Self {
        self.gave.retain(|gave| gave != digest);
        self.gave.insert(0, digest.to_owned());
        self.gave.truncate(MAX_GIVEN);
        self
    }
}

/// Name of the file that holds the bytes of a digest.
pub(super) fn file_name(digest: &str) -> String {
    digest.replace([':', '/'], "-")
}

fn key(request: &Request) -> String {
    let content = match &request.content {
        Content::Disk(format) => format.as_str(),
        Content::Blob => "",
    };
    let checksum = request.checksum.as_deref().unwrap_or_default();
    let Request { namespace, url, .. } = request;
    let text = format!("{namespace}\n{url}\n{checksum}\n{content}");
    hex::encode(&Sha256::digest(text.as_bytes())[..16])
}

/// The digest that the bytes must have, if it is known beforehand.
fn known_digest(request: &Request) -> Option<String> {
    let fixed = request.digest.clone();
    fixed.or_else(|| sha256_of(request.checksum.as_deref()))
}

fn sha256_of(checksum: Option<&str>) -> Option<String> {
    checksum.map(str::to_ascii_lowercase).filter(|c| {
        c.strip_prefix("sha256:")
            .is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    // Structs of strings and numbers always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Names in a directory; none when it cannot be read.
pub(super) fn entries(dir: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// Best effort: what cannot be changed fails where it is used.
fn set_mode(path: &Path, mode: u32) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
}

fn younger_than(path: &Path, age: Duration) -> bool {
    fs::metadata(path)
        .and_then(|m| m.modified())
        .ok()
        .and_then(|time| SystemTime::now().duration_since(time).ok())
        .is_none_or(|old| old < age)
}

async fn discard_later(partial: &Path) {
    let partial = partial.to_owned();
    blocking(move || discard(&partial)).await;
}

fn discard(partial: &Path) {
    for path in [partial.to_owned(), partial.with_extension("etag")] {
        let _ = fs::remove_file(path);
    }
}

/// Writes a file so that it exists completely or not at all.
pub(super) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(Error::io("write", path))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(Error::io("write", path)(error));
    }
    fs::rename(&temporary, path).map_err(Error::io("write", path))?;
    sync_directory(path)
}

/// Syncs the path's directory, so that a rename survives a loss of power.
pub(super) fn sync_directory(path: &Path) -> Result<(), Error> {
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(Error::io("sync", dir))
}

fn same_file(open: &fs::File, path: &Path) -> bool {
    match (open.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

async fn lock_when_free(path: &Path) -> Result<Flock<fs::File>, Error> {
    lock(path, FlockArg::LockExclusiveNonblock).await
}

/// Locks a file, without blocking a thread while others have the lock.
async fn lock(path: &Path, how: FlockArg) -> Result<Flock<fs::File>, Error> {
    loop {
        let path = path.to_owned();
        if let Some(locked) = blocking(move || try_lock(&path, how)).await? {
            return Ok(locked);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn try_lock(path: &Path, how: FlockArg) -> Result<Option<Flock<fs::File>>, Error> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::io("open", path))?;
    match Flock::lock(file, how) {
        // A file that was removed before it was locked excludes nobody.
        Ok(locked) => Ok(same_file(&locked, path).then_some(locked)),
        Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(None),
        Err((_, errno)) => Err(Error::io("lock", path)(errno.into())),
    }
}
