//! Where fetched bytes go: a file that never grows beyond what one image may have, nor into the
//! space that is left for running guests; the bytes are hashed on their way.

use std::io::{Read, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256, Sha512};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::blocking::blocking;
use super::error::Shortage;
use super::fetch::{Digests, DownloadProgress};
use super::{Error, disk};

/// Bytes between two looks at the space that is left: others write to the file system too.
const SPACE_CHECK_INTERVAL: u64 = 4 << 20;

#[derive(Default)]
struct Hasher {
    sha256: Sha256,
    sha512: Sha512,
    size: u64,
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.sha512.update(bytes);
        self.size += bytes.len() as u64;
    }

    fn finish(self) -> Digests {
        Digests {
            sha256: format!("sha256:{}", hex::encode(self.sha256.finalize())),
            sha512: format!("sha512:{}", hex::encode(self.sha512.finalize())),
            size: self.size,
            resumed: false,
        }
    }
}

/// What a file is fetched under.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    /// The URL, as it is shown.
    pub url: &'a str,
    /// Most bytes of the file.
    pub limit: u64,
    /// Where its progress is reported.
    pub progress: &'a DownloadProgress,
}

/// A file that is being written.
pub(super) struct Sink<'a> {
    terms: Terms<'a>,
    path: PathBuf,
    out: File,
    hasher: Hasher,
    unchecked: u64,
}

impl<'a> Sink<'a> {
    /// A new file; `length` is what the server announces.
    pub(super) async fn create(
        path: &Path,
        length: Option<u64>,
        terms: Terms<'a>,
    ) -> Result<Self, Error> {
        check_size(length.unwrap_or(0), &terms)?;
        check_space(path, length.unwrap_or(1)).await?;
        let created = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .await;
        let out = created.map_err(Error::io("write", path))?;
        Ok(Self::new(path, out, Hasher::default(), length, terms))
    }

    /// The file that an interrupted download has left, to write after its first `have` bytes. By
    /// position and not by appending: the last write of a download that was cancelled may still be
    /// on its way.
    pub(super) async fn resume(
        path: &Path,
        have: u64,
        rest: Option<u64>,
        terms: Terms<'a>,
    ) -> Result<Self, Error> {
        check_size(have.saturating_add(rest.unwrap_or(0)), &terms)?;
        check_space(path, rest.unwrap_or(1)).await?;
        let owned = path.to_owned();
        let hasher = blocking(move || hash_file(&owned, have)).await?;
        let opened = async {
            let mut out = OpenOptions::new().write(true).open(path).await?;
            out.set_len(have).await?;
            out.seek(SeekFrom::Start(have)).await?;
            Ok(out)
        };
        let out = opened.await.map_err(Error::io("write", path))?;
        let total = rest.map(|rest| have + rest);
        Ok(Self::new(path, out, hasher, total, terms))
    }

    fn new(path: &Path, out: File, hasher: Hasher, total: Option<u64>, terms: Terms<'a>) -> Self {
        let progress = terms.progress;
        progress.total.store(total.unwrap_or(0), Ordering::Relaxed);
        progress.received.store(hasher.size, Ordering::Relaxed);
        Self {
            terms,
            path: path.to_owned(),
            out,
            hasher,
            unchecked: 0,
        }
    }

    /// Bytes in the file.
    pub(super) fn size(&self) -> u64 {
        self.hasher.size
    }

    /// Writes the next bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = bytes.len() as u64;
        check_size(self.size().saturating_add(length), &self.terms)?;
        self.unchecked += length;
        if self.unchecked >= SPACE_CHECK_INTERVAL {
            // As much as may come until the next look.
            check_space(&self.path, self.unchecked).await?;
            self.unchecked = 0;
        }
        self.hasher.update(bytes);
        let written = self.out.write_all(bytes).await;
        written.map_err(Error::io("write", &self.path))?;
        let received = &self.terms.progress.received;
        received.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Brings what was written to the disk.
    pub(super) async fn sync(&mut self) -> Result<(), Error> {
        let synced = async {
            self.out.flush().await?;
            self.out.sync_all().await
        };
        synced.await.map_err(Error::io("write", &self.path))
    }

    /// Digests of all that was written.
    pub(super) fn finish(self) -> Digests {
        self.hasher.finish()
    }
}

/// Fails when a file would be bigger than one may be.
fn check_size(size: u64, terms: &Terms<'_>) -> Result<(), Error> {
    if size > terms.limit {
        return Err(Error::FileTooBig {
            url: terms.url.to_owned(),
            size,
            limit: terms.limit,
        });
    }
    Ok(())
}

/// Fails when `need` more bytes would fill the file system.
async fn check_space(path: &Path, need: u64) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(path).to_owned();
    let at = dir.clone();
    let usable = blocking(move || disk::space_of(&at)).await?.usable();
    if need > usable {
        return Err(Error::NoSpace(Shortage {
            path: dir,
            bytes: Some((need, usable)),
        }));
    }
    Ok(())
}

fn hash_file(path: &Path, length: u64) -> Result<Hasher, Error> {
    let mut file = std::fs::File::open(path)
        .map_err(Error::io("open", path))?
        .take(length);
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if n == 0 {
            return Ok(hasher);
        }
        hasher.update(&buffer[..n]);
    }
}
