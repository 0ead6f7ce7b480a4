//! Reads what a Stack's spec names: template, files, environments, parameters.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::ledger::Sources;
use super::plan::Problem;
use super::records::BIGGEST;
use crate::api::stack::{SourceKey, SourceKind};
use crate::api::{Reason, Stack, validation};
use crate::kube_ext::{ApiError, find};

/// Everything that the spec names, or what is missing.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn resolve(client: &Client, stack: &Stack) -> Result<Result<Sources, Problem>, ApiError> {
    if let Err(message) = validation::stack(&stack.spec) {
        return Ok(Err(Problem {
            reason: Reason::InvalidSpec,
            message,
        }));
    }
    let mut reader = Reader {
        client,
        namespace: stack.namespace().unwrap_or_default(),
        read: BTreeMap::new(),
    };
    let sources = reader.sources(stack).await?;
    Ok(sources.and_then(|sources| {
        let size = sources.size();
        if size <= BIGGEST {
            return Ok(sources);
        }
        Err(Problem {
            reason: Reason::InvalidSpec,
            message: format!(
                "template, files, environments and parameters have {size} bytes, and may have \
                 {BIGGEST}; leave out files that are not used"
            ),
        })
    }))
}

struct Reader<'a> {
    client: &'a Client,
    namespace: String,
    /// What was read already.
    read: BTreeMap<(bool, String), Option<BTreeMap<String, String>>>,
}

impl Reader<'_> {
    async fn sources(&mut self, stack: &Stack) -> Result<Result<Sources, Problem>, ApiError> {
        let spec = &stack.spec;
        let mut sources = Sources::default();
        match (&spec.template, &spec.template_from) {
            (Some(text), _) => sources.template.clone_from(text),
            (None, Some(from)) => match self.key("templateFrom", from).await? {
                Ok(text) => sources.template = text,
                Err(problem) => return Ok(Err(problem)),
            },
            (None, None) => {}
        }
        for from in &spec.files_from {
            match self.all("filesFrom", from.kind, &from.name).await? {
                Ok(texts) => sources.files.extend(texts),
                Err(problem) => return Ok(Err(problem)),
            }
        }
        sources.files.extend(spec.files.clone());
        for from in &spec.parameters_from {
            let texts = match self.all("parametersFrom", from.kind, &from.name).await? {
                Ok(texts) => texts,
                Err(problem) => return Ok(Err(problem)),
            };
            if from.kind == SourceKind::Secret {
                sources.secret.extend(texts.keys().cloned());
            }
            let texts = texts.into_iter();
            let values = texts.map(|(name, text)| (name, Value::from(text)));
            sources.parameters.extend(values);
        }
        let own = spec.parameters.iter();
        let own = own.map(|(name, value)| (name.clone(), value.clone()));
        sources.parameters.extend(own);
        for environment in &spec.environments {
            let field = format!("environments[{}].from", environment.name);
            match (&environment.text, &environment.from) {
                (Some(text), _) => sources.environments.push(text.clone()),
                (None, Some(from)) => match self.key(&field, from).await? {
                    Ok(text) => sources.environments.push(text),
                    Err(problem) => return Ok(Err(problem)),
                },
                (None, None) => {}
            }
        }
        Ok(Ok(sources))
    }

    async fn key(
        &mut self,
        field: &str,
        from: &SourceKey,
    ) -> Result<Result<String, Problem>, ApiError> {
        let all = self.all(field, from.kind, &from.name).await?;
        Ok(all.and_then(|mut texts| {
            texts.remove(&from.key).ok_or_else(|| Problem {
                reason: Reason::SourceNotFound,
                message: format!(
                    "spec.{field}: the {:?} `{}` has no key `{}`",
                    from.kind, from.name, from.key
                ),
            })
        }))
    }

    async fn all(
        &mut self,
        field: &str,
        kind: SourceKind,
        name: &str,
    ) -> Result<Result<BTreeMap<String, String>, Problem>, ApiError> {
        let key = (kind == SourceKind::Secret, name.to_owned());
        if !self.read.contains_key(&key) {
            let texts = self.fetch(kind, name).await?;
            self.read.insert(key.clone(), texts);
        }
        let texts = self.read.get(&key).cloned().flatten();
        Ok(texts.ok_or_else(|| Problem {
            reason: Reason::SourceNotFound,
            message: format!(
                "spec.{field}: there is no {kind:?} `{name}` in the namespace {}; it is taken up \
                 as soon as it is there",
                self.namespace
            ),
        }))
    }

    async fn fetch(
        &self,
        kind: SourceKind,
        name: &str,
    ) -> Result<Option<BTreeMap<String, String>>, ApiError> {
        let doing = || ApiError::doing(format!("read the {kind:?} {name}"));
        match kind {
            SourceKind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
                let found = find(&api, name).await.map_err(doing())?;
                Ok(found.map(|map| map.data.unwrap_or_default()))
            }
            SourceKind::Secret => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
                let found = find(&api, name).await.map_err(doing())?;
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                Ok(found.map(|secret| {
                    let data = secret.data.unwrap_or_default().into_iter();
                    data.map(|(key, bytes)| (key, text(bytes.0))).collect()
                }))
            }
        }
    }
}

impl Sources {
    /// Bytes that it takes, about.
    fn size(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |text| text.len())
    }
}
