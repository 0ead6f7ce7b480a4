//! What tests of trouble share: conditions of any kind, and a neighbour that must not notice.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot have its lab is over"
)]
#![allow(dead_code, reason = "each test crate uses its own part of this module")]

use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind};
use pileus_api::Server;
use pileus_api::conditions::{self, ConditionType};
use serde_json::Value;

use crate::lab::{GuestImage, HOST_LABEL, Lab, Project, eventually, in_host};

/// Others may use the machine as well.
pub const TIMEOUT: Duration = Duration::from_secs(180);

/// A Server that is only built and never started.
pub fn stopped(name: &str, host: usize, more: &str) -> String {
    format!(
        r#"
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {{name: {name}}}
spec:
  runState: Stopped
  placement: {{hostSelector: {{{HOST_LABEL}: host{host}}}}}
{more}
"#
    )
}

/// Size and image of a small guest.
pub const TINY: &str = "  flavor: m1.nano\n  image: {name: tiny, namespace: default}\n";

/// An Image.
pub fn image(name: &str, url: &str, checksum: &str) -> String {
    format!(
        r#"
---
apiVersion: pileus.dev/v1alpha1
kind: Image
metadata: {{name: {name}}}
spec:
  source: {{url: "{url}", checksum: "{checksum}"}}
"#
    )
}

/// A public key.
pub const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@example.org";

/// The Image `late`, with the bytes of the lab's guest.
pub fn image_of_tiny() -> String {
    let said = GuestImage::of("tiny");
    let (disk, sum) = (said.get("tiny.disk"), said.get("tiny.disk.sha256"));
    image("late", &format!("file://{disk}"), &format!("sha256:{sum}"))
}

/// Objects of a kind, by name only.
pub fn objects(lab: &Lab, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("pileus.dev", "v1alpha1", kind);
    let plural = format!("{}s", kind.to_ascii_lowercase());
    let resource = ApiResource::from_gvk_with_plural(&gvk, &plural);
    match namespace {
        Some(namespace) => Api::namespaced_with(lab.client.clone(), namespace, &resource),
        None => Api::all_with(lab.client.clone(), &resource),
    }
}

/// The conditions of all objects of a test's namespace.
pub struct Conditions<'a> {
    pub lab: &'a Lab,
    pub project: &'a Project,
}

impl Conditions<'_> {
    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let namespace = (kind != "Host" && kind != "Flavor").then_some(self.project.name.as_str());
        objects(self.lab, kind, namespace)
    }

    /// Waits until a condition of an object has a status and a reason, and a message with
    /// all `parts`: field, value, culprit, way out.
    pub async fn says(&self, object: (&str, &str), condition: [&str; 3], parts: &[&str]) -> String {
        let (kind, name) = object;
        let [type_, status, reason] = condition;
        let what = format!("{kind} {name} says {type_}={status} {reason} with {parts:?}");
        eventually(&what, TIMEOUT, async || {
            let object = self.api(kind).get(name).await.map_err(|e| e.to_string())?;
            let all = &object.data["status"]["conditions"];
            let found = all.as_array().into_iter().flatten();
            let found = found.into_iter().find(|c| c["type"] == type_);
            let Some(found) = found else {
                return Err(all.to_string());
            };
            let message = found["message"].as_str().unwrap_or_default();
            if found["status"] == status
                && found["reason"] == reason
                && parts.iter().all(|part| message.contains(part))
            {
                Ok(message.to_owned())
            } else {
                Err(found.to_string())
            }
        })
        .await
    }

    /// Ready is False for a reason.
    pub async fn refused(&self, object: (&str, &str), reason: &str, parts: &[&str]) -> String {
        self.says(object, ["Ready", "False", reason], parts).await
    }

    /// Waits until an object is Ready.
    pub async fn ready(&self, kind: &str, name: &str) {
        eventually(&format!("{kind} {name} is Ready"), TIMEOUT, async || {
            let object = self.api(kind).get(name).await.map_err(|e| e.to_string())?;
            let all = object.data["status"]["conditions"].as_array().cloned();
            let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
            if all.iter().flatten().any(is_ready) {
                Ok(())
            } else {
                Err(object.data["status"].to_string())
            }
        })
        .await;
    }

    /// Asks for an object's deletion.
    pub async fn delete(&self, kind: &str, name: &str) {
        let done = self.api(kind).delete(name, &DeleteParams::default()).await;
        done.unwrap();
    }

    /// Waits until an object is gone.
    pub async fn gone(&self, kind: &str, name: &str) {
        eventually(
            &format!("{kind} {name} is gone"),
            TIMEOUT,
            async || match self.api(kind).get_opt(name).await {
                Ok(None) => Ok(()),
                Ok(Some(object)) => Err(object.data["status"].to_string()),
                Err(error) => Err(error.to_string()),
            },
        )
        .await;
    }
}

/// A Server that runs beside the trouble and has no part in it.
pub struct Neighbour {
    name: String,
    host: usize,
    pid: String,
    since: String,
}

impl Neighbour {
    /// The text of one, on a host.
    pub fn yaml(name: &str, host: usize) -> String {
        format!(
            r#"
---
apiVersion: pileus.dev/v1alpha1
kind: Server
metadata: {{name: {name}}}
spec:
  flavor: m1.nano
  image: {{name: tiny, namespace: default}}
  placement: {{hostSelector: {{{HOST_LABEL}: host{host}}}}}
"#
        )
    }

    /// Makes one on a host, without a network.
    pub async fn start(project: &Project, name: &str, host: usize) -> Self {
        project.apply(&Self::yaml(name, host));
        Self::of(project, name, host).await
    }

    /// One that was made by the test.
    pub async fn of(project: &Project, name: &str, host: usize) -> Self {
        let server = project.phase(name, "Active", TIMEOUT).await;
        Self {
            name: name.to_owned(),
            host,
            pid: pid(&server, host),
            since: since(&server),
        }
    }

    /// Its process is the same.
    pub async fn lives(&self, project: &Project) {
        let server = project.servers().get(&self.name).await.unwrap();
        assert_eq!(
            pid(&server, self.host),
            self.pid,
            "{} was started anew",
            self.name
        );
        let placement = server.status.unwrap().placement.unwrap();
        assert_eq!(placement.epoch, 1, "{} was placed anew", self.name);
    }

    /// It has been Active all the time, with the same process.
    pub async fn noticed_nothing(&self, project: &Project) {
        self.lives(project).await;
        let server = project.phase(&self.name, "Active", TIMEOUT).await;
        assert_eq!(since(&server), self.since, "{} was not Ready", self.name);
    }

    /// It is Active (again), with the same process.
    pub async fn is_back(&self, project: &Project) {
        project.phase(&self.name, "Active", TIMEOUT).await;
        self.lives(project).await;
    }
}

fn pid(server: &Server, host: usize) -> String {
    let id = server.status.as_ref().unwrap().instance_id.clone().unwrap();
    let path = format!("/run/libvirt/qemu/pileus-{id}.pid");
    let said = in_host(host, &["cat", &path]);
    let pid = said.trim().to_owned();
    assert!(!pid.is_empty(), "{} has no process", server.name_any());
    in_host(host, &["test", "-d", &format!("/proc/{pid}")]);
    pid
}

/// Since when it has been Ready, to the second.
fn since(server: &Server) -> String {
    let status = server.status.as_ref().unwrap();
    let ready = conditions::find(&status.conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "True");
    ready.last_transition_time.0.to_string()
}
