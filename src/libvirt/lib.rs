//! The hypervisor driver on libvirt, through the crate `virt`.
//!
//! Whatever depends on this crate is linked with libvirt's client library `libvirt.so.0`
//! (Debian's package `libvirt0`, 6.0 or newer) and does not start without it: of our programs
//! that is `pileus-agent` alone. Building needs the headers and `pkg-config` (`libvirt-dev`).

mod driver;
mod event_loop;
#[allow(
    unsafe_code,
    reason = "C functions and callbacks of libvirt that the crate `virt` does not wrap"
)]
pub mod ffi;
mod state;

pub use driver::Libvirt;
