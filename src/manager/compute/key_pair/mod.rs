//! Reconciles KeyPairs: reads the key, shows its fingerprint, keeps it while it is used.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use sha2::{Digest, Sha256};

use crate::caches::Caches;
use crate::compute::server;
use crate::{Manager, Outcome, crd_deletion, list_some};
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::names::{MANAGER, MANAGER_FINALIZER};
use pileus_api::{KeyPair, KeyPairStatus, Reason, Server};
use pileus_kube_ext::cache::key_of;
use pileus_kube_ext::finalize;
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::triggers::Triggers;

/// What wakes the controller of KeyPairs.
#[must_use]
pub fn triggers(caches: &Caches) -> Triggers<KeyPair> {
    Triggers::controller(&caches.key_pairs).woken_by_release(&caches.servers, |server: &Server| {
        let namespace = server.namespace().unwrap_or_default();
        let names = server.spec.key_pairs.iter();
        let pairs = names.map(|name| ObjectRef::new(name).within(&namespace));
        pairs.collect::<Vec<_>>()
    })
}

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer.
pub async fn reconcile(pair: Arc<KeyPair>, manager: Arc<Manager>) -> Outcome {
    let namespace = pair.namespace().unwrap_or_default();
    let pairs = Objects::<KeyPair>::namespaced(&manager.context.client, &namespace);
    let deleting = finalize::is_deleting(&*pair);
    if !deleting && let Some(_) = pairs.add_finalizer(&pair, MANAGER_FINALIZER).await? {
        return Ok(None);
    }
    // A Server whose guest has been built holds the key itself.
    let users = manager
        .caches
        .servers
        .by(&server::BY_KEY_PAIR, &key_of(&*pair));
    let users: Vec<_> = users.iter().map(|server| server.name_any()).collect();
    let is_free = users.is_empty();
    if deleting
        && (is_free || crd_deletion::is_crd_deleting::<KeyPair>(&manager.context.client).await?)
    {
        pairs.remove_finalizer(&pair, MANAGER_FINALIZER).await?;
        return Ok(None);
    }
    if deleting && !finalize::has(&*pair, MANAGER_FINALIZER) {
        return Ok(None);
    }
    let status = status(&pair, users, Timestamp::now());
    if apply_status(pairs.api(), MANAGER, &*pair, &status).await? {
        manager.context.metrics.status_written("keypair");
    }
    Ok(None)
}

fn status(pair: &KeyPair, users: Vec<String>, now: Timestamp) -> KeyPairStatus {
    let old = pair
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let parsed = parse(&pair.spec.public_key);
    let ready = if finalize::is_deleting(pair) {
        let users = list_some(users);
        let message = format!("cannot be deleted while Servers use it: {users}; delete them first");
        Observation::no(ConditionType::Ready, Reason::InUse, message)
    } else {
        match &parsed {
            Ok(_) => Observation::yes(
                ConditionType::Ready,
                Reason::Ready,
                "can be given to Servers",
            ),
            Err(why) => Observation::no(
                ConditionType::Ready,
                Reason::InvalidSpec,
                format!("spec.publicKey {why}; give the one line of a .pub file"),
            ),
        }
    };
    let (key_type, fingerprint) = parsed.ok().unzip();
    KeyPairStatus {
        observed_generation: pair.metadata.generation,
        key_type,
        fingerprint,
        conditions: conditions::merge(old, [ready], pair.metadata.generation, now),
    }
}

/// Type and fingerprint of a line in OpenSSH's format (RFC 4253, section 6.6).
fn parse(line: &str) -> Result<(String, String), &'static str> {
    let line = line.trim();
    if line.contains('\n') {
        return Err("has more than one line");
    }
    if line.contains("PRIVATE KEY") {
        return Err("is a private key");
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else {
        return Err("is no public key");
    };
    let bytes = STANDARD
        .decode(blob)
        .map_err(|_| "is no public key: its second word is not base64")?;
    // The blob begins with the type again, preceded by its length.
    let inner = bytes
        .get(..4)
        .and_then(|n| n.try_into().ok())
        .map(u32::from_be_bytes)
        .and_then(|n| bytes.get(4..4 + usize::try_from(n).ok()?));
    if inner != Some(kind.as_bytes()) {
        return Err("is no public key: its parts do not belong together");
    }
    let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&bytes)));
    Ok((kind.to_owned(), fingerprint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_one_that_ssh_keygen_prints() {
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me";
        let (kind, fingerprint) = parse(key).unwrap();
        assert_eq!(kind, "ssh-ed25519");
        assert!(fingerprint.starts_with("SHA256:") && fingerprint.len() == 50);
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        for text in [
            "",
            "ssh-rsa",
            "ssh-rsa !!!",
            "ssh-rsa AAAA",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "a b\nc d",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
