//! The host can run the image.

use super::{CycleState, Filter, Host, RejectReason, Scope};
use crate::placement::request::Requirements;

/// Nova's `ImagePropertiesFilter`: `hw_architecture`, `img_hv_type` and `hw_vm_mode`, also
/// by Glance's older names.
pub struct ImagePropertiesFilter;

/// (property, Glance's older name for it, whether a host supports a value)
type Rule = (&'static str, &'static str, fn(Host<'_>, &str) -> bool);

const RULES: [Rule; 3] = [
    ("hw_architecture", "architecture", supports_architecture),
    ("img_hv_type", "hypervisor_type", supports_hypervisor),
    ("hw_vm_mode", "vm_mode", |_, mode| {
        mode.eq_ignore_ascii_case("hvm")
    }),
];

fn supports_architecture(host: Host<'_>, wanted: &str) -> bool {
    let has = canonical(&host.profile().architecture);
    let wanted = canonical(wanted);
    // An x86_64 processor runs 32-bit guests.
    has == wanted || (has == "x86_64" && wanted == "i686")
}

/// The kernel's name of an architecture; Nova's `arch.canonicalize`.
fn canonical(architecture: &str) -> String {
    let name = architecture.to_ascii_lowercase();
    match name.as_str() {
        "amd64" | "x86-64" => "x86_64".to_owned(),
        "x86_32" | "i386" | "i486" | "i586" => "i686".to_owned(),
        "arm64" => "aarch64".to_owned(),
        _ => name,
    }
}

fn supports_hypervisor(host: Host<'_>, wanted: &str) -> bool {
    // A KVM host runs guests with QEMU as well, and Nova uses `qemu` for both.
    wanted.eq_ignore_ascii_case("qemu") || wanted.eq_ignore_ascii_case(&host.profile().virt_type)
}

/// The first rule that the host does not meet: (property, value).
fn unmet<'a>(host: Host<'_>, request: &'a Requirements) -> Option<(&'static str, &'a str)> {
    RULES.iter().find_map(|(name, old, supports)| {
        let (name, value) = [*name, *old]
            .into_iter()
            .find_map(|n| request.image_properties.get(n).map(|v| (n, v.as_str())))?;
        (!supports(host, value)).then_some((name, value))
    })
}

impl Filter for ImagePropertiesFilter {
    fn name(&self) -> &'static str {
        "ImagePropertiesFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.request.requirements.image_properties.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        unmet(host, &cycle.request.requirements).is_none()
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let f = host.profile();
        let (name, value) = unmet(host, &cycle.request.requirements).unwrap_or(("hw_architecture", "?"));
        RejectReason::Unsuitable(format!(
            "cannot run an image with {name}={value}: it supports {} guests on {}, vm_mode hvm",
            f.architecture, f.virt_type
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::facts::{HostFacts, Profile};
    use crate::placement::snapshot::Snapshot;

    fn check(architecture: &str, virt: &str, name: &str, value: &str) -> bool {
        let mut snapshot = Snapshot::default();
        snapshot.set_host(HostFacts {
            name: "h".into(),
            profile: Profile {
                architecture: architecture.into(),
                virt_type: virt.into(),
                ..Profile::default()
            },
            ..HostFacts::default()
        });
        let requirements = Requirements {
            image_properties: [(name.to_owned(), value.to_owned())].into(),
            ..Requirements::default()
        };
        unmet(snapshot.host("h").unwrap(), &requirements).is_none()
    }

    #[test]
    fn architectures_match_by_all_their_names() {
        assert!(check("x86_64", "kvm", "hw_architecture", "amd64"));
        assert!(check("x86_64", "kvm", "architecture", "X86_64"));
        assert!(check("x86_64", "kvm", "architecture", "i386"));
        assert!(!check("x86_64", "kvm", "architecture", "aarch64"));
        assert!(check("aarch64", "kvm", "architecture", "arm64"));
        assert!(!check("aarch64", "kvm", "hw_architecture", "x86_64"));
    }

    #[test]
    fn an_image_for_kvm_does_not_fit_an_emulating_host() {
        assert!(check("x86_64", "kvm", "img_hv_type", "qemu"));
        assert!(check("x86_64", "kvm", "hypervisor_type", "KVM"));
        assert!(!check("x86_64", "qemu", "img_hv_type", "kvm"));
        assert!(!check("x86_64", "kvm", "img_hv_type", "xen"));
        assert!(!check("x86_64", "kvm", "hw_vm_mode", "xen"));
        assert!(check("x86_64", "kvm", "os_distro", "debian"));
    }
}
