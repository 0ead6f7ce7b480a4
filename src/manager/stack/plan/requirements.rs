//! What a resource requires, in short: all of a group or of a nested stack by one name.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::{Key, StackRecord};
use pileus_stack::tree::SEPARATOR;

/// So many names are written out.
const FEW: usize = 8;

/// `requires` with the path of each group or nested stack in place of everything in it, where
/// all of that is required. `targets` are the incarnations that are wanted.
pub(super) fn in_short(
    requires: BTreeMap<String, u32>,
    targets: &BTreeMap<String, u32>,
) -> BTreeMap<String, u32> {
    if requires.len() <= FEW {
        return requires;
    }
    let mut short = BTreeMap::new();
    let mut holder: Option<&str> = None;
    for (path, number) in &requires {
        if holder.is_some_and(|holder| path.starts_with(holder)) {
            continue;
        }
        let mut prefixes = path.match_indices(SEPARATOR).map(|(at, _)| &path[..=at]);
        holder = prefixes.find(|p| inside(&requires, p).count() == inside(targets, p).count());
        match holder {
            Some(holder) => short.insert(holder.to_owned(), sum(inside(targets, holder))),
            None => short.insert(path.clone(), *number),
        };
    }
    short
}

fn inside<'m>(
    map: &'m BTreeMap<String, u32>,
    prefix: &'m str,
) -> impl Iterator<Item = (&'m String, &'m u32)> {
    let rest = map.range(prefix.to_owned()..);
    rest.take_while(move |(path, _)| path.starts_with(prefix))
}

/// The same for the same incarnations.
fn sum<'m>(incarnations: impl Iterator<Item = (&'m String, &'m u32)>) -> u32 {
    let mut hash = Sha256::new();
    for (path, number) in incarnations {
        hash.update(format!("{path}#{number}\n"));
    }
    let hash = hash.finalize();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// The sums over what is kept, for each path that entries have in place of what is in it.
pub(super) fn sums(record: &StackRecord, kept: &BTreeSet<Key>) -> BTreeMap<String, u32> {
    let kept: BTreeMap<String, u32> = kept.iter().cloned().collect();
    let names = record.entries.values().flat_map(|e| e.requires.keys());
    let holders: BTreeSet<&String> = names.filter(|name| name.ends_with(SEPARATOR)).collect();
    let sum = |holder: &String| (holder.clone(), sum(inside(&kept, holder)));
    holders.into_iter().map(sum).collect()
}

/// What entries work with; found at once for all, since a big stack asks for each.
pub(super) struct Used<'l> {
    named: BTreeSet<(&'l str, u32)>,
    /// Paths of what was required as a whole, and is not what is kept.
    inside: BTreeSet<&'l str>,
}

impl<'l> Used<'l> {
    /// `sums` are those over what is kept: what works with all of a group works with those if
    /// it has their sum.
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

    /// Whether something works with an incarnation that is not kept.
    pub(super) fn has(&self, (path, number): &Key) -> bool {
        let mut holders = path.match_indices(SEPARATOR).map(|(at, _)| &path[..=at]);
        self.named.contains(&(path.as_str(), *number))
            || holders.any(|holder| self.inside.contains(holder))
    }
}
