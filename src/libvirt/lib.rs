//! The hypervisor driver on libvirt.

mod driver;
#[allow(
    unsafe_code,
    reason = "libvirt's library is written in C and found at run time"
)]
pub mod ffi;

pub use driver::Libvirt;
