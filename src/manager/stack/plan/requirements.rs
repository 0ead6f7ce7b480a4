//! Requirements of resources in their recorded form: one key stands for all resources of a group or
//! of a nested stack.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::{Key, StackRecord};
use pileus_stack::tree::SEPARATOR;

/// Up to this number, requirements are not grouped.
const MAX_UNGROUPED: usize = 8;

/// Replaces requirements of all resources of a group or of a nested stack by one key: its path with
/// a separator at the end, and a checksum. `targets` are the incarnations that are wanted.
pub(super) fn grouped(
    requires: BTreeMap<String, u32>,
    targets: &BTreeMap<String, u32>,
) -> BTreeMap<String, u32> {
    if requires.len() <= MAX_UNGROUPED {
        return requires;
    }
    let mut grouped = BTreeMap::new();
    let mut holder: Option<&str> = None;
    for (path, number) in &requires {
        if holder.is_some_and(|holder| path.starts_with(holder)) {
            continue;
        }
        let mut prefixes = path.match_indices(SEPARATOR).map(|(at, _)| &path[..=at]);
        holder = prefixes.find(|p| inside(&requires, p).count() == inside(targets, p).count());
        match holder {
            Some(holder) => grouped.insert(holder.to_owned(), checksum(inside(targets, holder))),
            None => grouped.insert(path.clone(), *number),
        };
    }
    grouped
}

fn inside<'m>(
    map: &'m BTreeMap<String, u32>,
    prefix: &'m str,
) -> impl Iterator<Item = (&'m String, &'m u32)> {
    let rest = map.range(prefix.to_owned()..);
    rest.take_while(move |(path, _)| path.starts_with(prefix))
}

/// A checksum over incarnations.
fn checksum<'m>(incarnations: impl Iterator<Item = (&'m String, &'m u32)>) -> u32 {
    let mut hash = Sha256::new();
    for (path, number) in incarnations {
        hash.update(format!("{path}#{number}\n"));
    }
    let hash = hash.finalize();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// For each group that entries require as a whole: the checksum over the incarnations that are
/// kept.
pub(super) fn group_checksums(record: &StackRecord, kept: &BTreeSet<Key>) -> BTreeMap<String, u32> {
    let kept: BTreeMap<String, u32> = kept.iter().cloned().collect();
    let names = record.entries.values().flat_map(|e| e.requires.keys());
    let holders: BTreeSet<&String> = names.filter(|name| name.ends_with(SEPARATOR)).collect();
    let sum = |holder: &String| (holder.clone(), checksum(inside(&kept, holder)));
    holders.into_iter().map(sum).collect()
}

/// Incarnations that entries require: one index for all, because each incarnation of a big stack is
/// looked up.
pub(super) struct InUse<'l> {
    named: BTreeSet<(&'l str, u32)>,
    /// Paths of groups that are required as a whole, and are not as a whole kept.
    inside: BTreeSet<&'l str>,
}

impl<'l> InUse<'l> {
    /// `sums` are those of [`group_checksums`]: whoever has the same checksum of a group requires
    /// only incarnations that are kept.
    pub(super) fn of(record: &'l StackRecord, sums: &BTreeMap<String, u32>) -> Self {
        let requires = record.entries.values().flat_map(|entry| &entry.requires);
        let mut used = Self {
            named: BTreeSet::new(),
            inside: BTreeSet::new(),
        };
        for (path, number) in requires {
            used.named.insert((path, *number));
            if path.ends_with(SEPARATOR) && sums.get(path) != Some(number) {
                used.inside.insert(path);
            }
        }
        used
    }

    /// Whether an entry requires this incarnation, which is not kept.
    pub(super) fn has(&self, (path, number): &Key) -> bool {
        let mut holders = path.match_indices(SEPARATOR).map(|(at, _)| &path[..=at]);
        self.named.contains(&(path.as_str(), *number))
            || holders.any(|holder| self.inside.contains(holder))
    }
}
