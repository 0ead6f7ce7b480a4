//! The intrinsic functions: evaluates a value with functions to a plain value.

mod cfn;
mod collections;
mod conditions;
pub(super) mod python;
mod references;
mod strings;
pub(crate) mod url;
mod yaql;

pub(super) use python::json as python_json;
pub use references::References;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::budget::Budget;
use super::files::Files;
use super::parameters;
use super::version::Version;
use super::{Error, Result, python_type};
use crate::value::{List, Map, Value};

/// The basic cost of a value in bytes.
const NODE: usize = 64;

/// How deep functions may nest.
const MAX_DEPTH: usize = 200;

/// What is known about a resource when values that refer to it are evaluated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// Its reference id.
    pub refid: Value,
    /// Its attributes.
    pub attributes: Map,
    /// Other attributes are not known yet, and evaluate to null; otherwise they are an error.
    pub open: bool,
}

/// Everything a value may refer to.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// The template's version, which decides about the available functions.
    pub version: Version,
    /// Parameters by name.
    pub parameters: &'a Map,
    /// Known resources by name.
    pub resources: &'a BTreeMap<String, Known>,
    /// The resources that exist: those with a false condition do not. One that is not in `resources`
    /// is not created yet. All of `resources` if `None`.
    pub existing: Option<&'a HashSet<&'a str>>,
    /// Files for `get_file`.
    pub files: &'a Files,
    /// CloudFormation's `Mappings`.
    pub mappings: &'a Map,
    /// Condition definitions.
    pub conditions: &'a Map,
    /// The outer resource of a nested stack: metadata, deletion_policy, update_policy.
    pub facade: &'a Map,
    /// The budget for the evaluation.
    pub budget: Budget,
    /// Conditions that were evaluated already.
    pub held: RefCell<HashMap<String, bool>>,
}

/// The result of evaluating a value.
enum Evaluated {
    /// The value itself: it contains no functions.
    Same,
    Value(Value),
    /// Nothing: an `if` without else was false, and is removed.
    Nothing,
}

impl Evaluated {
    fn of(self, value: &Value) -> Value {
        match self {
            Self::Same => value.clone(),
            Self::Value(value) => value,
            Self::Nothing => Value::Null,
        }
    }
}

impl Known {
    fn attribute(&self, name: &str, attribute: &str) -> Result<Value> {
        match self.attributes.get(attribute) {
            Some(value) => Ok(value.clone()),
            None if self.open => Ok(Value::Null),
            None => Err(Error::new(format!(
                "the resource `{name}` has no attribute `{attribute}`"
            ))),
        }
    }
}

impl Scope<'_> {
    /// The value with every function evaluated.
    ///
    /// # Errors
    /// When a function has wrong arguments or refers to something that does not exist.
    pub fn evaluate(&self, value: &Value) -> Result<Value> {
        self.inner(value, 0).map(|evaluated| evaluated.of(value))
    }

    /// Whether a condition is true: a boolean, a condition's name or a function.
    ///
    /// # Errors
    /// When there is no such condition, it is circular, or its value is not a boolean.
    pub fn condition(&self, value: &Value) -> Result<bool> {
        conditions::holds(self, value, &mut Vec::new())
    }

    /// The value of a condition, which may be no boolean.
    ///
    /// # Errors
    /// As [`Self::condition`], except for the last.
    pub fn condition_value(&self, value: &Value) -> Result<Value> {
        conditions::value(self, value, &mut Vec::new())
    }

    /// Checks the shape of the functions of a condition.
    ///
    /// # Errors
    /// For the first malformed function.
    pub fn check_condition(&self, value: &Value) -> Result<()> {
        conditions::check(self, value, 0)
    }

    fn inner(&self, value: &Value, depth: usize) -> Result<Evaluated> {
        if depth > MAX_DEPTH {
            return Err(Error::new(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        match value {
            Value::Array(items) => {
                self.budget.spend(items.len().saturating_mul(NODE))?;
                let mut list = None;
                for (index, item) in items.iter().enumerate() {
                    let evaluated = self
                        .inner(item, depth + 1)
                        .map_err(|e| e.below(&format!("[{index}]")))?;
                    let before = || items[..index].iter().cloned().collect();
                    match evaluated {
                        Evaluated::Same => {
                            if let Some(list) = &mut list {
                                List::push(list, item.clone());
                            }
                        }
                        Evaluated::Value(value) => list.get_or_insert_with(before).push(value),
                        Evaluated::Nothing => {
                            list.get_or_insert_with(before);
                        }
                    }
                }
                Ok(list.map_or(Evaluated::Same, |list| Evaluated::Value(Value::Array(list))))
            }
            Value::Object(map) => {
                if let Some((name, argument)) = function(self.version, map) {
                    return self.call(name, argument, depth).map_err(|e| e.below(name));
                }
                self.budget.spend(map.len().saturating_mul(NODE))?;
                let mut result = None;
                for (index, (key, item)) in map.iter().enumerate() {
                    let evaluated = self.inner(item, depth + 1).map_err(|e| e.below(key))?;
                    let before = || {
                        let mut before = Map::with_capacity(map.len());
                        let entries = map.iter().take(index);
                        before.extend(entries.map(|(key, value)| (key.clone(), value.clone())));
                        before
                    };
                    match evaluated {
                        Evaluated::Same => {
                            if let Some(result) = &mut result {
                                Map::insert(result, key.clone(), item.clone());
                            }
                        }
                        Evaluated::Value(value) => {
                            result.get_or_insert_with(before).insert(key.clone(), value);
                        }
                        Evaluated::Nothing => {
                            result.get_or_insert_with(before);
                        }
                    }
                }
                Ok(result.map_or(Evaluated::Same, |map| Evaluated::Value(Value::Object(map))))
            }
            Value::String(text) => {
                // The cost of short texts is part of that of their container.
                if text.len() > NODE {
                    self.budget.spend(text.len())?;
                }
                Ok(Evaluated::Same)
            }
            _ => Ok(Evaluated::Same),
        }
    }

    fn call(&self, name: &str, argument: &Value, depth: usize) -> Result<Evaluated> {
        if matches!(name, "if" | "Fn::If") {
            return self.choose(argument, depth);
        }
        if name == "repeat" {
            return collections::repeat(self, argument).map(Evaluated::Value);
        }
        if name == "Fn::GetAZs" {
            // The region makes no difference.
            return cfn::call(self, name, &Value::Null).map(Evaluated::Value);
        }
        if let ("filter" | "contains", Value::Array(items)) = (name, argument) {
            let evaluated = self.each(name, items, depth)?;
            return self.apply(name, &evaluated).map(Evaluated::Value);
        }
        let evaluated;
        let argument = if argument.is_array() || argument.is_object() {
            evaluated = self.inner(argument, depth + 1)?.of(argument);
            &evaluated
        } else {
            argument
        };
        self.apply(name, argument).map(Evaluated::Value)
    }

    /// The arguments of a function with positions: a removed argument is null.
    fn each(&self, name: &str, items: &List, depth: usize) -> Result<Value> {
        let one = |item| Ok::<_, Error>(self.inner(item, depth + 1)?.of(item));
        match &items[..] {
            // If the list is empty, the values to remove are not evaluated.
            [out, list] if name == "filter" => {
                let list = one(list)?;
                let out = if python::truthy(&list) {
                    one(out)?
                } else {
                    Value::Null
                };
                Ok([out, list].into_iter().collect())
            }
            items => items.iter().map(one).collect(),
        }
    }

    /// The result of a function for an evaluated argument.
    fn apply(&self, name: &str, argument: &Value) -> Result<Value> {
        let legacy = self.version < Version::Liberty;
        let value = match name {
            "get_param" => self.parameter(argument),
            "get_resource" => self.reference(argument),
            "Ref" => cfn::reference(self, argument),
            "get_attr" => self.attribute(argument),
            "Fn::GetAtt" => cfn::attribute(self, argument),
            "get_file" => self.file(argument),
            "resource_facade" | "Fn::ResourceFacade" => self.facade(argument),
            "str_replace" => strings::replace(self, argument, !legacy, 0),
            "str_replace_strict" => strings::replace(self, argument, true, 1),
            "str_replace_vstrict" => strings::replace(self, argument, true, 2),
            "list_join" => strings::join(self, argument, !legacy),
            "Fn::Join" => strings::join(self, argument, false),
            "str_split" => strings::split(argument),
            "digest" => strings::digest(argument),
            "make_url" => url::make(argument),
            "map_merge" => collections::map_merge(argument),
            "map_replace" => collections::map_replace(argument),
            "list_concat" => collections::list_concat(argument, false),
            "list_concat_unique" => {
                // The cost is quadratic: each item is compared with every other.
                self.compare_all(argument)?;
                collections::list_concat(argument, true)
            }
            "contains" => collections::contains(argument),
            "filter" => {
                self.compare_all(argument)?;
                collections::filter(argument)
            }
            "yaql" => yaql::call(argument, &self.budget),
            _ => cfn::call(self, name, argument),
        }?;
        self.budget.spend(weight(&value))?;
        Ok(value)
    }

    /// Takes the cost of comparing all items of some lists with each other: those that begin alike
    /// are compared to where they differ.
    fn compare_all(&self, lists: &Value) -> Result<()> {
        let cost = lengths(lists).saturating_mul(weight(lists));
        self.budget.spend(cost / 64)
    }

    /// Whether `map` is a call of a function of any version.
    #[must_use]
    pub fn is_call(&self, map: &Map) -> bool {
        let name = map.keys().next().filter(|_| map.len() == 1);
        name.is_some_and(|name| self.version.has_function(name) || self.version.has_removed(name))
    }

    /// Whether `value` is an `if` that is false and has no else.
    #[must_use]
    pub fn is_nothing(&self, value: &Value) -> bool {
        matches!(self.inner(value, 0), Ok(Evaluated::Nothing))
    }

    /// The references in `value`; checks the shape of its functions, too.
    ///
    /// # Errors
    /// When a function has arguments that are wrong for any values.
    pub fn references(&self, value: &Value) -> Result<References> {
        let mut found = References::default();
        references::collect(self, value, &mut found, 0)?;
        Ok(found)
    }

    fn choose(&self, argument: &Value, depth: usize) -> Result<Evaluated> {
        match self.branch(argument)? {
            // The `if` itself is removed.
            Some(chosen) => Ok(match self.inner(chosen, depth + 1)? {
                Evaluated::Same => Evaluated::Value(chosen.clone()),
                other => other,
            }),
            None => Ok(Evaluated::Nothing),
        }
    }

    /// The branch that an `if` takes; `None` if it is false and has no else.
    fn branch<'v>(&self, argument: &'v Value) -> Result<Option<&'v Value>> {
        let usage = "takes [condition, value if true, value if false]";
        let Value::Array(items) = argument else {
            return Err(Error::new(usage));
        };
        let (condition, yes, no) = match &items[..] {
            [condition, yes, no] => (condition, yes, Some(no)),
            [condition, yes] if self.version >= Version::Wallaby => (condition, yes, None),
            _ => return Err(Error::new(usage)),
        };
        Ok(if self.condition(condition)? {
            Some(yes)
        } else {
            no
        })
    }

    fn parameter(&self, argument: &Value) -> Result<Value> {
        let (name, path) = match argument {
            Value::String(name) => (name, &[][..]),
            Value::Array(items) => match &items[..] {
                [Value::String(name), path @ ..] => (name, path),
                _ => return Err(Error::new("takes a parameter's name, or [name, key, …]")),
            },
            _ => return Err(Error::new("takes a parameter's name, or [name, key, …]")),
        };
        let value = self
            .parameters
            .get(name)
            .ok_or_else(|| Error::new(format!("the parameter `{name}` {}", parameters::MISSING)))?;
        Ok(select(value, path, true).unwrap_or_else(|| Value::from("")))
    }

    fn reference(&self, argument: &Value) -> Result<Value> {
        let Value::String(name) = argument else {
            return Err(Error::new("takes a resource's name"));
        };
        // The name is used instead of the id of a resource that is not created yet.
        Ok(self
            .known(name)?
            .map_or_else(|| argument.clone(), |known| known.refid.clone()))
    }

    /// What is known about a resource; `None` if it is not created yet.
    fn known(&self, name: &str) -> Result<Option<&Known>> {
        let exists = self.existing.is_none_or(|names| names.contains(name));
        let known = self.resources.get(name).filter(|_| exists);
        if known.is_none() && !(exists && self.existing.is_some()) {
            return Err(Error::new(format!(
                "there is no resource `{name}`, or its condition is false"
            )));
        }
        Ok(known)
    }

    /// A resource's attribute; null if it is not created yet.
    fn attribute_of(&self, name: &str, attribute: &str) -> Result<Value> {
        self.known(name)?
            .map_or(Ok(Value::Null), |known| known.attribute(name, attribute))
    }

    fn attribute(&self, argument: &Value) -> Result<Value> {
        let items = match argument {
            Value::Array(items) => &items[..],
            _ => return Err(Error::new("takes a list: [resource, attribute, key, …]")),
        };
        match items {
            [Value::String(name)] | [Value::String(name), Value::Null, ..]
                if self.version >= Version::Liberty =>
            {
                let known = self.known(name)?;
                let mut all = known.map_or_else(Map::new, |known| known.attributes.clone());
                all.shift_remove("show");
                Ok(Value::Object(all))
            }
            [Value::String(name), Value::String(attribute), path @ ..] => {
                if self.version > Version::V2013 && path.iter().any(is_compound) {
                    return Err(Error::new("a path is made of keys and indices"));
                }
                let value = self.attribute_of(name, attribute)?;
                Ok(select(&value, path, false).unwrap_or_default())
            }
            _ => Err(Error::new("takes [resource, attribute, key, …]")),
        }
    }

    fn file(&self, argument: &Value) -> Result<Value> {
        let Value::String(name) = argument else {
            return Err(Error::new("takes a file's name"));
        };
        self.files
            .text(name)
            .map(Value::from)
            .ok_or_else(|| Error::new(format!("`{name}` is not among the stack's files")))
    }

    fn facade(&self, argument: &Value) -> Result<Value> {
        let key = match argument.as_str() {
            Some("metadata" | "Metadata") => "metadata",
            Some("deletion_policy" | "DeletionPolicy") => "deletion_policy",
            Some("update_policy" | "UpdatePolicy") => "update_policy",
            _ => {
                return Err(Error::new(
                    "takes metadata, deletion_policy or update_policy",
                ));
            }
        };
        self.facade
            .get(key)
            .cloned()
            .ok_or_else(|| Error::new("only a nested stack has an outer resource"))
    }
}

fn is_compound(value: &Value) -> bool {
    value.is_array() || value.is_object()
}

/// How many items the lists of a list have in all.
fn lengths(lists: &Value) -> usize {
    let lists = lists.as_array().into_iter().flatten();
    lists.filter_map(|list| Some(list.as_array()?.len())).sum()
}

pub(super) use crate::value::weight;

/// The function that `map` calls, if it is a call.
fn function(version: Version, map: &Map) -> Option<(&str, &Value)> {
    let (name, argument) = map.iter().next().filter(|_| map.len() == 1)?;
    version
        .has_function(name)
        .then_some((name.as_str(), argument))
}

/// The value at `path`, if it exists. For a list of a parameter the index may be text.
fn select(value: &Value, path: &[Value], of_parameter: bool) -> Option<Value> {
    let mut current = value.clone();
    for key in path {
        let index = |length: usize| {
            let index = match key {
                Value::String(text) if of_parameter => python::whole_text(text)?,
                Value::Bool(flag) => i64::from(*flag),
                other => other.as_i64()?,
            };
            python::at(index, length)
        };
        current = match (&current, key) {
            (Value::Object(map), Value::String(key)) => map.get(key)?.clone(),
            (Value::Array(items), _) => items.get(index(items.len())?)?.clone(),
            (Value::String(text), _) => {
                let at = index(text.chars().count())?;
                Value::from(text.chars().nth(at)?.to_string())
            }
            _ => return None,
        };
    }
    Some(current)
}

fn expect_list<'v>(value: &'v Value, usage: &str) -> Result<&'v List> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(Error::new(format!(
            "{usage}; this is {}",
            python_type(other)
        ))),
    }
}

#[cfg(test)]
mod tests;
