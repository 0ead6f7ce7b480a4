//! Checks an untrusted disk image: first its header by our own code, then `qemu-img info` in
//! a child process with limits on memory, processor time and clock time.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::blocking::blocking;
use super::{Error, qcow2};

/// Memory that the child may map.
const MEMORY_LIMIT: &str = "--as=1073741824";
/// Processor time of the child, in seconds.
const CPU_LIMIT: &str = "--cpu=20";
/// How long the child may run.
const QEMU_IMG_TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<FormatSpecific>,
}

#[derive(Deserialize)]
struct FormatSpecific {
    data: Option<serde_json::Value>,
}

/// Checks that the file is a disk of `format` that stands alone; gives the size of the disk
/// in bytes.
///
/// # Errors
/// When the file is not, with what it is.
pub async fn probe(path: &Path, format: &str) -> Result<u64, Error> {
    if !matches!(format, "raw" | "qcow2") {
        return Err(Error::UnsupportedFormat(format.to_owned()));
    }
    let (owned, wanted) = (path.to_owned(), format.to_owned());
    let header = blocking(move || {
        let header = qcow2::read(&owned)?;
        if header.is_none() {
            check_headless(&owned, &wanted)?;
        }
        Ok::<_, Error>(header)
    })
    .await?;
    match (&header, format) {
        (None, _) => {}
        // A raw disk that QEMU could take for qcow2 is a known way to read the host's files.
        (Some(_), "raw") => {
            return Err(Error::NotAnImage(
                "diskFormat is raw, but it has a qcow2 header".into(),
            ));
        }
        (Some(_), _) => {}
    }
    if let Some(header) = header {
        if let Some(backing) = header.backing_file {
            return Err(Error::HasBackingFile(backing, "backing file"));
        }
        if header.data_file {
            return Err(Error::HasBackingFile("(external)".into(), "data file"));
        }
        if header.encrypted {
            return Err(Error::UnsupportedFormat("qcow2 with encryption".into()));
        }
    }
    let info = qemu_img_info(path, format).await?;
    if info.format != format {
        return Err(Error::NotAnImage(format!(
            "diskFormat is {format}, but it is {}",
            info.format
        )));
    }
    if let Some(backing) = info.backing_filename {
        return Err(Error::HasBackingFile(backing, "backing file"));
    }
    let data = info.format_specific.and_then(|f| f.data);
    if let Some(file) = data.as_ref().and_then(|d| d.get("data-file")) {
        return Err(Error::HasBackingFile(file.to_string(), "data file"));
    }
    if info.encrypted {
        return Err(Error::UnsupportedFormat(format!(
            "{format} with encryption"
        )));
    }
    if info.virtual_size == 0 {
        return Err(Error::NotAnImage("it is empty".into()));
    }
    Ok(info.virtual_size)
}

/// What a file without a qcow2 header is, when its first bytes show that it is no raw disk.
enum Kind {
    Format(&'static str),
    Compressed(&'static str),
    WebPage,
}

fn kind_of(start: &[u8]) -> Option<Kind> {
    use Kind::{Compressed, Format, WebPage};
    let begins = |magic: &[u8]| start.starts_with(magic);
    if begins(b"KDMV") || begins(b"COWD") || begins(b"# Disk DescriptorFile") {
        Some(Format("vmdk"))
    } else if begins(b"vhdxfile") {
        Some(Format("vhdx"))
    } else if begins(b"conectix") {
        Some(Format("vhd"))
    } else if begins(b"QED\0") {
        Some(Format("qed"))
    } else if begins(b"<<< ") {
        Some(Format("vdi"))
    } else if begins(b"\x1f\x8b\x08") {
        Some(Compressed("gzip"))
    } else if begins(b"\xfd7zXZ\0") {
        Some(Compressed("xz"))
    } else if begins(b"\x28\xb5\x2f\xfd") {
        Some(Compressed("zstd"))
    } else if begins(b"BZh") {
        Some(Compressed("bzip2"))
    } else if begins(b"PK\x03\x04") {
        Some(Compressed("zip"))
    } else {
        let text = start.trim_ascii_start().to_ascii_lowercase();
        (text.starts_with(b"<!doctype") || text.starts_with(b"<html") || text.starts_with(b"<?xml"))
            .then_some(WebPage)
    }
}

/// Says what a file without a qcow2 header is, unless it may be the raw disk asked for.
fn check_headless(path: &Path, format: &str) -> Result<(), Error> {
    let mut start = Vec::with_capacity(64);
    std::fs::File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut start))
        .map_err(Error::io("read", path))?;
    match kind_of(&start) {
        Some(Kind::Format(other)) => Err(Error::UnsupportedFormat(other.to_owned())),
        Some(Kind::Compressed(how)) => Err(Error::NotAnImage(format!(
            "it is compressed with {how}; offer it decompressed"
        ))),
        Some(Kind::WebPage) => Err(Error::NotAnImage(
            "it is a web page; the URL must be that of the file itself".into(),
        )),
        None if format == "raw" => Ok(()),
        None => Err(Error::NotAnImage(format!(
            "diskFormat is {format}, but it has no {format} header"
        ))),
    }
}

async fn qemu_img_info(path: &Path, format: &str) -> Result<Info, Error> {
    let child = Command::new("prlimit")
        .args([
            MEMORY_LIMIT,
            CPU_LIMIT,
            "--core=0",
            "--",
            "qemu-img",
            "info",
            "--output=json",
            "-U",
            "-f",
            format,
        ])
        .arg(path)
        .stdin(Stdio::null())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(QEMU_IMG_TIMEOUT, child)
        .await
        // A busy host can be the reason; the image's own doing ends at the limit above.
        .map_err(|_| Error::Program {
            program: "qemu-img",
            message: "info did not finish in 60 s".into(),
        })?
        .map_err(Error::io("run qemu-img on", path))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let last = message.lines().last().unwrap_or("no message");
        return Err(Error::NotAnImage(format!(
            "qemu-img says: {}",
            last.chars().take(200).collect::<String>()
        )));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::NotAnImage(format!("qemu-img's answer is not understood: {e}")))
}
