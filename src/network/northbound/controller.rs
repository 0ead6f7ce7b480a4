//! Whether the host's `ovn-controller` works: its control socket is asked for
//! `connection-status`, as `ovn-appctl` does (`ovn-controller(8)`). The protocol is JSON-RPC
//! 1.0 on a socket that is named after the process.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long it may take to answer; it does nothing else meanwhile, so it is soon or never.
const PATIENCE: Duration = Duration::from_secs(3);
/// Its answers are a word or two.
const MAX_ANSWER: usize = 64 * 1024;

/// Why the `ovn-controller` whose runtime directory is `run_dir` gives new ports no flows, if
/// so: it does not run, does not answer, or has lost OVN's southbound database.
pub async fn trouble(run_dir: &Path) -> Option<String> {
    let way_out = "running VMs keep their flows, new ones get none until it works again";
    match tokio::time::timeout(PATIENCE, status(run_dir)).await {
        Ok(Ok(said)) if said == "connected" => None,
        Ok(Ok(said)) => Some(format!(
            "ovn-controller says of OVN's southbound database: {said}; {way_out}"
        )),
        Ok(Err(error)) => Some(format!(
            "ovn-controller does not answer ({error}); {way_out}: is it running?"
        )),
        Err(_) => Some(format!(
            "ovn-controller has not answered within {} s; {way_out}",
            PATIENCE.as_secs()
        )),
    }
}

async fn status(run_dir: &Path) -> io::Result<String> {
    let at = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    let file = run_dir.join("ovn-controller.pid");
    let id = tokio::fs::read_to_string(&file).await;
    let id = id.map_err(|error| at(&file, error))?;
    let socket = run_dir.join(format!("ovn-controller.{}.ctl", id.trim()));
    let stream = UnixStream::connect(&socket).await;
    ask(stream.map_err(|error| at(&socket, error))?)
        .await
        .map_err(|error| at(&socket, error))
}

async fn ask(mut stream: UnixStream) -> io::Result<String> {
    let question = json!({"id": 0, "method": "connection-status", "params": []});
    stream.write_all(question.to_string().as_bytes()).await?;
    let mut heard = Vec::new();
    loop {
        if stream.read_buf(&mut heard).await? == 0 || heard.len() > MAX_ANSWER {
            return Err(io::Error::other("it sent no answer"));
        }
        let Ok(answer) = serde_json::from_slice::<Value>(&heard) else {
            continue; // not all of it yet
        };
        return match (answer["result"].as_str(), answer["error"].as_str()) {
            (Some(result), _) => Ok(result.trim().to_owned()),
            (None, Some(error)) => Err(io::Error::other(error.trim().to_owned())),
            (None, None) => Err(io::Error::other("it sent something else")),
        };
    }
}
