//! The orchestration engine: templates in, values out.
//!
//! Everything here is pure: no Kubernetes, no clock, no files, no randomness.
//!
//! | file | what it holds |
//! |---|---|
//! | [`value`] | what templates are made of, shared between all that is made of it |
//! | [`yaml`] | YAML 1.1 and JSON as Heat reads them, within limits |
//! | [`version`] | template versions and the functions each one has |
//! | [`template`] | sections of HOT and CloudFormation templates, made alike |
//! | [`parameters`] | parameter schemas, constraints, values, what is hidden |
//! | [`files`] | what comes with a template, read once |
//! | [`functions`] | the intrinsic functions and conditions |
//! | [`environment`] | environments and how several merge |
//! | [`requirements`] | what a resource names, and whether it is there |
//! | [`graph`] | what depends on what, order, cycles |
//! | [`registry`] | resource types: properties, defaults, constraints |
//! | [`typed`] | properties after their type's schema |
//! | [`render`] | a template with everything evaluated |
//! | [`json_output`] | that as JSON |
//! | [`validate`] | whether a template could become a stack, nested ones included |
//! | [`cases`] | cases as JSON, to compare with Heat's engine |
//! | [`builtin`] | what Heat makes of three of CloudFormation's types |
//! | [`expand`] | a stack with the stacks inside of it |
//! | [`plan`] | create, update and delete as steps with dependencies |
//! | [`tree`] | a stack and those inside as one set of resources, as they become known |
//! | [`rolling`] | how groups change a few members at a time |
//! | [`masking`] | which values come from hidden parameters |
//! | [`hooks`] | where resources wait, and what must not be done with them |
//! | [`mapping`] | what each resource type becomes in Kubernetes |

pub mod budget;
pub mod builtin;
pub mod cases;
pub mod constraint;
pub mod environment;
pub mod expand;
pub mod files;
pub mod functions;
pub mod graph;
pub mod hooks;
pub mod masking;
// What builds the engine alone, to fuzz it, has no kinds to make.
pub mod json_output;
#[cfg(not(fuzzing))]
pub mod mapping;
pub mod parameters;
pub mod plan;
mod regex_cache;
pub mod registry;
pub mod render;
mod requirements;
pub mod rolling;
pub mod template;
pub mod tree;
pub mod typed;
pub mod validate;
pub mod value;
pub mod version;
pub mod yaml;

/// What is wrong with a template, an environment or a value, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", if .path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct Error {
    /// Where, as people write it: `resources.web.properties.image`.
    pub path: String,
    /// What, and what would be right.
    pub message: String,
}

impl Error {
    /// An error at `path`.
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }

    /// An error whose place is not known yet.
    pub fn new(message: impl Into<String>) -> Self {
        Self::at("", message)
    }

    /// The same error, below `parent`.
    #[must_use]
    pub fn below(mut self, parent: &str) -> Self {
        self.path = match (parent.is_empty(), self.path.is_empty()) {
            (true, _) => self.path,
            (_, true) => parent.to_owned(),
            _ => format!("{parent}.{}", self.path),
        };
        self
    }
}

/// What the engine's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// How Python names a value's type; Heat's messages speak so.
fn python_type(value: &crate::value::Value) -> &'static str {
    use crate::value::Value;
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}
