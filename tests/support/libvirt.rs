//! A private libvirt: virtlogd and libvirtd in namespaces of their own.
//!
//! Their mount namespace has directories of the test in place of libvirt's, which can be
//! reached from outside through those directories. Their process namespace ends with its
//! first process, and with it everything in it: no daemon and no guest outlives the test,
//! however the test ends. Their network namespace keeps libvirt's rules off the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use uuid::Uuid;

/// What libvirt's directories are called in the test's own.
const MOUNTS: [(&str, &str); 5] = [
    ("lib", "/var/lib/libvirt"),
    ("etc", "/etc/libvirt"),
    ("log", "/var/log/libvirt"),
    ("cache", "/var/cache/libvirt"),
    // The last one: it hides the others' sources if they are below it.
    ("run", "/run"),
];
/// How long a daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running libvirt; everything is killed when it is dropped.
pub struct Libvirtd {
    dir: TempDir,
    /// `unshare`, whose end is the end of all.
    namespaces: Child,
    /// First process inside, by its id outside.
    anchor: u32,
    /// What started the daemons inside.
    starters: Vec<Child>,
    /// libvirtd by its id outside, while it runs.
    daemon: Option<u32>,
}

impl Libvirtd {
    /// Starts everything.
    ///
    /// # Panics
    /// Without root, util-linux or libvirt, or when a daemon does not answer in time.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().display().to_string();
        configure(dir.path());
        let mounts = MOUNTS.map(|(own, theirs)| format!("mount --bind {path}/{own} {theirs}; "));
        // The shell reaps the guests, which libvirtd leaves to it.
        let script = format!(
            "set -e; mount -t hugetlbfs -o pagesize=2M none {path}/hugepages; {} : >{path}/ready; while :; do sleep 60 & wait $! || :; done",
            mounts.concat()
        );
        let namespaces = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--net"])
            .args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"])
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("setpriv and unshare of util-linux");
        let mut libvirt = Self {
            namespaces,
            anchor: 0,
            dir,
            starters: Vec::new(),
            daemon: None,
        };
        wait("the namespaces (they need root)", || {
            libvirt.path("ready").exists()
        });
        libvirt.anchor = child_of(libvirt.namespaces.id()).expect("a first process");
        libvirt.launch("virtlogd");
        libvirt.wait_for_socket("virtlogd-sock");
        libvirt.restart();
        libvirt
    }

    /// Where libvirtd is reached.
    pub fn uri(&self) -> String {
        let socket = self.path("run/libvirt/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// A path in the directory of the test, the same inside and outside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an empty disk image of 64 MiB.
    pub fn disk(&self, name: &str) -> String {
        let path = self.path(name);
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg("64M")
            .status();
        assert!(made.expect("qemu-img").success());
        path.display().to_string()
    }

    /// Starts libvirtd, for the first time or again, and waits for its answer.
    pub fn restart(&mut self) {
        assert!(self.daemon.is_none(), "one at a time");
        self.daemon = Some(self.launch("libvirtd"));
        self.wait_for_socket("libvirt-sock");
    }

    /// Kills libvirtd without warning.
    pub fn kill(&mut self) {
        let daemon = self.daemon.take().expect("a running daemon");
        signal(daemon, Signal::SIGKILL);
        wait("libvirtd's end", || !alive(daemon));
    }

    /// Halts libvirtd, or lets it go on.
    pub fn halt(&self, halt: bool) {
        let daemon = self.daemon.expect("a running daemon");
        signal(
            daemon,
            if halt {
                Signal::SIGSTOP
            } else {
                Signal::SIGCONT
            },
        );
    }

    /// Sockets that libvirtd has open.
    pub fn sockets(&self) -> usize {
        let daemon = self.daemon.expect("a running daemon");
        fs::read_dir(format!("/proc/{daemon}/fd"))
            .expect("open files")
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// Id, inside, of the QEMU that runs a domain.
    pub fn qemu(&self, id: Uuid) -> Option<u32> {
        let file = self.path(&format!("run/libvirt/qemu/pileus-{id}.pid"));
        let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
        let process = format!("/proc/{}/root/proc/{pid}", self.anchor);
        Path::new(&process).exists().then_some(pid)
    }

    /// What the kernel shows, inside, of the QEMU that runs a domain.
    pub fn process(&self, id: Uuid) -> PathBuf {
        let pid = self.qemu(id).expect("a running QEMU");
        format!("/proc/{}/root/proc/{pid}", self.anchor).into()
    }

    /// What `virsh` says.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let done = Command::new("virsh")
            .args(["--connect", &self.uri()])
            .args(arguments)
            .output()
            .expect("virsh");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "virsh {arguments:?}: {said}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Kills the QEMU of a domain without warning.
    pub fn kill_qemu(&self, id: Uuid) {
        let pid = self.qemu(id).expect("a running QEMU").to_string();
        let killed = self.inside("kill").args(["-9", &pid]).status();
        assert!(killed.expect("kill").success());
        wait("QEMU's end", || self.qemu(id).is_none());
    }

    /// Halts the QEMU of a domain, or lets it go on.
    pub fn halt_qemu(&self, id: Uuid, halt: bool) {
        let pid = self.qemu(id).expect("a running QEMU").to_string();
        let signal = if halt { "-STOP" } else { "-CONT" };
        let sent = self.inside("kill").args([signal, &pid]).status();
        assert!(sent.expect("kill").success());
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.anchor.to_string()])
            .args(["--mount", "--pid", "--net", "--", program])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn launch(&mut self, program: &str) -> u32 {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{program}.log")))
            .expect("a log");
        let starter = self.inside(program).stderr(log).spawn().expect("nsenter");
        let mut daemon = None;
        wait(program, || {
            daemon = child_of(starter.id());
            daemon.is_some()
        });
        self.starters.push(starter);
        daemon.expect("a daemon")
    }

    fn wait_for_socket(&self, name: &str) {
        let path = self.path("run/libvirt").join(name);
        wait(name, || UnixStream::connect(&path).is_ok());
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
        for starter in &mut self.starters {
            // One whose daemon was halted has halted itself too.
            let _ = starter.kill();
            let _ = starter.wait();
        }
        // The directory goes when nobody writes to it any more.
        let until = Instant::now() + TIMEOUT;
        while alive(self.anchor) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn configure(dir: &Path) {
    // QEMU runs as another user.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("permissions");
    for part in [
        "etc/qemu/networks",
        "etc/nwfilter",
        "lib/qemu",
        "log",
        "cache",
        "run/libvirt",
        // Huge pages, if the machine has any; libvirt finds it by itself.
        "hugepages",
    ] {
        fs::create_dir_all(dir.join(part)).expect("a directory");
    }
    let owned = Command::new("chown")
        .arg("libvirt-qemu:kvm")
        .arg(dir.join("lib/qemu"))
        .status();
    assert!(
        owned.expect("chown").success(),
        "the user that libvirt's package makes"
    );
    let write = |name: &str, text: &str| {
        fs::write(dir.join("etc").join(name), text).expect("a configuration");
    };
    write(
        "libvirtd.conf",
        &format!(
            "host_uuid = \"{}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n\
             max_clients = 200\nmax_workers = 40\nlog_outputs = \"2:stderr\"\n",
            Uuid::new_v4()
        ),
    );
    // Private mounts and AppArmor's path rules do not go together.
    write("qemu.conf", "security_driver = \"none\"\nmax_core = 0\n");
    write("virtlogd.conf", "log_outputs = \"2:stderr\"\n");
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !done() {
        assert!(Instant::now() < until, "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The only child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|s| s.starts_with('Z')))
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
    kill(pid, signal).expect("our own process");
}
