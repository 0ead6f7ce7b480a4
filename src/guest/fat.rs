//! What a drive needs beside the `fatfs` crate to pass every system's file system check: a date
//! that exists, and directories that begin as the FAT standard says.

use fatfs::{Date, DateTime, Time, TimeProvider};

const ENTRY: usize = 32;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
const DELETED: u8 = 0xe5;

/// A clock that always shows the first date of FAT, so that the same data makes the same drive.
#[derive(Debug)]
pub(super) struct FirstMoment;

/// `fatfs` needs a static clock.
pub(super) static FIXED_TIME: FirstMoment = FirstMoment;

impl TimeProvider for FirstMoment {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

/// Where things are on a FAT12 or FAT16 drive, in bytes.
struct Layout {
    root: usize,
    root_len: usize,
    clusters: usize,
    cluster_len: usize,
}

impl Layout {
    fn of(disk: &[u8]) -> Option<Self> {
        let sector = u16_at(disk, 11)?;
        let reserved = u16_at(disk, 14)?;
        let tables = usize::from(*disk.get(16)?) * u16_at(disk, 22)?;
        let root = (reserved + tables) * sector;
        let root_len = u16_at(disk, 17)? * ENTRY;
        Some(Self {
            root,
            root_len,
            clusters: root + root_len,
            cluster_len: usize::from(*disk.get(13)?) * sector,
        })
    }
}

/// Makes `.` and `..` the first two entries of each directory.
///
/// `fatfs` 0.3 writes a long name before either, which Linux reads but `fsck.vfat` reports
/// and other systems may refuse. Only a directory's first cluster is looked at: ours have
/// their subdirectories there.
pub(super) fn move_dot_entries_first(disk: &mut [u8]) {
    let Some(layout) = Layout::of(disk) else {
        return;
    };
    let mut ranges = vec![(layout.root, layout.root_len)];
    while let Some((start, len)) = ranges.pop() {
        for at in (start..start + len).step_by(ENTRY) {
            let Some(entry) = disk.get(at..at + ENTRY) else {
                break;
            };
            let (first, kind) = (entry[0], entry[11]);
            if first == 0 {
                break;
            }
            let real = first != DELETED && first != b'.' && kind != LONG_NAME;
            if let Some(cluster) = u16_at(entry, 26)
                && real
                && kind & DIRECTORY != 0
                && cluster >= 2
            {
                let child = layout.clusters + (cluster - 2) * layout.cluster_len;
                reorder(disk, child);
                ranges.push((child, layout.cluster_len));
            }
        }
    }
}

/// Long name, `.`, long name, `..` become `.`, `..` and two free entries.
fn reorder(disk: &mut [u8], at: usize) {
    let Some(entries) = disk.get_mut(at..at + 4 * ENTRY) else {
        return;
    };
    let named = |index: usize, name: &[u8]| entries[index * ENTRY..].starts_with(name);
    let long = |index: usize| entries[index * ENTRY + 11] == LONG_NAME;
    if long(0) && named(1, b".  ") && long(2) && named(3, b".. ") {
        entries.copy_within(ENTRY..2 * ENTRY, 0);
        entries.copy_within(3 * ENTRY..4 * ENTRY, ENTRY);
        for index in [2, 3] {
            entries[index * ENTRY..(index + 1) * ENTRY].fill(0);
            entries[index * ENTRY] = DELETED;
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let pair = bytes.get(at..at + 2)?;
    Some(usize::from(u16::from_le_bytes([pair[0], pair[1]])))
}
