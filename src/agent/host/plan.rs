//! What a Host reserves for itself and whether that leaves anything for Servers. Pure.

use pileus_api::Reason;
use pileus_api::common::Claim;
use pileus_api::conditions::{ConditionType, Observation};

/// What the agent is configured to keep back where the Host's spec does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Memory for the machine itself, in MiB.
    pub memory_mib: i64,
    /// Disk for the machine itself, in GiB.
    pub disk_gib: i64,
    /// How many agents share the machine's memory, this one included: each offers an equal part
    /// of what is left. At least 1.
    pub memory_shared_by: i64,
}

impl Reservation {
    /// What is reserved of a machine that has `capacity` now: also memory that the other agents
    /// of the machine offer.
    #[must_use]
    pub fn of(&self, capacity: Claim) -> Claim {
        let offered = capacity.memory_mib.saturating_sub(self.memory_mib).max(0);
        let part = offered / self.memory_shared_by.max(1);
        let reserved = capacity.memory_mib.saturating_sub(part);
        Claim {
            vcpus: 0,
            // More than there is, where that is what is configured: the figure is reported.
            memory_mib: reserved.max(self.memory_mib),
            disk_gib: self.disk_gib,
        }
    }
}

/// Whether anything is left for Servers beside what is reserved: `spec` is the Host's own
/// reservation, which counts instead of the `agent`'s.
#[must_use]
pub fn capacity_available(
    capacity: Option<Claim>,
    spec: Option<Claim>,
    agent: Option<Claim>,
) -> Observation {
    let type_ = ConditionType::CapacityAvailable;
    let Some(capacity) = capacity else {
        let message = "the host's capacity is not known yet";
        return Observation::unknown(type_, Reason::Pending, message);
    };
    let nothing_left = spec.or(agent).unwrap_or_default().exhausts(capacity);
    if nothing_left.is_empty() {
        return Observation::yes(type_, Reason::Ok, "not all of the host is reserved");
    }
    let figures: Vec<_> = nothing_left.iter().map(ToString::to_string).collect();
    let fields: Vec<_> = nothing_left
        .iter()
        .map(|part| match (spec, part.option) {
            (None, Some(option)) => format!("the agent's {option}"),
            _ => format!("spec.reserved.{}", part.field),
        })
        .collect();
    let way_out = if spec.is_some() {
        ""
    } else {
        ", or set spec.reserved, which counts instead"
    };
    let message = format!(
        "reserves {}: no Server fits; lower {}{way_out}",
        figures.join(" and "),
        fields.join(" and "),
    );
    Observation::no(type_, Reason::NothingLeft, message)
}

/// What an agent says whose Host nobody has registered.
#[must_use]
pub fn not_registered(host: &str) -> String {
    format!(
        "the Host {host} is not registered, so nothing is placed on it: an administrator registers \
         it, with the labels and the spec that it is to have, by kubectl apply of {{\"apiVersion\": \
         \"pileus.dev/v1alpha1\", \"kind\": \"Host\", \"metadata\": {{\"name\": \"{host}\"}}}}"
    )
}

/// Whether libvirt keeps the guests apart from each other, by its security models. Without SELinux or
/// AppArmor all guests run as one user: who breaks out of QEMU has the disks of all others.
#[must_use]
pub fn guests_confined(models: &[String]) -> Observation {
    let type_ = ConditionType::GuestsConfined;
    let confines = |model: &&String| matches!(model.as_str(), "selinux" | "apparmor");
    if let Some(model) = models.iter().find(confines) {
        let message = format!("libvirt confines each guest by {model}");
        return Observation::yes(type_, Reason::Ok, message);
    }
    let models = match models {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    let message = format!(
        "libvirt has no security driver that keeps guests apart (it has: {models}), and all QEMUs are \
         one user's: who breaks out of one guest can read and write the disks of the others. Enable \
         AppArmor or SELinux on the host and set security_driver in /etc/libvirt/qemu.conf, then \
         restart libvirt"
    );
    Observation::no(type_, Reason::NotConfined, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_model_that_keeps_guests_apart_confines_them() {
        let of = |models: &[&str]| {
            let models: Vec<_> = models.iter().map(ToString::to_string).collect();
            guests_confined(&models)
        };
        for models in [&["apparmor", "dac"][..], &["dac", "selinux"]] {
            assert_eq!(of(models).status, Some(true), "{models:?}");
        }
        for models in [&[][..], &["none", "dac"]] {
            let told = of(models);
            assert_eq!(
                (told.status, told.reason),
                (Some(false), Reason::NotConfined)
            );
            assert!(told.message.contains("security_driver"), "{}", told.message);
        }
    }

    fn claim(vcpus: i64, memory_mib: i64, disk_gib: i64) -> Claim {
        Claim {
            vcpus,
            memory_mib,
            disk_gib,
        }
    }

    #[test]
    fn agents_that_share_a_machine_offer_equal_parts_of_what_it_has_now() {
        let lab = Reservation {
            memory_mib: 4096,
            disk_gib: 10,
            memory_shared_by: 2,
        };
        let offered = |total| total - lab.of(claim(4, total, 100)).memory_mib;
        assert_eq!(lab.of(claim(4, 10_329, 100)), claim(0, 7213, 10));
        assert_eq!(offered(10_329), 3116);
        assert_eq!(offered(24_576), 10_240, "it follows the machine's growth");
        let alone = Reservation {
            memory_shared_by: 1,
            ..lab
        };
        assert_eq!(alone.of(claim(4, 10_329, 100)).memory_mib, 4096);
        let small = lab.of(claim(4, 3000, 100));
        assert_eq!(small.memory_mib, 4096, "more than there is");
    }

    #[test]
    fn a_reservation_that_leaves_nothing_is_named_with_its_figures() {
        let capacity = Some(claim(8, 10_329, 50));
        let say = |spec, agent| capacity_available(capacity, spec, agent);
        let fine = say(None, Some(claim(0, 10_328, 49)));
        assert_eq!((fine.status, fine.reason), (Some(true), Reason::Ok));
        let all = say(Some(claim(0, 14_101, 10)), Some(claim(0, 0, 0)));
        assert_eq!((all.status, all.reason), (Some(false), Reason::NothingLeft));
        assert_eq!(
            all.message,
            "reserves 14101 of 10329 MiB memory: no Server fits; lower spec.reserved.memoryMiB"
        );
        let own = say(Some(claim(8, 0, 50)), None).message;
        assert_eq!(
            own,
            "reserves 8 of 8 vCPUs and 50 of 50 GiB disk: no Server fits; \
             lower spec.reserved.vcpus and spec.reserved.diskGiB"
        );
        let configured = say(None, Some(claim(0, 14_101, 10))).message;
        assert_eq!(
            configured,
            "reserves 14101 of 10329 MiB memory: no Server fits; lower the agent's \
             --reserved-memory-mib, or set spec.reserved, which counts instead"
        );
        let explicit = say(Some(claim(0, 0, 0)), Some(claim(0, 14_101, 99)));
        assert_eq!(explicit.status, Some(true), "the spec counts");
    }

    #[test]
    fn a_host_that_is_missing_is_told_with_what_to_apply() {
        let told = not_registered("h1");
        let (_, manifest) = told.split_once("apply of ").unwrap_or_default();
        let host: Result<pileus_api::Host, _> = serde_json::from_str(manifest);
        // Whoever applies it has a Host that takes Servers, by the schema's default.
        assert!(host.is_err_and(|error| error.to_string().contains("spec")));
        assert!(manifest.contains(r#""name": "h1""#), "{told}");
    }

    #[test]
    fn nothing_is_said_of_what_is_not_known_or_not_reserved() {
        let unknown = capacity_available(None, Some(claim(1, 1, 1)), None);
        assert_eq!(unknown.status, None);
        let none = capacity_available(Some(claim(0, 0, 0)), None, None);
        assert_eq!(
            none.status,
            Some(true),
            "it is not the reservation that lacks"
        );
    }
}
