//! libvirt: connections that are opened again when they are lost, a limited number of threads
//! for its blocking calls, one call per domain at a time.
//!
//! A timeout does not cancel a call of libvirt: the call keeps its thread and the domain's
//! lock until it returns, so that nothing else works on the domain meanwhile.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, broadcast, watch};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain as VirtDomain;
use virt::error::{Error as VirtError, ErrorNumber};
use virt::sys;

use crate::event_loop;
use crate::ffi::{Handler, Notification, Session};
use crate::state::{is_running, state_of};
use pileus_hypervisor::domain::{
    Domain, DomainSpec, Event, HostFacts, ListedDomain, OwnerMetadata, PciDevice,
};
use pileus_hypervisor::xml::{
    NAMESPACE, domain_xml, owner_xml, parse_capabilities, parse_domain, parse_owner_element,
    parse_pci_device,
};
use pileus_hypervisor::{Error, Hypervisor, shutdown_reason};

/// Changes that may run at once: as many as libvirtd works on for one connection
/// (`max_client_requests`); it does not read further requests.
const MAX_CHANGES: usize = 5;
/// Queries that may run at once. They have a connection of their own; otherwise five changes of
/// guests that hang would block the queries of all other guests.
const MAX_QUERIES: usize = 4;
/// How long a call may take before we stop waiting for it.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);
/// Seconds between two keepalive messages, and how many may stay without an answer before
/// the connection counts as lost: 15 s for a daemon that is stuck.
const KEEPALIVE: (i32, u32) = (5, 3);
/// The wait before a connection is opened again; it doubles after each failure.
const RECONNECT_MIN: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(5);
const METADATA_ELEMENT: i32 = sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed();

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
    queries: Arc<Semaphore>,
    locks: Mutex<HashMap<Uuid, Weak<AsyncMutex<()>>>>,
}

struct Sessions {
    changes: Session,
    queries: Session,
}

/// What a call does; selects the connection.
#[derive(Clone, Copy)]
enum Kind {
    Change,
    Query,
}

impl Libvirt {
    /// Connects to `uri` in the background, now and whenever the connection is lost.
    ///
    /// # Errors
    /// When libvirt's event loop cannot be started.
    pub fn connect(uri: &str) -> Result<Self, Error> {
        Self::connect_with_logs(uri, Path::new(shutdown_reason::LOGS))
    }

    /// The same for a libvirt that keeps QEMU's logs in a directory of its own.
    ///
    /// # Errors
    /// When libvirt's event loop cannot be started.
    pub fn connect_with_logs(uri: &str, logs: &Path) -> Result<Self, Error> {
        event_loop::start().map_err(Error::Library)?;
        let inner = Arc::new(Inner {
            uri: uri.to_owned(),
            logs: logs.to_owned(),
            connection: watch::Sender::new(None),
            events: broadcast::Sender::new(4096),
            changes: Arc::new(Semaphore::new(MAX_CHANGES)),
            queries: Arc::new(Semaphore::new(MAX_QUERIES)),
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

    /// Runs a blocking call that changes nothing; `id` is the domain that it reads.
    async fn query<T: Send + 'static>(
        &self,
        action: &'static str,
        id: Option<Uuid>,
        f: impl FnOnce(&Connect) -> Result<T, VirtError> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(Kind::Query, action, id, f).await
    }

    /// Runs a blocking call that changes the domain.
    async fn change<T: Send + 'static>(
        &self,
        action: &'static str,
        id: Uuid,
        f: impl FnOnce(&Connect) -> Result<T, VirtError> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(Kind::Change, action, Some(id), f).await
    }

    async fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        action: &'static str,
        id: Option<Uuid>,
        f: impl FnOnce(&Connect) -> Result<T, VirtError> + Send + 'static,
    ) -> Result<T, Error> {
        let whole = async {
            let guard = match id {
                Some(id) => Some(self.lock(id).await),
                None => None,
            };
            let threads = match kind {
                Kind::Change => &self.inner.changes,
                Kind::Query => &self.inner.queries,
            };
            let permit = Arc::clone(threads).acquire_owned().await;
            let Some(sessions) = self.inner.connection.borrow().clone() else {
                return Err(Error::Unreachable("not connected".to_owned()));
            };
            let work = tokio::task::spawn_blocking(move || {
                let connect = match kind {
                    Kind::Change => sessions.changes.connect(),
                    Kind::Query => sessions.queries.connect(),
                };
                let result = f(connect).map_err(|error| {
                    // The state on our side; nothing is sent to the daemon.
                    let alive = connect.is_alive().unwrap_or(false);
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
        tokio::time::timeout(CALL_TIMEOUT, whole)
            .await
            .unwrap_or(Err(Error::Timeout(action)))
    }

    async fn on_domain(
        &self,
        action: &'static str,
        id: Uuid,
        f: impl FnOnce(&VirtDomain) -> Result<(), VirtError> + Send + 'static,
    ) -> Result<(), Error> {
        self.change(action, id, move |connect| {
            f(&connect.lookup_domain_by_uuid(id)?)
        })
        .await
    }
}

/// If the connection is not `alive` any more, every error is one of the connection, whatever its
/// message is; "no such domain" is the exception, since only the daemon says so.
fn translate(action: &'static str, id: Option<Uuid>, alive: bool, error: &VirtError) -> Error {
    let message = error.message().to_owned();
    match id {
        Some(id) if is_gone(error) => Error::NotFound(id),
        _ if !alive => Error::Unreachable(message),
        _ => Error::Failed { action, message },
    }
}

/// Whether a call failed because the domain does not exist.
fn is_gone(error: &VirtError) -> bool {
    error.code().is(ErrorNumber::NoDomain)
}

/// Whether an operation failed because the domain is in that state already.
fn is_invalid_operation(error: &VirtError) -> bool {
    error.code().is(ErrorNumber::OperationInvalid)
}

async fn keep_connected(inner: Weak<Inner>) {
    let mut wait = RECONNECT_MIN;
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
                wait = RECONNECT_MIN;
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
                wait = (wait * 2).min(RECONNECT_MAX);
            }
        }
    }
}

fn open(
    uri: &str,
    events: &broadcast::Sender<Event>,
    closed: &tokio::sync::mpsc::Sender<()>,
) -> Result<Sessions, String> {
    // When one connection is lost, both are opened again.
    let session = |events: Option<&broadcast::Sender<Event>>| {
        let connect = Connect::open(Some(uri))?;
        keep_alive(&connect)?;
        let (events, closed) = (events.cloned(), closed.clone());
        let handler: Handler = Arc::new(move |notification| match (notification, &events) {
            (Notification::Domain(id), Some(events)) => {
                // Nobody may listen.
                let _ = events.send(Event::Domain(id));
            }
            (Notification::Domain(_), None) => {}
            (Notification::Closed, _) => {
                // Full when the other connection was lost first.
                let _ = closed.try_send(());
            }
        });
        Session::new(connect, &handler)
    };
    let sessions = || {
        Ok(Sessions {
            queries: session(Some(events))?,
            changes: session(None)?,
        })
    };
    sessions().map_err(|error: VirtError| error.message().to_owned())
}

fn keep_alive(connect: &Connect) -> Result<(), VirtError> {
    let (interval, count) = KEEPALIVE;
    match connect.set_keep_alive(interval, count) {
        // A driver inside of the library, without a daemon.
        Err(error) if error.code().is(ErrorNumber::NoSupport) => Ok(()),
        done => done,
    }
}

/// libvirt's `major * 1000000 + minor * 1000 + release`, for people.
fn version(number: u32) -> String {
    let (major, minor) = (number / 1_000_000, number / 1000 % 1000);
    format!("{major}.{minor}.{}", number % 1000)
}

fn inspect(domain: &VirtDomain, logs: &Path) -> Result<Domain, VirtError> {
    let parsed = parse_domain(&domain.xml_desc(0)?);
    Ok(Domain {
        id: domain.uuid()?,
        state: state_of(domain, logs)?,
        metadata: parsed.metadata,
        hardware: parsed.hardware,
        taps: parsed.taps,
    })
}

/// Uses no call that waits for another call on the same domain, as reading the XML does:
/// otherwise one guest that hangs would block the list of all.
fn list(domain: &VirtDomain, logs: &Path) -> Result<ListedDomain, VirtError> {
    let element = domain.metadata(
        METADATA_ELEMENT,
        Some(NAMESPACE),
        sys::VIR_DOMAIN_AFFECT_CURRENT,
    );
    let metadata = match element {
        Ok(element) => parse_owner_element(&element),
        Err(error) if error.code().is(ErrorNumber::NoDomainMetadata) => None,
        Err(error) => return Err(error),
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
        self.query("read the host's capabilities", None, |connect| {
            Ok(HostFacts {
                libvirt: version(connect.lib_version()?),
                qemu: version(connect.hyp_version()?),
                ..parse_capabilities(&connect.capabilities()?)
            })
        })
        .await
    }

    async fn pci_devices(&self) -> Result<Vec<PciDevice>, Error> {
        let action = "list the host's PCI devices";
        self.query(action, None, |connect| {
            let all =
                connect.list_all_node_devices(sys::VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV)?;
            let mut found = Vec::new();
            for device in all {
                // One that was removed meanwhile is skipped.
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
        self.query("list the domains", None, move |connect| {
            // A domain that is removed meanwhile is skipped. Any other error fails the whole
            // list: otherwise a running domain would be taken for one that does not exist.
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
            .query("read a domain", Some(id), move |connect| {
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
            // `set_metadata` panics on a NUL.
            CString::new(xml.as_str())?;
            let mut flags = sys::VIR_DOMAIN_AFFECT_CURRENT;
            // Somebody else may have undefined it: then there is no definition to change.
            if domain.is_persistent()? {
                flags |= sys::VIR_DOMAIN_AFFECT_CONFIG;
            }
            if domain.is_active()? {
                flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
            }
            domain.set_metadata(
                METADATA_ELEMENT,
                Some(&xml),
                Some("pileus"),
                Some(NAMESPACE),
                flags,
            )
        })
        .await
    }

    async fn start_paused(&self, id: Uuid) -> Result<(), Error> {
        self.on_domain("start a domain", id, |domain| {
            match domain.create_with_flags(sys::VIR_DOMAIN_START_PAUSED) {
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
        // By its power button, never by the agent in the guest, which libvirt would ask first: one
        // that takes the question and does not answer keeps the call, and others, waiting.
        self.on_domain("shut a domain down", id, |domain| {
            match domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN) {
                Err(error) if is_invalid_operation(&error) && !domain.is_active()? => Ok(()),
                done => done,
            }
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
                // libvirt would let it run without a definition, and remove it when it ends.
                if domain.is_active()? {
                    return Ok(false);
                }
                domain
                    .undefine_flags(
                        sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                            | sys::VIR_DOMAIN_UNDEFINE_NVRAM,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::testing;

    #[test]
    fn a_driver_without_keepalive_is_used_without_it() {
        keep_alive(&testing::connect()).unwrap();
    }

    #[test]
    fn errors_of_a_lost_connection_are_told_from_answers_of_the_daemon() {
        let connect = testing::connect();
        let id = Uuid::from_u128(7);
        let error = connect.lookup_domain_by_uuid(id).err().unwrap();
        for alive in [true, false] {
            let translated = translate("x", Some(id), alive, &error);
            assert!(matches!(translated, Error::NotFound(it) if it == id));
        }
        let error = connect.define_domain_xml("<domain/>").err().unwrap();
        let translated = translate("x", Some(id), true, &error);
        assert!(matches!(translated, Error::Failed { .. }), "{translated}");
        let translated = translate("x", Some(id), false, &error);
        assert!(matches!(translated, Error::Unreachable(_)), "{translated}");
    }

    #[test]
    fn versions_are_written_with_dots() {
        assert_eq!(version(11_003_000), "11.3.0");
        assert_eq!(version(6_000_012), "6.0.12");
    }
}
