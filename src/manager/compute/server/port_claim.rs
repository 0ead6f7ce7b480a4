//! Claims Ports and gives them back: writes of `status.server` of a Port that count only for the
//! version that was decided on.

use kube::api::{ListParams, Patch, PatchParams};
use kube::core::Status;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::plan::claim::holder;
use pileus_api::common::Resolved;
use pileus_api::names::{HOST_NAMESPACE_PREFIX, MANAGER, SERVER_UID_LABEL};
use pileus_api::{Instance, Port, Server};
use pileus_kube_ext::decode::Decoded;
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::{ApiError, finalize};

/// Makes a Server the holder of a Port. Its holder so far has to be gone by the word of the API
/// server: a cache may lack what is there.
pub(super) async fn claim(
    client: &Client,
    server: &Server,
    port: &Port,
    from: Option<&Resolved>,
) -> Result<(), ApiError> {
    if let Some(holder) = from
        && !is_gone(client, &port.namespace().unwrap_or_default(), holder).await?
    {
        let why = format!("Server {} still has it", holder.name);
        return Err(conflict(&format!("claim Port {}", port.name_any()), &why));
    }
    let server = json!({"name": server.name_any(), "uid": server.uid()});
    set_holder(client, port, &server, "claim").await
}

/// Lets others have a Port.
pub(super) async fn release(client: &Client, port: &Port) -> Result<(), ApiError> {
    set_holder(client, port, &Value::Null, "release").await
}

/// Fails unless, by the word of the API server, the Server has all of the Ports and is still as it
/// was decided on: whoever gives a Port back looks for Instances after that has changed.
pub(super) async fn confirm(
    client: &Client,
    server: &Server,
    names: &[(String, String)],
) -> Result<(), ApiError> {
    let namespace = server.namespace().unwrap_or_default();
    let ports = Objects::<Port>::namespaced(client, &namespace);
    let ports = ports_of(&ports, names);
    let name = server.name_any();
    let servers = Objects::<Server>::namespaced(client, &namespace);
    let (now, ports) = futures::try_join!(servers.get(&name), ports)?;
    let is_same = now.is_some_and(|now| {
        now.uid() == server.uid()
            && now.metadata.generation == server.metadata.generation
            && !finalize::is_deleting(&now)
    });
    if !is_same {
        return Err(conflict(&format!("build Server {name}"), "it has changed"));
    }
    for (port, (name, uid)) in ports.iter().zip(names) {
        let port = port
            .as_ref()
            .filter(|port| port.uid().as_ref() == Some(uid));
        let holder = port.and_then(holder);
        if holder.is_none_or(|holder| Some(&holder.uid) != server.uid().as_ref()) {
            return Err(conflict(
                &format!("build with Port {name}"),
                "it is not this Server's",
            ));
        }
    }
    Ok(())
}

async fn ports_of(
    ports: &Objects<Port>,
    names: &[(String, String)],
) -> Result<Vec<Option<Port>>, ApiError> {
    futures::future::try_join_all(names.iter().map(|(name, _)| ports.get(name))).await
}

/// Whether neither a Server nor an Instance of it is there.
async fn is_gone(client: &Client, namespace: &str, server: &Resolved) -> Result<bool, ApiError> {
    let servers = Objects::<Server>::namespaced(client, namespace);
    let found = servers.get(&server.name).await?;
    if found.is_some_and(|found| found.uid().as_ref() == Some(&server.uid)) {
        return Ok(false);
    }
    let instances: Api<Decoded<Instance>> = Api::all(client.clone());
    let label = format!("{SERVER_UID_LABEL}={}", server.uid);
    let params = ListParams::default().labels(&label);
    let listed = instances.list(&params).await;
    let listed = listed.map_err(ApiError::doing(format!(
        "list the Instances of {}",
        server.name
    )))?;
    // Anybody may make one elsewhere; one that cannot be read is there all the same.
    let is_real = |found: &Decoded<Instance>| match &found.0 {
        Ok(instance) => instance.is_genuine(),
        Err(unreadable) => {
            let namespace = unreadable.metadata.namespace.as_deref();
            namespace.is_some_and(|namespace| namespace.starts_with(HOST_NAMESPACE_PREFIX))
        }
    };
    Ok(!listed.items.iter().any(is_real))
}

async fn set_holder(
    client: &Client,
    port: &Port,
    server: &Value,
    verb: &str,
) -> Result<(), ApiError> {
    let name = port.name_any();
    let api: Api<Port> = Api::namespaced(client.clone(), &port.namespace().unwrap_or_default());
    let patch = json!({
        "metadata": {"uid": port.uid(), "resourceVersion": port.resource_version()},
        "status": {"server": server},
    });
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let done = api
        .patch_status(&name, &params, &Patch::Merge(&patch))
        .await;
    match done.map_err(ApiError::doing(format!("{verb} Port {name}"))) {
        // The next pass sees that there is none.
        Err(error) if error.is_gone() => Ok(()),
        done => done.map(drop),
    }
}

/// What was decided from is not so any more: the pass ends, and the next one sees what is.
fn conflict(action: &str, why: &str) -> ApiError {
    let status = Status::failure(why, "Conflict").with_code(409).boxed();
    ApiError::doing(action)(kube::Error::Api(status))
}
