//! The highest epoch that this host has seen for each Server, kept over restarts: an
//! older incarnation must never touch what a newer one has made.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The record, in one file.
#[derive(Debug)]
pub struct Epochs {
    path: PathBuf,
    highest: Mutex<BTreeMap<String, i64>>,
}

impl Epochs {
    /// Reads the record; none yet is fine.
    ///
    /// # Errors
    /// When the record is there and cannot be read: acting without it could start a VM
    /// twice.
    pub fn open(path: &Path) -> io::Result<Self> {
        let highest = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path: path.to_owned(),
            highest: Mutex::new(highest),
        })
    }

    /// The highest epoch seen for a Server's uid.
    #[must_use]
    pub fn highest(&self, uid: &str) -> Option<i64> {
        self.highest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .copied()
    }

    /// Records an epoch, on disk before it is believed; a lower one changes nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record(&self, uid: &str, epoch: i64) -> io::Result<()> {
        let mut highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        if highest.get(uid).is_some_and(|seen| *seen >= epoch) {
            return Ok(());
        }
        let mut next = highest.clone();
        next.insert(uid.to_owned(), epoch);
        self.write(&next)?;
        *highest = next;
        Ok(())
    }

    fn write(&self, record: &BTreeMap<String, i64>) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(record)?)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_epoch_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epochs.json");
        let epochs = Epochs::open(&path).unwrap();
        epochs.record("a", 2).unwrap();
        epochs.record("a", 1).unwrap();
        assert_eq!(Epochs::open(&path).unwrap().highest("a"), Some(2));
    }

    #[test]
    fn a_broken_record_is_an_error_and_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epochs.json");
        fs::write(&path, "{").unwrap();
        assert!(Epochs::open(&path).is_err());
    }
}
