//! libvirt itself: what happens to domains and when, and raw domains to compare with.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;
use virt::connect::Connect;
use virt::sys;

use super::Result;
use super::lab::{Lab, TIMEOUT};

type Seen = Arc<Mutex<HashMap<(String, String), Instant>>>;

/// Lifecycle events of all domains, as `virsh event` prints them: measured in the same way for
/// Pileus' domains and for raw ones.
pub struct Lifecycle {
    seen: Seen,
    virsh: Child,
}

impl Lifecycle {
    /// Starts `virsh event`.
    pub fn listen(uri: &str) -> Result<Self> {
        let mut virsh = Command::new("stdbuf")
            .args(["-oL", "virsh", "-c", uri])
            .args(["event", "--loop", "--event", "lifecycle"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = virsh.stdout.take().ok_or("virsh has no output")?;
        let seen = Seen::default();
        let writer = seen.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output)
                .lines()
                .map_while(std::result::Result::ok)
            {
                // event 'lifecycle' for domain 'NAME': Resumed Unpaused
                let mut quoted = line.split('\'');
                let name = quoted.nth(3).unwrap_or_default().to_owned();
                let what = quoted.next().unwrap_or_default();
                let what = what.trim_start_matches(": ").split(' ').next();
                writer
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry((name, what.unwrap_or_default().to_owned()))
                    .or_insert_with(Instant::now);
            }
        });
        // virsh does not print when it is ready.
        std::thread::sleep(Duration::from_millis(500));
        Ok(Self { seen, virsh })
    }

    /// When `what` (`Defined`, `Started`, `Resumed`) first happened to the domain.
    pub fn when(&self, domain: &str, what: &str) -> Option<Instant> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&(domain.to_owned(), what.to_owned())).copied()
    }

    /// Waits for [`Lifecycle::when`].
    pub fn wait(&self, domain: &str, what: &str) -> Result<Instant> {
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            if let Some(at) = self.when(domain, what) {
                return Ok(at);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("domain {domain} is not {what} after {TIMEOUT:?}").into())
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.virsh.kill();
        let _ = self.virsh.wait();
    }
}

/// The domain of a Server, to make raw ones of.
pub struct Template {
    id: String,
    port: String,
    mac: String,
    xml: String,
    directory: PathBuf,
    base: String,
    host_pid: u32,
}

/// A raw domain with its disk made and nothing else.
pub struct Raw {
    id: Uuid,
    /// libvirt's name.
    pub name: String,
    xml: String,
    directory: PathBuf,
}

impl Template {
    /// Reads the running domain of the Server with this instance id.
    pub fn read(lab: &Lab, libvirt: &Connect, id: &str) -> Result<Self> {
        let domain = libvirt.lookup_domain_by_uuid(id.parse()?)?;
        let xml = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
        let between = |from: &str, to: &str| -> Result<String> {
            let (_, rest) = xml
                .split_once(from)
                .ok_or(format!("no {from} in the XML"))?;
            let (text, _) = rest.split_once(to).ok_or(format!("no {to} in the XML"))?;
            Ok(text.to_owned())
        };
        let port = between("interfaceid='", "'")?;
        let mac = between("<mac address='", "'")?;
        let metadata = between("<metadata>", "</metadata>")?;
        let host_pid = lab.pid(super::lab::HOST)?;
        let info = in_host(host_pid)
            .args(["qemu-img", "info", "-U", "--output=json"])
            .arg(format!("/var/lib/pileus/instances/{id}/disk.qcow2"))
            .output()?;
        let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
        let base = info["full-backing-filename"].as_str();
        Ok(Self {
            id: id.to_owned(),
            port,
            mac,
            // Without its metadata Pileus does not manage the domain.
            xml: xml.replace(&format!("<metadata>{metadata}</metadata>"), ""),
            directory: lab.root()?.join("var/lib/pileus"),
            base: base.ok_or("the disk has no backing file")?.to_owned(),
            host_pid,
        })
    }

    /// Makes the files of a domain with the same XML, except for what must be unique.
    pub fn make(&self) -> Result<Raw> {
        let id = Uuid::new_v4();
        let port = Uuid::new_v4().to_string();
        let bytes = id.as_bytes();
        let mac = format!(
            "fa:16:3e:{:02x}:{:02x}:{:02x}",
            bytes[0], bytes[1], bytes[2]
        );
        let directory = self.directory.join("bench").join(id.to_string());
        std::fs::create_dir_all(&directory)?;
        let config = format!("instances/{}/config.img", self.id);
        std::fs::copy(self.directory.join(config), directory.join("config.img"))?;
        let made = in_host(self.host_pid)
            .args([
                "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
            ])
            .arg(&self.base)
            .arg(format!("/var/lib/pileus/bench/{id}/disk.qcow2"))
            .status()?;
        if !made.success() {
            return Err("qemu-img failed".into());
        }
        let tap = |port: &str| format!("tap{}", &port[..11]);
        let xml = self
            .xml
            .replace(
                &format!("instances/{}", self.id),
                &format!("bench/{}", self.id),
            )
            .replace(&format!("pileus-{}", self.id), &format!("bench-{id}"))
            .replace(&self.id, &id.to_string())
            .replace(&tap(&self.port), &tap(&port))
            .replace(&self.port, &port)
            .replace(&self.mac, &mac);
        Ok(Raw {
            id,
            name: format!("bench-{id}"),
            xml,
            directory,
        })
    }
}

impl Raw {
    /// Define, create paused, resume: the minimum that any client does.
    pub fn start(&self, libvirt: &Connect) -> Result<()> {
        let domain = libvirt.define_domain_xml(&self.xml)?;
        domain.create_with_flags(sys::VIR_DOMAIN_START_PAUSED)?;
        domain.resume()?;
        Ok(())
    }

    /// Removes the domain and its files.
    pub fn remove(&self, libvirt: &Connect) -> Result<()> {
        let domain = libvirt.lookup_domain_by_uuid(self.id)?;
        domain.destroy()?;
        domain.undefine_flags(0)?;
        std::fs::remove_dir_all(&self.directory)?;
        if let Some(parent) = self.directory.parent() {
            // Fails while other domains have theirs there.
            let _ = std::fs::remove_dir(parent);
        }
        Ok(())
    }
}

fn in_host(pid: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--target", &pid.to_string(), "--"]);
    command
}
