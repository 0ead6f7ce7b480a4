//! Templates: HOT and CloudFormation, brought into one shape.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::functions::python::truthy;
use super::version::Version;
use super::{Error, Result, python_type, yaml};
use crate::value::{Map, Text, Value};

/// Resources one stack may hold; Heat's `max_resources_per_stack`.
pub const MAX_RESOURCES: usize = 1000;

/// A template's sections, functions in them not yet evaluated.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// Which functions and sections it may use.
    pub version: Version,
    /// What it says of itself.
    pub description: String,
    /// Parameter schemas as written.
    pub parameters: Map,
    /// Condition definitions as written.
    pub conditions: Map,
    /// CloudFormation's `Mappings`.
    pub mappings: Map,
    /// Resources by logical name.
    pub resources: BTreeMap<String, Resource>,
    /// Outputs by name.
    pub outputs: BTreeMap<String, Output>,
    /// Sections that mean nothing in this version; a stack is not made of it.
    pub unknown: Vec<String>,
}

/// One resource as the template has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Such as `OS::Nova::Server`, or a template's file name.
    pub declared_type: Text,
    /// Properties as written, or null.
    pub properties: Value,
    /// Metadata as written, or null.
    pub metadata: Value,
    /// Explicit dependencies.
    pub depends_on: Vec<String>,
    /// `Delete`, `Retain` or `Snapshot`, or a function that gives one.
    pub deletion_policy: Value,
    /// Update policy as written, or null.
    pub update_policy: Value,
    /// The condition under which it exists, or null.
    pub condition: Value,
    /// The id of something that exists already, or null.
    pub external_id: Value,
    /// What it says of itself.
    pub description: String,
}

/// One output as the template has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// What it says of itself.
    pub description: String,
    /// Its value as written.
    pub value: Value,
    /// The condition under which it is shown, or null.
    pub condition: Value,
}

/// The names of sections and keys in one language.
struct Keywords {
    sections: [&'static str; 5],
    keys: [&'static str; 8],
    output: [&'static str; 3],
}

const HOT: Keywords = Keywords {
    sections: [
        "description",
        "parameters",
        "conditions",
        "resources",
        "outputs",
    ],
    keys: [
        "type",
        "properties",
        "metadata",
        "depends_on",
        "deletion_policy",
        "update_policy",
        "condition",
        "external_id",
    ],
    output: ["description", "value", "condition"],
};

const CFN: Keywords = Keywords {
    sections: [
        "Description",
        "Parameters",
        "Conditions",
        "Resources",
        "Outputs",
    ],
    keys: [
        "Type",
        "Properties",
        "Metadata",
        "DependsOn",
        "DeletionPolicy",
        "UpdatePolicy",
        "Condition",
        "",
    ],
    output: ["Description", "Value", "Condition"],
};

impl Template {
    /// Reads a template's text, YAML or JSON.
    ///
    /// # Errors
    /// When it is not YAML, has no known version, or a section has the wrong
    /// shape; with the path.
    pub fn parse(text: &str) -> Result<Self> {
        Self::from_value(yaml::parse(text)?)
    }

    /// Reads a template that is a value already.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn from_value(value: Value) -> Result<Self> {
        let Value::Object(mut map) = value else {
            return Err(Error::new(format!(
                "a template is a map of sections, this is {}",
                python_type(&value)
            )));
        };
        let version = version_of(&map)?;
        let keywords = if version.is_hot() { &HOT } else { &CFN };
        let [description, parameters, conditions, resources, outputs] = keywords.sections;
        let mut template = Self {
            version,
            description: text_of(map.get(description)),
            unknown: unknown_sections(&map, version, keywords),
            parameters: section(&mut map, parameters)?,
            conditions: Map::new(),
            mappings: Map::new(),
            resources: BTreeMap::new(),
            outputs: BTreeMap::new(),
        };
        if version.has_conditions() {
            if map.get(conditions).is_some_and(Value::is_null) {
                return Err(Error::at(
                    conditions,
                    "must be a map of conditions, is empty",
                ));
            }
            template.conditions = section(&mut map, conditions)?;
        }
        if !version.is_hot() {
            template.mappings = section(&mut map, "Mappings")?;
        }
        for (name, definition) in section(&mut map, resources)? {
            let resource = read_resource(&name, definition, version, keywords)
                .map_err(|error| error.below(&format!("{resources}.{name}")))?;
            template.resources.insert(name.into(), resource);
        }
        if template.resources.len() > MAX_RESOURCES {
            return Err(Error::at(
                resources,
                format!(
                    "{} resources, a stack may have {MAX_RESOURCES}; split it by nested templates",
                    template.resources.len()
                ),
            ));
        }
        for (name, definition) in section(&mut map, outputs)? {
            let output = read_output(definition, version, keywords)
                .map_err(|error| error.below(&format!("{outputs}.{name}")))?;
            template.outputs.insert(name.into(), output);
        }
        Ok(template)
    }

    /// The version of a template, and its parameters' schemas as written.
    ///
    /// # Errors
    /// When it has no known version, or its parameters are no map.
    pub fn parameters_of(value: Value) -> Result<(Version, Map)> {
        let Value::Object(mut map) = value else {
            return Err(Error::new("a template is a map of sections"));
        };
        let version = version_of(&map)?;
        let keywords = if version.is_hot() { &HOT } else { &CFN };
        Ok((version, section(&mut map, keywords.sections[1])?))
    }
}

/// A template as it was given, which may be none. It is read once, whatever is made
/// of it and however often.
#[derive(Debug, Clone)]
pub struct Source(Result<Arc<Template>>);

impl Source {
    /// The template.
    ///
    /// # Errors
    /// As [`Template::from_value`].
    pub fn read(&self) -> Result<Arc<Template>> {
        self.0.clone()
    }
}

impl From<Value> for Source {
    fn from(value: Value) -> Self {
        Self(Template::from_value(value).map(Arc::new))
    }
}

impl Default for Source {
    fn default() -> Self {
        Value::Null.into()
    }
}

fn version_of(map: &Map) -> Result<Version> {
    let keys: Vec<&str> = [
        "heat_template_version",
        "HeatTemplateFormatVersion",
        "AWSTemplateFormatVersion",
    ]
    .into_iter()
    .filter(|key| map.contains_key(key))
    .collect();
    match keys[..] {
        [] => Err(Error::new(
            "no template version; begin with `heat_template_version: 2021-04-16`",
        )),
        [key] => match &map[key] {
            Value::String(text) => Version::parse(key, text),
            other => Err(Error::at(
                key,
                format!("must be a string, is {}", python_type(other)),
            )),
        },
        _ => Err(Error::new(format!(
            "ambiguous versions ({}); keep one",
            keys.join(", ")
        ))),
    }
}

fn unknown_sections(map: &Map, version: Version, keywords: &Keywords) -> Vec<String> {
    let extra: &[&str] = if version.is_hot() {
        &["heat_template_version", "parameter_groups"]
    } else {
        &[
            "HeatTemplateFormatVersion",
            "AWSTemplateFormatVersion",
            "Mappings",
            "ParameterGroups",
        ]
    };
    let known = |name: &str| {
        let early = name == keywords.sections[2] && !version.has_conditions();
        !early && (keywords.sections.contains(&name) || extra.contains(&name))
    };
    map.keys()
        .filter(|name| !known(name))
        .map(ToString::to_string)
        .collect()
}

/// Takes the section `name` out of `map`; one that is not there is empty.
fn section(map: &mut Map, name: &str) -> Result<Map> {
    match map.shift_remove(name) {
        None => Ok(Map::new()),
        Some(Value::Object(section)) => Ok(section),
        Some(empty) if !truthy(&empty) => Ok(Map::new()),
        Some(other) => Err(Error::at(
            name,
            format!("must be a map, is {}", python_type(&other)),
        )),
    }
}

fn text_of(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.to_string(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn read_resource(
    name: &str,
    definition: Value,
    version: Version,
    keywords: &Keywords,
) -> Result<Resource> {
    if name.is_empty() || name.contains('/') {
        return Err(Error::new(
            "a resource's name may not be empty or contain `/`",
        ));
    }
    let Value::Object(mut map) = definition else {
        return Err(Error::new(format!(
            "a resource is a map, this is {}",
            python_type(&definition)
        )));
    };
    for key in map.keys() {
        // CloudFormation's templates are not looked at that closely.
        let free = key == "description" || !version.is_hot();
        let early =
            (key == keywords.keys[6] || key == keywords.keys[7]) && !version.has_conditions();
        if !free && (early || !keywords.keys.contains(&key.as_str())) {
            return Err(Error::at(
                key,
                format!(
                    "invalid keyword in a resource; there are {}",
                    keywords.keys.join(", ")
                ),
            ));
        }
    }
    let kind = match map.shift_remove(keywords.keys[0]).unwrap_or_default() {
        Value::String(kind) => kind,
        Value::Null => return Err(Error::new(format!("`{}` is missing", keywords.keys[0]))),
        other => {
            return Err(Error::at(
                keywords.keys[0],
                format!("must be a string, is {}", python_type(&other)),
            ));
        }
    };
    for index in [3, 4, 6, 7] {
        if map.get(keywords.keys[index]).is_some_and(Value::is_null) {
            return Err(Error::at(keywords.keys[index], "must not be empty"));
        }
    }
    for index in [1, 2, 5] {
        if let Some(value) = map.get(keywords.keys[index])
            && !value.is_object()
        {
            return Err(Error::at(
                keywords.keys[index],
                format!("must be a map, is {}", python_type(value)),
            ));
        }
    }
    let description = if version.is_hot() {
        "description"
    } else {
        "Description"
    };
    if let Some(value) = map.get(description)
        && !value.is_string()
    {
        return Err(Error::at(
            description,
            format!("must be a string, is {}", python_type(value)),
        ));
    }
    let mut field = |index: usize| map.shift_remove(keywords.keys[index]).unwrap_or_default();
    let external_id = match field(7) {
        id @ (Value::Null | Value::String(_) | Value::Object(_)) => id,
        other => {
            return Err(Error::at(
                keywords.keys[7],
                format!("must be a string, is {}", python_type(&other)),
            ));
        }
    };
    let deletion_policy = match field(4) {
        Value::Null => Value::from("Delete"),
        Value::String(policy) => Value::from(deletion_policy(&policy, version)?),
        function @ Value::Object(_) => function,
        other => {
            return Err(Error::at(
                keywords.keys[4],
                format!("must be a string, is {}", python_type(&other)),
            ));
        }
    };
    Ok(Resource {
        declared_type: kind,
        properties: field(1),
        metadata: field(2),
        depends_on: names(&field(3)).map_err(|error| error.below(keywords.keys[3]))?,
        deletion_policy,
        update_policy: field(5),
        condition: field(6),
        external_id,
        description: text_of(map.get(description)),
    })
}

/// The policy's one spelling; lower case is allowed since Newton.
///
/// # Errors
/// When there is no such policy.
pub fn deletion_policy(text: &str, version: Version) -> Result<&'static str> {
    match text {
        "Delete" => Ok("Delete"),
        "Retain" => Ok("Retain"),
        "Snapshot" => Ok("Snapshot"),
        "delete" if version >= Version::Newton => Ok("Delete"),
        "retain" if version >= Version::Newton => Ok("Retain"),
        "snapshot" if version >= Version::Newton => Ok("Snapshot"),
        other => Err(Error::new(format!(
            "invalid deletion policy `{other}`; use Delete, Retain or Snapshot"
        ))),
    }
}

fn names(value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(name) => Ok(vec![name.to_string()]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(name) => Ok(name.to_string()),
                other => Err(Error::new(format!(
                    "must name resources, has {}",
                    python_type(other)
                ))),
            })
            .collect(),
        other => Err(Error::new(format!(
            "must be a resource's name or a list of names, is {}",
            python_type(other)
        ))),
    }
}

fn read_output(definition: Value, version: Version, keywords: &Keywords) -> Result<Output> {
    let Value::Object(mut map) = definition else {
        return Err(Error::new(format!(
            "an output is a map with the key `{}`, this is {}",
            keywords.output[1],
            python_type(&definition)
        )));
    };
    let Some(value) = map.shift_remove(keywords.output[1]) else {
        return Err(Error::new(format!(
            "an output must have the key `{}`",
            keywords.output[1]
        )));
    };
    Ok(Output {
        description: text_of(map.get(keywords.output[0])),
        value,
        condition: match map.shift_remove(keywords.output[2]) {
            Some(condition) if version.has_conditions() => condition,
            _ => Value::Null,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn hot_and_cfn_come_out_alike() {
        let hot = Template::parse(
            "heat_template_version: 2013-05-23\nresources:\n  a:\n    type: OS::Heat::None\n    depends_on: b\n  b: {type: OS::Heat::None}\n",
        )
        .unwrap();
        let cfn = Template::parse(
            "{\"AWSTemplateFormatVersion\": \"2010-09-09\", \"Resources\": {\"a\": {\"Type\": \"OS::Heat::None\", \"DependsOn\": [\"b\"]}, \"b\": {\"Type\": \"OS::Heat::None\"}}}",
        )
        .unwrap();
        assert_eq!(hot.resources, cfn.resources);
    }

    #[test]
    fn errors_name_their_path() {
        let error = Template::parse(
            "heat_template_version: 2013-05-23\nresources:\n  a: {type: X, Properties: {}}\n",
        )
        .unwrap_err();
        assert_eq!(error.path, "resources.a.Properties");
        let error =
            Template::parse("heat_template_version: 2013-05-23\noutputs: {o: {}}\n").unwrap_err();
        assert_eq!(error.path, "outputs.o");
    }

    #[test]
    fn empty_sections_and_keys_without_a_value() {
        let read = |more: &str| Template::parse(&format!("heat_template_version: newton\n{more}"));
        assert!(read("resources: []\noutputs: ''\n").is_ok());
        for key in [
            "description: null",
            "description: 5",
            "condition: null",
            "external_id: null",
            "external_id: [x]",
        ] {
            assert!(
                read(&format!("resources: {{r: {{type: T, {key}}}}}\n")).is_err(),
                "{key}"
            );
        }
        let early = "heat_template_version: 2015-10-15\noutputs: {o: {value: 1, condition: 7}}\n";
        assert!(
            Template::parse(early).unwrap().outputs["o"]
                .condition
                .is_null()
        );
    }

    #[test]
    fn conditions_need_a_version_that_has_them() {
        let early = Template::parse("heat_template_version: 2013-05-23\nconditions: {}\n").unwrap();
        assert_eq!(early.unknown, ["conditions"]);
        assert!(Template::parse("heat_template_version: newton\nconditions: {a: true}\n").is_ok());
    }
}
