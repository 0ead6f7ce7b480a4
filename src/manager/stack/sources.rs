//! Reads the sources of a Stack: template, files, environments and parameters, from its spec and
//! from the ConfigMaps and Secrets that the spec names.
//!
//! Secrets are read with the rights of the stack's service account if it has one, otherwise with
//! the manager's. Values from Secrets are marked as hidden, and never shown. Some Secrets are not
//! allowed as sources at all.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::GetParams;
use kube::core::Request;
use kube::{Api, Client, Resource, ResourceExt};

use super::children::impersonate;
use super::plan::Problem;
use super::record::Sources;
use super::record_store::MAX_SOURCES_BYTES;
use crate::credentials;
use pileus_api::stack::{SourceKey, SourceKind};
use pileus_api::{Reason, Stack, validation};
use pileus_kube_ext::{ApiError, chain, find, is_gone};
use pileus_stack::value::Value;

/// The data of a ConfigMap or Secret, or why it cannot be used.
type Texts = Result<BTreeMap<String, String>, (Reason, String)>;

/// The sources of a Stack, or what is missing.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn read(client: &Client, stack: &Stack) -> Result<Result<Sources, Problem>, ApiError> {
    if let Err(message) = validation::stack(&stack.spec) {
        return Ok(Err(Problem {
            reason: Reason::InvalidSpec,
            message,
        }));
    }
    let mut reader = Reader {
        client,
        namespace: stack.namespace().unwrap_or_default(),
        account: stack.spec.service_account_name.as_deref(),
        read: BTreeMap::new(),
    };
    let sources = reader.sources(stack).await?;
    Ok(sources.and_then(|sources| {
        let size = sources.size();
        if size <= MAX_SOURCES_BYTES {
            return Ok(sources);
        }
        Err(Problem {
            reason: Reason::InvalidSpec,
            message: format!(
                "template, files, environments and parameters have {size} bytes, and may have \
                 {MAX_SOURCES_BYTES}; leave out files that are not used"
            ),
        })
    }))
}

struct Reader<'a> {
    client: &'a Client,
    namespace: String,
    /// The service account with whose rights Secrets are read; the manager's if `None`.
    account: Option<&'a str>,
    /// Objects that were read already: whether it is a Secret, and its name.
    read: BTreeMap<(bool, String), Texts>,
}

impl Reader<'_> {
    async fn sources(&mut self, stack: &Stack) -> Result<Result<Sources, Problem>, ApiError> {
        let spec = &stack.spec;
        let mut sources = Sources::default();
        match (&spec.template, &spec.template_from) {
            (Some(text), _) => sources.template.clone_from(text),
            (None, Some(from)) => match self.read_key("templateFrom", from).await? {
                Ok(text) => {
                    sources.template = text;
                    sources.hidden.template = from.kind == SourceKind::Secret;
                }
                Err(problem) => return Ok(Err(problem)),
            },
            (None, None) => {}
        }
        for from in &spec.files_from {
            match self.read_object("filesFrom", from.kind, &from.name).await? {
                Ok(texts) => {
                    add_files(&mut sources, texts, from.kind == SourceKind::Secret);
                }
                Err(problem) => return Ok(Err(problem)),
            }
        }
        add_files(&mut sources, spec.files.clone(), false);
        for from in &spec.parameters_from {
            let texts = match self
                .read_object("parametersFrom", from.kind, &from.name)
                .await?
            {
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
        let own = own.map(|(name, value)| (name.clone(), value.clone().into()));
        sources.parameters.extend(own);
        for environment in &spec.environments {
            let field = format!("environments[{}].from", environment.name);
            match (&environment.text, &environment.from) {
                (Some(text), _) => sources.environments.push(text.clone()),
                (None, Some(from)) => match self.read_key(&field, from).await? {
                    Ok(text) => {
                        if from.kind == SourceKind::Secret {
                            let at = sources.environments.len();
                            sources.hidden.environments.insert(at);
                        }
                        sources.environments.push(text);
                    }
                    Err(problem) => return Ok(Err(problem)),
                },
                (None, None) => {}
            }
        }
        Ok(Ok(sources))
    }

    /// The value of one key of an object.
    async fn read_key(
        &mut self,
        field: &str,
        from: &SourceKey,
    ) -> Result<Result<String, Problem>, ApiError> {
        let all = self.read_object(field, from.kind, &from.name).await?;
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

    /// All values of an object.
    async fn read_object(
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
        let texts = self.read.get(&key).cloned();
        let texts = texts.unwrap_or_else(|| Err((Reason::SourceNotFound, String::new())));
        Ok(texts.map_err(|(reason, message)| Problem {
            reason,
            message: format!("spec.{field}: {message}"),
        }))
    }

    async fn fetch(&self, kind: SourceKind, name: &str) -> Result<Texts, ApiError> {
        let found = match kind {
            SourceKind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
                let doing = ApiError::doing(format!("read the ConfigMap {name}"));
                let found = find(&api, name).await.map_err(doing)?;
                found.map(|map| map.data.unwrap_or_default())
            }
            SourceKind::Secret => match self.secret(name).await? {
                Ok(None) => None,
                Ok(Some(secret)) => match texts(secret) {
                    Ok(texts) => Some(texts),
                    Err(why) => {
                        let message = format!("the Secret `{name}` {why}");
                        return Ok(Err((Reason::InvalidSpec, message)));
                    }
                },
                Err(denied) => return Ok(Err((Reason::AccountDenied, denied))),
            },
        };
        Ok(found.ok_or_else(|| {
            let message = format!(
                "there is no {kind:?} `{name}` in the namespace {}; the stack continues as soon \
                 as it exists",
                self.namespace
            );
            (Reason::SourceNotFound, message)
        }))
    }

    /// The Secret, or why the service account may not read it.
    async fn secret(&self, name: &str) -> Result<Result<Option<Secret>, String>, ApiError> {
        let doing = || ApiError::doing(format!("read the Secret {name}"));
        let path = Secret::url_path(&(), Some(&self.namespace));
        let request = Request::new(path).get(name, &GetParams::default());
        let mut request = request.map_err(|e| doing()(kube::Error::BuildRequest(e)))?;
        if let Some(account) = self.account {
            impersonate(&mut request, &self.namespace, account).map_err(doing())?;
        }
        match (self.client.request(request).await, self.account) {
            (Ok(secret), _) => Ok(Ok(Some(secret))),
            (Err(error), _) if is_gone(&error) => Ok(Ok(None)),
            (Err(kube::Error::Api(status)), Some(account)) if status.is_forbidden() => {
                let error = doing()(kube::Error::Api(status));
                Ok(Err(format!(
                    "the ServiceAccount `{account}` may not read it: {}; give it the right to get \
                     this Secret",
                    chain(&error)
                )))
            }
            (Err(error), _) => Err(doing()(error)),
        }
    }
}

/// The data of a Secret, or why it is not allowed as a source.
fn texts(secret: Secret) -> Result<BTreeMap<String, String>, String> {
    if let Some(why) = credentials::refusal(&secret) {
        return Err(format!(
            "{why}, so it is not allowed as a source of a stack; name another"
        ));
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let data = secret.data.unwrap_or_default().into_iter();
    Ok(data.map(|(key, bytes)| (key, text(bytes.0))).collect())
}

/// Adds files; a later file replaces an earlier one of the same name.
fn add_files(sources: &mut Sources, texts: BTreeMap<String, String>, hidden: bool) {
    for (name, text) in texts {
        if hidden {
            sources.hidden.files.insert(name.clone());
        } else {
            sources.hidden.files.remove(&name);
        }
        sources.files.insert(name, text);
    }
}

impl Sources {
    /// Approximate size in bytes.
    fn size(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |text| text.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;
    use pileus_api::names::STACK_UID_LABEL;

    #[test]
    fn credentials_and_secrets_of_stacks_are_not_allowed_as_sources() {
        let secret = |value: serde_json::Value| texts(serde_json::from_value(value).unwrap());
        let data = json!({"token": "aHVudGVyMg=="});
        let wrong = secret(json!({"type": "kubernetes.io/service-account-token", "data": data}));
        let why = wrong.unwrap_err();
        assert!(
            why.contains("service-account-token") && !why.contains("hunter2"),
            "{why}"
        );
        let labels = json!({"labels": {STACK_UID_LABEL: "another"}});
        assert!(secret(json!({"metadata": labels, "data": data})).is_err());
        let read = secret(json!({"type": "Opaque", "data": data})).unwrap();
        assert_eq!(read["token"], "hunter2");
    }

    #[test]
    fn a_file_that_replaces_a_hidden_one_is_not_hidden() {
        let mut sources = Sources::default();
        let one = |name: &str| BTreeMap::from([(name.to_owned(), "x".to_owned())]);
        add_files(&mut sources, one("a"), true);
        add_files(&mut sources, one("b"), true);
        add_files(&mut sources, one("a"), false);
        assert_eq!(sources.hidden.files, ["b".to_owned()].into());
    }
}
