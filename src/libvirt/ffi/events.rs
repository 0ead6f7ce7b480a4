//! Events of domains and the end of a connection.

use std::ffi::{c_int, c_void};
use std::mem::{ManuallyDrop, transmute};
use std::ptr;
use std::sync::Arc;
use std::thread;

use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use super::check;

/// Called in the thread of libvirt's event loop: it must neither block nor panic.
pub type Handler = Arc<dyn Fn(Notification) + Send + Sync>;

/// What libvirt reports by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A domain was defined, undefined, or changed its state.
    Domain(Uuid),
    /// The connection was closed: by the daemon, by an error, or because keepalive got no answer.
    Closed,
}

/// A connection whose events are delivered to a handler. When it is dropped, the registrations
/// are removed and the connection is closed.
pub struct Session {
    connect: Arc<Connect>,
    lifecycle_id: c_int,
}

impl Session {
    /// Registers the handler for the events of all domains and for the end of the connection.
    ///
    /// # Errors
    /// libvirt's.
    pub fn new(connect: Connect, handler: &Handler) -> Result<Self, Error> {
        let lifecycle_id = register_lifecycle(&connect, handler)?;
        // Removes the first registration if the second fails.
        let session = Self {
            connect: Arc::new(connect),
            lifecycle_id,
        };
        register_close(&session.connect, handler)?;
        Ok(session)
    }

    /// The connection.
    #[must_use]
    pub fn connect(&self) -> &Connect {
        &self.connect
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (connect, lifecycle_id) = (Arc::clone(&self.connect), self.lifecycle_id);
        // In a thread of its own, since these calls wait for the daemon, which may be slow. If
        // the thread cannot be started, the connection stays open until the process ends: the
        // registrations hold it.
        let _ = thread::Builder::new()
            .name("libvirt-close".to_owned())
            .spawn(move || unregister(&connect, lifecycle_id));
    }
}

fn register_lifecycle(connect: &Connect, handler: &Handler) -> Result<c_int, Error> {
    let opaque = into_opaque(handler);
    let callback: unsafe extern "C" fn(
        sys::virConnectPtr,
        sys::virDomainPtr,
        c_int,
        c_int,
        *mut c_void,
    ) -> c_int = on_lifecycle;
    // SAFETY: `connect` is open during the call. The header declares one callback type for all
    // events and casts it (VIR_DOMAIN_EVENT_CALLBACK); libvirt calls it with the arguments of
    // `virConnectDomainEventCallback` for VIR_DOMAIN_EVENT_ID_LIFECYCLE, which is the type of
    // `on_lifecycle`. `opaque` is valid until libvirt passes it to `free_opaque`.
    let id = check(unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            ptr::null_mut(),
            sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE.cast_signed(),
            transmute::<
                sys::virConnectDomainEventCallback,
                sys::virConnectDomainEventGenericCallback,
            >(Some(callback)),
            opaque,
            Some(free_opaque),
        )
    });
    if id.is_err() {
        // SAFETY: libvirt keeps nothing of a registration that failed.
        unsafe { free_opaque(opaque) };
    }
    id
}

fn register_close(connect: &Connect, handler: &Handler) -> Result<(), Error> {
    let opaque = into_opaque(handler);
    // SAFETY: `connect` is open during the call; `opaque` is valid until libvirt passes it to
    // `free_opaque`.
    let registered = check(unsafe {
        sys::virConnectRegisterCloseCallback(
            connect.as_ptr(),
            Some(on_close),
            opaque,
            Some(free_opaque),
        )
    });
    if registered.is_err() {
        // SAFETY: libvirt keeps nothing of a registration that failed.
        unsafe { free_opaque(opaque) };
    }
    registered.map(drop)
}

fn unregister(connect: &Connect, lifecycle_id: c_int) {
    // Both calls fail if there is no such registration, or the daemon is gone; then libvirt frees
    // the registrations with the connection.
    // SAFETY: `connect` is open during both calls.
    unsafe {
        sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close));
        sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), lifecycle_id);
    }
}

/// The pointer that callbacks get: a handler of their own, on the heap.
fn into_opaque(handler: &Handler) -> *mut c_void {
    Box::into_raw(Box::new(Arc::clone(handler))).cast()
}

/// # Safety
/// `opaque` must come from `into_opaque`, and must not be used afterwards.
unsafe extern "C" fn free_opaque(opaque: *mut c_void) {
    // SAFETY: the caller's.
    drop(unsafe { Box::from_raw(opaque.cast::<Handler>()) });
}

/// # Safety
/// `domain` must be valid during the call; `opaque` must come from `into_opaque`.
unsafe extern "C" fn on_lifecycle(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: the caller's; libvirt frees it after the last call only.
    let handler = unsafe { &*opaque.cast::<Handler>() };
    // SAFETY: the caller's. The reference stays libvirt's, so it is not dropped here.
    let domain = ManuallyDrop::new(unsafe { Domain::from_ptr(domain) });
    if let Ok(id) = domain.uuid() {
        handler(Notification::Domain(id));
    }
    0
}

/// # Safety
/// `opaque` must come from `into_opaque`.
unsafe extern "C" fn on_close(_connect: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: the caller's; libvirt frees it after the call only.
    let handler = unsafe { &*opaque.cast::<Handler>() };
    handler(Notification::Closed);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::event_loop::testing;

    #[test]
    fn events_arrive_until_the_session_is_dropped_and_the_handler_is_freed() {
        let connect = testing::connect();
        let domain = testing::running(&connect, "events");
        let id = domain.uuid().unwrap();
        let (sender, events) = mpsc::channel();
        let handler: Handler = Arc::new(move |notification| {
            let _ = sender.send(notification);
        });
        let session = Session::new(connect, &handler).unwrap();
        // Events of the other tests' domains arrive too.
        let wait = |seconds| {
            let end = Instant::now() + Duration::from_secs(seconds);
            while let Ok(event) = events.recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                if event == Notification::Domain(id) {
                    return true;
                }
            }
            false
        };

        domain.suspend().unwrap();
        assert!(wait(10));
        // The callback's reference was not ours to free.
        assert_eq!(domain.uuid().unwrap(), id);

        let freed = Arc::downgrade(&handler);
        drop((handler, session));
        let until = Instant::now() + Duration::from_secs(10);
        // The test driver keeps the handler of the connection's end.
        while freed.strong_count() > 1 && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(freed.strong_count() <= 1, "{}", freed.strong_count());
        domain.resume().unwrap();
        assert!(!wait(1));
    }
}
