//! The task that holds the connection, and the handle that others hold.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::framing::Framer;
use super::operation::read_results;
use super::schema::Schema;
use super::{Endpoint, Error, Monitor, OpResult, Operation, Replica, Tls};

/// Bounds and times of a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a connection, its schema and its first copy may take together.
    pub connect_timeout: Duration,
    /// How long a transaction may take.
    pub transact_timeout: Duration,
    /// After this time without data the server is sent an echo; after the same time again the
    /// connection counts as lost.
    pub probe_interval: Duration,
    /// First and longest pause between attempts to connect.
    pub backoff: (Duration, Duration),
    /// Biggest message in either direction, in bytes.
    pub message_limit: usize,
    /// Who we are, and whom we trust, for endpoints with TLS.
    pub tls: Option<Tls>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            transact_timeout: Duration::from_secs(30),
            probe_interval: Duration::from_secs(5),
            backoff: (Duration::from_millis(100), Duration::from_secs(8)),
            message_limit: 256 << 20,
            tls: None,
        }
    }
}

/// Whether the replica follows the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// No connection; the replica, if any, is from before.
    Disconnected {
        /// Why, for people.
        reason: String,
    },
    /// The replica is a copy of the database.
    Connected,
}

/// The replica and whether it is up to date.
#[derive(Clone, Debug)]
pub struct View {
    /// Whether the replica follows the database.
    pub state: ConnectionState,
    /// The copy; empty until the first connection.
    pub replica: Replica,
}

impl View {
    /// Whether the replica is a copy of the database as it is now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.state == ConnectionState::Connected
    }
}

struct Request {
    operations: Arc<Vec<Operation>>,
    answer: oneshot::Sender<Result<Vec<OpResult>, Error>>,
}

/// A handle to the database. The connection ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<View>,
    endpoint: Arc<str>,
    transact_timeout: Duration,
    _task: Arc<AbortOnDrop>,
}

#[derive(Debug)]
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Name of our monitor in the server's updates.
const MONITOR_ID: &str = "pileus";

impl Client {
    /// Begins to connect to one of the endpoints and to keep a copy of what `monitor` names.
    /// Returns at once; [`Client::view`] has the state of the connection.
    #[must_use]
    pub fn start(endpoints: Vec<Endpoint>, monitor: Monitor, options: Options) -> Self {
        let name: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        let (requests, inbox) = mpsc::channel(64);
        let (publisher, view) = watch::channel(View {
            state: ConnectionState::Disconnected {
                reason: "still connecting".to_owned(),
            },
            replica: Replica::default(),
        });
        let transact_timeout = options.transact_timeout;
        let connection = Connection {
            endpoints,
            monitor,
            options,
            inbox,
            publisher,
        };
        let task = tokio::spawn(connection.run());
        Self {
            requests,
            view,
            endpoint: name.join(",").into(),
            transact_timeout,
            _task: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// The replica as it is now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// A receiver that is notified of each change of the replica or the connection.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Where the database is, for people.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Carries out all operations, or none.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::WaitFailed`], [`Error::Refused`] and
    /// [`Error::TooLarge`] mean that nothing was changed; after [`Error::Disconnected`] and
    /// [`Error::TimedOut`] the outcome is unknown.
    pub async fn transact(&self, operations: Vec<Operation>) -> Result<Vec<OpResult>, Error> {
        if let ConnectionState::Disconnected { reason } = &self.view.borrow().state {
            return Err(self.not_connected(reason));
        }
        let (answer, result) = oneshot::channel();
        let request = Request {
            operations: Arc::new(operations),
            answer,
        };
        let exchange = async {
            self.requests
                .send(request)
                .await
                .map_err(|_| self.not_connected("the client has ended"))?;
            result.await.unwrap_or(Err(Error::Disconnected))
        };
        timeout(self.transact_timeout, exchange)
            .await
            .unwrap_or(Err(Error::TimedOut(self.transact_timeout)))
    }

    fn not_connected(&self, reason: &str) -> Error {
        Error::NotConnected {
            endpoint: self.endpoint.to_string(),
            reason: reason.to_owned(),
        }
    }
}

struct Connection {
    endpoints: Vec<Endpoint>,
    monitor: Monitor,
    options: Options,
    inbox: mpsc::Receiver<Request>,
    publisher: watch::Sender<View>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connection {
    async fn run(mut self) {
        let (first, longest) = self.options.backoff;
        let mut pause = first;
        let mut pending = HashMap::new();
        loop {
            for endpoint in self.endpoints.clone() {
                let error = match self.open(&endpoint).await {
                    Ok((session, schema)) => {
                        tracing::info!(%endpoint, "connected to the database");
                        pause = first;
                        match self.serve(session, schema, &mut pending).await {
                            Ok(()) => return,
                            Err(error) => error,
                        }
                    }
                    Err(error) => error,
                };
                let was_connected = self.publisher.borrow().is_connected();
                if was_connected {
                    tracing::warn!(%endpoint, %error, "lost the connection to the database");
                }
                self.publish_disconnected(&format!("{endpoint}: {error}"));
                // Their callers see the state that goes with their error.
                pending.clear();
                self.refuse_waiting_requests();
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.publisher.closed() => return,
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Notifies only when the reason has changed, not after each failed attempt.
    fn publish_disconnected(&self, reason: &str) {
        self.publisher.send_if_modified(|view| {
            let state = ConnectionState::Disconnected {
                reason: reason.to_owned(),
            };
            let changed = view.state != state;
            view.state = state;
            changed
        });
    }

    /// Requests that came after the connection was lost were never sent.
    fn refuse_waiting_requests(&mut self) {
        while let Ok(request) = self.inbox.try_recv() {
            let _ = request.answer.send(Err(Error::NotConnected {
                endpoint: self.endpoint_names(),
                reason: "the connection was just lost".to_owned(),
            }));
        }
    }

    fn endpoint_names(&self) -> String {
        let names: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        names.join(",")
    }

    /// Connects, reads the schema and the first copy.
    async fn open(&self, endpoint: &Endpoint) -> Result<(Session, Schema), Error> {
        let open = async {
            let stream: Box<dyn Stream> = match endpoint {
                Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(io)?),
                Endpoint::Tcp { host, port } => Box::new(connect(host, *port).await?),
                Endpoint::Ssl { host, port } => {
                    let tls = self.options.tls.as_ref().ok_or_else(|| {
                        Error::Tls(
                            "an endpoint with TLS needs a private key, a certificate and the \
                             certificate of a CA"
                                .to_owned(),
                        )
                    })?;
                    Box::new(tls.connect(host, connect(host, *port).await?).await?)
                }
            };
            let mut session = Session::new(stream, self.options.message_limit);
            let database = &self.monitor.database;
            let schema = session.call("get_schema", json!([database])).await?;
            let schema = Schema::from_json(database, &schema)?;
            schema.check(&self.monitor)?;
            let initial = session
                .call("monitor_cond", self.monitor.to_json(MONITOR_ID))
                .await?;
            let mut replica = Replica::default();
            replica.apply(&initial, &self.monitor, &schema)?;
            self.publisher.send_replace(View {
                state: ConnectionState::Connected,
                replica,
            });
            Ok((session, schema))
        };
        let limit = self.options.connect_timeout;
        timeout(limit, open)
            .await
            .unwrap_or(Err(Error::TimedOut(limit)))
    }

    /// Serves until the connection is lost (an error) or nobody is left to serve.
    /// Requests that were not answered stay in `pending`.
    async fn serve(
        &mut self,
        session: Session,
        schema: Schema,
        pending: &mut HashMap<u64, Request>,
    ) -> Result<(), Error> {
        let Session {
            stream,
            mut framer,
            mut next_id,
            limit,
        } = session;
        let (mut reader, mut writer) = tokio::io::split(stream);
        // Writing has a task of its own, so that a server which does not read while it
        // sends cannot block both sides.
        let (outbox, mut to_write) = mpsc::unbounded_channel::<Vec<u8>>();
        let writing = tokio::spawn(async move {
            while let Some(bytes) = to_write.recv().await {
                writer.write_all(&bytes).await?;
            }
            Ok::<(), std::io::Error>(())
        });
        let _stop_writing = AbortOnDrop(writing.abort_handle());
        let send = |message: &Value| {
            outbox
                .send(message.to_string().into_bytes())
                .map_err(|_| Error::Disconnected)
        };

        let mut buffer = vec![0; 64 << 10];
        let probe = self.options.probe_interval;
        let mut last_data = Instant::now();
        let mut probed = false;
        loop {
            while let Some(message) = framer.next()? {
                let message: Value =
                    serde_json::from_slice(&message).map_err(|e| Error::Protocol(e.to_string()))?;
                self.handle(&message, &schema, pending, &send)?;
            }
            tokio::select! {
                read = reader.read(&mut buffer) => {
                    let count = read.map_err(io)?;
                    if count == 0 {
                        return Err(Error::Disconnected);
                    }
                    framer.push(&buffer[..count]);
                    last_data = Instant::now();
                    probed = false;
                }
                request = self.inbox.recv() => {
                    let Some(request) = request else { return Ok(()) };
                    let params = std::iter::once(json!(self.monitor.database))
                        .chain(request.operations.iter().map(Operation::to_json))
                        .collect::<Value>();
                    let id = next_id;
                    next_id += 1;
                    let bytes = call_json("transact", &params, id).to_string().into_bytes();
                    if bytes.len() > limit {
                        let _ = request.answer.send(Err(Error::TooLarge { size: bytes.len(), limit }));
                    } else {
                        outbox.send(bytes).map_err(|_| Error::Disconnected)?;
                        // Entries of callers that no longer wait are removed.
                        pending.retain(|_, request| !request.answer.is_closed());
                        pending.insert(id, request);
                    }
                }
                () = tokio::time::sleep_until(last_data + probe) => {
                    if probed {
                        return Err(Error::TimedOut(probe * 2));
                    }
                    send(&json!({"method": "echo", "params": [], "id": "probe"}))?;
                    last_data = Instant::now();
                    probed = true;
                }
            }
        }
    }

    fn handle(
        &self,
        message: &Value,
        schema: &Schema,
        pending: &mut HashMap<u64, Request>,
        send: &impl Fn(&Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match message["method"].as_str() {
            Some("echo") => {
                send(&json!({"id": message["id"], "result": message["params"], "error": null}))
            }
            Some("update2") if message["params"][0] == MONITOR_ID => {
                let mut applied = Ok(());
                self.publisher.send_modify(|view| {
                    applied = view
                        .replica
                        .apply(&message["params"][1], &self.monitor, schema);
                });
                applied
            }
            Some(_) => Ok(()),
            None => {
                // Answers to probes have a text as id; nothing waits for them.
                if let Some(request) = message["id"].as_u64().and_then(|id| pending.remove(&id)) {
                    let result = if message["error"].is_null() {
                        read_results(&request.operations, &message["result"])
                    } else {
                        Err(request_error("transact", &message["error"]))
                    };
                    let _ = request.answer.send(result);
                }
                Ok(())
            }
        }
    }
}

/// A connection before the client serves requests on it.
struct Session {
    stream: Box<dyn Stream>,
    framer: Framer,
    next_id: u64,
    limit: usize,
}

impl Session {
    fn new(stream: Box<dyn Stream>, limit: usize) -> Self {
        Self {
            stream,
            framer: Framer::new(limit),
            next_id: 0,
            limit,
        }
    }

    async fn call(&mut self, method: &str, params: Value) -> Result<Value, Error> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&call_json(method, &params, id)).await?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            while let Some(message) = self.framer.next()? {
                let mut message: Value =
                    serde_json::from_slice(&message).map_err(|e| Error::Protocol(e.to_string()))?;
                if message["method"] == "echo" {
                    let answer =
                        json!({"id": message["id"], "result": message["params"], "error": null});
                    self.send(&answer).await?;
                } else if message["id"] == id {
                    return match &message["error"] {
                        Value::Null => Ok(message["result"].take()),
                        error => Err(request_error(method, error)),
                    };
                }
            }
            let count = self.stream.read(&mut buffer).await.map_err(io)?;
            if count == 0 {
                return Err(Error::Disconnected);
            }
            self.framer.push(&buffer[..count]);
        }
    }

    async fn send(&mut self, message: &Value) -> Result<(), Error> {
        let bytes = message.to_string().into_bytes();
        self.stream.write_all(&bytes).await.map_err(io)
    }
}

fn call_json(method: &str, params: &Value, id: u64) -> Value {
    json!({"method": method, "params": params, "id": id})
}

fn request_error(method: &str, error: &Value) -> Error {
    let details = error["details"]
        .as_str()
        .or_else(|| error["error"].as_str());
    Error::Request {
        method: method.to_owned(),
        details: details.map_or_else(|| error.to_string(), str::to_owned),
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect((host, port)).await.map_err(io)?;
    stream.set_nodelay(true).map_err(io)?;
    Ok(stream)
}

#[allow(clippy::needless_pass_by_value)] // for `map_err(io)`
fn io(error: std::io::Error) -> Error {
    Error::Io(error.to_string())
}
