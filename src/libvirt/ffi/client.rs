//! Connections, domains and devices of libvirt, safe to use. Every call blocks.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr::{self, NonNull};

use nix::libc;
use uuid::Uuid;

use super::library::{Functions, VirConnect, VirDomain, VirNodeDevice, functions, readable};
use super::{VIR_ERR_INTERNAL_ERROR, VIR_ERR_OK};

/// Why a call failed, in libvirt's words.
#[derive(Clone, Debug)]
pub struct Error {
    /// A `virErrorNumber`.
    pub code: c_int,
    /// For people.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl Error {
    /// An error of our side.
    fn own(message: &str) -> Self {
        Self {
            code: VIR_ERR_INTERNAL_ERROR,
            message: message.to_owned(),
        }
    }
}

// libvirt keeps the last error of each thread until the thread's next call: these follow
// the call at once.
impl Functions {
    fn last_error(&self) -> Error {
        // SAFETY: both look at data of this thread; the text is valid until the next call.
        let (code, message) = unsafe {
            let message = (self.virGetLastErrorMessage)();
            ((self.virGetLastErrorCode)(), CStr::from_ptr(message))
        };
        if code == VIR_ERR_OK {
            return Error::own("an unknown error of libvirt");
        }
        Error {
            code,
            message: message.to_string_lossy().into_owned(),
        }
    }

    /// What a call answers that is negative on failure.
    fn number(&self, answer: c_int) -> Result<c_int, Error> {
        if answer < 0 {
            return Err(self.last_error());
        }
        Ok(answer)
    }

    /// What a call answers that is null on failure.
    fn pointer<T>(&self, answer: *mut T) -> Result<NonNull<T>, Error> {
        NonNull::new(answer).ok_or_else(|| self.last_error())
    }

    /// A text that a call made, null on failure.
    ///
    /// # Safety
    /// The text must be the caller's to free.
    unsafe fn text(&self, answer: *mut c_char) -> Result<String, Error> {
        let text = self.pointer(answer)?;
        // SAFETY: libvirt's texts end in a NUL; this one is ours, and not used any more.
        unsafe {
            let owned = CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned();
            libc::free(text.as_ptr().cast::<c_void>());
            Ok(owned)
        }
    }

    /// A list that `call` makes: it writes where the list is and answers how long it is.
    ///
    /// # Safety
    /// `call` must be one of libvirt's `virConnectListAll…`.
    unsafe fn list<T>(
        &self,
        call: impl FnOnce(*mut *mut *mut T) -> c_int,
    ) -> Result<Vec<NonNull<T>>, Error> {
        let mut list: *mut *mut T = ptr::null_mut();
        let length = self.number(call(&raw mut list))?.unsigned_abs() as usize;
        // SAFETY: libvirt made a list of this length, and a null pointer behind it; the list
        // is ours to free, and so are its members.
        unsafe {
            let found = (0..length).filter_map(|at| NonNull::new(*list.add(at)));
            let found = found.collect();
            libc::free(list.cast::<c_void>());
            Ok(found)
        }
    }
}

fn c_text(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::own("a text for libvirt holds a NUL"))
}

/// A connection to a libvirt daemon; closed when it is dropped.
pub struct Connect {
    functions: &'static Functions,
    ptr: NonNull<VirConnect>,
}

// SAFETY: libvirt's connections are made for use by several threads at once.
unsafe impl Send for Connect {}
// SAFETY: as above.
unsafe impl Sync for Connect {}

impl Connect {
    /// Connects, and loads libvirt's library when nobody has yet.
    ///
    /// # Errors
    /// When the library cannot be loaded, or nobody answers at `uri`.
    pub fn open(uri: &str) -> Result<Self, Error> {
        let functions = functions().map_err(|error| Error::own(&error))?;
        let uri = c_text(uri)?;
        // SAFETY: a text that lives for the call.
        let ptr = functions.pointer(unsafe { (functions.virConnectOpen)(uri.as_ptr()) })?;
        Ok(Self { functions, ptr })
    }

    pub(super) fn functions(&self) -> &'static Functions {
        self.functions
    }

    /// For calls during which `self` is held.
    pub(super) fn as_ptr(&self) -> *mut VirConnect {
        self.ptr.as_ptr()
    }

    /// Whether the connection is, as far as is known here; asks nobody.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { (self.functions.virConnectIsAlive)(self.as_ptr()) == 1 }
    }

    /// Version of the daemon.
    ///
    /// # Errors
    /// libvirt's.
    pub fn lib_version(&self) -> Result<String, Error> {
        let (f, mut version) = (self.functions, 0);
        // SAFETY: the connection is open.
        f.number(unsafe { (f.virConnectGetLibVersion)(self.as_ptr(), &raw mut version) })?;
        Ok(readable(version))
    }

    /// Version of the hypervisor.
    ///
    /// # Errors
    /// libvirt's.
    pub fn hyp_version(&self) -> Result<String, Error> {
        let (f, mut version) = (self.functions, 0);
        // SAFETY: the connection is open.
        f.number(unsafe { (f.virConnectGetVersion)(self.as_ptr(), &raw mut version) })?;
        Ok(readable(version))
    }

    /// What the host and its hypervisor can do, as XML.
    ///
    /// # Errors
    /// libvirt's.
    pub fn capabilities(&self) -> Result<String, Error> {
        let f = self.functions;
        // SAFETY: the connection is open; the text is ours.
        unsafe { f.text((f.virConnectGetCapabilities)(self.as_ptr())) }
    }

    /// The host's devices that are of a kind in `flags`.
    ///
    /// # Errors
    /// libvirt's.
    pub fn list_all_node_devices(&self, flags: c_uint) -> Result<Vec<NodeDevice>, Error> {
        let functions = self.functions;
        // SAFETY: the connection is open.
        let found = unsafe {
            functions
                .list(|list| (functions.virConnectListAllNodeDevices)(self.as_ptr(), list, flags))
        };
        let device = |ptr| NodeDevice { functions, ptr };
        Ok(found?.into_iter().map(device).collect())
    }

    /// The domains, all of them without `flags`.
    ///
    /// # Errors
    /// libvirt's.
    pub fn list_all_domains(&self, flags: c_uint) -> Result<Vec<Domain>, Error> {
        let f = self.functions;
        // SAFETY: the connection is open.
        let found =
            unsafe { f.list(|list| (f.virConnectListAllDomains)(self.as_ptr(), list, flags)) };
        Ok(found?.into_iter().map(|ptr| self.domain(ptr)).collect())
    }

    /// Finds a domain.
    ///
    /// # Errors
    /// libvirt's; `VIR_ERR_NO_DOMAIN` when there is none.
    pub fn lookup_domain_by_uuid(&self, id: Uuid) -> Result<Domain, Error> {
        let f = self.functions;
        // SAFETY: the connection is open; a raw uuid has 16 bytes.
        let found = unsafe { (f.virDomainLookupByUUID)(self.as_ptr(), id.as_bytes().as_ptr()) };
        f.pointer(found).map(|ptr| self.domain(ptr))
    }

    /// Defines a domain, or changes its definition.
    ///
    /// # Errors
    /// libvirt's.
    pub fn define_domain_xml(&self, xml: &str) -> Result<Domain, Error> {
        let (f, xml) = (self.functions, c_text(xml)?);
        // SAFETY: the connection is open; a text that lives for the call.
        let defined = unsafe { (f.virDomainDefineXML)(self.as_ptr(), xml.as_ptr()) };
        f.pointer(defined).map(|ptr| self.domain(ptr))
    }

    fn domain(&self, ptr: NonNull<VirDomain>) -> Domain {
        let functions = self.functions;
        Domain { functions, ptr }
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        // Fails for what is no connection only.
        // SAFETY: the connection is open and ours; domains hold it themselves.
        unsafe { (self.functions.virConnectClose)(self.as_ptr()) };
    }
}

/// A domain, which keeps its connection open.
pub struct Domain {
    functions: &'static Functions,
    ptr: NonNull<VirDomain>,
}

impl Domain {
    fn as_ptr(&self) -> *mut VirDomain {
        self.ptr.as_ptr()
    }

    /// Makes a call that takes nothing but the domain and leaves it ours; it answers what is
    /// not negative.
    fn plain(
        &self,
        call: unsafe extern "C" fn(domain: *mut VirDomain) -> c_int,
    ) -> Result<c_int, Error> {
        // SAFETY: the domain is ours; `call` is one of libvirt's, which want no more.
        self.functions.number(unsafe { call(self.as_ptr()) })
    }

    /// Its id.
    ///
    /// # Errors
    /// libvirt's.
    pub fn uuid(&self) -> Result<Uuid, Error> {
        let (f, mut bytes) = (self.functions, [0; 16]);
        // SAFETY: the domain is ours; a raw uuid has 16 bytes.
        f.number(unsafe { (f.virDomainGetUUID)(self.as_ptr(), bytes.as_mut_ptr()) })?;
        Ok(Uuid::from_bytes(bytes))
    }

    /// Its XML.
    ///
    /// # Errors
    /// libvirt's.
    pub fn xml_desc(&self, flags: c_uint) -> Result<String, Error> {
        let f = self.functions;
        // SAFETY: the domain is ours, and so is the text.
        unsafe { f.text((f.virDomainGetXMLDesc)(self.as_ptr(), flags)) }
    }

    /// Its `virDomainState`, and the reason, whose meaning depends on the state.
    ///
    /// # Errors
    /// libvirt's.
    pub fn state(&self) -> Result<(c_int, c_int), Error> {
        let (f, mut state, mut reason) = (self.functions, 0, 0);
        // SAFETY: the domain is ours.
        f.number(unsafe {
            (f.virDomainGetState)(self.as_ptr(), &raw mut state, &raw mut reason, 0)
        })?;
        Ok((state, reason))
    }

    /// The metadata of a `virDomainMetadataType`, in the XML's namespace `uri`.
    ///
    /// # Errors
    /// libvirt's; `VIR_ERR_NO_DOMAIN_METADATA` when there is none.
    pub fn metadata(&self, kind: c_int, uri: &str, flags: c_uint) -> Result<String, Error> {
        let (f, uri) = (self.functions, c_text(uri)?);
        // SAFETY: the domain is ours, and so is the text; `uri` lives for the call.
        unsafe {
            f.text((f.virDomainGetMetadata)(
                self.as_ptr(),
                kind,
                uri.as_ptr(),
                flags,
            ))
        }
    }

    /// Changes the metadata of a `virDomainMetadataType`; `key` is the prefix of the
    /// namespace `uri`.
    ///
    /// # Errors
    /// libvirt's.
    pub fn set_metadata(
        &self,
        kind: c_int,
        metadata: &str,
        key: &str,
        uri: &str,
        flags: c_uint,
    ) -> Result<(), Error> {
        let f = self.functions;
        let (metadata, key, uri) = (c_text(metadata)?, c_text(key)?, c_text(uri)?);
        let (metadata, key, uri) = (metadata.as_ptr(), key.as_ptr(), uri.as_ptr());
        // SAFETY: the domain is ours; the texts live for the call.
        let set =
            unsafe { (f.virDomainSetMetadata)(self.as_ptr(), kind, metadata, key, uri, flags) };
        f.number(set).map(drop)
    }

    /// Whether it is there also when it is off.
    ///
    /// # Errors
    /// libvirt's.
    pub fn is_persistent(&self) -> Result<bool, Error> {
        Ok(self.plain(self.functions.virDomainIsPersistent)? == 1)
    }

    /// Whether it is on.
    ///
    /// # Errors
    /// libvirt's.
    pub fn is_active(&self) -> Result<bool, Error> {
        Ok(self.plain(self.functions.virDomainIsActive)? == 1)
    }

    /// Starts it.
    ///
    /// # Errors
    /// libvirt's.
    pub fn create_with_flags(&self, flags: c_uint) -> Result<(), Error> {
        let f = self.functions;
        // SAFETY: the domain is ours.
        let created = unsafe { (f.virDomainCreateWithFlags)(self.as_ptr(), flags) };
        f.number(created).map(drop)
    }

    /// Lets its processors run.
    ///
    /// # Errors
    /// libvirt's.
    pub fn resume(&self) -> Result<(), Error> {
        self.plain(self.functions.virDomainResume).map(drop)
    }

    /// Asks the guest to shut down.
    ///
    /// # Errors
    /// libvirt's.
    pub fn shutdown(&self) -> Result<(), Error> {
        self.plain(self.functions.virDomainShutdown).map(drop)
    }

    /// Cuts its power.
    ///
    /// # Errors
    /// libvirt's.
    pub fn destroy(&self) -> Result<(), Error> {
        self.plain(self.functions.virDomainDestroy).map(drop)
    }

    /// Removes its definition.
    ///
    /// # Errors
    /// libvirt's.
    pub fn undefine_flags(&self, flags: c_uint) -> Result<(), Error> {
        let f = self.functions;
        // SAFETY: the domain is ours.
        let undefined = unsafe { (f.virDomainUndefineFlags)(self.as_ptr(), flags) };
        f.number(undefined).map(drop)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // Fails for what is no domain only.
        // SAFETY: the domain is ours, and not used any more.
        unsafe { (self.functions.virDomainFree)(self.as_ptr()) };
    }
}

/// A device of the host.
pub struct NodeDevice {
    functions: &'static Functions,
    ptr: NonNull<VirNodeDevice>,
}

impl NodeDevice {
    /// Its XML.
    ///
    /// # Errors
    /// libvirt's, also when it has gone meanwhile.
    pub fn xml_desc(&self, flags: c_uint) -> Result<String, Error> {
        let f = self.functions;
        // SAFETY: the device is ours, and so is the text.
        unsafe { f.text((f.virNodeDeviceGetXMLDesc)(self.ptr.as_ptr(), flags)) }
    }
}

impl Drop for NodeDevice {
    fn drop(&mut self) {
        // Fails for what is no device only.
        // SAFETY: the device is ours, and not used any more.
        unsafe { (self.functions.virNodeDeviceFree)(self.ptr.as_ptr()) };
    }
}
