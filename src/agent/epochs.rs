//! The highest epoch that this host has seen for each Server, kept over restarts: an
//! older incarnation must never touch what a newer one has made.
//!
//! A record is closed when its Instance was deleted and nothing of it is left here. A closed one
//! still counts for [`CLOSED_RETENTION`], against a writer that acts on outdated knowledge: a
//! leader's lease lasts seconds and a request to the API server a minute, so that only a process
//! or machine that was halted in between can come so late, and 30 days of that are more than a
//! credential lasts. A record that was never closed is never dropped: a missing Instance does not
//! mean that nothing of it is left.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a closed record is kept.
pub const CLOSED_RETENTION: Duration = Duration::from_hours(30 * 24);

/// What is kept of one Server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Record {
    /// Highest epoch seen.
    pub epoch: i64,
    /// When nothing was left of it here, in seconds since 1970; `None` while it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<u64>,
}

/// A record as it lies in the file; at first it was the bare number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Bare(i64),
    Full { epoch: i64, closed: Option<u64> },
}

impl From<Stored> for Record {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Bare(epoch) => Self {
                epoch,
                closed: None,
            },
            Stored::Full { epoch, closed } => Self { epoch, closed },
        }
    }
}

/// The records, in one file.
#[derive(Debug)]
pub struct Epochs {
    path: PathBuf,
    /// Held for a moment only: it is asked on threads that must never wait for a disk.
    records: Mutex<BTreeMap<String, Record>>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

impl Epochs {
    /// Reads the records; none yet is fine.
    ///
    /// # Errors
    /// When the file is there and cannot be read: acting without it could start a VM
    /// twice.
    pub fn open(path: &Path) -> io::Result<Self> {
        let records = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path: path.to_owned(),
            records: Mutex::new(records),
            writing: Mutex::default(),
        })
    }

    /// What is recorded for a Server's uid.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Record> {
        self.lock().get(uid).copied()
    }

    /// Records an epoch, on disk before it is believed, and opens its record again if it was
    /// closed; a lower one changes nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record(&self, uid: &str, epoch: i64) -> io::Result<()> {
        self.change(|records| {
            let open = Record {
                epoch,
                closed: None,
            };
            match records.get(uid) {
                Some(seen) if seen.epoch > epoch || *seen == open => false,
                _ => {
                    records.insert(uid.to_owned(), open);
                    true
                }
            }
        })
    }

    /// Closes the record of an epoch of which nothing is left here, unless a newer one was
    /// seen, and drops those that were closed [`CLOSED_RETENTION`] before `now` (seconds since
    /// 1970).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(&self, uid: &str, epoch: i64, now: u64) -> io::Result<()> {
        self.change(|records| {
            let before = records.len();
            records.retain(|_, record| {
                record
                    .closed
                    .is_none_or(|closed| now.saturating_sub(closed) < CLOSED_RETENTION.as_secs())
            });
            let mut changed = records.len() != before;
            if let Some(record) = records.get_mut(uid)
                && record.epoch <= epoch
                && record.closed.is_none()
            {
                record.closed = Some(now);
                changed = true;
            }
            changed
        })
    }

    fn change(&self, f: impl FnOnce(&mut BTreeMap<String, Record>) -> bool) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.lock().clone();
        if f(&mut next) {
            self.write(&next)?;
            *self.lock() = next;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, records: &BTreeMap<String, Record>) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(records)?)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, PathBuf, Epochs) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epochs.json");
        let epochs = Epochs::open(&path).unwrap();
        (dir, path, epochs)
    }

    #[test]
    fn the_highest_epoch_survives_a_restart() {
        let (_dir, path, epochs) = open();
        epochs.record("a", 2).unwrap();
        epochs.record("a", 1).unwrap();
        let again = Epochs::open(&path).unwrap();
        assert_eq!(again.get("a").unwrap().epoch, 2);
        assert_eq!(again.get("b"), None);
    }

    #[test]
    fn a_broken_record_is_an_error_and_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epochs.json");
        for broken in ["{", r#"{"a":{}}"#, r#"{"a":"2"}"#] {
            fs::write(&path, broken).unwrap();
            assert!(Epochs::open(&path).is_err(), "{broken}");
        }
        fs::write(&path, r#"{"a":7}"#).unwrap();
        let record = Epochs::open(&path).unwrap().get("a").unwrap();
        assert_eq!((record.epoch, record.closed), (7, None));
    }

    #[test]
    fn closed_records_expire_and_open_ones_never_do() {
        let (_dir, path, epochs) = open();
        let late = CLOSED_RETENTION.as_secs();
        for uid in ["gone", "back", "missing", "moved"] {
            epochs.record(uid, 3).unwrap();
        }
        epochs.record("moved", 4).unwrap();
        epochs.close("moved", 3, 1).unwrap();
        assert_eq!(epochs.get("moved").unwrap().closed, None, "a newer one");
        for uid in ["gone", "back"] {
            epochs.close(uid, 3, 1).unwrap();
            epochs.close(uid, 3, 9).unwrap();
            assert_eq!(epochs.get(uid).unwrap().closed, Some(1), "the first time");
        }
        epochs.record("back", 2).unwrap();
        assert_eq!(epochs.get("back").unwrap().closed, Some(1), "an older one");
        epochs.record("back", 3).unwrap();
        epochs.close("nobody", 1, late).unwrap();
        assert_eq!(epochs.get("gone").unwrap().epoch, 3, "a second too early");
        // A clock that went back drops nothing.
        epochs.close("nobody", 1, 0).unwrap();
        epochs.close("nobody", 1, late + 1).unwrap();
        let again = Epochs::open(&path).unwrap();
        assert_eq!(again.get("gone"), None);
        for (uid, epoch) in [("back", 3), ("missing", 3), ("moved", 4)] {
            assert_eq!(again.get(uid).unwrap().epoch, epoch, "{uid}");
        }
    }
}
