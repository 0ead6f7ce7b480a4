//! Whether the host's `ovn-controller` works: its control socket is asked for
//! `connection-status`, as `ovn-appctl` does (`ovn-controller(8)`). The protocol is JSON-RPC
//! 1.0 on a socket that is named after the process.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long an answer may take: a controller that works answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer in bytes; a status is a word or two.
const MAX_ANSWER: usize = 64 * 1024;

/// The reason why the `ovn-controller` whose runtime directory is `run_dir` installs no flows for
/// new ports, if there is one: it does not run, does not answer, or has lost OVN's southbound
/// database.
pub async fn problem(run_dir: &Path) -> Option<String> {
    let way_out = "running VMs keep their flows, new ones get none until it works again";
    match tokio::time::timeout(ANSWER_TIMEOUT, connection_status(run_dir)).await {
        Ok(Ok(status)) if status == "connected" => None,
        Ok(Ok(status)) => Some(format!(
            "ovn-controller says of OVN's southbound database: {status}; {way_out}"
        )),
        Ok(Err(error)) => Some(format!(
            "ovn-controller does not answer ({error}); {way_out}: is it running?"
        )),
        Err(_) => Some(format!(
            "ovn-controller has not answered within {} s; {way_out}",
            ANSWER_TIMEOUT.as_secs()
        )),
    }
}

async fn connection_status(run_dir: &Path) -> io::Result<String> {
    let at = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    let file = run_dir.join("ovn-controller.pid");
    let id = tokio::fs::read_to_string(&file).await;
    let id = id.map_err(|error| at(&file, error))?;
    let socket = run_dir.join(format!("ovn-controller.{}.ctl", id.trim()));
    let stream = UnixStream::connect(&socket).await;
    send_request(stream.map_err(|error| at(&socket, error))?)
        .await
        .map_err(|error| at(&socket, error))
}

async fn send_request(mut stream: UnixStream) -> io::Result<String> {
    let request = json!({"id": 0, "method": "connection-status", "params": []});
    stream.write_all(request.to_string().as_bytes()).await?;
    let mut received = Vec::new();
    loop {
        if stream.read_buf(&mut received).await? == 0 || received.len() > MAX_ANSWER {
            return Err(io::Error::other("it sent no answer"));
        }
        let Ok(answer) = serde_json::from_slice::<Value>(&received) else {
            continue; // incomplete
        };
        return match (answer["result"].as_str(), answer["error"].as_str()) {
            (Some(result), _) => Ok(result.trim().to_owned()),
            (None, Some(error)) => Err(io::Error::other(error.trim().to_owned())),
            (None, None) => Err(io::Error::other("it sent something else")),
        };
    }
}
