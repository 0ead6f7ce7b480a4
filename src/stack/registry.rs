//! Heat's resource types: properties, defaults, constraints, attributes.
//!
//! The tables are `resource_types/schemas/*.types`: one line per type or property, columns separated by tabs,
//! nesting by spaces. A line without indentation is a type (`stack`: it is
//! a nested stack; `hidden`, `deprecated`, `unsupported`; `mapped X`: it
//! is another type or template by default). A line below is a property: name,
//! type and flags (`required`, `update`: changed in place, `immutable`,
//! `unimplemented`, `hidden`), then columns: `default JSON`, `one-of JSON`,
//! `range JSON`, `length JSON`, `matches JSON`, `is NAME` (needs a cloud to
//! check), `from NAME` (the older spelling beside it), `joins NAME JSON` (an
//! older property that adds an item to a list), `as NAME` (of the type that
//! this other property gives). `*` is a list's item.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::constraint::{Pattern, Rule};
use crate::value::{Map, Text, Value};

/// The type of a property's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropertyType {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
    /// A list.
    List,
    /// A map.
    Map,
    /// Any value, unchanged.
    Any,
}

/// A property of a type, or of a map in a property.
#[derive(Debug, Clone)]
pub struct Property {
    /// The type of its value.
    pub value_type: PropertyType,
    /// Must be given.
    pub required: bool,
    /// A change is an update in place; otherwise it needs a replacement.
    pub update: bool,
    /// A change is refused.
    pub immutable: bool,
    /// Heat knows the property, but refuses it.
    pub unimplemented: bool,
    /// Its default.
    pub default: Option<Value>,
    /// Constraints that its value must fulfil.
    pub rules: Vec<Rule>,
    /// The older name of the property at the same level, which may be used instead.
    pub from: Option<String>,
    /// The list to which this older property adds an item, and that item with `$` for its value.
    pub joins: Option<(Text, Value)>,
    /// The property that contains the type of this one's value, as a type of parameters.
    pub told_by: Option<String>,
    /// It converts text to a list or map, as parameters do.
    pub converts: bool,
    /// Nested properties by name, or only `*` for the items of a list.
    pub inner: BTreeMap<Text, Property>,
}

/// One resource type.
#[derive(Debug, Clone, Default)]
pub struct ResourceType {
    /// Properties by name.
    pub properties: BTreeMap<Text, Property>,
    /// Update policy by name.
    pub update_policy: BTreeMap<Text, Property>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, String>,
    /// It is a nested stack or a group.
    pub stack: bool,
    /// It is hidden from the list of types: not for new templates.
    pub retired: bool,
    /// The type or template that it is mapped to by default.
    pub mapped: Option<String>,
}

/// Every table, in the order of families.
const TABLES: [&str; 8] = [
    include_str!("resource_types/schemas/nova.types"),
    include_str!("resource_types/schemas/neutron.types"),
    include_str!("resource_types/schemas/octavia.types"),
    include_str!("resource_types/schemas/cinder.types"),
    include_str!("resource_types/schemas/glance.types"),
    include_str!("resource_types/schemas/heat.types"),
    include_str!("resource_types/schemas/aws.types"),
    include_str!("resource_types/schemas/other.types"),
];

/// A type in a table, parsed when it is first used: most never are.
struct TableEntry {
    lines: &'static str,
    read: OnceLock<Arc<ResourceType>>,
}

impl TableEntry {
    fn read(&'static self) -> &'static Arc<ResourceType> {
        self.read.get_or_init(|| Arc::new(read(self.lines)))
    }
}

/// The type with this name, or with its older name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Arc<ResourceType>> {
    let types = table_entries();
    let newer;
    let name = match name.strip_prefix("OS::Quantum") {
        Some(rest) => {
            newer = format!("OS::Neutron{rest}");
            &newer
        }
        None => name,
    };
    let found = types.get(name)?.read();
    match &found.mapped {
        Some(target) => types
            .get(target.as_str())
            .map(TableEntry::read)
            .or(Some(found)),
        None => Some(found),
    }
}

/// The names of all types, in order.
#[must_use]
pub fn names() -> impl ExactSizeIterator<Item = &'static str> {
    table_entries().keys().copied()
}

fn table_entries() -> &'static BTreeMap<&'static str, TableEntry> {
    static ALL: OnceLock<BTreeMap<&'static str, TableEntry>> = OnceLock::new();
    ALL.get_or_init(|| TABLES.into_iter().flat_map(split).collect())
}

/// The types of a table: each is a line with the indented lines after it.
fn split(table: &'static str) -> impl Iterator<Item = (&'static str, TableEntry)> {
    let mut rest = table;
    std::iter::from_fn(move || {
        // Between types there are comments and empty lines.
        while rest.starts_with(['#', '\n']) {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
        let next = rest.match_indices('\n').map(|(at, _)| at + 1);
        let mut next = next.filter(|at| !rest[*at..].starts_with(' '));
        let (lines, after) = rest.split_at(next.next().unwrap_or(rest.len()));
        rest = after;
        let name = lines
            .split(['\t', '\n'])
            .next()
            .filter(|name| !name.is_empty())?;
        let read = OnceLock::new();
        Some((name, TableEntry { lines, read }))
    })
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn read(lines: &str) -> ResourceType {
    let lines: Vec<&str> = lines.lines().collect();
    let mut kind = ResourceType::default();
    for column in lines[0].split('\t').skip(1) {
        match column.split_once(' ') {
            Some(("mapped", target)) => kind.mapped = Some(target.to_owned()),
            _ if column == "stack" => kind.stack = true,
            _ => kind.retired = true,
        }
    }
    let mut at = 1;
    while at < lines.len() {
        let line = lines[at].trim_start();
        if let Some(list) = line.strip_prefix("@attributes\t") {
            let pairs = list.split(' ').filter_map(|pair| pair.rsplit_once(':'));
            kind.attributes = pairs.map(|(a, k)| (a.to_owned(), k.to_owned())).collect();
            at += 1;
        } else if line == "@update_policy" {
            at += 1;
            kind.update_policy = properties(&lines, &mut at, 2);
        } else {
            kind.properties.append(&mut properties(&lines, &mut at, 1));
        }
    }
    kind
}

/// The properties at `level` from the line `at` on.
fn properties(lines: &[&str], at: &mut usize, level: usize) -> BTreeMap<Text, Property> {
    let mut found = BTreeMap::new();
    while let Some(line) = lines.get(*at) {
        if depth(line) != level || line.trim_start().starts_with('@') {
            break;
        }
        let (name, mut property) = property(line.trim_start());
        *at += 1;
        property.inner = properties(lines, at, level + 1);
        found.insert(name, property);
    }
    found
}

fn property(line: &str) -> (Text, Property) {
    let mut columns = line.split('\t');
    let name = columns.next().unwrap_or_default().into();
    let mut flags = columns.next().unwrap_or_default().split(' ');
    let kind = match flags.next().unwrap_or_default() {
        "String" => PropertyType::String,
        "Integer" => PropertyType::Integer,
        "Number" => PropertyType::Number,
        "Boolean" => PropertyType::Boolean,
        "List" => PropertyType::List,
        "Map" => PropertyType::Map,
        _ => PropertyType::Any,
    };
    let flags: Vec<&str> = flags.collect();
    let mut property = Property {
        value_type: kind,
        required: flags.contains(&"required"),
        update: flags.contains(&"update"),
        immutable: flags.contains(&"immutable"),
        unimplemented: flags.contains(&"unimplemented"),
        default: None,
        rules: Vec::new(),
        from: None,
        joins: None,
        told_by: None,
        converts: false,
        inner: BTreeMap::new(),
    };
    for column in columns {
        let (word, rest) = column.split_once(' ').unwrap_or((column, ""));
        // A test reads every table, so this never fails at run time.
        let json = || serde_json::from_str::<Value>(rest).unwrap_or_default();
        match word {
            "default" => property.default = Some(json()),
            "is" => property.rules.push(Rule::Custom(rest.to_owned())),
            "joins" => {
                if let Some((target, item)) = rest.split_once(' ') {
                    let item = serde_json::from_str(item).unwrap_or_default();
                    property.joins = Some((target.into(), item));
                }
            }
            "from" => property.from = Some(rest.to_owned()),
            "as" => property.told_by = Some(rest.to_owned()),
            "one-of" => {
                let values = json().as_array().cloned().unwrap_or_default();
                property.rules.push(Rule::Allowed(values.to_vec()));
            }
            "range" | "length" => {
                let bounds = json();
                let bound = |key: &str| bounds.get(key).and_then(Value::as_f64);
                property.rules.push(if word == "range" {
                    Rule::Range(bound("min"), bound("max"))
                } else {
                    Rule::Length(bound("min"), bound("max"))
                });
            }
            _ => {
                let text = json();
                let pattern = Pattern::known(text.as_str().unwrap_or_default());
                property.rules.push(Rule::Pattern(pattern));
            }
        }
    }
    (name, property)
}

/// The type of a template that is used as a type: its parameters are the properties.
#[must_use]
pub fn of_template(parameters: &BTreeMap<String, super::parameters::Schema>) -> ResourceType {
    use super::parameters::ParameterType;
    let properties = parameters.iter().map(|(name, schema)| {
        let kind = match schema.value_type {
            ParameterType::String => PropertyType::String,
            ParameterType::Number => PropertyType::Number,
            ParameterType::List => PropertyType::List,
            ParameterType::Json => PropertyType::Map,
            ParameterType::Boolean => PropertyType::Boolean,
        };
        let property = Property {
            value_type: kind,
            required: schema.default.is_none(),
            // The resources of the template decide what a change does.
            update: true,
            immutable: false,
            unimplemented: false,
            default: None,
            rules: schema.rules().cloned().collect(),
            from: None,
            joins: None,
            told_by: None,
            converts: matches!(kind, PropertyType::List | PropertyType::Map),
            inner: BTreeMap::new(),
        };
        (name.as_str().into(), property)
    });
    ResourceType {
        properties: properties.collect(),
        stack: true,
        ..ResourceType::default()
    }
}

/// Whether a type accepts any properties, because it has no effect or exists only for old templates.
pub(super) fn takes_anything(name: &str, found: &ResourceType) -> bool {
    name == "OS::Heat::None" || (found.retired && found.properties.is_empty())
}

/// The map without entries that are null.
pub(super) fn without_nulls(map: Map) -> Map {
    map.into_iter().filter(|(_, v)| !v.is_null()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;

    #[test]
    fn every_line_of_the_tables_is_parsed() {
        let lines = TABLES.iter().flat_map(|table| table.lines());
        for line in lines.filter(|line| line.starts_with(' ')) {
            for column in line.split('\t').skip(2) {
                let (word, rest) = column.split_once(' ').unwrap();
                match word {
                    "is" | "from" | "joins" | "as" => {}
                    "default" | "one-of" | "range" | "length" => {
                        assert!(serde_json::from_str::<Value>(rest).is_ok(), "{line}");
                    }
                    "matches" => {
                        let text: String = serde_json::from_str(rest).unwrap();
                        assert!(super::super::constraint::pattern(&text).is_ok(), "{line}");
                    }
                    other => panic!("{other}: {line}"),
                }
            }
        }
    }

    #[test]
    fn the_server_type_has_its_properties() {
        let server = find("OS::Nova::Server").unwrap();
        assert!(server.properties["flavor"].required);
        assert!(server.properties["flavor"].update);
        assert!(!server.properties["key_name"].update);
        let network = &server.properties["networks"].inner["*"].inner["network"];
        assert_eq!(network.from.as_deref(), Some("uuid"));
        assert!(server.attributes.contains_key("first_address"));
    }

    #[test]
    fn old_names_lead_to_the_type() {
        assert!(find("OS::Quantum::Net").is_some());
        assert!(!find("OS::Ceilometer::Alarm").unwrap().properties.is_empty());
        assert!(find("OS::Nova::Sever").is_none());
    }

    #[test]
    fn all_documented_families_have_types() {
        for family in [
            "OS::Nova",
            "OS::Neutron",
            "OS::Octavia",
            "OS::Cinder",
            "OS::Glance",
            "OS::Heat",
            "AWS",
        ] {
            assert!(names().any(|name| name.starts_with(family)), "{family}");
        }
        assert!(names().len() > 190);
    }
}
