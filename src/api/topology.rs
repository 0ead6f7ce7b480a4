//! NUMA nodes of a guest: what flavors and images ask for by Nova's names, and what an
//! Instance has when all is decided.

use std::collections::BTreeSet;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::common::Properties;

use super::common::Claim;

/// Most NUMA nodes of a guest.
pub const MOST_NODES: usize = 4;
/// Size in KiB of the huge pages that `large` stands for: x86's usual ones.
const LARGE_KIB: i64 = 2048;
/// Size in KiB of the pages that memory has anyway.
const SMALL_KIB: i64 = 4;

/// NUMA nodes of a guest, and where they are on its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestTopology {
    /// What its processors run on.
    #[serde(default)]
    pub cpu_policy: CpuPolicy,
    /// Size in KiB of the huge pages that its memory is made of; usual pages when absent.
    #[serde(
        default,
        rename = "pageSizeKiB",
        skip_serializing_if = "Option::is_none"
    )]
    pub page_size_kib: Option<i64>,
    /// Its NUMA nodes.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 4))]
    pub nodes: Vec<GuestNode>,
}

/// What a guest's processors run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CpuPolicy {
    /// Each on any processor of its node that no other guest has to itself.
    #[default]
    Shared,
    /// Each on a processor of its node that it has to itself.
    Dedicated,
}

/// A NUMA node of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestNode {
    /// Number of the node in the guest, as text.
    pub name: String,
    /// Numbers of its processors in the guest, from 0.
    pub cpus: Vec<i32>,
    /// Its memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// Number of the host's NUMA node that it is on.
    pub host_node: i32,
}

/// What is asked of NUMA nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaConstraints {
    /// For each of the guest's nodes the numbers of its processors, and its memory in MiB.
    pub nodes: Vec<(Vec<i32>, i64)>,
    /// What the processors run on.
    pub cpu_policy: CpuPolicy,
    /// Size of huge pages in KiB, if any.
    pub page_kib: Option<i64>,
}

impl NumaConstraints {
    /// Reads `hw:numa_nodes`, `hw:numa_cpus.N`, `hw:numa_mem.N`, `hw:cpu_policy` and
    /// `hw:mem_page_size` of a flavor, and the same as an image's `hw_…`; where both speak
    /// the flavor's word counts. `None` when nothing is asked for.
    ///
    /// Of `hw:cpu_thread_policy` and `hw:emulator_threads_policy` only what is done anyway
    /// can be had: siblings are not looked at, and the emulator's threads run beside the
    /// guest's.
    ///
    /// # Errors
    /// Names the key and what is wrong with it.
    pub fn read(
        claim: Claim,
        flavor: &Properties,
        image: &Properties,
    ) -> Result<Option<Self>, String> {
        let word = |name: &str| {
            let flavors = flavor.get(&format!("hw:{name}"));
            flavors
                .or_else(|| image.get(&format!("hw_{name}")))
                .map(String::as_str)
        };
        let cpu_policy = match word("cpu_policy") {
            None | Some("shared") => CpuPolicy::Shared,
            Some("dedicated") => CpuPolicy::Dedicated,
            Some(text) => {
                return Err(format!(
                    "`hw:cpu_policy` is `{text}`, neither shared nor dedicated"
                ));
            }
        };
        let page_kib = word("mem_page_size").map_or(Ok(None), page)?;
        let nodes = word("numa_nodes").map(|text| number("hw:numa_nodes", text));
        let nodes = match nodes.transpose()? {
            None if cpu_policy == CpuPolicy::Shared && page_kib.is_none() => return Ok(None),
            None => 1,
            Some(nodes) => usize::try_from(nodes).unwrap_or(usize::MAX),
        };
        for (name, possible) in [
            ("cpu_thread_policy", "prefer"),
            ("emulator_threads_policy", ""),
        ] {
            if let Some(text) = word(name).filter(|text| *text != possible) {
                let way_out = match possible {
                    "" => "leave it out".to_owned(),
                    only => format!("only {only} is possible"),
                };
                return Err(format!("`hw:{name}` is `{text}`; {way_out}"));
            }
        }
        if !(1..=MOST_NODES).contains(&nodes) {
            return Err(format!(
                "`hw:numa_nodes` is {nodes}; from 1 to {MOST_NODES} are possible"
            ));
        }
        let own = (0..nodes).any(|i| {
            word(&format!("numa_cpus.{i}")).is_some() || word(&format!("numa_mem.{i}")).is_some()
        });
        let nodes = if own {
            uneven(claim, nodes, &word)?
        } else {
            even(claim, nodes)?
        };
        if let Some(page) = page_kib
            && let Some((at, (_, mib))) = nodes
                .iter()
                .enumerate()
                .find(|(_, (_, mib))| mib.saturating_mul(1024) % page != 0)
        {
            return Err(format!(
                "`hw:mem_page_size` is {page} KiB, of which the {mib} MiB of node {at} are no \
                 multiple"
            ));
        }
        Ok(Some(Self {
            nodes,
            cpu_policy,
            page_kib,
        }))
    }

    /// With the host's node for each of the guest's; `None` when there is not one for each.
    #[must_use]
    pub fn on(self, host_nodes: &[i32]) -> Option<GuestTopology> {
        if self.nodes.len() != host_nodes.len() {
            return None;
        }
        let nodes = self.nodes.into_iter().zip(host_nodes).enumerate();
        let nodes = nodes.map(|(at, ((cpus, memory_mib), host_node))| GuestNode {
            name: at.to_string(),
            cpus,
            memory_mib,
            host_node: *host_node,
        });
        Some(GuestTopology {
            cpu_policy: self.cpu_policy,
            page_size_kib: self.page_kib,
            nodes: nodes.collect(),
        })
    }
}

/// Reads a whole number from 0.
///
/// # Errors
/// Names the key and what is wrong with it.
pub fn number(key: &str, text: &str) -> Result<i64, String> {
    let read = text.trim().parse::<i64>().ok().filter(|n| *n >= 0);
    read.ok_or_else(|| format!("`{key}` is `{text}`, not a whole number from 0"))
}

fn even(claim: Claim, nodes: usize) -> Result<Vec<(Vec<i32>, i64)>, String> {
    let n = i64::try_from(nodes).unwrap_or(1);
    if claim.vcpus % n != 0 || claim.memory_mib % n != 0 {
        return Err(format!(
            "`hw:numa_nodes` is {n}, by which {} vCPUs and {} MiB cannot be divided; give \
             `hw:numa_cpus.N` and `hw:numa_mem.N`",
            claim.vcpus, claim.memory_mib
        ));
    }
    let share = i32::try_from(claim.vcpus / n).unwrap_or(i32::MAX);
    let last = i32::try_from(n).unwrap_or(1);
    let cpus = (0..last).map(|i| (i * share..(i + 1) * share).collect());
    Ok(cpus.map(|cpus| (cpus, claim.memory_mib / n)).collect())
}

fn uneven<'a>(
    claim: Claim,
    count: usize,
    word: &impl Fn(&str) -> Option<&'a str>,
) -> Result<Vec<(Vec<i32>, i64)>, String> {
    let mut nodes = Vec::new();
    let mut given = BTreeSet::new();
    for i in 0..count {
        let (key, mem) = (format!("numa_cpus.{i}"), format!("numa_mem.{i}"));
        let (Some(text), Some(mib)) = (word(&key), word(&mem)) else {
            return Err(format!(
                "give both `hw:{key}` and `hw:{mem}`, for each node"
            ));
        };
        let cpus = cpu_list(&key, text)?;
        for cpu in &cpus {
            if i64::from(*cpu) >= claim.vcpus {
                return Err(format!(
                    "`hw:{key}` is `{text}`; the last of {} vCPUs is {}",
                    claim.vcpus,
                    claim.vcpus - 1
                ));
            }
            if !given.insert(*cpu) {
                return Err(format!(
                    "`hw:{key}` is `{text}`; vCPU {cpu} is on another node already"
                ));
            }
        }
        nodes.push((cpus.into_iter().collect(), number(&mem, mib)?));
    }
    let cpus = i64::try_from(given.len()).unwrap_or(i64::MAX);
    let memory = nodes
        .iter()
        .fold(0_i64, |sum, (_, mib)| sum.saturating_add(*mib));
    if (cpus, memory) != (claim.vcpus, claim.memory_mib) {
        return Err(format!(
            "the NUMA nodes have {cpus} vCPUs and {memory} MiB together, the flavor {} and {}",
            claim.vcpus, claim.memory_mib
        ));
    }
    Ok(nodes)
}

/// The processors that a list such as `0-3,^1,6` names.
fn cpu_list(key: &str, text: &str) -> Result<BTreeSet<i32>, String> {
    let wrong = || format!("`hw:{key}` is `{text}`, not a list such as 0-3,6");
    let (mut cpus, mut out_of) = (BTreeSet::new(), BTreeSet::new());
    for part in text.split(',').map(str::trim) {
        let (part, out) = part.strip_prefix('^').map_or((part, false), |p| (p, true));
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let read = |n: &str| n.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (read(first)?, read(last)?);
        if last < first {
            return Err(wrong());
        }
        let named = (first..=last).map(i32::from);
        if out {
            out_of.extend(named);
        } else {
            cpus.extend(named);
        }
    }
    cpus.retain(|cpu| !out_of.contains(cpu));
    if cpus.is_empty() {
        return Err(wrong());
    }
    Ok(cpus)
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
        Some(SMALL_KIB) => Ok(None),
        Some(size) => Ok(Some(size)),
        None => Err(format!(
            "`hw:mem_page_size` is `{text}`, none of small, any, large, 2MB, 1GB"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Properties {
        let pairs = text.split_whitespace().filter_map(|p| p.split_once('='));
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn read(flavor: &str, image: &str) -> Result<Option<NumaConstraints>, String> {
        let claim = Claim {
            vcpus: 4,
            memory_mib: 2048,
            disk_gib: 1,
        };
        NumaConstraints::read(claim, &words(flavor), &words(image))
    }

    #[test]
    fn nodes_are_alike_or_as_is_said() {
        let numa = |flavor, image| read(flavor, image).unwrap().unwrap();
        let it = numa(
            "hw:numa_nodes=2 hw:cpu_policy=dedicated hw:cpu_thread_policy=prefer",
            "hw_mem_page_size=1GB hw_cpu_policy=shared",
        );
        assert_eq!(it.nodes, [(vec![0, 1], 1024), (vec![2, 3], 1024)]);
        assert_eq!(it.cpu_policy, CpuPolicy::Dedicated);
        assert_eq!(it.page_kib, Some(1024 * 1024));
        let own = "hw:numa_nodes=2 hw:numa_cpus.0=^1,0-2 hw:numa_mem.0=1536 \
                   hw:numa_cpus.1=3,1 hw:numa_mem.1=512";
        assert_eq!(numa(own, "").nodes, [(vec![0, 2], 1536), (vec![1, 3], 512)]);
        assert_eq!(
            numa("hw:cpu_policy=dedicated", "").nodes,
            [(vec![0, 1, 2, 3], 2048)]
        );
        assert_eq!(read("hw:mem_page_size=small", ""), Ok(None));
        assert_eq!(read("hw:cpu_thread_policy=isolate", ""), Ok(None));
    }

    #[test]
    fn each_node_is_on_one_of_the_host() {
        let it = || read("hw:numa_nodes=2", "").unwrap().unwrap();
        let on = it().on(&[3, 0]).unwrap();
        let nodes: Vec<_> = on.nodes.iter().map(|n| (&*n.name, n.host_node)).collect();
        assert_eq!(nodes, [("0", 3), ("1", 0)]);
        assert_eq!(it().on(&[0]), None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (flavor, says) in [
            ("hw:numa_nodes=3", "cannot be divided"),
            ("hw:numa_nodes=9", "from 1 to 4"),
            ("hw:numa_nodes=2 hw:numa_cpus.0=0-2", "give both"),
            (
                "hw:numa_nodes=1 hw:numa_cpus.0=3-1 hw:numa_mem.0=1",
                "not a list",
            ),
            (
                "hw:numa_nodes=1 hw:numa_cpus.0=1,^1 hw:numa_mem.0=1",
                "not a list",
            ),
            (
                "hw:numa_nodes=1 hw:numa_cpus.0=0 hw:numa_mem.0=1",
                "together",
            ),
            (
                "hw:numa_nodes=1 hw:numa_cpus.0=1-4 hw:numa_mem.0=2048",
                "the last of 4 vCPUs is 3",
            ),
            (
                "hw:numa_nodes=2 hw:numa_cpus.0=0-2 hw:numa_mem.0=1024 hw:numa_cpus.1=2 \
                 hw:numa_mem.1=1024",
                "vCPU 2 is on another node",
            ),
            ("hw:mem_page_size=huge", "none of small"),
            ("hw:numa_nodes=4 hw:mem_page_size=1GB", "no multiple"),
            ("hw:cpu_policy=mixed", "neither shared nor dedicated"),
            (
                "hw:cpu_policy=dedicated hw:cpu_thread_policy=isolate",
                "only prefer is possible",
            ),
            (
                "hw:numa_nodes=1 hw:emulator_threads_policy=share",
                "leave it out",
            ),
        ] {
            let error = read(flavor, "").unwrap_err();
            assert!(error.contains(says), "{flavor}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(
            key in "hw:(numa_(cpus|mem)\\.0|mem_page_size|numa_nodes|cpu_policy)",
            text in "[0-9,^:-]{0,12}|\\PC{0,8}",
        ) {
            let flavor = format!("hw:numa_nodes=1 {key}={text}");
            let _ = read(&flavor, "hw_cpu_policy=dedicated");
        }
    }
}
