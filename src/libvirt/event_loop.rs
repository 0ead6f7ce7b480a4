//! libvirt's event loop: one thread for the process, which runs all callbacks and sends the
//! keepalive messages of all connections.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use virt::error::clear_error_callback;
use virt::event::{event_register_default_impl, event_run_default_impl};

/// Starts the event loop once for the process. libvirt takes it for connections that are opened
/// afterwards only.
///
/// # Errors
/// When libvirt refuses, or the thread cannot be started; a message for people.
pub(crate) fn start() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // By default libvirt prints every error to standard error, also expected ones such
            // as "no such domain".
            clear_error_callback();
            event_register_default_impl().map_err(|error| {
                format!("cannot register libvirt's event loop: {}", error.message())
            })?;
            thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(run)
                .map(drop)
                .map_err(|error| {
                    format!("cannot start the thread of libvirt's event loop: {error}")
                })
        })
        .clone()
}

fn run() {
    loop {
        if let Err(error) = event_run_default_impl() {
            tracing::error!(message = error.message(), "libvirt's event loop failed");
            // Not a busy loop if the error stays.
            thread::sleep(Duration::from_secs(1));
        }
    }
}

/// What tests share: libvirt's test driver, which is inside of its library and needs no daemon.
#[cfg(test)]
pub(crate) mod testing {
    use virt::connect::Connect;
    use virt::domain::Domain;

    /// A connection to the test driver. All connections of a process see the same domains.
    pub(crate) fn connect() -> Connect {
        super::start().unwrap();
        Connect::open(Some("test:///default")).unwrap()
    }

    /// A running domain of the test's own.
    pub(crate) fn running(connect: &Connect, name: &str) -> Domain {
        let xml = format!(
            "<domain type='test'><name>{name}</name><memory>8192</memory>\
             <os><type>hvm</type></os></domain>"
        );
        let domain = connect.define_domain_xml(&xml).unwrap();
        domain.create().unwrap();
        domain
    }
}
