//! Values of columns, as RFC 7047 section 5.1 defines them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::Error;
use super::schema::ColumnShape;

/// Id of a row: the one the database gave, or a name for it within a
/// transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowId {
    /// The row's `_uuid`.
    Uuid(Uuid),
    /// `uuid-name` of an `insert` of the same transaction: a letter, then letters, digits
    /// and underscores.
    Named(String),
}

/// A single value.
#[derive(Clone, Debug)]
pub enum Atom {
    /// A 64-bit integer.
    Integer(i64),
    /// A real number; OVN's tables hold next to none.
    Real(f64),
    /// A truth value.
    Boolean(bool),
    /// A text.
    String(String),
    /// A reference to a row.
    Uuid(RowId),
}

impl PartialEq for Atom {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Atom {}

impl PartialOrd for Atom {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Atom {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let rank = |atom: &Self| match atom {
            Self::Integer(_) => 0,
            Self::Real(_) => 1,
            Self::Boolean(_) => 2,
            Self::String(_) => 3,
            Self::Uuid(_) => 4,
        };
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => a.total_cmp(b),
            (Self::Boolean(a), Self::Boolean(b)) => a.cmp(b),
            (Self::String(a), Self::String(b)) => a.cmp(b),
            (Self::Uuid(a), Self::Uuid(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

/// The value of a column. An optional value is a set of at most one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    /// Exactly one value.
    Atom(Atom),
    /// Any number of values.
    Set(BTreeSet<Atom>),
    /// Keys with a value each.
    Map(BTreeMap<Atom, Atom>),
}

/// A row: its columns by name.
pub type Row = BTreeMap<Arc<str>, Datum>;

impl Atom {
    /// The value in the form of RFC 7047.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Integer(n) => json!(n),
            Self::Real(n) => json!(n),
            Self::Boolean(b) => json!(b),
            Self::String(s) => json!(s),
            Self::Uuid(RowId::Uuid(id)) => json!(["uuid", id.to_string()]),
            Self::Uuid(RowId::Named(name)) => json!(["named-uuid", name]),
        }
    }

    fn from_json(value: &Value) -> Result<Self, Error> {
        let atom = match value {
            Value::String(s) => Some(Self::String(s.clone())),
            Value::Bool(b) => Some(Self::Boolean(*b)),
            Value::Number(n) => n
                .as_i64()
                .map(Self::Integer)
                .or_else(|| n.as_f64().map(Self::Real)),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(tag), Value::String(id)] if tag == "uuid" => {
                    id.parse().ok().map(|id| Self::Uuid(RowId::Uuid(id)))
                }
                _ => None,
            },
            Value::Null | Value::Object(_) => None,
        };
        atom.ok_or_else(|| Error::Protocol(format!("{value} is no value of a column")))
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }
}

impl From<&str> for Atom {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Atom {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<i64> for Atom {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Atom {
    fn from(truth: bool) -> Self {
        Self::Boolean(truth)
    }
}

impl From<RowId> for Atom {
    fn from(id: RowId) -> Self {
        Self::Uuid(id)
    }
}

impl From<Uuid> for Atom {
    fn from(id: Uuid) -> Self {
        Self::Uuid(RowId::Uuid(id))
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(id) => write!(f, "{id}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl Datum {
    /// A set.
    pub fn set<A: Into<Atom>>(members: impl IntoIterator<Item = A>) -> Self {
        Self::Set(members.into_iter().map(Into::into).collect())
    }

    /// A map from text to text.
    pub fn string_map<'a>(
        pairs: impl IntoIterator<Item = (impl AsRef<str> + 'a, impl AsRef<str> + 'a)>,
    ) -> Self {
        Self::Map(
            pairs
                .into_iter()
                .map(|(k, v)| (Atom::from(k.as_ref()), Atom::from(v.as_ref())))
                .collect(),
        )
    }

    /// A single value.
    pub fn atom(value: impl Into<Atom>) -> Self {
        Self::Atom(value.into())
    }

    /// The value in the form of RFC 7047.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Atom(atom) => atom.to_json(),
            Self::Set(set) => json!(["set", set.iter().map(Atom::to_json).collect::<Vec<_>>()]),
            Self::Map(map) => json!([
                "map",
                map.iter()
                    .map(|(k, v)| json!([k.to_json(), v.to_json()]))
                    .collect::<Vec<_>>()
            ]),
        }
    }

    /// Reads a value of a column of that shape. The wire writes a set of one member as the
    /// bare member; here it becomes a set again, so that equal values are equal.
    pub(super) fn from_json(value: &Value, shape: ColumnShape) -> Result<Self, Error> {
        let parts = match value {
            Value::Array(parts) => match parts.as_slice() {
                [Value::String(tag), Value::Array(members)] => Some((tag.as_str(), members)),
                _ => None,
            },
            _ => None,
        };
        match (shape, parts) {
            (ColumnShape::Map, Some(("map", pairs))) => pairs
                .iter()
                .map(|pair| match pair.as_array().map(Vec::as_slice) {
                    Some([k, v]) => Ok((Atom::from_json(k)?, Atom::from_json(v)?)),
                    _ => Err(Error::Protocol(format!("{pair} is no pair of a map"))),
                })
                .collect::<Result<_, _>>()
                .map(Self::Map),
            (ColumnShape::Set | ColumnShape::Optional, Some(("set", members))) => members
                .iter()
                .map(Atom::from_json)
                .collect::<Result<_, _>>()
                .map(Self::Set),
            (ColumnShape::Set | ColumnShape::Optional, _) => {
                Ok(Self::Set(BTreeSet::from([Atom::from_json(value)?])))
            }
            (ColumnShape::Scalar, _) => Ok(Self::Atom(Atom::from_json(value)?)),
            (ColumnShape::Map, _) => Err(Error::Protocol(format!("{value} is no map"))),
        }
    }

    /// Applies a difference as `update2` sends it: for a set what was added or removed, for
    /// a map also what was changed, for anything else the new value.
    pub(super) fn apply_difference(&mut self, difference: Self, shape: ColumnShape) {
        match (self, difference) {
            (Self::Set(own), Self::Set(changes)) if shape == ColumnShape::Set => {
                for member in changes {
                    if !own.remove(&member) {
                        own.insert(member);
                    }
                }
            }
            (Self::Map(own), Self::Map(changes)) => {
                for (key, value) in changes {
                    if own.get(&key) == Some(&value) {
                        own.remove(&key);
                    } else {
                        own.insert(key, value);
                    }
                }
            }
            (own, new) => *own = new,
        }
    }

    /// The text of a column that holds one, also of an optional one that is set.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.single().and_then(Atom::as_str)
    }

    /// The truth value of a column that holds one, also of an optional one that is set.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self.single() {
            Some(Atom::Boolean(b)) => Some(*b),
            _ => None,
        }
    }

    /// The value of a key in a map of texts.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        match self {
            Self::Map(map) => map.get(&Atom::from(key)).and_then(Atom::as_str),
            _ => None,
        }
    }

    /// The rows that are referred to.
    pub fn row_ids(&self) -> impl Iterator<Item = Uuid> + '_ {
        let (one, many) = match self {
            Self::Atom(atom) => (Some(atom), None),
            Self::Set(set) => (None, Some(set.iter())),
            Self::Map(_) => (None, None),
        };
        one.into_iter()
            .chain(many.into_iter().flatten())
            .filter_map(|atom| match atom {
                Atom::Uuid(RowId::Uuid(id)) => Some(*id),
                _ => None,
            })
    }

    fn single(&self) -> Option<&Atom> {
        match self {
            Self::Atom(atom) => Some(atom),
            Self::Set(set) if set.len() == 1 => set.first(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, shape: ColumnShape) -> Datum {
        Datum::from_json(&serde_json::from_str(text).unwrap(), shape).unwrap()
    }

    #[test]
    fn a_set_of_one_member_is_a_set_however_it_is_written() {
        let id = "550e8400-e29b-41d4-a716-446655440000";
        let bare = read(&format!(r#"["uuid","{id}"]"#), ColumnShape::Set);
        let full = read(&format!(r#"["set",[["uuid","{id}"]]]"#), ColumnShape::Set);
        assert_eq!(bare, full);
        assert_eq!(bare.row_ids().count(), 1);
        assert_eq!(
            read(r#"["set",[]]"#, ColumnShape::Optional),
            Datum::set::<Atom>([])
        );
        assert_eq!(read("true", ColumnShape::Optional).as_bool(), Some(true));
    }

    #[test]
    fn values_survive_being_written_and_read() {
        for (text, shape) in [
            (
                r#"["map",[["a","1"],["pileus.dev/uid","x"]]]"#,
                ColumnShape::Map,
            ),
            (r#"["set",["a","b"]]"#, ColumnShape::Set),
            ("42", ColumnShape::Scalar),
            (r#""set""#, ColumnShape::Scalar),
        ] {
            assert_eq!(read(text, shape).to_json().to_string(), text);
        }
    }

    #[test]
    fn differences_add_remove_and_replace() {
        let mut set = Datum::set(["a", "b"]);
        set.apply_difference(Datum::set(["b", "c"]), ColumnShape::Set);
        assert_eq!(set, Datum::set(["a", "c"]));

        let mut map = Datum::string_map([("same", "1"), ("gone", "2"), ("new", "3")]);
        map.apply_difference(
            Datum::string_map([("gone", "2"), ("new", "4"), ("more", "5")]),
            ColumnShape::Map,
        );
        assert_eq!(
            map,
            Datum::string_map([("same", "1"), ("new", "4"), ("more", "5")])
        );

        let mut optional = Datum::set(["a"]);
        optional.apply_difference(Datum::set(["b"]), ColumnShape::Optional);
        assert_eq!(optional, Datum::set(["b"]));
    }

    #[test]
    fn malformed_values_are_refused() {
        for (text, shape) in [
            ("null", ColumnShape::Scalar),
            (r#"["uuid","no"]"#, ColumnShape::Scalar),
            ("7", ColumnShape::Map),
            (r#"["map",[["a"]]]"#, ColumnShape::Map),
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(Datum::from_json(&value, shape).is_err(), "{text}");
        }
    }
}
