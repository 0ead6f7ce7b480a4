//! The columns of a database; as much of its schema as reading values needs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::datum::{Atom, Datum, RowId};
use super::{Error, Monitor};

/// How many values a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnShape {
    /// Exactly one.
    Scalar,
    /// None or one.
    Optional,
    /// A set.
    Set,
    /// A map.
    Map,
}

/// A column of the schema.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) shape: ColumnShape,
    /// What the server leaves out of an inserted row.
    pub(super) default: Datum,
}

/// The columns of a database by table.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    database: String,
    tables: BTreeMap<String, BTreeMap<String, Column>>,
}

impl Schema {
    /// Reads the answer to `get_schema`.
    pub(super) fn from_json(database: &str, value: &Value) -> Result<Self, Error> {
        let unreadable = || Error::Protocol(format!("the schema of {database}"));
        let mut tables = BTreeMap::new();
        for (table, content) in value["tables"].as_object().ok_or_else(unreadable)? {
            let columns = content["columns"].as_object().ok_or_else(unreadable)?;
            let columns = columns
                .iter()
                .map(|(name, column)| (name.clone(), Column::from_json(&column["type"])))
                .collect();
            tables.insert(table.clone(), columns);
        }
        Ok(Self {
            database: database.to_owned(),
            tables,
        })
    }

    /// The shape of a column, if there is such a column.
    #[must_use]
    pub fn shape(&self, table: &str, column: &str) -> Option<ColumnShape> {
        Some(self.tables.get(table)?.get(column)?.shape)
    }

    pub(super) fn column(&self, table: &str, column: &str) -> Option<&Column> {
        self.tables.get(table)?.get(column)
    }

    /// Whether all that is to be monitored is there.
    pub(super) fn check(&self, monitor: &Monitor) -> Result<(), Error> {
        for (table, columns) in &monitor.tables {
            for column in *columns {
                if self.column(table, column).is_none() {
                    return Err(Error::Schema {
                        database: self.database.clone(),
                        table: (*table).to_owned(),
                        column: (*column).to_owned(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl Column {
    fn from_json(column_type: &Value) -> Self {
        let key = &column_type["key"];
        let base = column_type
            .as_str()
            .or_else(|| key.as_str())
            .or_else(|| key["type"].as_str());
        let shape = if !column_type["value"].is_null() {
            ColumnShape::Map
        } else if column_type["max"].as_i64().unwrap_or(1) != 1 || column_type["max"].is_string() {
            ColumnShape::Set
        } else if column_type["min"].as_i64() == Some(0) {
            ColumnShape::Optional
        } else {
            ColumnShape::Scalar
        };
        let default = match shape {
            ColumnShape::Map => Datum::Map(BTreeMap::new()),
            ColumnShape::Set | ColumnShape::Optional => Datum::Set(BTreeSet::new()),
            ColumnShape::Scalar => Datum::Atom(match base {
                Some("integer") => Atom::Integer(0),
                Some("real") => Atom::Real(0.0),
                Some("boolean") => Atom::Boolean(false),
                Some("uuid") => Atom::Uuid(RowId::Uuid(uuid::Uuid::nil())),
                _ => Atom::String(String::new()),
            }),
        };
        Self { shape, default }
    }
}
