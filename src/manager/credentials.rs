//! Secrets whose content nobody but the cluster itself is meant to have. Whoever may make a Server or
//! a Stack could read them that way without the right to read Secrets.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use pileus_api::Server;
use pileus_api::names::{STACK_RESOURCE_ANNOTATION, STACK_UID_LABEL};

/// Types of Secrets with credentials of a service account or of a new node.
const CREDENTIAL_TYPES: [&str; 2] = [
    "kubernetes.io/service-account-token",
    "bootstrap.kubernetes.io/token",
];

/// Why a Secret is not given to a Stack, for people: what it is.
#[must_use]
pub fn refusal(secret: &Secret) -> Option<String> {
    let is_of_stack = secret.labels().contains_key(STACK_UID_LABEL);
    has_credentials(secret).or_else(|| is_of_stack.then(|| "belongs to a Stack".to_owned()))
}

/// Why a Secret is not given to the guest of a Server: what it is. The user data that a Stack has
/// made for the Server is the Server's own; the record of the Stack is not, nor what others have.
#[must_use]
pub fn refusal_to_guest(secret: &Secret, server: &Server) -> Option<String> {
    let is_own =
        resource_of_stack(secret).is_some_and(|own| resource_of_stack(server) == Some(own));
    if is_own {
        has_credentials(secret)
    } else {
        refusal(secret)
    }
}

fn has_credentials(secret: &Secret) -> Option<String> {
    let kind = secret.type_.as_deref().unwrap_or_default();
    let found = CREDENTIAL_TYPES.contains(&kind);
    found.then(|| format!("has the type {kind}"))
}

/// The Stack, and the resource of it, that an object was made for. Tenants cannot write these marks.
fn resource_of_stack(object: &impl ResourceExt) -> Option<(&String, &String)> {
    let stack = object.labels().get(STACK_UID_LABEL)?;
    Some((stack, object.annotations().get(STACK_RESOURCE_ANNOTATION)?))
}

#[cfg(test)]
mod tests {
    use pileus_api::ServerSpec;

    use super::*;

    fn mark(object: &mut impl ResourceExt, stack: &str, resource: Option<&str>) {
        let labels = object.labels_mut();
        labels.insert(STACK_UID_LABEL.to_owned(), stack.to_owned());
        if let Some(resource) = resource {
            let annotations = object.annotations_mut();
            annotations.insert(STACK_RESOURCE_ANNOTATION.to_owned(), resource.to_owned());
        }
    }

    #[test]
    fn a_guest_gets_the_user_data_that_a_stack_made_for_it_and_nothing_else_of_stacks() {
        let mut server = Server::new("s", ServerSpec::default());
        let plain = Secret::default();
        assert_eq!(refusal_to_guest(&plain, &server), None);
        mark(&mut server, "u1", Some("first"));
        assert_eq!(refusal_to_guest(&plain, &server), None);
        for (stack, resource, is_given) in [
            ("u1", Some("first"), true),
            ("u1", Some("second"), false),
            ("u2", Some("first"), false),
            // A record.
            ("u1", None, false),
        ] {
            let mut secret = Secret::default();
            mark(&mut secret, stack, resource);
            assert_eq!(refusal_to_guest(&secret, &server).is_none(), is_given);
            assert!(refusal(&secret).is_some());
            secret.type_ = Some(CREDENTIAL_TYPES[0].to_owned());
            assert!(refusal_to_guest(&secret, &server).is_some());
        }
    }
}
