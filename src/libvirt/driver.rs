//! libvirt: one connection that comes back by itself, bounded threads for its blocking
//! calls, one call for a domain at a time.
//!
//! A timeout does not cancel a call of libvirt: the call keeps its thread and the domain's
//! lock until it returns, so that nothing else touches the domain meanwhile.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, broadcast, watch};
use uuid::Uuid;

use crate::ffi::{self, Connect, Domain as VirtDomain};
use pileus_hypervisor::domain::{
    Domain, DomainSpec, Event, HostFacts, ListedDomain, OwnerMetadata, PciDevice, State,
};
use pileus_hypervisor::xml::{
    NAMESPACE, domain_name, domain_xml, owner_xml, parse_capabilities, parse_domain,
    parse_owner_element, parse_pci_device,
};
use pileus_hypervisor::{Error, Hypervisor, shutdown_reason};

/// Changes that may run at once: as many as libvirtd works on for one connection
/// (`max_client_requests`). It does not even read the next.
const CHANGES: usize = 5;
/// Looks that may run at once. They have a connection of their own, or five guests that hang
/// in a change would hide all the others.
const LOOKS: usize = 4;
/// How long a call may take before we stop waiting for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// A connection to libvirt.
#[derive(Clone)]
pub struct Libvirt {
    inner: Arc<Inner>,
}

struct Inner {
    uri: String,
    /// Directory of QEMU's logs.
    logs: PathBuf,
    connection: watch::Sender<Option<Arc<Sessions>>>,
    events: broadcast::Sender<Event>,
    changes: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    locks: Mutex<HashMap<Uuid, Weak<AsyncMutex<()>>>>,
}

struct Sessions {
    changes: ffi::Session,
    looks: ffi::Session,
}

/// What a call does, and with it the connection that it takes.
#[derive(Clone, Copy)]
enum Kind {
    Change,
    Look,
}

impl Libvirt {
    /// Connects to `uri` in the background, now and whenever the connection is lost.
    ///
    /// # Errors
    /// When libvirt is not installed, or its event loop cannot be started.
    pub fn connect(uri: &str) -> Result<Self, Error> {
        Self::connect_with_logs(uri, Path::new(shutdown_reason::LOGS))
    }

    /// The same for a libvirt that keeps QEMU's logs in a directory of its own.
    ///
    /// # Errors
    /// When libvirt is not installed, or its event loop cannot be started.
    pub fn connect_with_logs(uri: &str, logs: &Path) -> Result<Self, Error> {
        ffi::start_event_loop().map_err(Error::Library)?;
        let inner = Arc::new(Inner {
            uri: uri.to_owned(),
            logs: logs.to_owned(),
            connection: watch::Sender::new(None),
            events: broadcast::Sender::new(4096),
            changes: Arc::new(Semaphore::new(CHANGES)),
            looks: Arc::new(Semaphore::new(LOOKS)),
            locks: Mutex::default(),
        });
        tokio::spawn(keep_connected(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Waits until there is a connection.
    pub async fn connected(&self) {
        let mut connection = self.inner.connection.subscribe();
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = connection.wait_for(Option::is_some).await;
    }

    async fn lock(&self, id: Uuid) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self
                .inner
                .locks
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if locks.len() > 1024 {
                locks.retain(|_, lock| lock.strong_count() > 0);
            }
            if let Some(lock) = locks.get(&id).and_then(Weak::upgrade) {
                lock
            } else {
                let lock = Arc::new(AsyncMutex::new(()));
                locks.insert(id, Arc::downgrade(&lock));
                lock
            }
        };
        lock.lock_owned().await
    }

    /// Runs a blocking call that changes nothing; `id` names the domain that it looks at.
    async fn look<T: Send + 'static>(
        &self,
        action: &'static str,
        id: Option<Uuid>,
        f: impl FnOnce(&Connect) -> Result<T, ffi::Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(Kind::Look, action, id, f).await
    }

    /// Runs a blocking call that changes the domain.
    async fn change<T: Send + 'static>(
        &self,
        action: &'static str,
        id: Uuid,
        f: impl FnOnce(&Connect) -> Result<T, ffi::Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(Kind::Change, action, Some(id), f).await
    }

    async fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        action: &'static str,
        id: Option<Uuid>,
        f: impl FnOnce(&Connect) -> Result<T, ffi::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let whole = async {
            let guard = match id {
                Some(id) => Some(self.lock(id).await),
                None => None,
            };
            let threads = match kind {
                Kind::Change => &self.inner.changes,
                Kind::Look => &self.inner.looks,
            };
            let permit = Arc::clone(threads).acquire_owned().await;
            let Some(sessions) = self.inner.connection.borrow().clone() else {
                return Err(Error::Unreachable("not connected".to_owned()));
            };
            let work = tokio::task::spawn_blocking(move || {
                let connect = match kind {
                    Kind::Change => sessions.changes.connect(),
                    Kind::Look => sessions.looks.connect(),
                };
                let result = f(connect).map_err(|error| {
                    // Known on our side; asks nobody.
                    let alive = connect.is_alive();
                    translate(action, id, alive, &error)
                });
                drop((guard, permit));
                result
            });
            match work.await {
                Ok(result) => result,
                Err(_) => Err(Error::Failed {
                    action,
                    message: "the call ended in a panic".to_owned(),
                }),
            }
        };
        tokio::time::timeout(PATIENCE, whole)
            .await
            .unwrap_or(Err(Error::Timeout(action)))
    }

    async fn on_domain(
        &self,
        action: &'static str,
        id: Uuid,
        f: impl FnOnce(&VirtDomain) -> Result<(), ffi::Error> + Send + 'static,
    ) -> Result<(), Error> {
        self.change(action, id, move |connect| {
            f(&connect.lookup_domain_by_uuid(id)?)
        })
        .await
    }
}

/// `alive` tells whether the connection still is. Without it an error is about the
/// connection, whatever its words are, unless it is the daemon's answer.
fn translate(action: &'static str, id: Option<Uuid>, alive: bool, error: &ffi::Error) -> Error {
    let message = error.message.clone();
    match (error.code, id) {
        (ffi::VIR_ERR_NO_DOMAIN, Some(id)) => Error::NotFound(id),
        _ if !alive => Error::Unreachable(message),
        _ => Error::Failed { action, message },
    }
}

fn is_gone(error: &ffi::Error) -> bool {
    error.code == ffi::VIR_ERR_NO_DOMAIN
}

/// Whether an operation failed because the domain is in that state already.
fn is_invalid_operation(error: &ffi::Error) -> bool {
    error.code == ffi::VIR_ERR_OPERATION_INVALID
}

fn is_running(domain: &VirtDomain) -> Result<bool, ffi::Error> {
    let (state, _) = domain.state()?;
    Ok(matches!(
        state,
        ffi::VIR_DOMAIN_RUNNING | ffi::VIR_DOMAIN_BLOCKED
    ))
}

async fn keep_connected(inner: Weak<Inner>) {
    let mut wait = Duration::from_millis(200);
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let (closed_tx, mut closed) = tokio::sync::mpsc::channel::<()>(1);
        let uri = strong.uri.clone();
        let events = strong.events.clone();
        let opened = tokio::task::spawn_blocking(move || open(&uri, &events, &closed_tx))
            .await
            .unwrap_or_else(|error| Err(error.to_string()));
        match opened {
            Ok(sessions) => {
                tracing::info!(uri = %strong.uri, "connected to libvirt");
                wait = Duration::from_millis(200);
                strong.connection.send_replace(Some(Arc::new(sessions)));
                // Nobody may listen yet; then nobody has missed anything either.
                let _ = strong.events.send(Event::Connected);
                drop(strong);
                closed.recv().await;
                let Some(strong) = inner.upgrade() else {
                    return;
                };
                tracing::warn!(uri = %strong.uri, "lost the connection to libvirt");
                strong.connection.send_replace(None);
                let _ = strong.events.send(Event::Disconnected);
            }
            Err(message) => {
                tracing::warn!(uri = %strong.uri, %message, "cannot connect to libvirt");
                drop(strong);
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
        }
    }
}

fn open(
    uri: &str,
    events: &broadcast::Sender<Event>,
    closed: &tokio::sync::mpsc::Sender<()>,
) -> Result<Sessions, String> {
    // The end of either is the end of both.
    let session = |events: Option<&broadcast::Sender<Event>>| {
        let connection = Connect::open(uri).map_err(|error| error.message)?;
        ffi::Session::new(connection, || {
            let (events, closed) = (events.cloned(), closed.clone());
            Box::new(move |notice| match (notice, &events) {
                (ffi::Notice::Domain(id), Some(events)) => {
                    let _ = events.send(Event::Domain(id));
                }
                (ffi::Notice::Domain(_), None) => {}
                (ffi::Notice::Closed, _) => {
                    let _ = closed.try_send(());
                }
            })
        })
    };
    Ok(Sessions {
        looks: session(Some(events))?,
        changes: session(None)?,
    })
}

fn state_of(domain: &VirtDomain, logs: &Path) -> Result<State, ffi::Error> {
    let (state, reason) = domain.state()?;
    Ok(match state {
        ffi::VIR_DOMAIN_RUNNING | ffi::VIR_DOMAIN_BLOCKED => State::Running,
        ffi::VIR_DOMAIN_PAUSED | ffi::VIR_DOMAIN_PMSUSPENDED => State::Paused,
        ffi::VIR_DOMAIN_SHUTDOWN => State::ShuttingDown,
        ffi::VIR_DOMAIN_CRASHED => State::Crashed,
        ffi::VIR_DOMAIN_SHUTOFF => match reason {
            ffi::VIR_DOMAIN_SHUTOFF_SHUTDOWN => State::ShutDown,
            // A daemon that was restarted has forgotten the reason.
            ffi::VIR_DOMAIN_SHUTOFF_UNKNOWN => {
                let log = logs.join(format!("{}.log", domain_name(domain.uuid()?)));
                if shutdown_reason::was_shutdown(&log) {
                    State::ShutDown
                } else {
                    State::Off
                }
            }
            _ => State::Off,
        },
        _ => State::Off,
    })
}

fn inspect(domain: &VirtDomain, logs: &Path) -> Result<Domain, ffi::Error> {
    let parsed = parse_domain(&domain.xml_desc(0)?);
    Ok(Domain {
        id: domain.uuid()?,
        state: state_of(domain, logs)?,
        metadata: parsed.metadata,
        hardware: parsed.hardware,
        taps: parsed.taps,
    })
}

/// Asks for nothing that waits while another call on the domain is under way, as the XML does:
/// a guest that hangs must not hide all the others.
fn list(domain: &VirtDomain, logs: &Path) -> Result<ListedDomain, ffi::Error> {
    let element = domain.metadata(
        ffi::VIR_DOMAIN_METADATA_ELEMENT,
        NAMESPACE,
        ffi::VIR_DOMAIN_AFFECT_CURRENT,
    );
    let metadata = match element {
        Ok(element) => parse_owner_element(&element),
        Err(e) if e.code == ffi::VIR_ERR_NO_DOMAIN_METADATA => None,
        Err(e) => return Err(e),
    };
    Ok(ListedDomain {
        id: domain.uuid()?,
        state: state_of(domain, logs)?,
        metadata,
    })
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn host(&self) -> Result<HostFacts, Error> {
        self.look("read the host's capabilities", None, |connect| {
            Ok(HostFacts {
                libvirt: connect.lib_version()?,
                qemu: connect.hyp_version()?,
                ..parse_capabilities(&connect.capabilities()?)
            })
        })
        .await
    }

    async fn pci_devices(&self) -> Result<Vec<PciDevice>, Error> {
        let action = "list the host's PCI devices";
        self.look(action, None, |connect| {
            let all =
                connect.list_all_node_devices(ffi::VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV)?;
            let mut found = Vec::new();
            for device in all {
                // One that has gone meanwhile is none.
                if let Ok(xml) = device.xml_desc(0) {
                    found.extend(parse_pci_device(&xml));
                }
            }
            Ok(found)
        })
        .await
    }

    async fn domains(&self) -> Result<Vec<ListedDomain>, Error> {
        let logs = self.inner.logs.clone();
        self.look("list the domains", None, move |connect| {
            // One that vanishes while it is looked at is no failure of the list; any other
            // error is, or a running domain would count as absent.
            connect
                .list_all_domains(0)?
                .iter()
                .map(|domain| list(domain, &logs))
                .filter(|found| !found.as_ref().is_err_and(is_gone))
                .collect()
        })
        .await
    }

    async fn domain(&self, id: Uuid) -> Result<Option<Domain>, Error> {
        let logs = self.inner.logs.clone();
        let found = self
            .look("look at a domain", Some(id), move |connect| {
                inspect(&connect.lookup_domain_by_uuid(id)?, &logs)
            })
            .await;
        match found {
            Err(Error::NotFound(_)) => Ok(None),
            found => found.map(Some),
        }
    }

    async fn define(&self, spec: &DomainSpec) -> Result<(), Error> {
        let xml = domain_xml(spec);
        self.change("define a domain", spec.id, move |connect| {
            connect.define_domain_xml(&xml).map(drop)
        })
        .await
    }

    async fn set_owner_metadata(&self, id: Uuid, metadata: &OwnerMetadata) -> Result<(), Error> {
        // libvirt adds the declaration of the namespace itself.
        let xml = owner_xml(metadata)
            .replacen("pileus:owner", "owner", 1)
            .replacen(&format!(" xmlns:pileus='{NAMESPACE}'"), "", 1);
        self.on_domain("change a domain's metadata", id, move |domain| {
            let mut flags = 0;
            // Somebody may have undefined it under us: then there is no definition to change.
            if domain.is_persistent()? {
                flags |= ffi::VIR_DOMAIN_AFFECT_CONFIG;
            }
            if domain.is_active()? {
                flags |= ffi::VIR_DOMAIN_AFFECT_LIVE;
            }
            let element = ffi::VIR_DOMAIN_METADATA_ELEMENT;
            domain.set_metadata(element, &xml, "pileus", NAMESPACE, flags)
        })
        .await
    }

    async fn start_paused(&self, id: Uuid) -> Result<(), Error> {
        self.on_domain("start a domain", id, |domain| {
            match domain.create_with_flags(ffi::VIR_DOMAIN_START_PAUSED) {
                Err(error) if is_invalid_operation(&error) && domain.is_active()? => Ok(()),
                done => done,
            }
        })
        .await
    }

    async fn resume(&self, id: Uuid) -> Result<(), Error> {
        self.on_domain("resume a domain", id, |domain| match domain.resume() {
            Err(error) if is_invalid_operation(&error) && is_running(domain)? => Ok(()),
            done => done,
        })
        .await
    }

    async fn shut_down(&self, id: Uuid) -> Result<(), Error> {
        self.on_domain("shut a domain down", id, |domain| match domain.shutdown() {
            Err(error) if is_invalid_operation(&error) && !domain.is_active()? => Ok(()),
            done => done,
        })
        .await
    }

    async fn power_off(&self, id: Uuid) -> Result<(), Error> {
        let done = self
            .on_domain("cut a domain's power", id, |domain| {
                match domain.destroy() {
                    Err(error) if is_invalid_operation(&error) && !domain.is_active()? => Ok(()),
                    done => done,
                }
            })
            .await;
        match done {
            Err(Error::NotFound(_)) => Ok(()),
            done => done,
        }
    }

    async fn undefine(&self, id: Uuid) -> Result<(), Error> {
        let action = "remove a domain's definition";
        let done = self
            .change(action, id, move |connect| {
                let domain = connect.lookup_domain_by_uuid(id)?;
                // libvirt would let it run on without a definition, and forget it at its end.
                if domain.is_active()? {
                    return Ok(false);
                }
                domain
                    .undefine_flags(
                        ffi::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                            | ffi::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                            | ffi::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                            | ffi::VIR_DOMAIN_UNDEFINE_NVRAM,
                    )
                    .map(|()| true)
            })
            .await;
        match done {
            Ok(true) | Err(Error::NotFound(_)) => Ok(()),
            Ok(false) => Err(Error::Failed {
                action,
                message: "the domain is on; it must be off first".to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }
}
