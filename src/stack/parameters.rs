//! Parameters: their schemas, constraints and values.

use std::collections::BTreeSet;

use super::constraint::{Constraint, Pattern, Rule, bounds, hot_constraint, length, pattern};
use super::functions::python;
use super::version::Version;
use super::{Error, Result, python_type};
use crate::value::{List, Map, Number, Text, Value};

/// What a parameter's value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterType {
    /// Text.
    String,
    /// An integer or a float.
    Number,
    /// A list, or text with commas.
    List,
    /// Any JSON map or list, or its text.
    Json,
    /// True or false, in many spellings.
    Boolean,
}

/// One parameter's schema.
#[derive(Debug, Clone)]
pub struct Schema {
    /// The value's type.
    pub value_type: ParameterType,
    /// The default as written.
    pub default: Option<Value>,
    /// Never shown in status, outputs or logs.
    pub hidden: bool,
    /// A change is refused at update.
    pub immutable: bool,
    /// Every rule holds.
    pub constraints: Vec<Constraint>,
}

/// Values of a stack's parameters, pseudo parameters among them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    /// Value by name, after its type.
    pub values: Map,
    /// Names whose values are never shown.
    pub hidden: BTreeSet<String>,
    /// Names that have neither a value nor a default.
    pub missing: BTreeSet<String>,
}

/// What is said of a parameter that is used and has no value.
pub(super) const MISSING: &str = "has no value and no default";

/// Who the stack is; what pseudo parameters say.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The stack's name.
    pub name: String,
    /// The stack's id.
    pub id: String,
    /// The tenant: the namespace.
    pub project: String,
    /// The region.
    pub region: String,
}

impl Identity {
    /// The pseudo parameters of `version`.
    #[must_use]
    pub fn pseudo(&self, version: Version) -> Map {
        let mut values = Map::new();
        if version.is_hot() {
            values.insert("OS::stack_name", Value::from(self.name.as_str()));
            values.insert("OS::stack_id", Value::from(self.id.as_str()));
            values.insert("OS::project_id", Value::from(self.project.as_str()));
        } else {
            let arn = format!(
                "arn:openstack:heat::{}:stacks/{}/{}",
                self.project, self.name, self.id
            );
            values.insert("AWS::StackName", Value::from(self.name.as_str()));
            values.insert("AWS::StackId", Value::from(arn));
            values.insert("AWS::Region", Value::from(self.region.as_str()));
        }
        values
    }
}

impl Schema {
    fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.rules().filter_map(|rule| match rule {
            Rule::Pattern(pattern) => Some(pattern),
            _ => None,
        })
    }

    fn large_patterns(&self) -> usize {
        self.patterns().filter(|pattern| pattern.is_large()).count()
    }

    /// What values must fulfil.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.constraints.iter().map(|constraint| &constraint.rule)
    }

    /// Reads a schema in the language of `version`.
    ///
    /// # Errors
    /// When a key, the type or a constraint is not one there is.
    pub fn parse(value: &Value, version: Version) -> Result<Self> {
        Self::read(value, version)?.checked()
    }

    /// Reads a schema, whose default may break it: what takes its value by it does not care.
    ///
    /// # Errors
    /// As [`Self::parse`], but for the default and what fits the type.
    pub(super) fn read(value: &Value, version: Version) -> Result<Self> {
        let Value::Object(map) = value else {
            return Err(Error::new(format!(
                "a parameter is a map, this is {}",
                python_type(value)
            )));
        };
        if version.is_hot() {
            Self::parse_hot(map, version)
        } else {
            Self::parse_cfn(map)
        }
    }

    fn parse_hot(map: &Map, version: Version) -> Result<Self> {
        const KEYS: [&str; 9] = [
            "type",
            "description",
            "default",
            "constraints",
            "hidden",
            "label",
            "immutable",
            "tags",
            "schema",
        ];
        for key in map.keys() {
            let known = KEYS.contains(&key.as_str());
            if !known || (key == "tags" && version < Version::Queens) {
                return Err(Error::at(
                    key,
                    format!("no key of a parameter; there are {}", KEYS.join(", ")),
                ));
            }
        }
        if map.get("tags").is_some_and(|tags| !tags.is_array()) {
            return Err(Error::at("tags", "must be a list"));
        }
        let kind = match map.get("type").and_then(Value::as_str) {
            Some("string") => ParameterType::String,
            Some("number") => ParameterType::Number,
            Some("comma_delimited_list") => ParameterType::List,
            Some("json") => ParameterType::Json,
            Some("boolean") => ParameterType::Boolean,
            Some(other) => {
                return Err(Error::at(
                    "type",
                    format!(
                        "invalid type ({other}); use string, number, comma_delimited_list, json or boolean"
                    ),
                ));
            }
            None => return Err(Error::new("a parameter must have a type")),
        };
        let constraints = match map.get("constraints") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| hot_constraint(item, version))
                .collect::<Result<_>>()
                .map_err(|error| error.below("constraints"))?,
            Some(_) => return Err(Error::at("constraints", "must be a list")),
        };
        Ok(Self {
            value_type: kind,
            default: map.get("default").filter(|value| !value.is_null()).cloned(),
            hidden: map
                .get("hidden")
                .is_some_and(|v| boolean(v).unwrap_or(false)),
            immutable: map
                .get("immutable")
                .is_some_and(|v| boolean(v).unwrap_or(false)),
            constraints,
        })
    }

    fn parse_cfn(map: &Map) -> Result<Self> {
        const KEYS: [&str; 12] = [
            "Type",
            "Description",
            "Default",
            "NoEcho",
            "Label",
            "AllowedValues",
            "AllowedPattern",
            "MinLength",
            "MaxLength",
            "MinValue",
            "MaxValue",
            "ConstraintDescription",
        ];
        for key in map.keys() {
            if !KEYS.contains(&key.as_str()) {
                return Err(Error::at(
                    key,
                    format!("no key of a parameter; there are {}", KEYS.join(", ")),
                ));
            }
        }
        let kind = match map.get("Type").and_then(Value::as_str) {
            Some("String") => ParameterType::String,
            Some("Number") => ParameterType::Number,
            Some("CommaDelimitedList") => ParameterType::List,
            Some("Json") => ParameterType::Json,
            Some("Boolean") => ParameterType::Boolean,
            _ => {
                return Err(Error::at(
                    "Type",
                    "invalid type; use String, Number, CommaDelimitedList, Json or Boolean",
                ));
            }
        };
        let description = map
            .get("ConstraintDescription")
            .and_then(Value::as_str)
            .unwrap_or("");
        let mut rules = Vec::new();
        for (least, most) in [("MinValue", "MaxValue"), ("MinLength", "MaxLength")] {
            if !map.contains_key(least) && !map.contains_key(most) {
                continue;
            }
            let bounds = bounds(map, [least, most]).map_err(|error| error.below(least))?;
            rules.push(if least == "MinValue" {
                Rule::Range(bounds.0, bounds.1)
            } else {
                length(map, [least, most], bounds)?
            });
        }
        match map.get("AllowedValues") {
            None => {}
            Some(Value::Array(values)) => rules.push(Rule::Allowed(values.to_vec())),
            Some(_) => return Err(Error::at("AllowedValues", "must be a list")),
        }
        match map.get("AllowedPattern") {
            None => {}
            Some(Value::String(text)) => rules.push(pattern(text)?),
            Some(_) => return Err(Error::at("AllowedPattern", "must be a string")),
        }
        Ok(Self {
            value_type: kind,
            default: map.get("Default").filter(|value| !value.is_null()).cloned(),
            hidden: map
                .get("NoEcho")
                .is_some_and(|v| boolean(v).unwrap_or(false)),
            immutable: false,
            constraints: rules
                .into_iter()
                .map(|rule| Constraint {
                    rule,
                    description: description.to_owned(),
                })
                .collect(),
        })
    }

    /// Which constraints fit which types.
    fn checked(self) -> Result<Self> {
        for constraint in &self.constraints {
            let fits = match &constraint.rule {
                Rule::Length(..) => matches!(
                    self.value_type,
                    ParameterType::String | ParameterType::List | ParameterType::Json
                ),
                Rule::Range(..) | Rule::Modulo { .. } => self.value_type == ParameterType::Number,
                Rule::Allowed(_) => self.value_type != ParameterType::Json,
                Rule::Pattern(..) => self.value_type == ParameterType::String,
                Rule::Custom(_) => self.value_type != ParameterType::Json,
            };
            if !fits {
                return Err(Error::at(
                    "constraints",
                    "this constraint does not fit the type",
                ));
            }
        }
        // Whether it is of the type shows where it is used.
        if let Some(default) = &self.default {
            let default = match (self.value_type, default) {
                (ParameterType::List, Value::String(text)) => text.split(',').collect(),
                (ParameterType::List, Value::Array(_)) => self.coerce(default)?,
                (ParameterType::List, other) => {
                    return Err(Error::at(
                        "default",
                        format!(
                            "must be text with commas or a list, is {}",
                            python_type(other)
                        ),
                    ));
                }
                _ => default.clone(),
            };
            self.keeps(&default)
                .map_err(|error| error.below("default"))?;
        }
        Ok(self)
    }

    /// The value after its type.
    ///
    /// # Errors
    /// When it is not of the type.
    pub fn coerce(&self, value: &Value) -> Result<Value> {
        match (self.value_type, value) {
            (_, Value::Null) => Err(Error::new(MISSING)),
            (ParameterType::String, _) => Ok(Value::from(python::text(value))),
            (ParameterType::Number, Value::Number(_) | Value::Bool(_)) => Ok(value.clone()),
            (ParameterType::Number, Value::String(text)) => number(text)
                .map(Value::Number)
                // The text itself is left out: it may be hidden.
                .ok_or_else(|| Error::new("is no number")),
            (ParameterType::Boolean, _) => boolean(value).map(Value::Bool).ok_or_else(|| {
                Error::new("must be a boolean: true, false, yes, no, on, off, 1, 0")
            }),
            (ParameterType::List, Value::Array(items)) => {
                Ok(items.iter().map(python::text).collect())
            }
            (ParameterType::List, Value::String(text)) if text.is_empty() => {
                Ok(Value::Array(List::new()))
            }
            (ParameterType::List, Value::String(text)) => Ok(text.split(',').collect()),
            (ParameterType::Json, Value::String(text)) if text.is_empty() => Ok(value.clone()),
            (ParameterType::Json, Value::String(text)) => {
                serde_json::from_str(text).map_err(|_| Error::new("must be valid JSON"))
            }
            (ParameterType::Json, _) => Ok(value.clone()),
            (_, other) => Err(Error::new(format!("does not take {}", python_type(other)))),
        }
    }

    /// The value after its type, every constraint kept.
    ///
    /// # Errors
    /// When it is not of the type or breaks a constraint.
    pub fn check(&self, value: &Value) -> Result<Value> {
        let coerced = self.coerce(value)?;
        // Lists and maps are converted first; other values are checked as given.
        let read = matches!(self.value_type, ParameterType::List | ParameterType::Json);
        self.keeps(if read { &coerced } else { value })?;
        Ok(coerced)
    }

    /// Whether a value keeps every constraint.
    fn keeps(&self, value: &Value) -> Result<()> {
        for constraint in &self.constraints {
            let kept = match (&constraint.rule, value) {
                (Rule::Length(..), Value::Number(_) | Value::Bool(_) | Value::Null) => false,
                (Rule::Pattern(_), value) if !value.is_string() => false,
                (Rule::Range(..) | Rule::Modulo { .. }, Value::Bool(flag)) => {
                    constraint.rule.holds(&Value::from(u8::from(*flag)))
                }
                (Rule::Range(..) | Rule::Modulo { .. }, Value::String(text)) => {
                    number(text).is_some_and(|number| constraint.rule.holds(&Value::Number(number)))
                }
                (Rule::Allowed(allowed), value) => self.is_among(allowed, value)?,
                (rule, value) => rule.holds(value),
            };
            if !kept {
                // The value itself is left out: it may be hidden.
                return Err(Error::new(if constraint.description.is_empty() {
                    constraint.rule.explain()
                } else {
                    constraint.description.clone()
                }));
            }
        }
        Ok(())
    }

    /// Whether a value is one of those, all of them read after the type; of a list every item,
    /// as it is.
    fn is_among(&self, allowed: &[Value], value: &Value) -> Result<bool> {
        let has = |allowed: &[Value], value: &Value| {
            allowed.iter().any(|allowed| python::equal(allowed, value))
        };
        if let Value::Array(items) = value {
            return Ok(items.iter().all(|item| has(allowed, item)));
        }
        // Nothing as text is the text `None`.
        let read = |value: &Value| match (self.value_type, value) {
            (ParameterType::String, Value::Null) => Ok(Value::from("None")),
            _ => self.coerce(value),
        };
        let allowed = allowed.iter().map(read);
        let allowed = allowed
            .collect::<Result<Vec<_>>>()
            .map_err(|error| error.below("allowed_values"))?;
        Ok(has(&allowed, &read(value)?))
    }
}

pub(super) fn boolean_like(value: &Value) -> bool {
    value.is_boolean()
}

pub(super) fn number(text: &str) -> Option<Number> {
    let text = text.trim();
    python::whole_text(text)
        .map(Number::from)
        .or_else(|| text.parse::<u64>().ok().map(Number::from))
        .or_else(|| text.parse::<f64>().ok().and_then(Number::from_f64))
}

/// Heat's strict reading of a boolean.
#[must_use]
pub fn boolean(value: &Value) -> Option<bool> {
    let text = match value {
        Value::Bool(flag) => return Some(*flag),
        Value::String(text) => text.trim().to_lowercase(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    match text.as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Some(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Some(false),
        _ => None,
    }
}

/// Patterns that the constraints of a template may have in all.
const MAX_PATTERNS: usize = 1000;
/// Large ones among them, which take time to make and much room.
const MAX_LARGE_PATTERNS: usize = 8;

fn within_limits(name: &str, patterns: usize, large: usize) -> Result<()> {
    if patterns <= MAX_PATTERNS && large <= MAX_LARGE_PATTERNS {
        return Ok(());
    }
    Err(Error::at(
        format!("parameters.{name}"),
        format!(
            "a template may have {MAX_PATTERNS} patterns, {MAX_LARGE_PATTERNS} of them large ones, \
             such as `\\pL{{1,300}}`"
        ),
    ))
}

impl Parameters {
    /// Every parameter's value: what the user gave, else `defaults` of the
    /// environment, else the template's default.
    ///
    /// # Errors
    /// For the first schema or value that is wrong, or a value that the template
    /// does not know. Missing values are listed by name, and are an error where they are used.
    pub fn resolve(
        schemas: &Map,
        version: Version,
        given: &Map,
        defaults: &Map,
        identity: &Identity,
    ) -> Result<Self> {
        let mut result = Self {
            values: identity.pseudo(version),
            hidden: BTreeSet::new(),
            missing: BTreeSet::new(),
        };
        let mut parsed = Vec::with_capacity(schemas.len());
        let (mut patterns, mut large) = (0, 0);
        for (name, schema) in schemas {
            let schema = Schema::parse(schema, version)
                .map_err(|error| error.below(&format!("parameters.{name}")))?;
            patterns += schema.patterns().count();
            large += schema.large_patterns();
            within_limits(name, patterns, large)?;
            parsed.push((name, schema));
        }
        if let Some(name) = given.keys().find(|name| !schemas.contains_key(name)) {
            return Err(Error::at(
                "parameters",
                format!("the template has no parameter `{name}`"),
            ));
        }
        for (name, schema) in parsed {
            let value = given
                .get(name)
                .filter(|value| !value.is_null())
                .or_else(|| defaults.get(name).filter(|value| !value.is_null()))
                .or(schema.default.as_ref());
            let Some(value) = value else {
                result.missing.insert(name.to_string());
                continue;
            };
            let before = schema.large_patterns();
            let value = schema
                .check(value)
                .map_err(|error| error.below(&format!("parameters.{name}")))?;
            large += schema.large_patterns() - before;
            within_limits(name, patterns, large)?;
            if schema.hidden {
                result.hidden.insert(name.to_string());
            }
            result.values.insert(name.clone(), value);
        }
        Ok(result)
    }

    /// The values as they may be shown.
    #[must_use]
    pub fn masked(&self) -> Map {
        let shown = |name: &Text, value: &Value| {
            if self.hidden.contains(name.as_str()) {
                Value::from("******")
            } else {
                value.clone()
            }
        };
        self.values
            .iter()
            .map(|(name, value)| (name.clone(), shown(name, value)))
            .collect()
    }
}

#[cfg(test)]
#[path = "parameters_tests.rs"]
mod tests;
