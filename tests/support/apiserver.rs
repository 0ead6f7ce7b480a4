//! A real etcd and kube-apiserver of one test's own, on loopback.
//!
//! ```ignore
//! mod support;
//! use support::apiserver::TestServer;
//!
//! #[tokio::test]
//! async fn servers_are_stored() {
//!     let server = TestServer::start().await;   // about 4 s; our CRDs are there
//!     server.namespace("demo").await;
//!     let servers: Api<Server> = Api::namespaced(server.client(), "demo");
//! }                                             // both processes are killed, by pid
//! ```
//!
//! Nothing but the API server runs: no controller manager, so nothing collects garbage
//! and a deleted namespace stays. The binaries are looked for in `$KUBEBUILDER_ASSETS`,
//! then in `PATH`, then where `hack/test packages` and `hack/devstack` leave what they built,
//! `~/.cache/pileus/tools`; a kube-apiserver below 1.33 is passed over. Two servers at once do
//! not meet: ports are free ones and every file is in a temporary directory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot have its API server is over"
)]
#![allow(dead_code, reason = "each test crate uses its own part of this module")]

use std::fmt::Debug;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

/// Token of the administrator, who is in `system:masters`.
const TOKEN: &str = "administrator";
/// The oldest Kubernetes, 1.N, that Pileus supports.
const OLDEST_MINOR: u32 = 33;
/// How long a process may take to answer.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A running API server, killed on drop together with its etcd.
pub struct TestServer {
    url: String,
    children: Vec<Child>,
    directory: TempDir,
}

impl TestServer {
    /// Starts etcd and kube-apiserver, installs our CRDs, makes the namespace
    /// `pileus-system`.
    ///
    /// # Panics
    /// When a binary is missing or does not answer within a minute; the message says
    /// what to do, or ends with the last lines of its log.
    pub async fn start() -> Self {
        let mut server = Self::start_bare().await;
        server.install_crds().await;
        server.namespace(pileus_api::names::SYSTEM_NAMESPACE).await;
        server
    }

    /// Starts etcd and kube-apiserver and installs nothing.
    pub async fn start_bare() -> Self {
        // Once per process; a second call finds the first one's, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut last = String::new();
        for _ in 0..3 {
            match Self::try_start().await {
                Ok(server) => return server,
                // Another process may have taken a port between our look and its use.
                Err(log) => last = log,
            }
        }
        panic!("the API server did not start three times in a row; its last words:\n{last}");
    }

    async fn try_start() -> Result<Self, String> {
        let etcd = find("etcd");
        let apiserver = apiserver();
        let directory = tempfile::Builder::new()
            .prefix("pileus-apiserver-")
            .tempdir()
            .unwrap();
        let dir = directory.path();
        let [client_port, peer_port, port] = free_ports();
        let etcd_url = format!("http://127.0.0.1:{client_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let key = dir.join("service-account.key");
        let made = Command::new("openssl")
            .args([
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
                "-out",
            ])
            .arg(&key)
            .stderr(Stdio::null())
            .status()
            .expect("openssl is needed to make the API server's key: install `openssl`");
        assert!(
            made.success(),
            "openssl could not make a key in {}",
            dir.display()
        );
        fs::write(
            dir.join("tokens.csv"),
            format!("{TOKEN},{TOKEN},{TOKEN},system:masters\n"),
        )
        .unwrap();

        let mut server = Self {
            url: format!("https://127.0.0.1:{port}"),
            children: Vec::new(),
            directory,
        };
        let dir = server.directory.path().to_owned();
        let mut command = owned(&etcd);
        command
            .arg(format!("--data-dir={}", dir.join("etcd").display()))
            .arg(format!("--listen-client-urls={etcd_url}"))
            .arg(format!("--advertise-client-urls={etcd_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster=default={peer_url}"))
            // The data live as long as the test: nothing is gained by waiting for a disk.
            .arg("--unsafe-no-fsync");
        server.children.push(spawn(command, &dir.join("etcd.log")));
        let mut command = owned(apiserver);
        command
            .arg(format!("--etcd-servers={etcd_url}"))
            .arg(format!("--secure-port={port}"))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--cert-dir={}", dir.join("certificates").display()))
            .arg(format!(
                "--token-auth-file={}",
                dir.join("tokens.csv").display()
            ))
            .arg("--authorization-mode=RBAC")
            .arg("--service-account-issuer=https://127.0.0.1")
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!(
                "--service-account-signing-key-file={}",
                key.display()
            ))
            .arg("--service-cluster-ip-range=192.0.2.0/24")
            .arg("--disable-admission-plugins=ServiceAccount");
        server
            .children
            .push(spawn(command, &dir.join("kube-apiserver.log")));
        fs::write(server.kubeconfig(), server.kubeconfig_text()).unwrap();
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// A client with every right. It belongs to the runtime that it was made in: make
    /// one for each test.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::try_from(self.config()).unwrap()
    }

    /// A client with the rights of a user, such as `alice` or
    /// `system:serviceaccount:demo:maker`.
    #[must_use]
    pub fn client_of(&self, user: &str) -> Client {
        let mut config = self.config();
        config.auth_info.impersonate = Some(user.to_owned());
        Client::try_from(config).unwrap()
    }

    /// Applies the objects of a file of the repository, such as `config/rbac/tenants.yaml`, after
    /// `change` has changed its text.
    pub async fn apply_changed(&self, path: &str, change: impl Fn(&str) -> String) {
        let text = fs::read_to_string(crate::program::root().join(path)).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&change(&text)).unwrap();
        let params = PatchParams::apply("pileus-tests").force();
        for value in objects {
            let object: DynamicObject = serde_json::from_value(value).unwrap();
            let name = object.metadata.name.clone().unwrap();
            let kind = GroupVersionKind::try_from(object.types.as_ref().unwrap()).unwrap();
            let found = kube::discovery::pinned_kind(&self.client(), &kind).await;
            let (resource, _) = found.unwrap();
            let api: Api<DynamicObject> = match &object.metadata.namespace {
                Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
                None => Api::all_with(self.client(), &resource),
            };
            let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
            if let Err(error) = applied {
                panic!("cannot apply {name} of {path}: {error}");
            }
        }
    }

    /// Applies the objects of a file of the repository.
    pub async fn apply(&self, path: &str) {
        self.apply_changed(path, str::to_owned).await;
    }

    /// Starts kube-controller-manager with these controllers, such as
    /// `clusterrole-aggregation-controller`.
    pub fn start_controllers(&mut self, controllers: &str) {
        let mut command = owned(&find_if("kube-controller-manager", new_enough));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--leader-elect=false")
            .arg("--secure-port=0")
            .arg(format!("--controllers={controllers}"));
        let log = self.directory.path().join("kube-controller-manager.log");
        self.children.push(spawn(command, &log));
    }

    /// What a client with every right is made of.
    #[must_use]
    pub fn config(&self) -> Config {
        let mut config = Config::new(self.url.parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(TOKEN.to_owned().into());
        config
    }

    /// A kubeconfig with every right, for programs that the test starts.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// Runs kubectl with every right: what it prints, what it says of errors and warnings, and
    /// whether it succeeded.
    #[must_use]
    pub fn kubectl(&self, arguments: &[&str]) -> (String, String, bool) {
        let output = Command::new(find("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        (out, errors, output.status.success())
    }

    /// Address of the API server.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Pid of kube-apiserver, for tests that stop and continue it.
    #[must_use]
    pub fn apiserver_pid(&self) -> u32 {
        self.children[1].id()
    }

    /// Makes a namespace, if it is not there.
    pub async fn namespace(&self, name: &str) {
        let namespace = Namespace {
            metadata: kube::api::ObjectMeta {
                name: Some(name.to_owned()),
                ..Default::default()
            },
            ..Default::default()
        };
        match Api::all(self.client())
            .create(&PostParams::default(), &namespace)
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => panic!("cannot make the namespace {name}: {error}"),
        }
    }

    /// Installs our CRDs and waits until they are served.
    pub async fn install_crds(&mut self) {
        let api: Api<CustomResourceDefinition> = Api::all(self.client());
        let params = PatchParams::apply("pileus-tests").force();
        let crds = pileus_api::crd::all();
        for crd in &crds {
            let name = crd.metadata.name.clone().unwrap();
            let json = pileus_api::crd::to_json(crd).unwrap();
            if let Err(error) = api.patch(&name, &params, &Patch::Apply(&json)).await {
                panic!("cannot install the definition {name}: {error}");
            }
        }
        for crd in &crds {
            let name = crd.metadata.name.clone().unwrap();
            let start = Instant::now();
            while !self.is_served(crd, &name).await {
                assert!(start.elapsed() < TIMEOUT, "{name} is not served");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// A definition is Established a moment before its paths answer.
    async fn is_served(&self, crd: &CustomResourceDefinition, name: &str) -> bool {
        let plural = &crd.spec.names.plural;
        let path = format!(
            "/apis/{}/{}/{plural}?limit=1",
            pileus_api::GROUP,
            pileus_api::VERSION
        );
        let request = http_get(&path);
        match self.client().request_text(request).await {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.is_not_found() => false,
            Err(error) => panic!("cannot list {name}: {error}"),
        }
    }

    async fn wait_until_ready(&mut self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            // `kube-system` is made a moment after the server is ready, and our roles
            // read it first.
            let namespaces: Api<Namespace> = Api::all(self.client());
            let ready = self
                .client()
                .request_text(http_get("/readyz"))
                .await
                .is_ok()
                && namespaces.get("kube-system").await.is_ok();
            if ready {
                return Ok(());
            }
            for (child, log) in self.children.iter_mut().zip(["etcd", "kube-apiserver"]) {
                if child.try_wait().unwrap().is_some() || start.elapsed() > TIMEOUT {
                    return Err(tail(&self.directory.path().join(format!("{log}.log"))));
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn kubeconfig_text(&self) -> String {
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        })
        .to_string()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // The API server first, so that it does not spend its last moments on an etcd
        // that is gone.
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn http_get(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path).body(Vec::new()).unwrap()
}

/// A command that dies with the test process, also when that is killed.
fn owned(binary: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(binary);
    command
}

/// Starts a command from a thread that never ends: the kernel delivers the signal of
/// `--pdeathsig` when the *thread* that started the process is gone, and a test's thread
/// may go before a server that it shares.
fn spawn(mut command: Command, log: &Path) -> Child {
    let out = fs::File::create(log).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out);
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = send.send(command.spawn());
        loop {
            std::thread::park();
        }
    });
    receive
        .recv()
        .unwrap()
        .expect("`setpriv` is needed: install `util-linux`")
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All are held until all are known, so that they differ.
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// The kube-apiserver, looked for once per process.
fn apiserver() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find_if("kube-apiserver", new_enough))
}

/// Whether a kube-apiserver is of a release that Pileus supports; it says so when not.
fn new_enough(apiserver: &Path) -> bool {
    let said = Command::new(apiserver).arg("--version").output();
    let said = said.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    let minor = said
        .strip_prefix("Kubernetes v1.")
        .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    let enough = minor.is_some_and(|minor| minor >= OLDEST_MINOR);
    if !enough {
        eprintln!(
            "{} is not used: it says \"{said}\", and 1.{OLDEST_MINOR} is the oldest Kubernetes \
             that Pileus supports",
            apiserver.display()
        );
    }
    enough
}

/// The binary `name`, by the rule in the module's documentation.
///
/// # Panics
/// When it is nowhere.
#[must_use]
pub fn find(name: &str) -> PathBuf {
    find_if(name, |_| true)
}

fn find_if(name: &str, wanted: impl Fn(&Path) -> bool) -> PathBuf {
    let mut directories = Vec::new();
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
        directories.push(PathBuf::from(assets));
    }
    if let Some(path) = std::env::var_os("PATH") {
        directories.extend(std::env::split_paths(&path));
    }
    let tools = cache().join("tools");
    directories.extend(newest_first(&tools));
    directories
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|path| path.is_file() && wanted(path))
        .unwrap_or_else(|| {
            panic!(
                "`{name}` is not in $KUBEBUILDER_ASSETS, PATH or {}: run `hack/test packages` \
                 once, or set KUBEBUILDER_ASSETS",
                tools.display()
            )
        })
}

/// Where the programs in `hack` keep what is expensive to make.
fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("PILEUS_CACHE_DIR").unwrap_or_else(|| {
        variable("XDG_CACHE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .unwrap_or_default()
            .join("pileus")
    })
}

/// The directories in a directory; that of this checkout was used last, most likely.
fn newest_first(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .filter(|(metadata, _)| metadata.is_dir())
        .filter_map(|(metadata, path)| Some((metadata.modified().ok()?, path)))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Makes an object; its kind need not be said.
pub async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    try_create(api, value).await.unwrap()
}

/// What the API server says of an object that it refuses by the rules of its definition.
pub async fn refused<K>(api: &Api<K>, value: Value) -> String
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    match try_create(api, value).await {
        Err(kube::Error::Api(status)) if status.is_invalid() => status.message,
        other => panic!("it is not refused: {other:?}"),
    }
}

async fn try_create<K>(api: &Api<K>, mut value: Value) -> kube::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    value["apiVersion"] = K::api_version(&()).into();
    value["kind"] = K::kind(&()).into();
    let object: K = serde_json::from_value(value).unwrap();
    api.create(&PostParams::default(), &object).await
}

/// The object, once `is_met` holds for it.
pub async fn until<K>(api: &Api<K>, name: &str, what: &str, is_met: impl Fn(&K) -> bool) -> K
where
    K: Clone + Debug + DeserializeOwned,
{
    let start = Instant::now();
    loop {
        let seen = api.get_opt(name).await.unwrap();
        if let Some(object) = seen.as_ref().filter(|object| is_met(object)) {
            return object.clone();
        }
        assert!(start.elapsed() < TIMEOUT, "{name} never {what}: {seen:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
