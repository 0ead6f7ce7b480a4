//! The calls of libvirt that the `virt` crate does not wrap: the event loop, domain events
//! and the close callback. The only place with `unsafe`.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, OnceLock};
use std::thread;

use uuid::Uuid;
use virt::connect::Connect;
use virt_sys as sys;

/// Called from the event loop's thread; must not block.
pub type Notify = Box<dyn Fn(Notice) + Send + Sync>;

/// What libvirt tells.
pub enum Notice {
    /// A domain changed its state.
    Domain(Uuid),
    /// The connection closed.
    Closed,
}

/// Starts the event loop, once for the process, before the first connection is made.
pub fn start_event_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // libvirt's own handler prints every error, also those that are answers ("no
            // such domain"), to standard error.
            virt::error::clear_error_callback();
            // SAFETY: takes no arguments; called once, before any connection exists.
            if unsafe { sys::virEventRegisterDefaultImpl() } < 0 {
                return Err("libvirt's event loop cannot be registered".to_owned());
            }
            thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(|| {
                    loop {
                        // SAFETY: the default implementation was registered above, and only
                        // this thread runs it.
                        if unsafe { sys::virEventRunDefaultImpl() } < 0 {
                            tracing::error!("libvirt's event loop failed once");
                            thread::sleep(std::time::Duration::from_secs(1));
                        }
                    }
                })
                .map(drop)
                .map_err(|e| format!("cannot start the thread of libvirt's event loop: {e}"))
        })
        .clone()
}

/// A connection that tells what happens; registrations hold libvirt's side of it, and are
/// taken back when it is dropped.
pub struct Session {
    connect: Arc<Connect>,
    lifecycle: c_int,
}

impl Session {
    /// Registers for domain events and the connection's end, with keepalive on.
    pub fn new(connect: Connect, notify: impl Fn() -> Notify) -> Result<Self, String> {
        let lifecycle = subscribe(&connect, notify)?;
        Ok(Self {
            connect: Arc::new(connect),
            lifecycle,
        })
    }

    /// The connection.
    pub fn connect(&self) -> &Connect {
        &self.connect
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (connect, lifecycle) = (Arc::clone(&self.connect), self.lifecycle);
        // The daemon is told, and may be slow to answer. Without a thread the connection
        // stays open until the process ends, which is harmless.
        let _ = thread::Builder::new()
            .name("libvirt-close".to_owned())
            .spawn(move || unsubscribe(&connect, lifecycle));
    }
}

fn unsubscribe(connect: &Connect, lifecycle: c_int) {
    // SAFETY: `connect` owns its connection for the whole call; both calls refuse what is
    // not registered any more, and free what was.
    unsafe {
        let ptr = connect.as_ptr();
        sys::virConnectUnregisterCloseCallback(ptr, Some(on_close));
        sys::virConnectDomainEventDeregisterAny(ptr, lifecycle);
    }
}

fn subscribe(connect: &Connect, notify: impl Fn() -> Notify) -> Result<c_int, String> {
    // SAFETY: `connect` owns a live connection for the whole call.
    let ptr = unsafe { connect.as_ptr() };
    let opaque = Box::into_raw(Box::new(notify()));
    // SAFETY: a lifecycle callback has the type that is cast away here (libvirt's own
    // VIR_DOMAIN_EVENT_CALLBACK macro does the same); `opaque` lives until `free` gets it.
    let lifecycle = unsafe {
        let callback: unsafe extern "C" fn(
            sys::virConnectPtr,
            sys::virDomainPtr,
            c_int,
            c_int,
            *mut c_void,
        ) -> c_int = on_lifecycle;
        sys::virConnectDomainEventRegisterAny(
            ptr,
            std::ptr::null_mut(),
            sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE.cast_signed(),
            Some(std::mem::transmute::<
                unsafe extern "C" fn(
                    sys::virConnectPtr,
                    sys::virDomainPtr,
                    c_int,
                    c_int,
                    *mut c_void,
                ) -> c_int,
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void),
            >(callback)),
            opaque.cast(),
            Some(free),
        )
    };
    if lifecycle < 0 {
        // SAFETY: libvirt did not take it over.
        drop(unsafe { Box::from_raw(opaque) });
        return Err("cannot register for domain events".to_owned());
    }
    let close = Box::into_raw(Box::new(notify()));
    // SAFETY: as above; the types are the ones declared.
    let registered = unsafe {
        sys::virConnectRegisterCloseCallback(ptr, Some(on_close), close.cast(), Some(free))
    };
    if registered < 0 {
        // SAFETY: libvirt did not take it over.
        drop(unsafe { Box::from_raw(close) });
        unsubscribe(connect, lifecycle);
        return Err("cannot register for the connection's end".to_owned());
    }
    // A daemon that is stuck counts as gone after 5 × 3 s. A local test driver has no
    // keepalive and answers with an error, which changes nothing.
    // SAFETY: plain numbers on a live connection.
    unsafe { sys::virConnectSetKeepAlive(ptr, 5, 3) };
    Ok(lifecycle)
}

unsafe extern "C" fn on_lifecycle(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let mut bytes = [0_u8; 16];
    // SAFETY: libvirt lends a valid domain for the callback; a raw uuid has 16 bytes.
    if unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) } == 0 {
        // SAFETY: `opaque` is the Box registered in `subscribe`, alive until `free`.
        let notify = unsafe { &*opaque.cast::<Notify>() };
        notify(Notice::Domain(Uuid::from_bytes(bytes)));
    }
    0
}

unsafe extern "C" fn on_close(_connect: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the Box registered in `subscribe`, alive until `free`.
    let notify = unsafe { &*opaque.cast::<Notify>() };
    notify(Notice::Closed);
}

unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once, with the pointer that `subscribe` made.
    drop(unsafe { Box::from_raw(opaque.cast::<Notify>()) });
}
