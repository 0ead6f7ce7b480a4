//! The lab that hack/devstack brought up: its API server, its first host, its processes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use super::Result;

/// Where the benches' objects live; removed at the end.
pub const NAMESPACE: &str = "pileus-bench";
/// The host that is measured.
pub const HOST: &str = "host1";
/// Keeps the measured Servers on [`HOST`] in a lab of several hosts.
const HOST_LABEL: &str = "bench.pileus.dev/host";
/// How long anything in the lab may take before the bench gives up.
pub const TIMEOUT: Duration = Duration::from_mins(3);

/// The running lab.
pub struct Lab {
    /// Acts as the administrator.
    pub client: Client,
    run: PathBuf,
}

impl Lab {
    /// Finds the lab.
    pub async fn find() -> Result<Self> {
        // Fails when it is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = |variable: &str, default: &str| {
            std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        let state = dir("PILEUS_STATE_DIR", "/var/lib/pileus-devstack");
        let run = dir("PILEUS_RUN_DIR", "/run/pileus-devstack");
        let file = state.join("kubeconfig/admin");
        let kubeconfig = Kubeconfig::read_from(&file)
            .map_err(|e| format!("no lab: {e}; bring one up with hack/bench"))?;
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.proxy_url = None;
        let client = Client::try_from(config)?;
        Ok(Self { client, run })
    }

    /// Pid of a part of the lab, such as `manager` or `host1-agent`.
    pub fn pid(&self, part: &str) -> Result<u32> {
        let file = self.run.join("proc").join(part);
        let text = std::fs::read_to_string(&file)
            .map_err(|e| format!("{part} does not run ({}: {e})", file.display()))?;
        let pid = text.split_whitespace().next().unwrap_or_default();
        Ok(pid.parse()?)
    }

    /// The file system as the measured host sees it.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(Path::new("/proc")
            .join(self.pid(HOST)?.to_string())
            .join("root"))
    }

    /// libvirt's address on the measured host.
    pub fn libvirt_uri(&self) -> Result<String> {
        let socket = self.root()?.join("run/libvirt/libvirt-sock");
        Ok(format!(
            "qemu+unix:///system?socket={}",
            socket.to_string_lossy()
        ))
    }

    /// Memory of a part of the lab in MiB, a field of /proc/PID/status: `VmRSS`, or its
    /// part `RssAnon` that is not the program's own text.
    pub fn memory_mib(&self, part: &str, field: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid(part)?))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next())
            .ok_or_else(|| format!("/proc/PID/status has no {field}"))?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }

    /// What the roles run, and whether it was built with optimizations, by its size only:
    /// a debug build carries its line tables.
    pub fn build(&self) -> Result<&'static str> {
        let size = std::fs::metadata(format!("/proc/{}/exe", self.pid("manager")?))?.len();
        Ok(if size > 60_000_000 {
            "debug"
        } else {
            "release"
        })
    }

    /// Objects of a kind of Pileus in a namespace.
    pub fn api(&self, namespace: &str, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(kind))
    }

    /// Makes the namespace, with a network that is ready for Servers, and lets the host take
    /// as many as the bench asks for. Returns what [`Lab::clean`] needs to undo that.
    pub async fn prepare(&self) -> Result<Value> {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
        self.no_namespace().await?;
        namespaces
            .create(&PostParams::default(), &namespace)
            .await?;
        let hosts: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource("Host"));
        let spec = &hosts.get(HOST).await?.data["spec"];
        let undo = json!({
            "metadata": {"labels": {HOST_LABEL: null}},
            "spec": {
                "cpuAllocationRatio": spec["cpuAllocationRatio"],
                "memoryAllocationRatio": spec["memoryAllocationRatio"],
            },
        });
        // A lab's host promises little: it shares its machine with other hosts.
        let wide = json!({
            "metadata": {"labels": {HOST_LABEL: HOST}},
            "spec": {"cpuAllocationRatio": "64", "memoryAllocationRatio": "2"},
        });
        self.patch_host(&wide).await?;
        self.create("Network", "bench", json!({})).await?;
        let subnet = json!({"network": "bench", "cidr": "10.77.0.0/24"});
        self.create("Subnet", "bench", subnet).await?;
        self.wait("Subnet", "bench", |o| ready(&o.data)).await?;
        Ok(undo)
    }

    /// Waits until the namespace of a run before is gone.
    async fn no_namespace(&self) -> Result<()> {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        let gone = async {
            while let Some(found) = namespaces.get_opt(NAMESPACE).await? {
                if found.metadata.deletion_timestamp.is_none() {
                    namespaces
                        .delete(NAMESPACE, &DeleteParams::default())
                        .await?;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(())
        };
        tokio::time::timeout(TIMEOUT, gone)
            .await
            .map_err(|_| format!("namespace {NAMESPACE} is still being deleted"))?
    }

    async fn patch_host(&self, patch: &Value) -> Result<()> {
        let hosts: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource("Host"));
        hosts
            .patch(HOST, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Removes what [`Lab::prepare`] made.
    pub async fn clean(&self, undo: &Value) -> Result<()> {
        self.patch_host(undo).await?;
        self.no_namespace().await
    }

    /// Creates an object in the namespace.
    pub async fn create(&self, kind: &str, name: &str, spec: Value) -> Result<()> {
        let object = DynamicObject::new(name, &resource(kind)).data(json!({"spec": spec}));
        self.api(NAMESPACE, kind)
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    }

    /// Creates a small Server; returns when the API server has accepted it.
    pub async fn create_server(&self, name: &str) -> Result<()> {
        let spec = json!({
            "flavor": "m1.nano",
            "image": {"name": "tiny", "namespace": "default"},
            "networks": [{"name": "eth0", "network": {"name": "bench"}}],
            "shutdownTimeoutSeconds": 0,
            "placement": {"hostSelector": {HOST_LABEL: HOST}},
        });
        self.create("Server", name, spec).await
    }

    /// Deletes Servers and waits until they are gone.
    pub async fn delete_servers(&self, names: &[String]) -> Result<()> {
        let servers = self.api(NAMESPACE, "Server");
        for name in names {
            servers.delete(name, &DeleteParams::default()).await?;
        }
        let gone = async {
            loop {
                let left = servers
                    .list_metadata(&kube::api::ListParams::default())
                    .await?;
                let of_ours = |o: &&kube::core::PartialObjectMeta<DynamicObject>| {
                    o.metadata.name.as_ref().is_some_and(|n| names.contains(n))
                };
                if left.items.iter().find(of_ours).is_none() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, gone)
            .await
            .map_err(|_| format!("Servers are not gone after {TIMEOUT:?}"))?
    }

    async fn wait(
        &self,
        kind: &str,
        name: &str,
        until: impl Fn(&DynamicObject) -> bool,
    ) -> Result<()> {
        let api = self.api(NAMESPACE, kind);
        let wait = async {
            while !api.get(name).await.is_ok_and(|object| until(&object)) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, wait)
            .await
            .map_err(|_| format!("{kind} {name} is not ready after {TIMEOUT:?}").into())
    }
}

/// A kind of Pileus; its plural is the regular one.
pub fn resource(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("pileus.dev", "v1alpha1", kind))
}

/// Whether the object's condition Ready is True.
pub fn ready(object: &Value) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
}
