//! Which Instances a host still has capacity for. The host decides last, since the scheduler may
//! have decided on outdated figures. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use pileus_api::common::{Claim, Ratios};
use pileus_api::conditions::{self, ConditionType};
use pileus_api::host::HostSpec;
use pileus_api::{Instance, Reason};
use pileus_values::parse_milli;

/// What a host offers to Servers in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    total: Claim,
    /// QEMU's own memory for each VM in MiB.
    overhead_mib: i64,
}

/// An Instance that has its place on the host, or asks for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// When it was created, and its name: the earlier comes first.
    pub rank: (Option<Time>, String),
    /// What it uses.
    pub claim: Claim,
    /// A disk of it was made here.
    pub placed: bool,
    /// The host has refused it.
    pub refused: bool,
}

impl Candidate {
    /// An Instance; `realized` is whether this agent has seen a disk of it here, `virtual_size` the
    /// size of its image's disk in bytes, once that is here.
    #[must_use]
    pub fn of(object: &Instance, realized: bool, virtual_size: Option<i64>) -> Self {
        let status = object.status.as_ref();
        let reported = status.and_then(|s| s.image.as_ref());
        let claim = object
            .spec
            .claim
            .with_image(virtual_size.or_else(|| reported.map(|image| image.virtual_size)));
        let gives_way = object.spec.preempted && not_ready_for(object, Reason::Preempted);
        Self {
            rank: (
                object.metadata.creation_timestamp.clone(),
                object.name_any(),
            ),
            claim: if gives_way {
                Claim {
                    disk_gib: claim.disk_gib,
                    ..Claim::default()
                }
            } else {
                claim
            },
            placed: realized || status.is_some_and(|s| s.realized == Some(true)),
            refused: not_ready_for(object, Reason::HostRefused),
        }
    }

    /// Whether it has its place on the host, or comes before `own` for it. Of those that have
    /// none, the earlier comes first, so that two that do not fit together are not both
    /// refused; one that was refused uses nothing.
    #[must_use]
    pub fn comes_before(&self, own: &Self) -> bool {
        self.placed || (self.rank < own.rank && !self.refused)
    }
}

/// Whether this is the reported reason why it is not Ready.
#[must_use]
pub fn not_ready_for(object: &Instance, reason: Reason) -> bool {
    let reported = object.status.as_ref().map(|s| s.conditions.as_slice());
    let ready = conditions::find(reported.unwrap_or_default(), ConditionType::Ready);
    ready.is_some_and(|ready| ready.reason == reason.as_str())
}

impl Capacity {
    /// As the scheduler counts. A ratio that cannot be read counts as absent; the scheduler
    /// reports it.
    #[must_use]
    pub fn new(spec: &HostSpec, capacity: Claim, overhead_mib: i64) -> Self {
        let usual = Ratios::default();
        let read = |ratio: &Option<String>, usual| {
            let ratio = ratio.as_deref().and_then(|text| parse_milli(text).ok());
            ratio.unwrap_or(usual)
        };
        let ratios = Ratios {
            cpu: read(&spec.cpu_allocation_ratio, usual.cpu),
            memory: read(&spec.memory_allocation_ratio, usual.memory),
            disk: read(&spec.disk_allocation_ratio, usual.disk),
        };
        Self {
            total: capacity.given(spec.reserved.unwrap_or_default(), ratios),
            overhead_mib,
        }
    }

    /// Why `own` does not fit beside those that come before it.
    #[must_use]
    pub fn refusal(
        &self,
        own: &Candidate,
        others: impl IntoIterator<Item = Candidate>,
    ) -> Option<String> {
        let others = others
            .into_iter()
            .filter(|other| other.comes_before(own))
            .map(|other| other.claim);
        self.shortage(own.claim, others)
    }

    /// Why `claim` does not fit beside `others`, with the figures; `None` when it does.
    #[must_use]
    pub fn shortage(
        &self,
        claim: Claim,
        others: impl IntoIterator<Item = Claim>,
    ) -> Option<String> {
        let mut left = self.total;
        for other in others {
            left.vcpus = left.vcpus.saturating_sub(other.vcpus);
            left.memory_mib = left.memory_mib.saturating_sub(other.memory_mib);
            // A claim without memory is of a guest that is off, and has no QEMU.
            if other.memory_mib > 0 {
                left.memory_mib = left.memory_mib.saturating_sub(self.overhead_mib);
            }
            left.disk_gib = left.disk_gib.saturating_sub(other.disk_gib);
        }
        let memory = claim.memory_mib.saturating_add(self.overhead_mib);
        let lacking: Vec<_> = [
            ("vCPUs", claim.vcpus, left.vcpus, self.total.vcpus),
            (
                "MiB of memory",
                memory,
                left.memory_mib,
                self.total.memory_mib,
            ),
            (
                "GiB of disk",
                claim.disk_gib,
                left.disk_gib,
                self.total.disk_gib,
            ),
        ]
        .into_iter()
        // A resource that it does not ask for cannot be short.
        .filter(|(_, needs, left, _)| *needs > 0 && needs > left)
        .map(|(what, needs, left, total)| {
            format!(
                "it needs {needs} {what}, {} of {total} are left",
                left.max(0)
            )
        })
        .collect();
        (!lacking.is_empty()).then(|| lacking.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(vcpus: i64, memory_mib: i64, disk_gib: i64) -> Claim {
        Claim {
            vcpus,
            memory_mib,
            disk_gib,
        }
    }

    #[test]
    fn a_shortage_is_named_with_its_figures() {
        let spec = HostSpec {
            reserved: Some(claim(0, 96, 10)),
            cpu_allocation_ratio: Some("1.5".into()),
            disk_allocation_ratio: Some("nonsense".into()),
            ..HostSpec::default()
        };
        let capacity = Capacity::new(&spec, claim(2, 1120, 20), 100);
        let one = claim(1, 412, 5);
        assert_eq!(capacity.shortage(one, []), None);
        assert_eq!(capacity.shortage(one, [one]), None, "exactly full");
        assert_eq!(
            capacity.shortage(one, [one, one]).unwrap(),
            "it needs 512 MiB of memory, 0 of 1024 are left; it needs 5 GiB of disk, 0 of 10 are left"
        );
        assert_eq!(
            capacity.shortage(claim(4, 1, 0), []).unwrap(),
            "it needs 4 vCPUs, 3 of 3 are left"
        );
    }

    #[test]
    fn an_overcommitted_host_has_nothing_left() {
        let capacity = Capacity::new(&HostSpec::default(), claim(1, 1000, 10), 0);
        let shortage =
            capacity.shortage(claim(1, 1, 0), [claim(9, 9000, 90), claim(0, i64::MAX, 0)]);
        let shortage = shortage.unwrap();
        assert!(shortage.contains("1 vCPUs, 0 of 4") && shortage.contains("0 of 1000"));
        assert!(!shortage.contains("disk"), "it asks for none");
    }

    #[test]
    fn a_preempted_guest_uses_neither_memory_nor_qemus_overhead() {
        let capacity = Capacity::new(&HostSpec::default(), claim(4, 1000, 10), 200);
        assert!(
            capacity
                .shortage(claim(1, 700, 1), [claim(1, 100, 1)])
                .is_some()
        );
        assert_eq!(capacity.shortage(claim(1, 700, 1), [claim(0, 0, 1)]), None);
    }

    #[test]
    fn a_disk_of_zero_needs_what_the_image_has() {
        let capacity = Capacity::new(&HostSpec::default(), claim(4, 1000, 100), 0);
        let mut object = Instance::new("i", pileus_api::InstanceSpec::default());
        object.spec.claim = claim(1, 10, 0);
        let refusal = |object: &Instance, virtual_size| {
            capacity.refusal(&Candidate::of(object, false, virtual_size), [])
        };
        assert_eq!(refusal(&object, None), None, "not fetched yet");
        assert_eq!(refusal(&object, Some(100 << 30)), None);
        let vast = refusal(&object, Some(10 << 40)).unwrap();
        assert_eq!(vast, "it needs 10240 GiB of disk, 100 of 100 are left");
        // As another's, by what its host has reported of it.
        object.status = Some(pileus_api::InstanceStatus {
            image: Some(pileus_api::instance::ImportedImage {
                virtual_size: 60 << 30,
                ..Default::default()
            }),
            realized: Some(true),
            ..Default::default()
        });
        let other = Candidate::of(&object, true, None);
        let mut own = Instance::new("own", pileus_api::InstanceSpec::default());
        own.spec.claim = claim(1, 10, 41);
        let own = Candidate::of(&own, false, None);
        let short = capacity.refusal(&own, [other]).unwrap();
        assert_eq!(short, "it needs 41 GiB of disk, 40 of 100 are left");
    }

    #[test]
    fn the_earlier_comes_first_and_a_refused_one_uses_nothing() {
        let capacity = Capacity::new(&HostSpec::default(), claim(1, 1000, 10), 0);
        let one = |name: &str| Candidate {
            rank: (None, name.into()),
            claim: claim(1, 600, 1),
            ..Candidate::default()
        };
        assert_eq!(capacity.refusal(&one("a"), [one("b")]), None);
        assert!(capacity.refusal(&one("b"), [one("a")]).is_some());
        let refused = Candidate {
            refused: true,
            ..one("a")
        };
        assert_eq!(capacity.refusal(&one("b"), [refused]), None);
        let placed = Candidate {
            placed: true,
            refused: true,
            ..one("b")
        };
        assert!(capacity.refusal(&one("a"), [placed]).is_some());
    }
}
