//! Operations of a transaction (RFC 7047 section 5.2) and their results.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Error;
use super::datum::{Datum, RowId};

/// How a column is compared with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// The same.
    Equal,
    /// Holds at least these members.
    Includes,
    /// Holds none of these members.
    Excludes,
}

/// A condition on a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Name of the column.
    pub column: &'static str,
    /// The comparison.
    pub function: Function,
    /// What it is compared with.
    pub value: Datum,
}

/// How a set or map is changed in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutator {
    /// Adds members; keys of a map that are there keep their value.
    Insert,
    /// Removes members; a set given for a map names keys.
    Delete,
}

/// A change of a set or map in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// Name of the column.
    pub column: &'static str,
    /// The way it is changed.
    pub mutator: Mutator,
    /// Members.
    pub value: Datum,
}

/// When a [`Operation::Wait`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The selected rows are the given ones.
    Equal,
    /// The selected rows are not the given ones.
    NotEqual,
}

/// One step of a transaction. All of them happen, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates a row.
    Insert {
        /// Name of the table.
        table: &'static str,
        /// The columns; defaults for the rest.
        row: BTreeMap<&'static str, Datum>,
        /// The name by which other operations refer to the row.
        name: String,
    },
    /// Sets columns of the rows that are selected.
    Update {
        /// Name of the table.
        table: &'static str,
        /// Which rows.
        filter: Vec<Clause>,
        /// The columns to set.
        row: BTreeMap<&'static str, Datum>,
    },
    /// Changes sets and maps of the rows that are selected.
    Mutate {
        /// Name of the table.
        table: &'static str,
        /// Which rows.
        filter: Vec<Clause>,
        /// The changes.
        mutations: Vec<Mutation>,
    },
    /// Removes the rows that are selected.
    Delete {
        /// Name of the table.
        table: &'static str,
        /// Which rows.
        filter: Vec<Clause>,
    },
    /// Fails the transaction at once unless the condition on the selected rows holds.
    Wait {
        /// Name of the table.
        table: &'static str,
        /// Which rows.
        filter: Vec<Clause>,
        /// Columns to compare.
        columns: Vec<&'static str>,
        /// Whether they must be equal.
        until: Until,
        /// The rows to compare with.
        rows: Vec<BTreeMap<&'static str, Datum>>,
    },
    /// A line in the server's journal.
    Comment(String),
}

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// Id of the row that was created.
    Inserted(Uuid),
    /// Number of rows that were selected.
    Count(i64),
    /// No result.
    Done,
}

/// The filter that selects one row.
#[must_use]
pub fn by_id(id: Uuid) -> Vec<Clause> {
    vec![Clause {
        column: "_uuid",
        function: Function::Equal,
        value: Datum::atom(RowId::Uuid(id)),
    }]
}

fn row_json(row: &BTreeMap<&'static str, Datum>) -> Value {
    let map: Map<String, Value> = row
        .iter()
        .map(|(k, v)| ((*k).to_owned(), v.to_json()))
        .collect();
    Value::Object(map)
}

fn filter_json(filter: &[Clause]) -> Value {
    let clauses = filter.iter().map(|clause| {
        let function = match clause.function {
            Function::Equal => "==",
            Function::Includes => "includes",
            Function::Excludes => "excludes",
        };
        json!([clause.column, function, clause.value.to_json()])
    });
    clauses.collect()
}

impl Operation {
    /// Sets columns of one row.
    #[must_use]
    pub fn update(table: &'static str, id: Uuid, row: BTreeMap<&'static str, Datum>) -> Self {
        Self::Update {
            table,
            filter: by_id(id),
            row,
        }
    }

    /// Changes sets and maps of one row.
    #[must_use]
    pub fn mutate(table: &'static str, id: Uuid, mutations: Vec<Mutation>) -> Self {
        Self::Mutate {
            table,
            filter: by_id(id),
            mutations,
        }
    }

    /// Removes one row.
    #[must_use]
    pub fn delete(table: &'static str, id: Uuid) -> Self {
        Self::Delete {
            table,
            filter: by_id(id),
        }
    }

    /// The operation in the form of RFC 7047.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Insert { table, row, name } => json!({
                "op": "insert", "table": table, "row": row_json(row), "uuid-name": name,
            }),
            Self::Update { table, filter, row } => json!({
                "op": "update", "table": table, "where": filter_json(filter),
                "row": row_json(row),
            }),
            Self::Mutate {
                table,
                filter,
                mutations,
            } => {
                let mutations: Value = mutations
                    .iter()
                    .map(|m| {
                        let mutator = match m.mutator {
                            Mutator::Insert => "insert",
                            Mutator::Delete => "delete",
                        };
                        json!([m.column, mutator, m.value.to_json()])
                    })
                    .collect();
                json!({
                    "op": "mutate", "table": table, "where": filter_json(filter),
                    "mutations": mutations,
                })
            }
            Self::Delete { table, filter } => json!({
                "op": "delete", "table": table, "where": filter_json(filter),
            }),
            Self::Wait {
                table,
                filter,
                columns,
                until,
                rows,
            } => json!({
                "op": "wait", "timeout": 0, "table": table, "where": filter_json(filter),
                "columns": columns,
                "until": match until { Until::Equal => "==", Until::NotEqual => "!=" },
                "rows": rows.iter().map(row_json).collect::<Value>(),
            }),
            Self::Comment(text) => json!({ "op": "comment", "comment": text }),
        }
    }

    /// The operation and its table, for people.
    fn summary(&self) -> String {
        match self {
            Self::Insert { table, .. } => format!("insert into {table}"),
            Self::Update { table, .. } => format!("update of {table}"),
            Self::Mutate { table, .. } => format!("mutation of {table}"),
            Self::Delete { table, .. } => format!("deletion from {table}"),
            Self::Wait { table, .. } => format!("wait on {table}"),
            Self::Comment(_) => "comment".to_owned(),
        }
    }
}

/// Reads the answer to a transaction. The server stops at the first operation that fails
/// and undoes the others; an extra element means that the commit itself failed.
pub(super) fn read_results(
    operations: &[Operation],
    answer: &Value,
) -> Result<Vec<OpResult>, Error> {
    let results = answer
        .as_array()
        .ok_or_else(|| Error::Protocol(format!("{answer} as answer to a transaction")))?;
    for (index, result) in results.iter().enumerate() {
        let Some(error) = result["error"].as_str() else {
            continue;
        };
        let operation = operations.get(index);
        if error == "timed out" && matches!(operation, Some(Operation::Wait { .. })) {
            return Err(Error::WaitFailed { index });
        }
        return Err(Error::Refused {
            index,
            operation: operation.map_or_else(|| "commit".to_owned(), Operation::summary),
            error: error.to_owned(),
            details: result["details"].as_str().unwrap_or("").to_owned(),
        });
    }
    if results.len() < operations.len() {
        return Err(Error::Protocol("too few results".to_owned()));
    }
    Ok(results
        .iter()
        .take(operations.len())
        .map(|result| {
            let inserted = result["uuid"][1].as_str().and_then(|id| id.parse().ok());
            match (inserted, result["count"].as_i64()) {
                (Some(id), _) => OpResult::Inserted(id),
                (None, Some(count)) => OpResult::Count(count),
                (None, None) => OpResult::Done,
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_as_the_rfc_writes_them() {
        let operation = Operation::mutate(
            "Logical_Switch",
            Uuid::nil(),
            vec![Mutation {
                column: "ports",
                mutator: Mutator::Insert,
                value: Datum::set([RowId::Named("p1".into())]),
            }],
        );
        assert_eq!(
            operation.to_json(),
            json!({
                "op": "mutate", "table": "Logical_Switch",
                "where": [["_uuid", "==", ["uuid", "00000000-0000-0000-0000-000000000000"]]],
                "mutations": [["ports", "insert", ["set", [["named-uuid", "p1"]]]]],
            })
        );
    }

    #[test]
    fn the_operation_that_failed_is_named() {
        let operations = [
            Operation::Wait {
                table: "NB_Global",
                filter: vec![],
                columns: vec!["name"],
                until: Until::NotEqual,
                rows: vec![],
            },
            Operation::delete("ACL", Uuid::nil()),
        ];
        assert_eq!(
            read_results(&operations, &json!([{"error": "timed out"}, null])),
            Err(Error::WaitFailed { index: 0 })
        );
        let commit = json!([{}, {"count": 1}, {"error": "constraint violation", "details": "d"}]);
        assert!(matches!(
            read_results(&operations, &commit),
            Err(Error::Refused { index: 2, operation, .. }) if operation == "commit"
        ));
        assert_eq!(
            read_results(&operations, &json!([{}, {"count": 1}])),
            Ok(vec![OpResult::Done, OpResult::Count(1)])
        );
    }
}
