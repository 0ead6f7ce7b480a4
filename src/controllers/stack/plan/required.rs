//! What a resource requires, in short: all of a group or of a nested stack by one name.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::{Key, Ledger, Pass};
use crate::stack::tree::SEPARATOR;

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
pub(super) fn sums(ledger: &Ledger, kept: &BTreeSet<Key>) -> BTreeMap<String, u32> {
    let kept: BTreeMap<String, u32> = kept.iter().cloned().collect();
    let names = ledger.entries.values().flat_map(|e| e.requires.keys());
    let holders: BTreeSet<&String> = names.filter(|name| name.ends_with(SEPARATOR)).collect();
    let sum = |holder: &String| (holder.clone(), sum(inside(&kept, holder)));
    holders.into_iter().map(sum).collect()
}

impl Pass<'_> {
    /// Whether something works with an incarnation that is not kept. `sums` are those over
    /// what is: what works with all of a group works with those if it has their sum.
    pub(super) fn is_used(&self, (path, number): &Key, sums: &BTreeMap<String, u32>) -> bool {
        let mut entries = self.plan.ledger.entries.values();
        entries.any(|entry| {
            let mut holders = entry
                .requires
                .iter()
                .filter(|(name, _)| name.ends_with(SEPARATOR));
            entry.requires.get(path) == Some(number)
                || holders.any(|(name, sum)| path.starts_with(name) && sums.get(name) != Some(sum))
        })
    }
}
