//! Hosts of a private OVN: each with an Open vSwitch of its own that switches nothing real, and an
//! `ovn-controller`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::ovn::Ovn;

/// A host; its processes are killed when it is dropped.
pub struct Chassis {
    dir: PathBuf,
    children: Vec<Child>,
}

impl Chassis {
    /// Starts a host whose chassis has this name, and which finds the Southbound database at
    /// `remote`. `number` is its address in 127.0.0.0/24. `ssl` are the private key, the
    /// certificate and the CA of its `ovn-controller`.
    pub fn start(ovn: &Ovn, name: &str, number: u8, remote: &str, ssl: Option<[&str; 3]>) -> Self {
        let dir = ovn.path(name);
        std::fs::create_dir(&dir).expect("a directory");
        let mut chassis = Self {
            dir,
            children: Vec::new(),
        };
        let database = chassis.file("vs.db");
        let created = Command::new("ovsdb-tool")
            .args([
                "create",
                &database,
                "/usr/share/openvswitch/vswitch.ovsschema",
            ])
            .status();
        assert!(created.expect("ovsdb-tool").success());
        let listen = format!("--remote=p{}", chassis.remote());
        let control = format!("--unixctl={}", chassis.file("vs.ctl"));
        chassis.spawn("ovsdb-server", &[&listen, &control, &database]);
        let until = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(chassis.file("vs.sock")).is_err() {
            assert!(
                Instant::now() < until,
                "the host's database does not answer"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        chassis.vsctl(&["init"]);
        if let Some(files) = ssl {
            chassis.vsctl(&[&["set-ssl"] as &[_], &files].concat());
        }
        let ids = [
            format!("system-id={name}"),
            format!("hostname={name}.example"),
            format!("ovn-remote={remote}"),
            "ovn-encap-type=geneve".to_owned(),
            format!("ovn-encap-ip=127.0.0.{number}"),
            "ovn-bridge-datapath-type=dummy".to_owned(),
        ]
        .map(|pair| format!("external-ids:{pair}"));
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        chassis.vsctl(&[&["set", "Open_vSwitch", "."] as &[_], &ids].concat());
        let bridge = [
            "--",
            "set",
            "bridge",
            "br-int",
            "datapath_type=dummy",
            "fail_mode=secure",
        ];
        chassis.vsctl(&[&["add-br", "br-int"] as &[_], &bridge].concat());
        let control = format!("--unixctl={}", chassis.file("vswitchd.ctl"));
        let own = chassis.remote();
        chassis.spawn("ovs-vswitchd", &["--enable-dummy=system", &control, &own]);
        let log = format!("--log-file={}", chassis.file("ovn-controller.log"));
        let pid = format!("--pidfile={}", chassis.file("ovn-controller.pid"));
        chassis.spawn("ovn-controller", &[&log, &pid, &own]);
        chassis
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn remote(&self) -> String {
        format!("unix:{}", self.file("vs.sock"))
    }

    fn spawn(&mut self, program: &str, args: &[&str]) {
        let child = Command::new(program)
            .args(args)
            .env("OVS_RUNDIR", &self.dir)
            .env("OVN_RUNDIR", &self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.children
            .push(child.expect("a program of Open vSwitch"));
    }

    fn vsctl(&self, args: &[&str]) {
        let done = Command::new("ovs-vsctl")
            .args([&format!("--db={}", self.remote()), "--no-wait"])
            .args(args)
            .status();
        assert!(done.expect("ovs-vsctl").success(), "{args:?}");
    }

    /// Adds an interface with the id of a logical port, as a guest's would be.
    pub fn plug(&self, port: &str) {
        let id = format!("external-ids:iface-id={port}");
        let interface = ["--", "set", "Interface", "guest", "type=dummy", &id];
        self.vsctl(&[&["add-port", "br-int", "guest"] as &[_], &interface].concat());
    }

    /// What `ovn-controller` has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("ovn-controller.log")).unwrap_or_default()
    }
}

impl Drop for Chassis {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
