//! Whether a guest shut itself down, by the log that libvirt keeps of its QEMU.
//!
//! libvirt knows why a domain is off only until its daemon is restarted; from then on the
//! reason is "unknown". The log outlives the daemon: libvirt writes `starting up …` at each
//! start and `shutting down, reason=…` at each end (`qemuProcessStop` in its source).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Where libvirt's system daemon keeps the logs.
pub const LOGS: &str = "/var/log/libvirt/qemu";
/// How much of a log's end is read, in bytes; QEMU's own messages are seldom more.
const TAIL: u64 = 64 * 1024;

/// Whether the last event in a log is that the guest shut itself down (by itself or because it
/// was asked to). A log that cannot be read has no events.
#[must_use]
pub fn was_shutdown(log: &Path) -> bool {
    tail(log).is_ok_and(|text| ends_with_shutdown(&text))
}

fn tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut text = Vec::new();
    file.take(TAIL).read_to_end(&mut text)?;
    Ok(text)
}

fn ends_with_shutdown(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let last = text.lines().rev().find_map(|line| {
        // A time stands in front, such as `2026-01-31 08:50:45.318+0000: `.
        let (time, message) = line.split_once(": ")?;
        let stamped = time.len() >= 23 && time.starts_with(|c: char| c.is_ascii_digit());
        let is_event = message.starts_with("starting up") || message.starts_with("shutting down");
        (stamped && is_event).then_some(message)
    });
    last == Some("shutting down, reason=shutdown")
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "2026-01-31 08:50:44.258+0000: starting up libvirt version: 11.3.0\n";
    const ARGUMENTS: &str = "LC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n-msg timestamp=on\n";
    const SHUTDOWN: &str = "2026-01-31 08:50:45.318+0000: shutting down, reason=shutdown\n";
    const KILLED: &str = "2026-01-31 08:50:45.318+0000: shutting down, reason=destroyed\n";

    #[test]
    fn the_last_start_or_end_counts() {
        let says = |parts: &[&str]| ends_with_shutdown(parts.concat().as_bytes());
        assert!(says(&[START, ARGUMENTS, SHUTDOWN]));
        assert!(says(&[START, KILLED, START, SHUTDOWN, "later noise\n"]));
        assert!(!says(&[START, ARGUMENTS, SHUTDOWN, START, ARGUMENTS]));
        assert!(!says(&[START, SHUTDOWN, START, KILLED]));
        assert!(!says(&[]));
        assert!(!says(&["shutting down, reason=shutdown\n"]));
        assert!(!says(&["x: shutting down, reason=shutdown\n"]));
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read_and_a_missing_one_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a.log");
        assert!(!was_shutdown(&log));
        let noise = "\u{fffd}qemu: noise\n".repeat(20_000);
        std::fs::write(&log, format!("{START}{noise}{SHUTDOWN}")).unwrap();
        assert!(was_shutdown(&log));
        std::fs::write(&log, format!("{SHUTDOWN}{noise}")).unwrap();
        assert!(!was_shutdown(&log), "too long ago to be found");
    }
}
