//! What is used of libvirt's client library, and how it is found: once for the process, and
//! never given back, since libvirt keeps threads and data of each thread.

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_ulong, c_void};
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The library, under the name that it has had since its first release.
const NAME: &str = "libvirt.so.0";
/// What brings it.
const ADVICE: &str = "Install Debian's package libvirt0 (`apt install libvirt0`), or what \
                      brings this library on other systems";
/// The oldest libvirt that will do, as `virGetVersion` counts.
const OLDEST: c_ulong = 6_000_000;

/// Things of libvirt's that are only ever pointed to.
macro_rules! opaque {
    ($($name:ident),*) => {
        $(
            #[repr(C)]
            pub struct $name {
                _opaque: [u8; 0],
            }
        )*
    };
}

opaque!(VirConnect, VirDomain, VirNodeDevice, VirError);

pub type OnError = unsafe extern "C" fn(data: *mut c_void, error: *mut VirError);
pub type OnLifecycle = unsafe extern "C" fn(
    connect: *mut VirConnect,
    domain: *mut VirDomain,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int;
pub type OnClose =
    unsafe extern "C" fn(connect: *mut VirConnect, reason: c_int, opaque: *mut c_void);
pub type Free = unsafe extern "C" fn(opaque: *mut c_void);

/// The functions, from declarations as libvirt's headers have them.
macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty)?;)*) => {
        /// libvirt's functions, under their own names. None may be called before the whole
        /// of them was found.
        #[allow(non_snake_case, reason = "libvirt's names, by which its documentation is searched")]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument: $type),*) $(-> $answer)?,)*
        }

        impl Functions {
            #[cfg(test)]
            const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// The error is the name of a function that is not there.
            ///
            /// # Safety
            /// What the library has under these names must be libvirt's, and the library
            /// must stay loaded.
            unsafe fn find(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $(
                        // SAFETY: a function of libvirt's has the type that its header
                        // declares for ever.
                        $name: *unsafe { library.get(concat!(stringify!($name), "\0")) }
                            .map_err(|_| stringify!($name))?,
                    )*
                })
            }
        }
    };
}

functions! {
    virGetLastErrorCode() -> c_int;
    virGetLastErrorMessage() -> *const c_char;
    virSetErrorFunc(data: *mut c_void, handler: Option<OnError>);
    virEventRegisterDefaultImpl() -> c_int;
    virEventRunDefaultImpl() -> c_int;

    virConnectOpen(uri: *const c_char) -> *mut VirConnect;
    virConnectClose(connect: *mut VirConnect) -> c_int;
    virConnectIsAlive(connect: *mut VirConnect) -> c_int;
    virConnectSetKeepAlive(connect: *mut VirConnect, interval: c_int, count: c_uint) -> c_int;
    virConnectRegisterCloseCallback(
        connect: *mut VirConnect, callback: Option<OnClose>, opaque: *mut c_void, free: Option<Free>
    ) -> c_int;
    virConnectUnregisterCloseCallback(connect: *mut VirConnect, callback: Option<OnClose>) -> c_int;
    // The header has a callback without a type, to which it casts those of each event; with
    // VIR_DOMAIN_EVENT_ID_LIFECYCLE it is this one.
    virConnectDomainEventRegisterAny(
        connect: *mut VirConnect, domain: *mut VirDomain, event: c_int,
        callback: Option<OnLifecycle>, opaque: *mut c_void, free: Option<Free>
    ) -> c_int;
    virConnectDomainEventDeregisterAny(connect: *mut VirConnect, callback: c_int) -> c_int;
    virConnectGetLibVersion(connect: *mut VirConnect, version: *mut c_ulong) -> c_int;
    virConnectGetVersion(connect: *mut VirConnect, version: *mut c_ulong) -> c_int;
    virConnectGetCapabilities(connect: *mut VirConnect) -> *mut c_char;
    virConnectListAllDomains(
        connect: *mut VirConnect, domains: *mut *mut *mut VirDomain, flags: c_uint
    ) -> c_int;
    virConnectListAllNodeDevices(
        connect: *mut VirConnect, devices: *mut *mut *mut VirNodeDevice, flags: c_uint
    ) -> c_int;

    virNodeDeviceFree(device: *mut VirNodeDevice) -> c_int;
    virNodeDeviceGetXMLDesc(device: *mut VirNodeDevice, flags: c_uint) -> *mut c_char;

    virDomainLookupByUUID(connect: *mut VirConnect, uuid: *const c_uchar) -> *mut VirDomain;
    virDomainDefineXML(connect: *mut VirConnect, xml: *const c_char) -> *mut VirDomain;
    virDomainFree(domain: *mut VirDomain) -> c_int;
    virDomainGetUUID(domain: *mut VirDomain, uuid: *mut c_uchar) -> c_int;
    virDomainGetXMLDesc(domain: *mut VirDomain, flags: c_uint) -> *mut c_char;
    virDomainGetState(
        domain: *mut VirDomain, state: *mut c_int, reason: *mut c_int, flags: c_uint
    ) -> c_int;
    virDomainGetMetadata(
        domain: *mut VirDomain, kind: c_int, uri: *const c_char, flags: c_uint
    ) -> *mut c_char;
    virDomainSetMetadata(
        domain: *mut VirDomain, kind: c_int, metadata: *const c_char, key: *const c_char,
        uri: *const c_char, flags: c_uint
    ) -> c_int;
    virDomainIsPersistent(domain: *mut VirDomain) -> c_int;
    virDomainIsActive(domain: *mut VirDomain) -> c_int;
    virDomainCreateWithFlags(domain: *mut VirDomain, flags: c_uint) -> c_int;
    virDomainResume(domain: *mut VirDomain) -> c_int;
    virDomainShutdown(domain: *mut VirDomain) -> c_int;
    virDomainDestroy(domain: *mut VirDomain) -> c_int;
    virDomainUndefineFlags(domain: *mut VirDomain, flags: c_uint) -> c_int;
}

/// libvirt's functions. The first call loads the library, which takes some 10 ms; the error is
/// for people.
pub fn functions() -> Result<&'static Functions, String> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    FUNCTIONS
        .get_or_init(|| load(NAME))
        .as_ref()
        .map_err(Clone::clone)
}

fn load(name: &str) -> Result<Functions, String> {
    // All that it needs is looked for now: what is missing is to be told here, not to end
    // the process at some later call.
    // SAFETY: runs the constructors of libvirt and of the libraries that it needs, as every
    // program does that is linked with it.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| {
        format!(
            "libvirt's client library {name} cannot be loaded: {}. {ADVICE}",
            reason(&error)
        )
    })?;
    let library = ManuallyDrop::new(library);
    let Some(version) = version(&library) else {
        return Err(format!(
            "the library {name} is none of libvirt's: it has no function virGetVersion. {ADVICE}"
        ));
    };
    let (has, oldest) = (readable(version), readable(OLDEST));
    let update = format!("{oldest} or newer is needed: update Debian's package libvirt0");
    // SAFETY: it is libvirt's, as it tells; it is never closed.
    let functions = unsafe { Functions::find(&library) }.map_err(|function| {
        format!("the library {name} of libvirt {has} has no function {function}. {update}")
    })?;
    if version < OLDEST {
        return Err(format!("the library {name} is of libvirt {has}. {update}"));
    }
    Ok(functions)
}

/// The dynamic loader's own words.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Which libvirt the library is of, as far as it can tell.
fn version(library: &Library) -> Option<c_ulong> {
    type VirGetVersion = unsafe extern "C" fn(*mut c_ulong, *const c_char, *mut c_ulong) -> c_int;
    let mut version = 0;
    // SAFETY: the type is the one that the header declares; without a driver's name nothing
    // is written to the third.
    let status = unsafe {
        let function = library.get::<VirGetVersion>(c"virGetVersion").ok()?;
        function(&raw mut version, std::ptr::null(), std::ptr::null_mut())
    };
    (status == 0).then_some(version)
}

/// libvirt's `major * 1000000 + minor * 1000 + release`, for people.
pub fn readable(version: c_ulong) -> String {
    let (major, minor) = (version / 1_000_000, version / 1000 % 1000);
    format!("{major}.{minor}.{}", version % 1000)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    #[test]
    fn without_libvirt_the_error_names_the_library_and_its_package() {
        let error = load("libpileus-none.so.0").err().unwrap();
        assert_eq!(
            error,
            "libvirt's client library libpileus-none.so.0 cannot be loaded: \
             libpileus-none.so.0: cannot open shared object file: No such file or directory. \
             Install Debian's package libvirt0 (`apt install libvirt0`), or what brings this \
             library on other systems"
        );
    }

    #[test]
    fn what_is_not_libvirt_is_told() {
        let error = load("libc.so.6").err().unwrap();
        assert!(error.contains("is none of libvirt's"), "{error}");
    }

    /// Makes a library that calls itself libvirt `version` and has `functions`.
    fn library(directory: &Path, version: c_ulong, functions: &[&str]) -> String {
        let mut text =
            format!("int virGetVersion(unsigned long *lib) {{ *lib = {version}; return 0; }}\n");
        for function in functions {
            writeln!(text, "void {function}(void) {{}}").unwrap();
        }
        let (source, made) = (directory.join("libvirt.c"), directory.join("libvirt.so"));
        std::fs::write(&source, text).unwrap();
        // What Rust's own programs are linked with.
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&made).arg(&source);
        assert!(cc.status().unwrap().success());
        made.display().to_string()
    }

    #[test]
    fn a_libvirt_that_lacks_a_function_is_told_with_the_functions_name_and_its_version() {
        let directory = tempfile::tempdir().unwrap();
        let others = Functions::NAMES.iter().copied();
        let others: Vec<_> = others
            .filter(|name| *name != "virDomainGetMetadata")
            .collect();
        let name = library(directory.path(), 9_010, &others);
        let error = load(&name).err().unwrap();
        let expected = format!(
            "the library {name} of libvirt 0.9.10 has no function virDomainGetMetadata. 6.0.0 or \
             newer is needed: update Debian's package libvirt0"
        );
        assert_eq!(error, expected);
    }

    #[test]
    fn a_libvirt_is_old_below_the_oldest_that_will_do() {
        let directory = tempfile::tempdir().unwrap();
        let name = library(directory.path(), OLDEST - 1, Functions::NAMES);
        let error = load(&name).err().unwrap();
        assert!(
            error.contains("is of libvirt 5.999.999. 6.0.0 or newer is needed"),
            "{error}"
        );
        // Another directory: the loader knows the first by its path.
        let directory = tempfile::tempdir().unwrap();
        let name = library(directory.path(), OLDEST, Functions::NAMES);
        assert!(load(&name).is_ok());
    }
}
