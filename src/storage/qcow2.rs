//! The header of a qcow2 file, read by our own code before any other program opens the file:
//! a file that names other files of the host must never be opened by QEMU.
//! Source: QEMU's `docs/interop/qcow2.txt`.

use std::io::Read;
use std::path::Path;

use super::Error;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Incompatible feature bit 2: guest data lies in an external file.
const DATA_FILE: u64 = 1 << 2;
/// How much of a file is read.
const HEADER: usize = 4096;

/// The fields of a header that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// The backing file.
    pub backing_file: Option<String>,
    /// Whether guest data lies in another file.
    pub data_file: bool,
    /// Whether the data is encrypted.
    pub encrypted: bool,
}

/// Reads a header; `None` when the bytes are no qcow2 at all.
///
/// # Errors
/// When the bytes claim to be qcow2 and are broken.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, String> {
    if bytes.len() < 4 || bytes[..4] != MAGIC {
        return Ok(None);
    }
    let u32_at = |at: usize| -> Result<u32, String> {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_be_bytes)
            .ok_or_else(|| "the qcow2 header is cut short".to_owned())
    };
    let u64_at =
        |at: usize| Ok::<_, String>((u64::from(u32_at(at)?) << 32) | u64::from(u32_at(at + 4)?));
    let version = u32_at(4)?;
    if !(2..=3).contains(&version) {
        return Err(format!("qcow2 version {version} is unknown"));
    }
    let backing_offset = u64_at(8)?;
    let backing_length = u32_at(16)?;
    let cluster_bits = u32_at(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!(
            "qcow2 clusters of 2^{cluster_bits} bytes are impossible"
        ));
    }
    let virtual_size = u64_at(24)?;
    let encrypted = u32_at(32)? != 0;
    let features = if version == 3 { u64_at(72)? } else { 0 };
    let backing_file = if backing_offset == 0 {
        None
    } else {
        // QEMU allows at most 1023 bytes, within the first cluster.
        let start = usize::try_from(backing_offset).unwrap_or(usize::MAX);
        let length = usize::try_from(backing_length).unwrap_or(usize::MAX);
        let name = start
            .checked_add(length)
            .and_then(|end| bytes.get(start..end));
        Some(name.map_or_else(
            || "(a name outside the header)".to_owned(),
            |name| String::from_utf8_lossy(name).into_owned(),
        ))
    };
    Ok(Some(Header {
        virtual_size,
        backing_file,
        data_file: features & DATA_FILE != 0,
        encrypted,
    }))
}

/// Reads the header of a file; `None` when it is no qcow2.
///
/// # Errors
/// When the file cannot be read, or claims to be qcow2 and is broken.
pub fn read(path: &Path) -> Result<Option<Header>, Error> {
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::with_capacity(HEADER);
    file.take(HEADER as u64)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    parse(&bytes).map_err(Error::NotAnImage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(backing: Option<&str>, features: u64) -> Vec<u8> {
        let mut b = vec![0; 512];
        b[..4].copy_from_slice(&MAGIC);
        b[7] = 3;
        b[23] = 16;
        b[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        b[72..80].copy_from_slice(&features.to_be_bytes());
        if let Some(name) = backing {
            b[8..16].copy_from_slice(&200_u64.to_be_bytes());
            b[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
            b[200..200 + name.len()].copy_from_slice(name.as_bytes());
        }
        b
    }

    #[test]
    fn names_of_other_files_are_found() {
        let plain = parse(&header(None, 0)).unwrap().unwrap();
        assert_eq!(
            (plain.virtual_size, plain.backing_file, plain.data_file),
            (1 << 30, None, false)
        );
        let backed = parse(&header(Some("/etc/shadow"), 0)).unwrap().unwrap();
        assert_eq!(backed.backing_file.as_deref(), Some("/etc/shadow"));
        assert!(parse(&header(None, DATA_FILE)).unwrap().unwrap().data_file);
        assert_eq!(parse(b"<!DOCTYPE html>"), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes_do_no_harm(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let _ = parse(&bytes);
        }
    }
}
