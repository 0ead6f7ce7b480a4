//! A private OVN: database servers and northd in a directory of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pileus_network::northbound::{Northbound, NorthboundDb};
use pileus_network::ovsdb::{Endpoint, Options};

/// Northbound and Southbound servers with northd; killed when dropped.
pub struct Ovn {
    dir: tempfile::TempDir,
    nb: Option<Child>,
    sb: Option<Child>,
    northd: Option<Child>,
}

impl Ovn {
    /// Starts everything.
    pub fn start() -> Self {
        let mut ovn = Self {
            dir: tempfile::tempdir().expect("a directory"),
            nb: None,
            sb: None,
            northd: None,
        };
        for name in ["nb", "sb"] {
            let schema = format!("/usr/share/ovn/ovn-{name}.ovsschema");
            let created = Command::new("ovsdb-tool")
                .arg("create")
                .arg(ovn.path(&format!("{name}.db")))
                .arg(schema)
                .status();
            assert!(created.expect("ovsdb-tool").success());
        }
        ovn.nb = Some(ovn.server("nb"));
        ovn.sb = Some(ovn.server("sb"));
        ovn.wait_for_socket("nb.sock");
        ovn.wait_for_socket("sb.sock");
        let northd = ovn
            .command("ovn-northd")
            .arg(format!("--ovnnb-db={}", ovn.remote("nb")))
            .arg(format!("--ovnsb-db={}", ovn.remote("sb")))
            .arg(format!("--log-file={}", ovn.path("northd.log").display()))
            .arg(format!("--unixctl={}", ovn.path("northd.ctl").display()))
            .spawn();
        ovn.northd = Some(northd.expect("ovn-northd"));
        ovn
    }

    /// Path of a file in the private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn remote(&self, name: &str) -> String {
        format!("unix:{}", self.path(&format!("{name}.sock")).display())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("OVS_RUNDIR", self.dir.path())
            .env("OVN_RUNDIR", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn server(&self, name: &str) -> Child {
        let file = |suffix: &str| self.path(&format!("{name}.{suffix}")).display().to_string();
        let mut from_database = Vec::new();
        if let Some((database, global)) = match name {
            "nb" => Some(("OVN_Northbound", "NB_Global")),
            "sb" => Some(("OVN_Southbound", "SB_Global")),
            _ => None,
        } {
            from_database.push(format!("--remote=db:{database},{global},connections"));
            for (option, column) in [
                ("private-key", "private_key"),
                ("certificate", "certificate"),
                ("ca-cert", "ca_cert"),
            ] {
                from_database.push(format!("--{option}=db:{database},SSL,{column}"));
            }
        }
        self.command("ovsdb-server")
            .args(from_database)
            .arg(format!("--remote=p{}", self.remote(name)))
            .arg(format!("--unixctl={}", file("ctl")))
            .arg(format!("--log-file={}", file("log")))
            .arg(file("db"))
            .spawn()
            .expect("ovsdb-server")
    }

    /// Starts an Open vSwitch database and an `ovn-controller` on it, which knows nothing of
    /// where the Southbound database is.
    pub fn start_controller(&self) -> Controller {
        let database = self.path("vs.db");
        let created = Command::new("ovsdb-tool")
            .arg("create")
            .arg(&database)
            .arg("/usr/share/openvswitch/vswitch.ovsschema")
            .status();
        assert!(created.expect("ovsdb-tool").success());
        let server = self.server("vs");
        self.wait_for_socket("vs.sock");
        // Without a name of its own it crashes.
        let named = self
            .command("ovs-vsctl")
            .arg(format!("--db={}", self.remote("vs")))
            .args(["--no-wait", "init", "--", "set", "Open_vSwitch", "."])
            .arg("external-ids:system-id=test")
            .status();
        assert!(named.expect("ovs-vsctl").success());
        let pid_file = self.path("ovn-controller.pid");
        let controller = self
            .command("ovn-controller")
            .arg(format!("--pidfile={}", pid_file.display()))
            .arg(self.remote("vs"))
            .spawn()
            .expect("ovn-controller");
        Controller(vec![controller, server])
    }

    fn wait_for_socket(&self, name: &str) {
        let path = self.path(name);
        let until = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&path).is_err() {
            assert!(Instant::now() < until, "{} does not answer", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A client of the Northbound database, connected.
    pub async fn connect(&self) -> Northbound {
        self.connect_with(Options::default()).await
    }

    /// As [`Ovn::connect`], with other bounds.
    pub async fn connect_with(&self, options: Options) -> Northbound {
        let endpoint = Endpoint::Unix(self.path("nb.sock"));
        let northbound = Northbound::start(vec![endpoint], options);
        let mut watch = northbound.watch();
        let connected = watch.wait_for(|view| {
            // northd makes the global row.
            view.is_connected() && view.replica.len("NB_Global") == 1
        });
        tokio::time::timeout(Duration::from_secs(20), connected)
            .await
            .expect("connected in time")
            .expect("alive");
        northbound
    }

    /// Kills the Northbound server without warning.
    pub fn kill_nb(&mut self) {
        end(&mut self.nb);
    }

    /// Halts the Northbound server, or lets it go on.
    pub fn halt_nb(&self, halt: bool) {
        use nix::sys::signal::{Signal, kill};
        let signal = if halt {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        let id = self.nb.as_ref().expect("a running server").id();
        let id = nix::unistd::Pid::from_raw(i32::try_from(id).expect("a process id"));
        kill(id, signal).expect("our own process");
    }

    /// Starts the Northbound server again on the same file.
    pub fn restart_nb(&mut self) {
        self.nb = Some(self.server("nb"));
        self.wait_for_socket("nb.sock");
    }

    /// Makes a database listen with TLS on a free port of 127.0.0.1, which is returned; the
    /// Southbound one for hosts, with their role. The files are the private key, the certificate
    /// and the CA.
    pub fn listen_tls(&self, name: &str, [key, certificate, ca]: &[String; 3]) -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let connection = format!("pssl:{port}:127.0.0.1");
        let (program, role) = match name {
            "nb" => ("ovn-nbctl", None),
            _ => ("ovn-sbctl", Some("role=ovn-controller")),
        };
        let mut args = vec!["--", "set-connection"];
        args.extend(role);
        args.push(&connection);
        let ssl = ["set-ssl", key, certificate, ca];
        self.ctl(program, name, &[&ssl as &[_], &args].concat());
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "no TLS on port {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
        port
    }

    /// Runs `ovn-nbctl`; its output must be a success.
    pub fn nbctl(&self, args: &[&str]) -> String {
        self.ctl("ovn-nbctl", "nb", args)
    }

    /// Runs `ovn-sbctl`; its output must be a success.
    pub fn sbctl(&self, args: &[&str]) -> String {
        self.ctl("ovn-sbctl", "sb", args)
    }

    /// Verdict of `ovn-trace` on a packet that comes from a port.
    pub fn trace(&self, switch: &str, packet: &str) -> String {
        self.ctl(
            "ovn-trace",
            "sb",
            &["--minimal", "--ct=new", "--ct=new", switch, packet],
        )
    }

    /// All the flows that a packet meets.
    pub fn trace_detail(&self, switch: &str, packet: &str) -> String {
        self.ctl("ovn-trace", "sb", &["--ct=new", "--ct=new", switch, packet])
    }

    fn ctl(&self, program: &str, database: &str, args: &[&str]) -> String {
        let output: Output = self
            .command(program)
            .arg(format!("--db={}", self.remote(database)))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .expect("the tool");
        assert!(
            output.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What northd complained of.
    pub fn northd_complaints(&self) -> Vec<String> {
        complaints(&self.path("northd.log"))
    }
}

/// An `ovn-controller` and its database; killed when dropped.
pub struct Controller(Vec<Child>);

impl Drop for Controller {
    fn drop(&mut self) {
        for child in self.0.drain(..) {
            end(&mut Some(child));
        }
    }
}

fn complaints(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log)
        .unwrap_or_default()
        .lines()
        .filter(|line| line.contains("|WARN|") || line.contains("|ERR|"))
        // Lines about the test's own doings: a killed server, and northd's pace.
        .filter(|line| {
            ![
                "reconnect",
                "connection",
                "Unreasonably long",
                "ovsdb_cs",
                "poll_loop",
                "faults:",
                "context switches:",
                "Dropped",
            ]
            .iter()
            .any(|own| line.contains(own))
        })
        .map(str::to_owned)
        .collect()
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Ovn {
    fn drop(&mut self) {
        end(&mut self.northd);
        end(&mut self.nb);
        end(&mut self.sb);
    }
}
