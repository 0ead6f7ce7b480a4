//! The leader's token.
//!
//! A lease in Kubernetes does not fence a database: a leader that was paused for longer than
//! its lease lasts would continue to write. So each leader puts its identity into `NB_Global`
//! when it takes over, and each transaction begins with a `wait` on it. The database then
//! decides, atomically, which of two leaders may write.
//!
//! Leaders are counted, and the token has the number of its leader. It is claimed by a transaction
//! that holds only for the token that was read, and only if that is of an earlier leader: one that
//! slept through its successor's claim can never take the token back.

use std::collections::BTreeMap;
use std::fmt;

use uuid::Uuid;

use crate::ovsdb::{Clause, Datum, Function, Mutation, Mutator, Operation, Replica, Until};
use pileus_values::ClusterId;

/// A leader of one cluster's manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The cluster, since several may share a Northbound database.
    pub cluster: ClusterId,
    /// The leader; differs for each process.
    pub identity: String,
    /// Higher for every later leader.
    pub generation: i64,
}

/// A leader as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number; 0 for one that did not write any.
    pub generation: i64,
    /// Who it is.
    pub identity: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (leader number {})", self.identity, self.generation)
    }
}

impl Holder {
    fn parse(text: &str) -> Self {
        let parts = text.split_once('/');
        let parts = parts.and_then(|(number, identity)| Some((number.parse().ok()?, identity)));
        let (generation, identity) = parts.unwrap_or((0, text));
        Self {
            generation,
            identity: identity.to_owned(),
        }
    }
}

impl Token {
    /// The key in `NB_Global.external_ids`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("pileus.dev/leader.{}", self.cluster)
    }

    fn value(&self) -> Datum {
        let value = format!("{}/{}", self.generation, self.identity);
        Datum::string_map([(self.key(), value)])
    }

    /// Who holds the token.
    #[must_use]
    pub fn holder(&self, replica: &Replica) -> Option<Holder> {
        let (_, row) = replica.rows("NB_Global").next()?;
        row.get("external_ids")?.get(&self.key()).map(Holder::parse)
    }

    /// The operation that fails unless the token is ours.
    #[must_use]
    pub fn guard(&self) -> Operation {
        // "The rows that carry our token are not: none". A comparison of the whole column
        // would fail whenever somebody else writes another key.
        Operation::Wait {
            table: "NB_Global",
            filter: vec![Clause {
                column: "external_ids",
                function: Function::Includes,
                value: self.value(),
            }],
            columns: vec!["name"],
            until: Until::NotEqual,
            rows: vec![],
        }
    }

    /// The operations that claim the token. The first of them fails when the table is not as
    /// `replica` has it: then read again, and decide again.
    ///
    /// # Errors
    /// Who holds it, when that is a later leader, or another with our number.
    pub fn claim(&self, replica: &Replica) -> Result<Vec<Operation>, Holder> {
        if let Some(holder) = self.holder(replica) {
            let is_ours = holder.identity == self.identity && holder.generation == self.generation;
            if !is_ours && holder.generation >= self.generation {
                return Err(holder);
            }
        }
        let column = |row: &crate::ovsdb::Row| row.get("external_ids").cloned();
        let rows = replica.rows("NB_Global").filter_map(|(_, row)| column(row));
        let unchanged = Operation::Wait {
            table: "NB_Global",
            filter: vec![],
            columns: vec!["external_ids"],
            until: Until::Equal,
            rows: rows
                .map(|ids| BTreeMap::from([("external_ids", ids)]))
                .collect(),
        };
        let Some((id, _)) = replica.rows("NB_Global").next() else {
            // northd creates the one row when it first runs; before that, we do.
            let insert = Operation::Insert {
                table: "NB_Global",
                row: BTreeMap::from([("external_ids", self.value())]),
                name: "global".to_owned(),
            };
            return Ok(vec![unchanged, insert]);
        };
        Ok(vec![unchanged, self.claim_in(id)])
    }

    fn claim_in(&self, id: Uuid) -> Operation {
        let change = |mutator, value| Mutation {
            column: "external_ids",
            mutator,
            value,
        };
        Operation::mutate(
            "NB_Global",
            id,
            vec![
                change(Mutator::Delete, Datum::set([self.key().as_str()])),
                change(Mutator::Insert, self.value()),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::ovsdb::{Atom, Row, Table};

    fn token(generation: i64) -> Token {
        Token {
            cluster: ClusterId("c".into()),
            identity: format!("manager-{generation}"),
            generation,
        }
    }

    fn table(ids: &BTreeMap<Atom, Atom>) -> Replica {
        let row = Row::from([(Arc::from("external_ids"), Datum::Map(ids.clone()))]);
        Replica::from_tables([("NB_Global", Table::from([(Uuid::nil(), Arc::new(row))]))])
    }

    /// Carries operations out as a database does: all of them, or none.
    fn transact(ids: &mut BTreeMap<Atom, Atom>, operations: &[Operation]) -> bool {
        let mut next = ids.clone();
        for operation in operations {
            match operation {
                Operation::Wait { filter, rows, .. } if filter.is_empty() => {
                    let now = BTreeMap::from([("external_ids", Datum::Map(next.clone()))]);
                    if *rows != [now] {
                        return false;
                    }
                }
                Operation::Wait { filter, .. } => {
                    let Datum::Map(wanted) = &filter[0].value else {
                        return false;
                    };
                    if !wanted
                        .iter()
                        .all(|(key, value)| next.get(key) == Some(value))
                    {
                        return false;
                    }
                }
                Operation::Mutate { mutations, .. } => {
                    for mutation in mutations {
                        match (&mutation.mutator, &mutation.value) {
                            (Mutator::Delete, Datum::Set(keys)) => {
                                next.retain(|key, _| !keys.contains(key));
                            }
                            (Mutator::Insert, Datum::Map(pairs)) => next.extend(pairs.clone()),
                            other => unreachable!("{other:?}"),
                        }
                    }
                }
                other => unreachable!("{other:?}"),
            }
        }
        *ids = next;
        true
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A leader reads the table.
        Read(i64),
        /// It claims, as it read the table.
        Claim(i64),
        /// It writes, if it believes that it leads.
        Write(i64),
        /// Somebody else writes another key.
        Other(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        (0..4, 1_i64..5).prop_map(|(kind, n)| match kind {
            0 => Step::Read(n),
            1 => Step::Claim(n),
            2 => Step::Write(n),
            _ => Step::Other(n),
        })
    }

    proptest! {
        /// Leaders may sleep between any two steps.
        #[test]
        fn an_earlier_leader_never_takes_the_token_back_and_never_writes_again(
            steps in prop::collection::vec(step(), 0..40)
        ) {
            let mut ids = BTreeMap::new();
            let mut seen: BTreeMap<i64, Replica> = BTreeMap::new();
            let mut latest = 0;
            for step in steps {
                match step {
                    Step::Read(n) => {
                        seen.insert(n, table(&ids));
                    }
                    Step::Claim(n) => {
                        let Some(replica) = seen.get(&n) else { continue };
                        let claimed = match token(n).claim(replica) {
                            Ok(operations) => transact(&mut ids, &operations),
                            Err(holder) => {
                                prop_assert!(holder.generation > n);
                                false
                            }
                        };
                        if claimed {
                            prop_assert!(n >= latest, "{n} after {latest}");
                            latest = n;
                        }
                    }
                    Step::Write(n) => {
                        let written = transact(&mut ids, &[token(n).guard()]);
                        prop_assert_eq!(written, n == latest && latest > 0);
                    }
                    Step::Other(n) => {
                        ids.insert(Atom::from("other"), Atom::from(n.to_string()));
                    }
                }
            }
            // The next leader can always claim.
            let operations = token(9).claim(&table(&ids));
            prop_assert!(transact(&mut ids, &operations.unwrap()));
        }
    }

    #[test]
    fn a_token_without_a_number_is_the_earliest() {
        let ids = BTreeMap::from([(Atom::from(token(1).key()), Atom::from("host_x/y"))]);
        assert_eq!(
            token(1).holder(&table(&ids)),
            Some(Holder {
                generation: 0,
                identity: "host_x/y".into()
            })
        );
        assert!(token(1).claim(&table(&ids)).is_ok());
        assert!(token(0).claim(&table(&ids)).is_err());
    }
}
