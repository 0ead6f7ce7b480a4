//! Verbs on the objects of one kind, typed or known only at run time: read, create, replace,
//! apply, delete, finalizers. Each can be repeated, and its error names what failed.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use super::decode::request;
use super::{ApiError, finalize, is_gone};

/// Objects of one kind, in one namespace or in all.
pub struct Objects<K> {
    api: Api<K>,
    kind: String,
}

/// What came of creating an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Created<K> {
    /// It was created; as the API server has it.
    New(K),
    /// There is one of that name already: made by an earlier attempt, or somebody else's.
    AlreadyExists,
}

impl<K: Resource<DynamicType = ()>> Objects<K> {
    /// Those that `api` reaches.
    #[must_use]
    pub fn of(api: Api<K>) -> Self {
        Self::dynamic(api, K::kind(&()))
    }

    /// Those of a kind without namespaces, or of all namespaces.
    #[must_use]
    pub fn all(client: &Client) -> Self {
        Self::of(Api::all(client.clone()))
    }

    /// Those of a namespace.
    #[must_use]
    pub fn namespaced(client: &Client, namespace: &str) -> Self
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        Self::of(Api::namespaced(client.clone(), namespace))
    }
}

impl<K> Objects<K> {
    /// Those that `api` reaches, of a kind that is known only at run time.
    #[must_use]
    pub fn dynamic(api: Api<K>, kind: impl Into<String>) -> Self {
        Self {
            api,
            kind: kind.into(),
        }
    }

    /// kube's own verbs.
    #[must_use]
    pub fn api(&self) -> &Api<K> {
        &self.api
    }

    fn doing(&self, verb: &str, name: &str) -> impl FnOnce(kube::Error) -> ApiError + use<K> {
        ApiError::doing(format!("{verb} {} {name}", self.kind))
    }
}

impl<K: Resource + Clone + DeserializeOwned + Debug> Objects<K> {
    /// Reads an object; nothing when the API server says that there is none.
    ///
    /// # Errors
    /// When the API server refuses, does not answer or does not serve the kind.
    pub async fn get(&self, name: &str) -> Result<Option<K>, ApiError> {
        find(&self.api, name)
            .await
            .map_err(self.doing("read", name))
    }

    /// Deletes an object if it meets the preconditions, by uid and version; what depends on it
    /// goes in the background. False when there is none.
    ///
    /// # Errors
    /// A conflict when it does not meet them; otherwise when the API server refuses, does not
    /// answer or does not serve the kind.
    pub async fn delete(&self, name: &str, only: Preconditions) -> Result<bool, ApiError> {
        let params = DeleteParams {
            preconditions: (only != Preconditions::default()).then_some(only),
            ..DeleteParams::background()
        };
        // Whether the answer is the object or a status, and can be decoded, makes no difference.
        let deleted: Result<IgnoredAny, _> =
            request(&self.api, |request| request.delete(name, &params)).await;
        match deleted {
            Ok(_) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(self.doing("delete", name)(error)),
        }
    }
}

impl<K: Resource + Clone + DeserializeOwned + Serialize + Debug> Objects<K> {
    /// Creates an object.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn create(&self, object: &K) -> Result<Created<K>, ApiError> {
        let params = PostParams::default();
        match write(&self.api, object, |request, data| {
            request.create(&params, data)
        })
        .await
        {
            Ok(created) => Ok(Created::New(created)),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                Ok(Created::AlreadyExists)
            }
            Err(error) => Err(self.doing("create", &object.name_any())(error)),
        }
    }

    /// Replaces an object, in the version that it was read in.
    ///
    /// # Errors
    /// A conflict when it has changed meanwhile; otherwise when the API server refuses or does
    /// not answer.
    pub async fn replace(&self, object: &K) -> Result<K, ApiError> {
        let name = object.name_any();
        let params = PostParams::default();
        // Without: the API server keeps what it has, of which we may know a part only.
        let mut object = object.clone();
        object.meta_mut().managed_fields = None;
        let done = write(&self.api, &object, |request, data| {
            request.replace(&name, &params, data)
        });
        done.await.map_err(self.doing("change", &name))
    }

    /// Creates an object or changes what `manager` owns of it, by server-side apply.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn apply(&self, object: &K, manager: &str) -> Result<K, ApiError> {
        let name = object.name_any();
        let params = PatchParams::apply(manager).force();
        let patch = Patch::Apply(object);
        let done = request(&self.api, |request| request.patch(&name, &params, &patch)).await;
        done.map_err(self.doing("write", &name))
    }
}

impl<K: Resource + Clone + DeserializeOwned + Debug> Objects<K> {
    /// Adds a finalizer; nothing when it is there already, otherwise the object as it is then.
    /// Must not be called for an object that is being deleted: the API server refuses.
    ///
    /// # Errors
    /// A conflict when the object has changed meanwhile; otherwise when the API server refuses
    /// or does not answer.
    pub async fn add_finalizer(&self, object: &K, finalizer: &str) -> Result<Option<K>, ApiError> {
        if finalize::has(object, finalizer) {
            return Ok(None);
        }
        let mut finalizers = object.finalizers().to_vec();
        finalizers.push(finalizer.to_owned());
        self.set_finalizers(object, &finalizers).await.map(Some)
    }

    /// Removes a finalizer; nothing when it is not there or the object is gone, otherwise the
    /// object as it was then.
    ///
    /// # Errors
    /// As for [`Self::add_finalizer`].
    pub async fn remove_finalizer(
        &self,
        object: &K,
        finalizer: &str,
    ) -> Result<Option<K>, ApiError> {
        if !finalize::has(object, finalizer) {
            return Ok(None);
        }
        let kept = object.finalizers().iter().filter(|f| *f != finalizer);
        let kept: Vec<_> = kept.cloned().collect();
        match self.set_finalizers(object, &kept).await {
            Err(error) if error.is_gone() => Ok(None),
            done => done.map(Some),
        }
    }

    async fn set_finalizers(&self, object: &K, finalizers: &[String]) -> Result<K, ApiError> {
        // The version makes the patch conditional: somebody else's finalizer is never lost.
        let patch = json!({"metadata": {
            "uid": object.uid(),
            "resourceVersion": object.resource_version(),
            "finalizers": finalizers,
        }});
        let name = object.name_any();
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let done = request(&self.api, |request| request.patch(&name, &params, &patch)).await;
        done.map_err(self.doing("set the finalizers of", &name))
    }
}

/// Sends an object as the request that `make` makes of its text.
async fn write<K: Resource + DeserializeOwned + Serialize + Clone>(
    api: &Api<K>,
    object: &K,
    make: impl FnOnce(
        &kube::core::Request,
        Vec<u8>,
    ) -> Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<K, kube::Error> {
    let data = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    request(api, |request| make(request, data)).await
}

/// Reads an object; `None` when the API server says that there is none.
///
/// # Errors
/// When the API server refuses, does not answer or does not serve the kind.
pub async fn find<K>(api: &Api<K>, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    match request(api, |request| request.get(name, &GetParams::default())).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::{Ready, ready};
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};

    use http::{Request, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{ApiResource, DynamicObject};
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    /// An API server that gives the answers it was given, and keeps what it was asked.
    #[derive(Clone, Default)]
    struct Server {
        answers: Arc<Mutex<VecDeque<(u16, Value)>>>,
        requests: Arc<Mutex<Vec<Request<Body>>>>,
    }

    impl tower::Service<Request<Body>> for Server {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            self.requests.lock().unwrap().push(request);
            let (code, answer) = self.answers.lock().unwrap().pop_front().unwrap();
            let answer = Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()));
            ready(Ok(answer.unwrap()))
        }
    }

    impl Server {
        fn client(&self) -> Client {
            Client::new(self.clone(), "default")
        }

        fn answers(&self, code: u16, answer: Value) {
            self.answers.lock().unwrap().push_back((code, answer));
        }

        fn fails(&self, code: u16, reason: &str) {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": reason, "code": code, "message": reason});
            self.answers(code, status);
        }

        /// Method, path and body of the last request.
        async fn asked(&self) -> (String, String, Value) {
            let request = self.requests.lock().unwrap().pop().unwrap();
            let (method, path) = (
                request.method().to_string(),
                request.uri().path().to_owned(),
            );
            let body = request.into_body().collect_bytes().await.unwrap();
            (
                method,
                path,
                serde_json::from_slice(&body).unwrap_or_default(),
            )
        }
    }

    fn map(finalizers: &[&str]) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "n",
            "uid": "u", "resourceVersion": "7", "finalizers": finalizers}})
    }

    fn object<K: DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    #[tokio::test]
    async fn absence_and_presence_are_told_apart_from_failures() {
        let server = Server::default();
        let maps = Objects::<ConfigMap>::namespaced(&server.client(), "n");
        server.fails(404, "NotFound");
        assert_eq!(maps.get("m").await.unwrap(), None);
        server.fails(409, "AlreadyExists");
        let made = maps.create(&object(map(&[]))).await.unwrap();
        assert_eq!(made, Created::AlreadyExists);
        server.fails(404, "NotFound");
        assert!(!maps.delete("m", Preconditions::default()).await.unwrap());
        server.fails(403, "Forbidden");
        let error = maps.get("m").await.unwrap_err();
        assert_eq!(error.to_string(), "failed to read ConfigMap m");
    }

    #[tokio::test]
    async fn an_object_is_deleted_only_as_it_was_seen() {
        let server = Server::default();
        let maps = Objects::<ConfigMap>::namespaced(&server.client(), "n");
        let only = |version: Option<&str>| Preconditions {
            uid: Some("u".to_owned()),
            resource_version: version.map(str::to_owned),
        };
        server.answers(200, map(&[]));
        assert!(maps.delete("m", only(Some("7"))).await.unwrap());
        let (method, path, body) = server.asked().await;
        assert_eq!(
            (&*method, &*path),
            ("DELETE", "/api/v1/namespaces/n/configmaps/m")
        );
        assert_eq!(
            body["preconditions"],
            json!({"uid": "u", "resourceVersion": "7"})
        );
        server.fails(409, "Conflict");
        assert!(
            maps.delete("m", only(None))
                .await
                .unwrap_err()
                .is_conflict()
        );
        assert_eq!(server.asked().await.2["preconditions"]["uid"], "u");
        server.answers(200, map(&[]));
        maps.delete("m", Preconditions::default()).await.unwrap();
        assert!(server.asked().await.2.get("preconditions").is_none());
    }

    #[tokio::test]
    async fn a_finalizer_is_set_only_on_the_version_that_was_read() {
        let server = Server::default();
        let kind = ApiResource::erase::<ConfigMap>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(server.client(), "n", &kind);
        let maps = Objects::dynamic(api, "ConfigMap");
        assert!(
            maps.add_finalizer(&object(map(&["f"])), "f")
                .await
                .unwrap()
                .is_none()
        );
        server.answers(200, map(&["a", "f"]));
        let added = maps.add_finalizer(&object(map(&["a"])), "f").await.unwrap();
        assert!(finalize::has(&added.unwrap(), "f"));
        let (method, _, body) = server.asked().await;
        let asked = json!({"uid": "u", "resourceVersion": "7", "finalizers": ["a", "f"]});
        assert_eq!((&*method, &body["metadata"]), ("PATCH", &asked));
        server.fails(409, "Conflict");
        let error = maps
            .remove_finalizer(&object(map(&["a", "f"])), "f")
            .await
            .unwrap_err();
        assert!(error.is_conflict());
        assert_eq!(
            error.to_string(),
            "failed to set the finalizers of ConfigMap m"
        );
        assert_eq!(
            server.asked().await.2["metadata"]["finalizers"],
            json!(["a"])
        );
        server.fails(404, "NotFound");
        let gone = maps
            .remove_finalizer(&object(map(&["f"])), "f")
            .await
            .unwrap();
        assert!(gone.is_none());
    }
}
