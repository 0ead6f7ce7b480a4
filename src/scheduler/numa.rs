//! Which of the host's NUMA nodes hold the guest's.

use super::facts::NumaAsk;
use super::snapshot::{Host, pages};

/// The host's node for each of the guest's, each on another one, or `None` if they do not
/// fit. The first that fits in the host's order, tried exhaustively: a guest has at most
/// four.
#[must_use]
pub fn fit(host: Host<'_>, wanted: &NumaAsk) -> Option<[u8; 4]> {
    if wanted.cells.len() > 4 {
        return None;
    }
    let mut cells = [u8::MAX; 4];
    place(host, wanted, 0, &mut cells).then_some(cells)
}

fn place(host: Host<'_>, wanted: &NumaAsk, at: usize, cells: &mut [u8; 4]) -> bool {
    let Some(&(vcpus, mib)) = wanted.cells.get(at) else {
        return true;
    };
    for cell in 0..u8::try_from(host.profile().cells.len()).unwrap_or(u8::MAX) {
        if cells[..at].contains(&cell) || !holds(host, cell, wanted, vcpus, mib) {
            continue;
        }
        cells[at] = cell;
        if place(host, wanted, at + 1, cells) {
            return true;
        }
    }
    cells[at] = u8::MAX;
    false
}

fn holds(host: Host<'_>, cell: u8, wanted: &NumaAsk, vcpus: i64, mib: i64) -> bool {
    let has = &host.profile().cells[usize::from(cell)];
    let used = host.extended();
    let (pinned, memory) = used
        .and_then(|e| e.cells.get(&cell).copied())
        .unwrap_or_default();
    let cpus = if wanted.pinned {
        has.cpus.saturating_sub(pinned)
    } else {
        has.cpus
    };
    let room = match wanted.page_kib {
        None => mib <= has.memory_mib.saturating_sub(memory),
        Some(page) => {
            let total = has.pages.get(&page).copied().unwrap_or_default();
            let taken = used.and_then(|e| e.pages.get(&(cell, page))).copied();
            pages(mib, page) <= total.saturating_sub(taken.unwrap_or_default())
        }
    };
    vcpus <= cpus && room
}
