//! Files that come with a template: texts for `get_file`, and templates of nested stacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use super::parameters::Schema;
use super::registry::{self, ResourceType};
use super::template::{Source, Template};
use super::{Error, Result, yaml};

/// Files by name. Copies share the files, and each file is parsed once, however many resources use
/// it.
#[derive(Debug, Clone, Default)]
pub struct Files(Arc<BTreeMap<String, File>>, Arc<BTreeSet<String>>);

#[derive(Debug, Default)]
struct File {
    text: String,
    template: OnceLock<Result<Source>>,
    resource_type: OnceLock<Option<Arc<ResourceType>>>,
}

impl Files {
    /// The same files, of which those with these names are hidden: values from them are never shown.
    #[must_use]
    pub fn with_hidden(self, names: BTreeSet<String>) -> Self {
        Self(self.0, Arc::new(names))
    }

    /// Whether the file `name` is hidden; without a name, whether any is.
    #[must_use]
    pub fn is_hidden(&self, name: Option<&str>) -> bool {
        name.map_or(!self.1.is_empty(), |name| self.1.contains(name))
    }

    /// The text of the file `name`.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|file| file.text.as_str())
    }

    /// The template in the file `name`.
    ///
    /// # Errors
    /// When there is no such file, or it is not YAML.
    pub fn template(&self, name: &str) -> Result<Source> {
        let file = self
            .0
            .get(name)
            .ok_or_else(|| Error::new(format!("the template `{name}` is not among the files")))?;
        file.template().map_err(|error| error.below(name))
    }

    /// The resource type that the template in the file `name` defines.
    #[must_use]
    pub fn resource_type(&self, name: &str) -> Option<Arc<ResourceType>> {
        let file = self.0.get(name)?;
        file.resource_type
            .get_or_init(|| file.read_resource_type())
            .clone()
    }
}

impl File {
    fn template(&self) -> Result<Source> {
        let read = || yaml::parse(&self.text).map(Source::from);
        self.template.get_or_init(read).clone()
    }

    fn read_resource_type(&self) -> Option<Arc<ResourceType>> {
        let template = self.template().and_then(|source| source.read());
        // The type follows from its parameters alone, even if the rest of the template is wrong.
        let (version, parameters) = match template {
            Ok(template) => (template.version, template.parameters.clone()),
            Err(_) => Template::parameters_of(yaml::parse(&self.text).ok()?).ok()?,
        };
        let mut schemas = BTreeMap::new();
        for (name, schema) in &parameters {
            schemas.insert(name.to_string(), Schema::read(schema, version).ok()?);
        }
        Some(Arc::new(registry::of_template(&schemas)))
    }
}

impl FromIterator<(String, String)> for Files {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(texts: I) -> Self {
        let file = |text| File {
            text,
            ..File::default()
        };
        let files = texts.into_iter().map(|(name, text)| (name, file(text)));
        Self(Arc::new(files.collect()), Arc::default())
    }
}

impl From<BTreeMap<String, String>> for Files {
    fn from(texts: BTreeMap<String, String>) -> Self {
        texts.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_template_with_an_error_elsewhere_is_a_type_with_its_parameters() {
        let text = "heat_template_version: newton\nresources: {r: {type: T, deletion_policy: Burn}}\n\
            parameters: {p: {type: number, default: 0, constraints: [{range: {min: 1}}]}}\n";
        let files: Files = [("f.yaml".to_owned(), text.to_owned())]
            .into_iter()
            .collect();
        assert!(
            files
                .template("f.yaml")
                .and_then(|source| source.read())
                .is_err()
        );
        assert!(
            files
                .resource_type("f.yaml")
                .unwrap()
                .properties
                .contains_key("p")
        );
    }
}
