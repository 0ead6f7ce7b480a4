//! What a flavor's extra specs and an image's properties take of a host, in Nova's words.

use std::collections::BTreeMap;

use super::facts::{NumaAsk, Shape};
use crate::api::common::Claim;

/// Most NUMA nodes of a guest, see [`super::numa`].
const MOST_NODES: usize = 4;
/// Size in KiB of the huge pages that `large` stands for: x86's usual ones.
const LARGE_KIB: i64 = 2048;

type Words = BTreeMap<String, String>;

/// What a Server of this size takes of a host.
///
/// Heeded are `resources:CLASS` (other than VCPU, MEMORY_MB and DISK_GB, which the
/// flavor's own figures say), `pci_passthrough:alias`, `hw:numa_nodes`, `hw:numa_cpus.N`,
/// `hw:numa_mem.N`, `hw:cpu_policy` and `hw:mem_page_size`, the last five also as an
/// image's `hw_…`; where both speak the flavor's word counts.
///
/// # Errors
/// Names the key and what is wrong with it.
pub fn shape(claim: Claim, flavor: &Words, image: &Words) -> Result<Shape, String> {
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
    shape.numa = numa(claim, flavor, image)?;
    Ok(shape)
}

fn number(key: &str, text: &str) -> Result<i64, String> {
    let read = text.trim().parse::<i64>().ok().filter(|n| *n >= 0);
    read.ok_or_else(|| format!("`{key}` is `{text}`, not a whole number from 0"))
}

fn numa(claim: Claim, flavor: &Words, image: &Words) -> Result<Option<NumaAsk>, String> {
    let word = |name: &str| {
        let flavors = flavor.get(&format!("hw:{name}"));
        flavors.or_else(|| image.get(&format!("hw_{name}")))
    };
    let pinned = word("cpu_policy").is_some_and(|p| p == "dedicated");
    let page_kib = word("mem_page_size").map_or(Ok(None), |text| page(text))?;
    let nodes = word("numa_nodes").map(|text| number("hw:numa_nodes", text));
    let nodes = match nodes.transpose()? {
        None if !pinned && page_kib.is_none() => return Ok(None),
        None => 1,
        Some(nodes) => usize::try_from(nodes).unwrap_or(usize::MAX),
    };
    if !(1..=MOST_NODES).contains(&nodes) {
        return Err(format!(
            "`hw:numa_nodes` is {nodes}; from 1 to {MOST_NODES} are possible"
        ));
    }
    let mut cells = Vec::new();
    let own = (0..nodes).any(|i| {
        word(&format!("numa_cpus.{i}")).is_some() || word(&format!("numa_mem.{i}")).is_some()
    });
    for i in 0..nodes {
        cells.push(if own {
            let (cpus, mem) = (format!("numa_cpus.{i}"), format!("numa_mem.{i}"));
            let (Some(cpu_list), Some(mib)) = (word(&cpus), word(&mem)) else {
                return Err(format!(
                    "give both `hw:{cpus}` and `hw:{mem}`, for each node"
                ));
            };
            (cpu_count(&cpus, cpu_list)?, number(&mem, mib)?)
        } else {
            let n = i64::try_from(nodes).unwrap_or(1);
            if claim.vcpus % n != 0 || claim.memory_mib % n != 0 {
                return Err(format!(
                    "`hw:numa_nodes` is {n}, by which {} vCPUs and {} MiB cannot be divided; \
                     give `hw:numa_cpus.N` and `hw:numa_mem.N`",
                    claim.vcpus, claim.memory_mib
                ));
            }
            (claim.vcpus / n, claim.memory_mib / n)
        });
    }
    let sums = cells.iter().fold((0_i64, 0_i64), |sum, cell| {
        (sum.0.saturating_add(cell.0), sum.1.saturating_add(cell.1))
    });
    if sums != (claim.vcpus, claim.memory_mib) {
        return Err(format!(
            "the NUMA nodes have {} vCPUs and {} MiB together, the flavor {} and {}",
            sums.0, sums.1, claim.vcpus, claim.memory_mib
        ));
    }
    Ok(Some(NumaAsk {
        cells,
        pinned,
        page_kib,
    }))
}

/// How many processors a list such as `0-3,^1,6` names.
fn cpu_count(key: &str, text: &str) -> Result<i64, String> {
    let wrong = || format!("`hw:{key}` is `{text}`, not a list such as 0-3,6");
    let mut cpus = std::collections::BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (part, out) = part.strip_prefix('^').map_or((part, false), |p| (p, true));
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let read = |n: &str| n.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (read(first)?, read(last)?);
        if last < first {
            return Err(wrong());
        }
        for cpu in first..=last {
            if out {
                cpus.remove(&cpu);
            } else {
                cpus.insert(cpu);
            }
        }
    }
    Ok(i64::try_from(cpus.len()).unwrap_or(i64::MAX))
}

/// Size in KiB of the huge pages asked for; none for `small` and `any`.
fn page(text: &str) -> Result<Option<i64>, String> {
    let (figure, unit) = match text {
        "small" | "any" => return Ok(None),
        "large" => return Ok(Some(LARGE_KIB)),
        _ => text.split_at(
            text.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len()),
        ),
    };
    let unit = match unit {
        "" | "KB" | "KiB" => Some(1),
        "MB" | "MiB" => Some(1024),
        "GB" | "GiB" => Some(1024 * 1024),
        _ => None,
    };
    let size = figure.parse::<i64>().ok().filter(|n| *n > 0);
    let size = size.and_then(|n| n.checked_mul(unit?));
    match size {
        Some(4) => Ok(None),
        Some(size) => Ok(Some(size)),
        None => Err(format!(
            "`hw:mem_page_size` is `{text}`, none of small, any, large, 2MB, 1GB"
        )),
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

    fn words(text: &str) -> Words {
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
        let own = "hw:numa_nodes=2 hw:numa_cpus.0=0-2 hw:numa_mem.0=1536 hw:numa_cpus.1=3 \
                   hw:numa_mem.1=512";
        assert_eq!(numa(own, "").cells, [(3, 1536), (1, 512)]);
        assert_eq!(numa("hw:cpu_policy=dedicated", "").cells, [(4, 2048)]);
        assert_eq!(read("hw:mem_page_size=small", "").unwrap().numa, None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (flavor, says) in [
            ("resources:CUSTOM_X=many", "`resources:CUSTOM_X` is `many`"),
            ("hw:numa_nodes=3", "cannot be divided"),
            ("hw:numa_nodes=9", "from 1 to 4"),
            ("hw:numa_nodes=2 hw:numa_cpus.0=0-2", "give both"),
            (
                "hw:numa_nodes=1 hw:numa_cpus.0=3-1 hw:numa_mem.0=1",
                "not a list",
            ),
            (
                "hw:numa_nodes=1 hw:numa_cpus.0=0 hw:numa_mem.0=1",
                "together",
            ),
            ("hw:mem_page_size=huge", "none of small"),
        ] {
            let error = shape(claim(), &words(flavor), &Words::new()).unwrap_err();
            assert!(error.contains(says), "{flavor}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(key in "(hw:numa_(cpus|mem)\\.0|hw:mem_page_size|hw:numa_nodes|resources:X|pci_passthrough:alias)", text in "[0-9,^:-]{0,12}|\\PC{0,8}") {
            let mut flavor = words("hw:cpu_policy=dedicated");
            flavor.insert(key, text);
            let _ = shape(claim(), &flavor, &Words::new());
        }
    }
}
