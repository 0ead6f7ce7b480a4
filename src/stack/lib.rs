//! The orchestration engine: reads Heat templates, evaluates them, and plans changes.
//!
//! Everything here is pure: no Kubernetes, no clock, no files, no randomness.
//!
//! | file | what it holds |
//! |---|---|
//! | [`value`] | values of templates; copies share their content |
//! | [`yaml`] | YAML 1.1 and JSON as Heat reads them, within limits |
//! | [`version`] | template versions and the functions each one has |
//! | [`template`] | sections of HOT and CloudFormation templates in one form |
//! | [`parameters`] | parameter schemas, constraints, values, hidden parameters |
//! | [`files`] | files that come with a template, each parsed once |
//! | [`functions`] | the intrinsic functions and conditions |
//! | [`environment`] | environments and how several merge |
//! | [`requirements`] | what a resource refers to, and whether that exists |
//! | [`graph`] | dependencies, order, cycles |
//! | [`registry`] | resource types: properties, defaults, constraints |
//! | [`typed`] | properties converted to their types, with defaults |
//! | [`render`] | a template with everything evaluated |
//! | [`json_output`] | a rendered stack as JSON |
//! | [`validate`] | whether a template could become a stack, nested stacks included |
//! | [`cases`] | test cases as JSON, to compare with Heat's engine |
//! | [`builtin`] | templates that Heat itself has for three CloudFormation types |
//! | [`expand`] | a stack with its nested stacks |
//! | [`plan`] | create, update and delete as steps with dependencies |
//! | [`tree`] | a stack and its nested stacks as one set of resources |
//! | [`rolling`] | updates of a group in batches |
//! | [`masking`] | values that come from hidden parameters |
//! | [`hooks`] | hooks and restricted actions of an environment |
//! | [`resource_types`] | the Kubernetes objects of each resource type |

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
// The fuzzer builds the engine alone, without Kubernetes objects.
pub mod json_output;
pub mod parameters;
pub mod plan;
mod regex_cache;
pub mod registry;
pub mod render;
mod requirements;
#[cfg(not(fuzzing))]
pub mod resource_types;
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
    /// The place in the template, such as `resources.web.properties.image`.
    pub path: String,
    /// What is wrong, and what would be right.
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

/// The name of a value's type in Heat's messages.
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
