//! What a flavor's extra specs and an image's properties take of a host, in Nova's words.

use super::facts::{NumaAsk, PciAffinity, Shape};
use pileus_api::common::Claim;
use pileus_api::topology::{CpuPolicy, NumaWishes, Properties, number};

/// What a Server of this size takes of a host.
///
/// Heeded are `resources:CLASS` (other than VCPU, MEMORY_MB and DISK_GB, which the
/// flavor's own figures say), `pci_passthrough:alias`, `hw:pci_numa_affinity_policy` and what [`NumaWishes::read`] reads
/// of both.
///
/// # Errors
/// Names the key and what is wrong with it.
pub fn shape(claim: Claim, flavor: &Properties, image: &Properties) -> Result<Shape, String> {
    let mut shape = Shape {
        claim,
        ..Shape::default()
    };
    for (key, text) in flavor {
        if let Some(class) = key.strip_prefix("resources:") {
            if ["VCPU", "MEMORY_MB", "DISK_GB"].contains(&class) {
                continue;
            }
            let amount = number(key, text)?;
            if amount > 0 {
                shape.resources.insert(class.to_owned(), amount);
            }
        }
    }
    if let Some(text) = flavor.get("pci_passthrough:alias") {
        for part in text.split(',').filter(|p| !p.trim().is_empty()) {
            let (alias, count) = part.split_once(':').unwrap_or((part, "1"));
            let count = number("pci_passthrough:alias", count.trim())?;
            let sum = shape.pci.entry(alias.trim().to_owned()).or_default();
            *sum = sum.saturating_add(count);
        }
        shape.pci.retain(|_, count| *count > 0);
    }
    let policy = "pci_numa_affinity_policy";
    let word = flavor.get(&format!("hw:{policy}"));
    let word = word.or_else(|| image.get(&format!("hw_{policy}")));
    shape.affinity = match word.map(String::as_str) {
        None | Some("legacy") => PciAffinity::Legacy,
        Some("required") => PciAffinity::Required,
        Some("preferred") => PciAffinity::Preferred,
        Some(text) => {
            return Err(format!(
                "`hw:{policy}` is `{text}`, none of legacy, required, preferred"
            ));
        }
    };
    shape.numa = NumaWishes::read(claim, flavor, image)?.as_ref().map(ask);
    Ok(shape)
}

fn ask(wishes: &NumaWishes) -> NumaAsk {
    let cells = wishes.nodes.iter().map(|(cpus, mib)| {
        let cpus = i64::try_from(cpus.len()).unwrap_or(i64::MAX);
        (cpus, *mib)
    });
    NumaAsk {
        cells: cells.collect(),
        pinned: wishes.cpu_policy == CpuPolicy::Dedicated,
        page_kib: wishes.page_kib,
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
    fn extra_specs_say_what_is_taken() {
        let read = |flavor: &str, image: &str| shape(claim(), &words(flavor), &words(image));
        assert_eq!(
            read("other=1", ""),
            Ok(Shape {
                claim: claim(),
                ..Shape::default()
            })
        );
        let it = read(
            "resources:CUSTOM_X=2 resources:VCPU=9 pci_passthrough:alias=gpu:2,nic",
            "",
        );
        let it = it.unwrap();
        assert_eq!(it.resources, [("CUSTOM_X".to_owned(), 2)].into());
        assert_eq!(
            it.pci,
            [("gpu".to_owned(), 2), ("nic".to_owned(), 1)].into()
        );
        let numa = |flavor, image| read(flavor, image).unwrap().numa.unwrap();
        let it = numa(
            "hw:numa_nodes=2 hw:cpu_policy=dedicated",
            "hw_mem_page_size=1GB",
        );
        assert_eq!(it.cells, [(2, 1024), (2, 1024)]);
        assert_eq!((it.pinned, it.page_kib), (true, Some(1024 * 1024)));
        assert_eq!(numa("hw:cpu_policy=dedicated", "").cells, [(4, 2048)]);
        assert_eq!(read("hw:mem_page_size=small", "").unwrap().numa, None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (flavor, says) in [
            ("resources:CUSTOM_X=many", "`resources:CUSTOM_X` is `many`"),
            ("hw:mem_page_size=huge", "none of small"),
            ("hw:pci_numa_affinity_policy=socket", "none of legacy"),
        ] {
            let error = shape(claim(), &words(flavor), &Properties::new()).unwrap_err();
            assert!(error.contains(says), "{flavor}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(key in "(resources:X|pci_passthrough:alias)", text in "[0-9,^:-]{0,12}|\\PC{0,8}") {
            let mut flavor = words("hw:cpu_policy=dedicated");
            flavor.insert(key, text);
            let _ = shape(claim(), &flavor, &Properties::new());
        }
    }
}
