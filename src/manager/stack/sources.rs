//! Reads what a Stack's spec names: template, files, environments, parameters.
//!
//! Secrets are read with the rights of the stack's service account where it has one, with the
//! manager's otherwise. What comes from them is marked, and never shown; some are not for
//! stacks at all.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::GetParams;
use kube::core::Request;
use kube::{Api, Client, Resource, ResourceExt};

use super::children::impersonate;
use super::record::Sources;
use super::plan::Problem;
use super::record_store::BIGGEST;
use pileus_api::names::STACK_UID_LABEL;
use pileus_api::stack::{SourceKey, SourceKind};
use pileus_api::{Reason, Stack, validation};
use pileus_kube_ext::{ApiError, chain, find, is_gone};
use pileus_stack::value::Value;

/// Secrets that give whoever holds them the rights of an account, or of a new host.
const CREDENTIALS: [&str; 2] = [
    "kubernetes.io/service-account-token",
    "bootstrap.kubernetes.io/token",
];

/// What an object says, or why it cannot be had.
type Texts = Result<BTreeMap<String, String>, (Reason, String)>;

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
        account: stack.spec.service_account_name.as_deref(),
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
    /// With whose rights Secrets are read, if not the manager's.
    account: Option<&'a str>,
    /// What was read already.
    read: BTreeMap<(bool, String), Texts>,
}

impl Reader<'_> {
    async fn sources(&mut self, stack: &Stack) -> Result<Result<Sources, Problem>, ApiError> {
        let spec = &stack.spec;
        let mut sources = Sources::default();
        match (&spec.template, &spec.template_from) {
            (Some(text), _) => sources.template.clone_from(text),
            (None, Some(from)) => match self.key("templateFrom", from).await? {
                Ok(text) => {
                    sources.template = text;
                    sources.hidden.template = from.kind == SourceKind::Secret;
                }
                Err(problem) => return Ok(Err(problem)),
            },
            (None, None) => {}
        }
        for from in &spec.files_from {
            match self.all("filesFrom", from.kind, &from.name).await? {
                Ok(texts) => {
                    files(&mut sources, texts, from.kind == SourceKind::Secret);
                }
                Err(problem) => return Ok(Err(problem)),
            }
        }
        files(&mut sources, spec.files.clone(), false);
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
        let own = own.map(|(name, value)| (name.clone(), value.clone().into()));
        sources.parameters.extend(own);
        for environment in &spec.environments {
            let field = format!("environments[{}].from", environment.name);
            match (&environment.text, &environment.from) {
                (Some(text), _) => sources.environments.push(text.clone()),
                (None, Some(from)) => match self.key(&field, from).await? {
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
                "there is no {kind:?} `{name}` in the namespace {}; it is taken up as soon as it \
                 is there",
                self.namespace
            );
            (Reason::SourceNotFound, message)
        }))
    }

    /// The Secret, or why the service account does not get it.
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

/// The texts of a Secret, or why stacks are not made from it.
fn texts(secret: Secret) -> Result<BTreeMap<String, String>, String> {
    let kind = secret.type_.as_deref().unwrap_or_default();
    if CREDENTIALS.contains(&kind) {
        return Err(format!(
            "is of the type {kind}, and stacks are not made from such; name another"
        ));
    }
    if secret.labels().contains_key(STACK_UID_LABEL) {
        return Err("belongs to a Stack, and stacks are not made from such; name another".into());
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let data = secret.data.unwrap_or_default().into_iter();
    Ok(data.map(|(key, bytes)| (key, text(bytes.0))).collect())
}

/// Adds files; one of a name that was there takes its place.
fn files(sources: &mut Sources, texts: BTreeMap<String, String>, hidden: bool) {
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
    /// Bytes that it takes, about.
    fn size(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |text| text.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn credentials_of_accounts_and_what_stacks_keep_are_no_sources() {
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
    fn a_file_that_takes_the_place_of_a_hidden_one_is_not_hidden() {
        let mut sources = Sources::default();
        let one = |name: &str| BTreeMap::from([(name.to_owned(), "x".to_owned())]);
        files(&mut sources, one("a"), true);
        files(&mut sources, one("b"), true);
        files(&mut sources, one("a"), false);
        assert_eq!(sources.hidden.files, ["b".to_owned()].into());
    }
}
