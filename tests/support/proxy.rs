//! A TCP proxy before the API server, that can swallow every byte and keep the connections open:
//! a network that breaks without telling anybody.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A running proxy; it ends with the runtime.
pub struct Proxy {
    pub address: SocketAddr,
    swallows: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy to the server at `target`, `HOST:PORT`.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (swallows, swallowed) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connect(client, target.clone(), swallowed.clone()));
            }
        });
        Self { address, swallows }
    }

    /// Swallows every byte from now on, of new connections too; or lets those of new connections
    /// through. What was swallowed once stays silent for ever.
    pub fn swallow(&self, swallow: bool) {
        self.swallows.send_replace(swallow);
    }
}

async fn connect(client: TcpStream, target: String, swallowed: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        pass(from_client, to_server, swallowed.clone()),
        pass(from_server, to_client, swallowed),
    );
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallowed: watch::Receiver<bool>) {
    let mut bytes = vec![0; 1 << 16];
    let mut silent = false;
    while let Ok(read) = from.read(&mut bytes).await {
        silent |= *swallowed.borrow();
        if silent && read == 0 {
            // Not even the end is passed on.
            std::future::pending::<()>().await;
        }
        if read == 0 || (!silent && to.write_all(&bytes[..read]).await.is_err()) {
            return;
        }
    }
}
