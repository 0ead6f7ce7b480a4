//! `Stack`: a Heat template, and everything it names made real.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A template of Heat's, HOT or CloudFormation, with what goes with it.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Stack",
    plural = "stacks",
    category = "pileus",
    namespaced,
    status = "StackStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.stackStatus"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Resources", type_ = "string", json_path = ".status.progress"),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.template) != has(self.templateFrom)").message(Message::Message("give either template or templateFrom".into())))]
pub struct StackSpec {
    /// The template, YAML or JSON; or give `templateFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 524_288))]
    pub template: Option<String>,
    /// Where the template is; or give `template`. A change of it is taken up within seconds, as
    /// those of everything that the Stack names; one that is gone is reported, and costs nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_from: Option<SourceKey>,
    /// Files for `get_file` and nested templates, by the names that the template uses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 1024,
        "additionalProperties" = {"type": "string", "maxLength": 524_288}
    ))]
    pub files: BTreeMap<String, String>,
    /// ConfigMaps and Secrets whose keys are further files; a later one wins, and `files` over
    /// all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 32))]
    pub files_from: Vec<SourceObject>,
    /// Values of the template's parameters: text, numbers, booleans, lists or maps. They are
    /// visible to all who can read the Stack: put secrets into `parametersFrom`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "any_values")]
    pub parameters: BTreeMap<String, Value>,
    /// ConfigMaps and Secrets whose keys are further parameters; a later one wins, and
    /// `parameters` over all of them. Values from a Secret are never shown, as those of hidden
    /// parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 32))]
    pub parameters_from: Vec<SourceObject>,
    /// Environments, merged in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 32))]
    pub environments: Vec<StackEnvironment>,
    /// How long creating, updating or deleting may take, in minutes.
    #[serde(default = "sixty")]
    #[schemars(range(min = 1, max = 10_080))]
    pub timeout_minutes: i32,
    /// What happens when creating or updating fails.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Stops the stack's Servers, as Heat's suspend; false starts them again. A suspended
    /// stack is not updated until it is resumed.
    #[serde(default)]
    pub suspend: bool,
    /// Shows in status what would be done, and does nothing as long as it is set.
    #[serde(default)]
    pub preview: bool,
    /// A new text here has every resource checked once; any text, such as a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub check_requested_at: Option<String>,
    /// A new text here has the template applied again once: what is missing or has failed is
    /// made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub heal_requested_at: Option<String>,
    /// ServiceAccount of the same namespace with whose rights everything is made that is not
    /// Pileus' own and in this namespace: Flavors, and the objects of `Kubernetes::Object`. The
    /// Secrets that the Stack names are read with its rights, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Words for people and selectors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 80))]
    pub tags: Vec<String>,
}

fn sixty() -> i32 {
    60
}

/// A map of values of any type.
fn any_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 1024,
        "additionalProperties": {"x-kubernetes-preserve-unknown-fields": true},
    })
}

/// A value of any type.
fn any_value(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// Kinds of objects that hold texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SourceKind {
    /// For what everybody may see.
    #[default]
    ConfigMap,
    /// For what must not be shown.
    Secret,
}

/// All keys of a ConfigMap or Secret of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceObject {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its kind.
    #[serde(default)]
    pub kind: SourceKind,
}

/// One key of a ConfigMap or Secret of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceKey {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its kind.
    #[serde(default)]
    pub kind: SourceKind,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// One environment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.text) != has(self.from)").message(Message::Message("give either text or from".into())))]
pub struct StackEnvironment {
    /// Name within the Stack, for people.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The environment, YAML or JSON; or give `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 524_288))]
    pub text: Option<String>,
    /// Where it is; or give `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SourceKey>,
}

/// What happens when creating or updating a stack fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    /// What was made stays, for people to look at, as by Heat's default.
    #[default]
    Keep,
    /// The last good template is applied again; what a failed creation made is deleted.
    Rollback,
    /// Everything that the stack has made is deleted; the Stack stays and says why.
    Delete,
}

/// What Pileus found and did. Secrets are never in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StackStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Heat's word, such as `CREATE_COMPLETE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_status: Option<String>,
    /// Why it is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_status_reason: Option<String>,
    /// When the action began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_started_at: Option<Time>,
    /// Resources that are as they should be, of all, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Every resource, nested ones included. The list has one writer, and who manages each
    /// field of hundreds of rows would take more room than the rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub resources: Vec<StackResource>,
    /// The template's outputs.
    // Written when there are none, too: of a list whose last item its writer leaves out API
    // servers make a null, and refuse it.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub outputs: Vec<StackOutput>,
    /// What would be done, when `spec.preview` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<StackPreview>,
    /// `sha256:…` of the template, files, environments and parameters that a rollback returns
    /// to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<String>,
    /// The Secret that records what the stack has made, in its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// Parts of the template that are read and have no effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Conditions: Ready, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One resource of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StackResource {
    /// Its name in the template, after those of the resources it is nested in, with slashes
    /// between; one that a replacement is to take the place of has `#` and a number at the end.
    pub name: String,
    /// Its type, such as `OS::Nova::Server`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Kind and name of the object it became, such as `Server/web-1f0c2d3e`; absent for a
    /// resource that needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// uid of the object.
    #[serde(
        default,
        rename = "physicalID",
        skip_serializing_if = "Option::is_none"
    )]
    pub physical_id: Option<String>,
    /// Heat's word, such as `CREATE_COMPLETE`.
    pub status: String,
    /// Why it is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// One output of a stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StackOutput {
    /// Its name in the template.
    pub name: String,
    /// What the template says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its value; absent when it is not known yet, and `******` when it is made of hidden
    /// parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub value: Option<Value>,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What applying a template would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StackPreview {
    /// Resources that would be made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    /// Resources that would be changed where they are, with the properties in parentheses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updated: Vec<String>,
    /// Resources that would be replaced by new ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<String>,
    /// Resources that would be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<String>,
    /// Number of resources that would stay as they are.
    #[serde(default)]
    pub unchanged: i64,
}
