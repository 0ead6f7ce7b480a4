//! The effects of a pass that are the same for every kind, and the overlays of all kinds.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt};

use super::overlay::Overlay;
use super::{METRICS_NAME, Outcome};
use crate::crd_deletion;
use crate::network::caches::NetworkCaches;
use crate::network::decision::Deletion;
use crate::network::kinds::{
    Decided, Decisions, NetworkKind, Observed, has_finalizer, is_deleting, network_kinds,
};
use crate::network::requests::{all, set_finalizer, status_to_write, write_status};
use pileus_api::conditions::{Observation, status_text};
use pileus_kube_ext::{ApiError, Context, chain};

/// The part of one kind in a pass, whichever kind it is.
pub(super) trait KindInPass: Send {
    /// See [`NetworkKind::REPORTED_FIRST`].
    fn is_reported_first(&self) -> bool;

    /// Removes our finalizer from objects that are deleted only because the definition of their
    /// kind is, without removing anything from OVN. True if there are any, or if that is not
    /// known now.
    fn release_lost<'s>(
        &'s mut self,
        client: &'s Client,
        outcome: &'s mut Outcome,
    ) -> BoxFuture<'s, bool>;

    /// Adds our finalizer to objects that lack it, before rows or addresses exist for them.
    fn add_finalizers<'s>(
        &'s mut self,
        client: &'s Client,
        outcome: &'s mut Outcome,
    ) -> BoxFuture<'s, ()>;

    /// Removes our finalizer from objects whose deletion may be completed.
    fn remove_finalizers<'s>(
        &'s mut self,
        client: &'s Client,
        outcome: &'s mut Outcome,
    ) -> BoxFuture<'s, ()>;

    /// Writes the statuses that have changed.
    fn report<'s>(
        &'s mut self,
        context: &'s Context,
        outcome: &'s mut Outcome,
    ) -> BoxFuture<'s, ()>;
}

/// Objects of a kind in a pass.
struct InPass<'a, K: NetworkKind> {
    overlay: &'a mut Overlay<K>,
    observed: &'a [Arc<K>],
    decided: &'a Decided<K>,
}

macro_rules! overlays {
    (
        reconciled { $($reconciled:ident: $kind:ty,)+ }
        written { $($written:ident: $written_kind:ty,)+ }
        read { $($read:ident: $read_kind:ty,)+ }
    ) => {
        /// Our own writes to objects of all kinds.
        #[derive(Default)]
        pub(super) struct Overlays {
            $(pub $reconciled: Overlay<$kind>,)+
            $(pub $written: Overlay<$written_kind>,)+
        }

        impl Overlays {
            /// All objects as they are now.
            pub fn observe(&mut self, caches: &NetworkCaches) -> Observed {
                Observed {
                    $($reconciled: self.$reconciled.objects(&caches.$reconciled),)+
                    $($written: self.$written.objects(&caches.$written),)+
                    $($read: caches.$read.state(),)+
                }
            }

            /// Each kind, in the order of the list.
            pub fn each<'a>(
                &'a mut self,
                observed: &'a Observed,
                decisions: &'a Decisions,
            ) -> Vec<Box<dyn KindInPass + 'a>> {
                vec![$(
                    Box::new(InPass {
                        overlay: &mut self.$reconciled,
                        observed: &observed.$reconciled,
                        decided: &decisions.$reconciled,
                    }) as Box<dyn KindInPass + 'a>
                ),+]
            }
        }
    };
}
network_kinds!(overlays);

impl<K: NetworkKind> KindInPass for InPass<'_, K> {
    fn is_reported_first(&self) -> bool {
        K::REPORTED_FIRST
    }

    fn release_lost<'s>(
        &'s mut self,
        client: &'s Client,
        outcome: &'s mut Outcome,
    ) -> BoxFuture<'s, bool> {
        Box::pin(self.release_lost(client, outcome))
    }

    fn add_finalizers<'s>(
        &'s mut self,
        client: &'s Client,
        outcome: &'s mut Outcome,
    ) -> BoxFuture<'s, ()> {
        Box::pin(self.add_finalizers(client, outcome))
    }

    fn remove_finalizers<'s>(
        &'s mut self,
        client: &'s Client,
        outcome: &'s mut Outcome,
    ) -> BoxFuture<'s, ()> {
        Box::pin(self.remove_finalizers(client, outcome))
    }

    fn report<'s>(
        &'s mut self,
        context: &'s Context,
        outcome: &'s mut Outcome,
    ) -> BoxFuture<'s, ()> {
        Box::pin(self.report(context, outcome))
    }
}

impl<K: NetworkKind> InPass<'_, K> {
    async fn release_lost(&mut self, client: &Client, outcome: &mut Outcome) -> bool {
        let deleting: Vec<_> = self
            .observed
            .iter()
            .filter(|object| is_deleting(&***object) && has_finalizer(&***object))
            .collect();
        if deleting.is_empty() {
            return false;
        }
        match crd_deletion::is_crd_deleting::<K>(client).await {
            Ok(false) => return false,
            Ok(true) => {}
            Err(error) => {
                retry_later(vec![error], outcome);
                return true;
            }
        }
        let kind = K::kind(&());
        tracing::warn!(
            %kind, count = deleting.len(),
            "the kind's definition is being deleted: its objects lose their finalizers, and OVN \
             keeps their rows"
        );
        let requests = deleting
            .into_iter()
            .map(|object| set_finalizer(client, &**object, false));
        let (done, errors) = all(requests.collect()).await;
        retry_later(errors, outcome);
        for object in done.into_iter().flatten() {
            self.overlay.deleted(&object.uid().unwrap_or_default());
        }
        outcome.failed = true;
        true
    }

    async fn add_finalizers(&mut self, client: &Client, outcome: &mut Outcome) {
        if !K::FINALIZER {
            return;
        }
        let requests = self
            .observed
            .iter()
            .filter(|object| !has_finalizer(&***object) && !is_deleting(&***object))
            .map(|object| set_finalizer(client, &**object, true));
        let (done, errors) = all(requests.collect()).await;
        retry_later(errors, outcome);
        for object in done.into_iter().flatten() {
            self.overlay.updated(object);
        }
    }

    async fn remove_finalizers(&mut self, client: &Client, outcome: &mut Outcome) {
        let requests = self
            .decided
            .iter()
            .filter(|(_, decision)| !decision.stays())
            .map(|(object, _)| set_finalizer(client, &**object, false));
        let (done, errors) = all(requests.collect()).await;
        retry_later(errors, outcome);
        for object in done.into_iter().flatten() {
            if object.finalizers().is_empty() {
                self.overlay.deleted(&object.uid().unwrap_or_default());
            } else {
                self.overlay.updated(object);
            }
        }
    }

    async fn report(&mut self, context: &Context, outcome: &mut Outcome) {
        let now = Timestamp::now();
        let decided = self.decided.iter();
        outcome.blocked |= decided
            .clone()
            .any(|(_, decision)| decision.deletion == Deletion::Blocked);
        let writes: Vec<_> = decided
            .filter(|(_, decision)| decision.stays())
            .filter_map(|(object, decision)| {
                Some((object, status_to_write(&**object, decision, now)?, decision))
            })
            .collect();
        for (object, _, decision) in &writes {
            send_event(context, &***object, &decision.ready);
        }
        let requests = writes
            .iter()
            .map(|(object, status, _)| write_status(&context.client, &***object, status));
        let (done, errors) = all(requests.collect()).await;
        retry_later(errors, outcome);
        for object in done {
            context.metrics.status_written(METRICS_NAME);
            self.overlay.updated(object);
        }
    }
}

/// An event when an object is not ready for a new reason.
fn send_event<K: NetworkKind>(context: &Context, object: &K, ready: &Observation) {
    let status = status_text(ready.status);
    let known = object
        .conditions()
        .iter()
        .any(|c| c.status == status && c.reason == ready.reason.as_str());
    if !known && ready.status != Some(true) {
        context
            .events
            .warning(object, ready.reason, "Reconcile", ready.message.clone());
    }
}

/// Logs errors of single requests; the pass is repeated. A conflict only says that the object has
/// changed.
pub(super) fn retry_later(errors: Vec<ApiError>, outcome: &mut Outcome) {
    for error in errors {
        outcome.failed = true;
        if error.is_conflict() || error.is_gone() {
            tracing::debug!(error = %chain(&error), "the object has changed");
        } else {
            tracing::warn!(error = %chain(&error), "will be tried again");
        }
    }
}
