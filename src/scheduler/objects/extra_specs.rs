//! The resources that a flavor's extra specs and an image's properties request, with Nova's keys.

use crate::placement::facts::{NumaRequest, PciAffinity, ResourceRequest};
use pileus_api::common::Claim;
use pileus_api::topology::{CpuPolicy, NumaConstraints, Properties, number};

/// The resources of a Server of this size.
///
/// The keys are `resources:CLASS` (except VCPU, MEMORY_MB and DISK_GB, which the flavor itself
/// has), `pci_passthrough:alias`, `hw:pci_numa_affinity_policy` and those of
/// [`NumaConstraints::read`].
///
/// # Errors
/// The text names the key and what is wrong with it.
pub fn resource_request(
    claim: Claim,
    flavor: &Properties,
    image: &Properties,
) -> Result<ResourceRequest, String> {
    let mut resources = ResourceRequest {
        claim,
        ..ResourceRequest::default()
    };
    for (key, text) in flavor {
        if let Some(class) = key.strip_prefix("resources:") {
            if ["VCPU", "MEMORY_MB", "DISK_GB"].contains(&class) {
                continue;
            }
            let amount = number(key, text)?;
            if amount > 0 {
                resources.classes.insert(class.to_owned(), amount);
            }
        }
    }
    if let Some(text) = flavor.get("pci_passthrough:alias") {
        for part in text.split(',').filter(|p| !p.trim().is_empty()) {
            let (alias, count) = part.split_once(':').unwrap_or((part, "1"));
            let count = number("pci_passthrough:alias", count.trim())?;
            let sum = resources.pci.entry(alias.trim().to_owned()).or_default();
            *sum = sum.saturating_add(count);
        }
        resources.pci.retain(|_, count| *count > 0);
    }
    let policy = "pci_numa_affinity_policy";
    let policy_name = flavor.get(&format!("hw:{policy}"));
    let policy_name = policy_name.or_else(|| image.get(&format!("hw_{policy}")));
    resources.affinity = match policy_name.map(String::as_str) {
        None | Some("legacy") => PciAffinity::Legacy,
        Some("required") => PciAffinity::Required,
        Some("preferred") => PciAffinity::Preferred,
        Some(text) => {
            return Err(format!(
                "`hw:{policy}` is `{text}`, not one of legacy, required, preferred"
            ));
        }
    };
    resources.numa = NumaConstraints::read(claim, flavor, image)?
        .as_ref()
        .map(numa_request);
    Ok(resources)
}

fn numa_request(constraints: &NumaConstraints) -> NumaRequest {
    let nodes = constraints.nodes.iter().map(|(cpus, mib)| {
        let cpus = i64::try_from(cpus.len()).unwrap_or(i64::MAX);
        (cpus, *mib)
    });
    NumaRequest {
        nodes: nodes.collect(),
        pinned: constraints.cpu_policy == CpuPolicy::Dedicated,
        page_kib: constraints.page_kib,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        Claim {
            vcpus: 4,
            memory_mib: 2048,
            disk_gib: 1,
        }
    }

    fn words(text: &str) -> Properties {
        let pairs = text.split_whitespace().filter_map(|p| p.split_once('='));
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn extra_specs_give_the_resources() {
        let read =
            |flavor: &str, image: &str| resource_request(claim(), &words(flavor), &words(image));
        assert_eq!(
            read("other=1", ""),
            Ok(ResourceRequest {
                claim: claim(),
                ..ResourceRequest::default()
            })
        );
        let it = read(
            "resources:CUSTOM_X=2 resources:VCPU=9 pci_passthrough:alias=gpu:2,nic",
            "",
        );
        let it = it.unwrap();
        assert_eq!(it.classes, [("CUSTOM_X".to_owned(), 2)].into());
        assert_eq!(
            it.pci,
            [("gpu".to_owned(), 2), ("nic".to_owned(), 1)].into()
        );
        let numa = |flavor, image| read(flavor, image).unwrap().numa.unwrap();
        let it = numa(
            "hw:numa_nodes=2 hw:cpu_policy=dedicated",
            "hw_mem_page_size=1GB",
        );
        assert_eq!(it.nodes, [(2, 1024), (2, 1024)]);
        assert_eq!((it.pinned, it.page_kib), (true, Some(1024 * 1024)));
        assert_eq!(numa("hw:cpu_policy=dedicated", "").nodes, [(4, 2048)]);
        assert_eq!(read("hw:mem_page_size=small", "").unwrap().numa, None);
    }

    #[test]
    fn errors_name_the_key() {
        for (flavor, expected) in [
            ("resources:CUSTOM_X=many", "`resources:CUSTOM_X` is `many`"),
            ("hw:mem_page_size=huge", "none of small"),
            ("hw:pci_numa_affinity_policy=socket", "not one of legacy"),
        ] {
            let error = resource_request(claim(), &words(flavor), &Properties::new()).unwrap_err();
            assert!(error.contains(expected), "{flavor}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_causes_a_panic(key in "(resources:X|pci_passthrough:alias)", text in "[0-9,^:-]{0,12}|\\PC{0,8}") {
            let mut flavor = words("hw:cpu_policy=dedicated");
            flavor.insert(key, text);
            let _ = resource_request(claim(), &flavor, &Properties::new());
        }
    }
}
