//! The leader's token.
//!
//! A lease in Kubernetes does not fence a database: a leader that was paused for longer than
//! its lease lasts would continue to write. So each leader puts its identity into `NB_Global`
//! when it takes over, and each transaction begins with a `wait` on it. The database then
//! decides, atomically, which of two leaders may write.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::ovsdb::{Clause, Datum, Function, Mutation, Mutator, Operation, Replica, Until};
use pileus_values::ClusterId;

/// Identity of a leader of one cluster's manager; differs for each process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The cluster, since several may share a Northbound database.
    pub cluster: ClusterId,
    /// The leader.
    pub identity: String,
}

impl Token {
    /// The key in `NB_Global.external_ids`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("pileus.dev/leader.{}", self.cluster)
    }

    /// Who holds the token.
    #[must_use]
    pub fn holder(&self, replica: &Replica) -> Option<String> {
        let (_, row) = replica.rows("NB_Global").next()?;
        Some(row.get("external_ids")?.get(&self.key())?.to_owned())
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
                value: Datum::string_map([(self.key(), &self.identity)]),
            }],
            columns: vec!["name"],
            until: Until::NotEqual,
            rows: vec![],
        }
    }

    /// The operations that claim the token, whoever holds it.
    #[must_use]
    pub fn claim(&self, replica: &Replica) -> Vec<Operation> {
        let value = Datum::string_map([(self.key(), &self.identity)]);
        let Some((id, _)) = replica.rows("NB_Global").next() else {
            // northd creates the one row when it first runs; before that, we do.
            return vec![Operation::Insert {
                table: "NB_Global",
                row: BTreeMap::from([("external_ids", value)]),
                name: "global".to_owned(),
            }];
        };
        vec![claim_in(id, &self.key(), value)]
    }
}

fn claim_in(id: Uuid, key: &str, value: Datum) -> Operation {
    let change = |mutator, value| Mutation {
        column: "external_ids",
        mutator,
        value,
    };
    Operation::mutate(
        "NB_Global",
        id,
        vec![
            change(Mutator::Delete, Datum::set([key])),
            change(Mutator::Insert, value),
        ],
    )
}
