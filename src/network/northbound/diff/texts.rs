//! Texts that the database cannot carry.
//!
//! `ovsdb-server` drops the connection on a message that its parser of JSON refuses
//! (`lib/json.c`), so that all that is in the message is lost. Of what a Rust string can hold, that
//! is the character U+0000 alone: it is UTF-8 without surrogates by its type, and other control
//! characters are escaped.

use crate::ovsdb::{Atom, Datum, Operation};

/// What is wrong with a text that the database cannot carry.
#[must_use]
pub fn not_carried(text: &str) -> Option<String> {
    let at = text.chars().position(|c| c == '\0')?;
    let shown = text.escape_debug().to_string();
    let shown: String = shown.chars().take(80).collect();
    Some(format!(
        "`{shown}` has the character U+0000 in place {}, which OVN's databases cannot hold; remove it",
        at + 1
    ))
}

/// What is wrong with an operation that the database cannot carry.
pub(super) fn problem(operation: &Operation) -> Option<String> {
    let (table, columns): (_, Vec<(&str, &Datum)>) = match operation {
        Operation::Insert { table, row, .. } | Operation::Update { table, row, .. } => (
            table,
            row.iter().map(|(name, value)| (*name, value)).collect(),
        ),
        Operation::Mutate {
            table, mutations, ..
        } => {
            let columns = mutations.iter().map(|m| (m.column, &m.value));
            (table, columns.collect())
        }
        Operation::Delete { .. } | Operation::Wait { .. } | Operation::Comment(_) => return None,
    };
    columns.into_iter().find_map(|(column, value)| {
        let problem = in_datum(value)?;
        Some(format!("{column} of OVN's table {table}: {problem}"))
    })
}

fn in_datum(datum: &Datum) -> Option<String> {
    match datum {
        Datum::Atom(atom) => in_atom(atom),
        Datum::Set(set) => set.iter().find_map(in_atom),
        Datum::Map(map) => map
            .iter()
            .find_map(|(key, value)| in_atom(key).or_else(|| in_atom(value))),
    }
}

fn in_atom(atom: &Atom) -> Option<String> {
    atom.as_str().and_then(not_carried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_is_named_with_its_place_and_never_sent() {
        let message = not_carried("web\0").unwrap();
        assert!(
            message.contains(r"`web\0`") && message.contains("place 4"),
            "{message}"
        );
        for fine in ["", "ssh", "\u{1}\u{7f}\u{feff}\u{fffe}", "😀\u{10ffff}"] {
            assert_eq!(not_carried(fine), None);
        }
    }
}
