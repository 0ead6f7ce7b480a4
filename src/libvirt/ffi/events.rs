//! libvirt's event loop, and what it tells of domains and of the connection.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::thread;

use uuid::Uuid;

use super::VIR_DOMAIN_EVENT_ID_LIFECYCLE;
use super::client::Connect;
use super::library::{Functions, VirConnect, VirDomain, VirError, functions};

/// Called from the event loop's thread; must not block.
pub type Notify = Box<dyn Fn(Notice) + Send + Sync>;

/// What libvirt tells.
pub enum Notice {
    /// A domain changed its state.
    Domain(Uuid),
    /// The connection closed.
    Closed,
}

/// Starts the event loop, once for the process, before the first connection is made. Loads
/// libvirt's library.
///
/// # Errors
/// When the library cannot be loaded or the loop not be started; for people.
pub fn start_event_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            let functions = functions()?;
            // libvirt's own handler prints every error, also those that are answers ("no
            // such domain"), to standard error.
            // SAFETY: `say_nothing` may be called at any time, with anything.
            unsafe { (functions.virSetErrorFunc)(ptr::null_mut(), Some(say_nothing)) };
            // SAFETY: takes no arguments; called once, before any connection exists.
            if unsafe { (functions.virEventRegisterDefaultImpl)() } < 0 {
                return Err("libvirt's event loop cannot be registered".to_owned());
            }
            thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(|| {
                    loop {
                        // SAFETY: the default implementation was registered above, and only
                        // this thread runs it.
                        if unsafe { (functions.virEventRunDefaultImpl)() } < 0 {
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

unsafe extern "C" fn say_nothing(_data: *mut c_void, _error: *mut VirError) {}

/// A connection that tells what happens; registrations hold libvirt's side of it, and are
/// taken back when it is dropped.
pub struct Session {
    connect: Arc<Connect>,
    lifecycle: c_int,
}

impl Session {
    /// Registers for domain events and the connection's end, with keepalive on.
    ///
    /// # Errors
    /// When libvirt refuses; for people.
    pub fn new(connect: Connect, notify: impl Fn() -> Notify) -> Result<Self, String> {
        let lifecycle = subscribe(&connect, notify)?;
        Ok(Self {
            connect: Arc::new(connect),
            lifecycle,
        })
    }

    /// The connection.
    #[must_use]
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

/// What callbacks get back.
struct Registered {
    functions: &'static Functions,
    notify: Notify,
}

fn unsubscribe(connect: &Connect, lifecycle: c_int) {
    let functions = connect.functions();
    // SAFETY: `connect` is open for the whole call; both calls refuse what is not registered
    // any more, and free what was.
    unsafe {
        (functions.virConnectUnregisterCloseCallback)(connect.as_ptr(), Some(on_close));
        (functions.virConnectDomainEventDeregisterAny)(connect.as_ptr(), lifecycle);
    }
}

fn subscribe(connect: &Connect, notify: impl Fn() -> Notify) -> Result<c_int, String> {
    let functions = connect.functions();
    let registered = || {
        let notify = notify();
        Box::into_raw(Box::new(Registered { functions, notify }))
    };
    let opaque = registered();
    // SAFETY: `connect` is open for the whole call; the callback has the type that this event
    // has; `opaque` lives until `free` gets it.
    let lifecycle = unsafe {
        (functions.virConnectDomainEventRegisterAny)(
            connect.as_ptr(),
            ptr::null_mut(),
            VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            Some(on_lifecycle),
            opaque.cast(),
            Some(free),
        )
    };
    if lifecycle < 0 {
        // SAFETY: libvirt did not take it over.
        drop(unsafe { Box::from_raw(opaque) });
        return Err("cannot register for domain events".to_owned());
    }
    let opaque = registered();
    // SAFETY: as above.
    let closing = unsafe {
        (functions.virConnectRegisterCloseCallback)(
            connect.as_ptr(),
            Some(on_close),
            opaque.cast(),
            Some(free),
        )
    };
    if closing < 0 {
        // SAFETY: libvirt did not take it over.
        drop(unsafe { Box::from_raw(opaque) });
        unsubscribe(connect, lifecycle);
        return Err("cannot register for the connection's end".to_owned());
    }
    // A daemon that is stuck counts as gone after 5 × 3 s. A local test driver has no
    // keepalive and answers with an error, which changes nothing.
    // SAFETY: plain numbers on a live connection.
    unsafe { (functions.virConnectSetKeepAlive)(connect.as_ptr(), 5, 3) };
    Ok(lifecycle)
}

unsafe extern "C" fn on_lifecycle(
    _connect: *mut VirConnect,
    domain: *mut VirDomain,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: `opaque` is the Box registered in `subscribe`, alive until `free`.
    let registered = unsafe { &*opaque.cast::<Registered>() };
    let mut bytes = [0_u8; 16];
    // SAFETY: libvirt lends a valid domain for the callback; a raw uuid has 16 bytes.
    if unsafe { (registered.functions.virDomainGetUUID)(domain, bytes.as_mut_ptr()) } == 0 {
        (registered.notify)(Notice::Domain(Uuid::from_bytes(bytes)));
    }
    0
}

unsafe extern "C" fn on_close(_connect: *mut VirConnect, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the Box registered in `subscribe`, alive until `free`.
    let registered = unsafe { &*opaque.cast::<Registered>() };
    (registered.notify)(Notice::Closed);
}

unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once, with the pointer that `subscribe` made.
    drop(unsafe { Box::from_raw(opaque.cast::<Registered>()) });
}
