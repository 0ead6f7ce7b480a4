//! The in-memory copy of what is monitored.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Error;
use super::datum::{Datum, Row};
use super::schema::Schema;

/// What to keep a copy of.
#[derive(Clone, Debug, Default)]
pub struct Monitor {
    /// Name of the database.
    pub database: String,
    /// Columns by table.
    pub tables: BTreeMap<&'static str, &'static [&'static str]>,
}

/// Rows of a table by id.
pub type Table = BTreeMap<Uuid, Arc<Row>>;

/// A copy of the monitored columns at one moment. Cloning is cheap: tables are shared
/// until one of the copies changes.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    tables: BTreeMap<Arc<str>, Arc<Table>>,
}

impl Replica {
    /// A replica of these tables, for tests.
    #[must_use]
    pub fn from_tables(tables: impl IntoIterator<Item = (&'static str, Table)>) -> Self {
        Self {
            tables: tables
                .into_iter()
                .map(|(name, table)| (Arc::from(name), Arc::new(table)))
                .collect(),
        }
    }

    /// The rows of a table, in order of their ids; none if it is not monitored.
    pub fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Row)> + '_ {
        self.tables
            .get(table)
            .into_iter()
            .flat_map(|t| t.iter())
            .map(|(id, row)| (*id, row.as_ref()))
    }

    /// A row by its id.
    #[must_use]
    pub fn row(&self, table: &str, id: Uuid) -> Option<&Row> {
        self.tables.get(table)?.get(&id).map(AsRef::as_ref)
    }

    /// Number of rows in a table.
    #[must_use]
    pub fn len(&self, table: &str) -> usize {
        self.tables.get(table).map_or(0, |t| t.len())
    }

    /// Applies a `table-updates2`, which is also the answer to `monitor_cond`.
    pub(super) fn apply(
        &mut self,
        updates: &Value,
        monitor: &Monitor,
        schema: &Schema,
    ) -> Result<(), Error> {
        let unreadable = |what: &str| Error::Protocol(format!("{what} in an update"));
        for (table_name, rows) in object(updates).ok_or_else(|| unreadable("no tables"))? {
            let Some((table_name, columns)) = monitor.tables.get_key_value(table_name.as_str())
            else {
                continue;
            };
            let table = Arc::make_mut(self.tables.entry(Arc::from(*table_name)).or_default());
            for (id, change) in object(rows).ok_or_else(|| unreadable("no rows"))? {
                let id: Uuid = id.parse().map_err(|_| unreadable("a bad row id"))?;
                let change = object(change).ok_or_else(|| unreadable("a bad row"))?;
                if let Some(new) = change.get("initial").or_else(|| change.get("insert")) {
                    table.insert(id, Arc::new(full_row(new, table_name, columns, schema)?));
                } else if let Some(difference) = change.get("modify") {
                    let row = table
                        .get_mut(&id)
                        .ok_or_else(|| unreadable("a change of a row that is not there"))?;
                    modify(Arc::make_mut(row), difference, table_name, schema)?;
                } else if change.contains_key("delete") {
                    table.remove(&id);
                } else {
                    return Err(unreadable("an unknown kind of change"));
                }
            }
        }
        Ok(())
    }
}

impl Monitor {
    /// The parameters of `monitor_cond`; `id` comes back with each update.
    pub(super) fn to_json(&self, id: &str) -> Value {
        let requests: Map<String, Value> = self
            .tables
            .iter()
            .map(|(table, columns)| ((*table).to_owned(), json!([{ "columns": columns }])))
            .collect();
        json!([self.database, id, requests])
    }
}

fn object(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object()
}

fn full_row(
    new: &Value,
    table: &str,
    columns: &[&'static str],
    schema: &Schema,
) -> Result<Row, Error> {
    let mut row = Row::new();
    for name in columns {
        let Some(column) = schema.column(table, name) else {
            continue; // Checked when the monitor began.
        };
        let datum = match new.get(*name) {
            Some(value) => Datum::from_json(value, column.shape)?,
            None => column.default.clone(),
        };
        row.insert(intern(name), datum);
    }
    Ok(row)
}

fn modify(row: &mut Row, difference: &Value, table: &str, schema: &Schema) -> Result<(), Error> {
    for (name, value) in object(difference).into_iter().flatten() {
        if let (Some(own), Some(column)) = (row.get_mut(name.as_str()), schema.column(table, name))
        {
            own.apply_difference(Datum::from_json(value, column.shape)?, column.shape);
        }
    }
    Ok(())
}

/// Column names are few and rows are many, so rows share them.
fn intern(name: &'static str) -> Arc<str> {
    thread_local! {
        static NAMES: std::cell::RefCell<BTreeMap<&'static str, Arc<str>>> =
            const { std::cell::RefCell::new(BTreeMap::new()) };
    }
    NAMES.with_borrow_mut(|names| names.entry(name).or_insert_with(|| Arc::from(name)).clone())
}
