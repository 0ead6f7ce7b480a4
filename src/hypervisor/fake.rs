//! A hypervisor in memory, for tests that need many of them, or one that fails when they want.
//! Follows the same contract as libvirt (`tests/contract/hypervisor.rs` runs on both); its guests
//! do what they are asked at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::domain::{
    Cell, DefinedHardware, Domain, DomainSpec, Event, HostFacts, ListedDomain, OwnerMetadata,
    PciAddress, PciDevice, State,
};
use super::{Error, Hypervisor};

/// Machine types that it knows, newest first.
const MACHINES: [&str; 2] = ["pc-q35-10.0", "pc-q35-9.2"];

/// A hypervisor in memory. Clones share their state.
#[derive(Clone)]
pub struct FakeHypervisor {
    inner: Arc<Mutex<Inner>>,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct Inner {
    domains: BTreeMap<Uuid, Defined>,
    runs: u32,
    down: bool,
    calls: Vec<&'static str>,
}

#[derive(Clone)]
struct Defined {
    spec: DomainSpec,
    state: State,
    /// Number of the run, while it is on.
    run: Option<u32>,
}

impl Default for FakeHypervisor {
    fn default() -> Self {
        Self {
            inner: Arc::default(),
            events: broadcast::Sender::new(4096),
        }
    }
}

impl FakeHypervisor {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answering(&self) -> Result<MutexGuard<'_, Inner>, Error> {
        let inner = self.inner();
        if inner.down {
            return Err(Error::Unreachable("not connected".to_owned()));
        }
        Ok(inner)
    }

    /// Changes a domain, and sends an event when its state has changed.
    fn change(
        &self,
        action: &'static str,
        id: Uuid,
        f: impl FnOnce(&mut Defined, &mut u32) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut inner = self.answering()?;
        inner.calls.push(action);
        let Inner { domains, runs, .. } = &mut *inner;
        let domain = domains.get_mut(&id).ok_or(Error::NotFound(id))?;
        let before = domain.state;
        f(domain, runs)?;
        if domain.state != before {
            let _ = self.events.send(Event::Domain(id));
        }
        Ok(())
    }

    /// Stops the hypervisor's daemon, or starts it again; guests are not touched.
    pub fn set_down(&self, down: bool) {
        let mut inner = self.inner();
        if inner.down != down {
            inner.down = down;
            let _ = self.events.send(if down {
                Event::Disconnected
            } else {
                Event::Connected
            });
        }
    }

    /// Ends the guest that runs: by its own shutdown, or as if its process was killed.
    pub fn end_guest(&self, id: Uuid, by_itself: bool) {
        if let Some(domain) = self.inner().domains.get_mut(&id)
            && domain.run.take().is_some()
        {
            domain.state = if by_itself {
                State::ShutDown
            } else {
                State::Off
            };
            let _ = self.events.send(Event::Domain(id));
        }
    }

    /// Number of the run of a domain, while it is on: what a process id is to a real one.
    #[must_use]
    pub fn run(&self, id: Uuid) -> Option<u32> {
        self.inner().domains.get(&id)?.run
    }

    /// The changes that were requested so far.
    #[must_use]
    pub fn calls(&self) -> Vec<&'static str> {
        self.inner().calls.clone()
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn host(&self) -> Result<HostFacts, Error> {
        drop(self.answering()?);
        Ok(HostFacts {
            security_models: Vec::new(),
            architecture: std::env::consts::ARCH.to_owned(),
            cells: vec![Cell {
                id: 0,
                cpus: vec![0, 1],
                memory_mib: 4096,
                pages: [(2048, 512)].into(),
            }],
            machines: MACHINES.map(str::to_owned).to_vec(),
            libvirt: "11.3.0".to_owned(),
            qemu: "10.0.2".to_owned(),
        })
    }

    async fn pci_devices(&self) -> Result<Vec<PciDevice>, Error> {
        drop(self.answering()?);
        let device = |slot| PciDevice {
            address: PciAddress {
                slot,
                ..PciAddress::default()
            },
            vendor: "1af4".to_owned(),
            product: "1041".to_owned(),
            numa_node: None,
        };
        Ok([1, 2].map(device).to_vec())
    }

    async fn domains(&self) -> Result<Vec<ListedDomain>, Error> {
        let listed = |(id, domain): (&Uuid, &Defined)| ListedDomain {
            id: *id,
            metadata: Some(domain.spec.metadata.clone()),
            state: domain.state,
        };
        Ok(self.answering()?.domains.iter().map(listed).collect())
    }

    async fn domain(&self, id: Uuid) -> Result<Option<Domain>, Error> {
        let inner = self.answering()?;
        Ok(inner.domains.get(&id).map(|domain| Domain {
            id,
            metadata: Some(domain.spec.metadata.clone()),
            state: domain.state,
            hardware: DefinedHardware {
                machine: domain.spec.machine.clone(),
                cpu_model: domain.spec.cpu_model.clone(),
                virt_type: domain.spec.virt_type.as_str().to_owned(),
            },
            taps: match domain.run {
                Some(_) => domain.spec.nics.iter().map(super::Nic::tap).collect(),
                None => Vec::new(),
            },
        }))
    }

    async fn define(&self, spec: &DomainSpec) -> Result<(), Error> {
        let mut inner = self.answering()?;
        inner.calls.push("define");
        if !MACHINES.contains(&spec.machine.as_str()) {
            return Err(Error::Failed {
                action: "define a domain",
                message: format!("no machine type {}", spec.machine),
            });
        }
        inner
            .domains
            .entry(spec.id)
            .and_modify(|domain| domain.spec = spec.clone())
            .or_insert_with(|| Defined {
                spec: spec.clone(),
                state: State::Off,
                run: None,
            });
        let _ = self.events.send(Event::Domain(spec.id));
        Ok(())
    }

    async fn set_owner_metadata(&self, id: Uuid, metadata: &OwnerMetadata) -> Result<(), Error> {
        self.change("mark", id, |domain, _| {
            domain.spec.metadata = metadata.clone();
            Ok(())
        })
    }

    async fn start_paused(&self, id: Uuid) -> Result<(), Error> {
        self.change("start", id, |domain, runs| {
            if domain.run.is_some() {
                return Ok(());
            }
            let spec = &domain.spec;
            let files = std::iter::once(&spec.root.path).chain(&spec.config_drive);
            if let Some(missing) = files.into_iter().find(|path| !Path::new(path).exists()) {
                return Err(Error::Failed {
                    action: "start a domain",
                    message: format!("Cannot access storage file '{missing}'"),
                });
            }
            *runs += 1;
            domain.run = Some(*runs);
            domain.state = State::Paused;
            Ok(())
        })
    }

    async fn resume(&self, id: Uuid) -> Result<(), Error> {
        self.change("resume", id, |domain, _| {
            if domain.run.is_none() {
                return Err(Error::Failed {
                    action: "resume a domain",
                    message: "domain is not running".to_owned(),
                });
            }
            domain.state = State::Running;
            Ok(())
        })
    }

    async fn shut_down(&self, id: Uuid) -> Result<(), Error> {
        self.change("shut down", id, |domain, _| {
            // A guest whose processors are paused does not react.
            if domain.state == State::Running {
                domain.run = None;
                domain.state = State::ShutDown;
            }
            Ok(())
        })
    }

    async fn power_off(&self, id: Uuid) -> Result<(), Error> {
        let done = self.change("power off", id, |domain, _| {
            if domain.run.take().is_some() {
                domain.state = State::Off;
            }
            Ok(())
        });
        match done {
            Err(Error::NotFound(_)) => Ok(()),
            done => done,
        }
    }

    async fn undefine(&self, id: Uuid) -> Result<(), Error> {
        let mut inner = self.answering()?;
        inner.calls.push("undefine");
        match inner.domains.get(&id) {
            Some(domain) if domain.run.is_some() => Err(Error::Failed {
                action: "remove a domain's definition",
                message: "the domain is on; it must be off first".to_owned(),
            }),
            Some(_) => {
                inner.domains.remove(&id);
                let _ = self.events.send(Event::Domain(id));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
