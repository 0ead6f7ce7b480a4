//! Stores a Stack's record and its sources in Secrets of its namespace, which are deleted with
//! the Stack.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};
use kube::{Client, Resource, ResourceExt};

use super::record::{Sources, StackRecord};
use pileus_api::Stack;
use pileus_api::names::STACK_UID_LABEL;
use pileus_kube_ext::ApiError;
use pileus_kube_ext::objects::Objects;

/// Key of the content in each of these Secrets.
const DATA_KEY: &str = "record";
/// Largest sources of a stack in bytes: a Secret holds 1 MiB.
pub const MAX_SOURCES_BYTES: usize = 1_000_000;

/// The Secrets with the record and the sources of one Stack.
pub struct RecordStore {
    secrets: Objects<Secret>,
    uid: String,
    owner: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>,
}

impl RecordStore {
    /// The store of `stack`.
    #[must_use]
    pub fn of(client: &Client, stack: &Stack) -> Self {
        Self {
            secrets: Objects::namespaced(client, &stack.namespace().unwrap_or_default()),
            uid: stack.uid().unwrap_or_default(),
            owner: stack.controller_owner_ref(&()),
        }
    }

    /// Name of the Secret with the record.
    #[must_use]
    pub fn name(&self) -> String {
        format!("stack-{}", self.uid)
    }

    /// Name of the Secret with the sources that have this digest.
    fn sources_name(&self, digest: &str) -> String {
        let short: String = digest.chars().take(12).collect();
        format!("stack-{}-{short}", self.uid)
    }

    /// The record, and the resource version of its Secret.
    ///
    /// # Errors
    /// When the API server refuses or does not answer, or the record cannot be read.
    pub async fn read(&self) -> Result<Option<(StackRecord, String)>, ApiError> {
        let name = self.name();
        let Some(secret) = self.secrets.get(&name).await? else {
            return Ok(None);
        };
        let version = secret.resource_version().unwrap_or_default();
        parse(&secret, &name).map(|record| Some((record, version)))
    }

    /// Writes the record over the version that was read, and returns the new version.
    ///
    /// # Errors
    /// A conflict when somebody else has written it; otherwise when the API server refuses or
    /// does not answer.
    pub async fn write(
        &self,
        record: &StackRecord,
        version: Option<&str>,
    ) -> Result<String, ApiError> {
        let name = self.name();
        let mut secret = self.secret(&name, record)?;
        let written = match version {
            // One that exists already is somebody else's write, which is an error here.
            None => {
                let api = self.secrets.api();
                let created = api.create(&PostParams::default(), &secret).await;
                created.map_err(ApiError::doing(format!("write the record {name}")))?
            }
            Some(version) => {
                secret.metadata.resource_version = Some(version.to_owned());
                self.secrets.replace(&secret).await?
            }
        };
        Ok(written.resource_version().unwrap_or_default())
    }

    /// Stores `sources`; this must come before the record names them.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn write_sources(&self, sources: &Sources) -> Result<(), ApiError> {
        let name = self.sources_name(&sources.digest());
        let secret = self.secret(&name, sources)?;
        // The name is made of the content's digest: one that exists holds the same.
        self.secrets.create(&secret).await.map(drop)
    }

    /// The stored sources with these digests, as far as they exist.
    ///
    /// # Errors
    /// When the API server refuses or does not answer, or one cannot be read.
    pub async fn read_sources(
        &self,
        digests: BTreeSet<String>,
    ) -> Result<BTreeMap<String, Sources>, ApiError> {
        let mut found = BTreeMap::new();
        for digest in digests {
            let name = self.sources_name(&digest);
            if let Some(secret) = self.secrets.get(&name).await? {
                found.insert(digest, parse(&secret, &name)?);
            }
        }
        Ok(found)
    }

    /// Deletes stored sources.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn delete_sources(&self, digests: &BTreeSet<String>) -> Result<(), ApiError> {
        for digest in digests {
            self.delete(&self.sources_name(digest)).await?;
        }
        Ok(())
    }

    /// Deletes the record and the sources that `record` names, and no other Secret with the Stack's
    /// label.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn delete_record(&self, record: Option<&StackRecord>) -> Result<(), ApiError> {
        for digest in record.map(StackRecord::source_digests).unwrap_or_default() {
            self.delete(&self.sources_name(digest)).await?;
        }
        self.delete(&self.name()).await
    }

    /// Deletes every Secret with the Stack's label, also those that an interrupted pass has left.
    /// Secrets of resources were deleted before, or have the label no longer.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn delete_all(&self) -> Result<(), ApiError> {
        let own = ListParams::default().labels(&format!("{STACK_UID_LABEL}={}", self.uid));
        let params = DeleteParams::default();
        let done = self.secrets.api().delete_collection(&params, &own).await;
        let doing = ApiError::doing("delete the Secrets with a stack's record");
        done.map(drop).map_err(doing)
    }

    async fn delete(&self, name: &str) -> Result<(), ApiError> {
        let any = Preconditions::default();
        self.secrets.delete(name, any).await.map(drop)
    }

    fn secret(&self, name: &str, content: &impl serde::Serialize) -> Result<Secret, ApiError> {
        let bytes = serde_json::to_vec(content).map_err(|error| {
            ApiError::doing(format!("write the Secret {name}"))(kube::Error::SerdeError(error))
        })?;
        Ok(Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some([(STACK_UID_LABEL.to_owned(), self.uid.clone())].into()),
                owner_references: self.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some([(DATA_KEY.to_owned(), ByteString(bytes))].into()),
            ..Secret::default()
        })
    }
}

fn parse<T: serde::de::DeserializeOwned>(secret: &Secret, name: &str) -> Result<T, ApiError> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(DATA_KEY));
    let bytes = bytes.map(|bytes| bytes.0.as_slice()).unwrap_or_default();
    serde_json::from_slice(bytes).map_err(|error| {
        ApiError::doing(format!("read the record in the Secret {name}"))(kube::Error::SerdeError(
            error,
        ))
    })
}
