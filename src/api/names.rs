//! Names that several parts agree on: finalizers, labels, namespaces, managers.

/// Finalizer of the manager on user-facing kinds.
pub const MANAGER_FINALIZER: &str = "pileus.dev/manager";
/// Finalizer of a host's agent on Instances; dropped once the domain is confirmed gone.
pub const AGENT_FINALIZER: &str = "pileus.dev/agent";

/// Field manager of the manager's writes.
pub const MANAGER: &str = "pileus-manager";
/// The role that makes Stacks real. Its writes have the field manager [`MANAGER`], as ever: what
/// it has made is recognised by that.
pub const STACKS: &str = "pileus-stacks";
/// Field manager of the scheduler's writes.
pub const SCHEDULER: &str = "pileus-scheduler";
/// Field manager of an agent's writes.
pub const AGENT: &str = "pileus-agent";

/// Namespace of Pileus' own objects: leader leases, and the accounts of the roles.
pub const SYSTEM_NAMESPACE: &str = "pileus-system";
/// ClusterRole that a namespace binds to the role of Stacks, so that Stacks are made real in it.
pub const STACKS_TENANT_ROLE: &str = "pileus-stacks-tenant";
/// ClusterRole that a namespace binds to the manager, so that Servers take user data from its
/// Secrets.
pub const USER_DATA_ROLE: &str = "pileus-user-data";
/// Prefix of the namespace that holds the Instances of one host.
pub const HOST_NAMESPACE_PREFIX: &str = "pileus-host-";

/// Label on Instances and made Ports: uid of the Server they belong to.
pub const SERVER_UID_LABEL: &str = "pileus.dev/server-uid";
/// Label of an IPAllocation: uid of the Port that holds the address.
pub const PORT_UID_LABEL: &str = "pileus.dev/port-uid";
/// Label of an IPAllocation and a Port: uid of its Subnet or Network.
pub const SUBNET_UID_LABEL: &str = "pileus.dev/subnet-uid";
/// Label on what a Stack has made: uid of the Stack.
pub const STACK_UID_LABEL: &str = "pileus.dev/stack-uid";
/// Annotation on what a Stack has made: the resource in the template that it stands for.
pub const STACK_RESOURCE_ANNOTATION: &str = "pileus.dev/stack-resource";
/// Annotation on what a Stack has made: digest of what the Stack wants it to be.
pub const STACK_DIGEST_ANNOTATION: &str = "pileus.dev/stack-digest";
/// Annotation on what a Stack has made: the name that the template gives it.
pub const DISPLAY_NAME_ANNOTATION: &str = "pileus.dev/display-name";
/// Annotation on a Stack: hooks that are cleared, `RESOURCE:HOOK` with commas between, such as
/// `server:pre-create,group/*:post-update`; `*` stands for anything, and a resource without a
/// hook for whichever it waits at. The manager takes it away once it has cleared one.
pub const CLEAR_HOOKS_ANNOTATION: &str = "pileus.dev/clear-hooks";
/// Annotation on a Stack whose record is lost, with the name of the Secret that held it: go on
/// with what exists, though it is not what the spec says. The manager takes it away.
pub const REBUILD_RECORD_ANNOTATION: &str = "pileus.dev/rebuild-record";
/// Annotation on a namespace: its `default` SecurityGroup has been made once and is the
/// user's from then on, to change or to delete.
pub const DEFAULT_GROUP_ANNOTATION: &str = "pileus.dev/default-security-group";
/// Name of the SecurityGroup that ports get when they name none.
pub const DEFAULT_GROUP: &str = "default";

/// Key of the guest's data in the Secret that an Instance refers to.
pub const GUEST_DATA_KEY: &str = "guest-data";

/// The namespace that holds the Instances of `host`.
#[must_use]
pub fn host_namespace(host: &str) -> String {
    format!("{HOST_NAMESPACE_PREFIX}{host}")
}

/// The command by which a namespace lets a role of Pileus do what the ClusterRole `role` says.
/// The binding has the ClusterRole's name.
#[must_use]
pub fn opt_in_command(role: &str, account: &str, namespace: &str) -> String {
    format!(
        "kubectl create rolebinding {role} --namespace {namespace} --clusterrole {role} \
         --serviceaccount {SYSTEM_NAMESPACE}:{account}"
    )
}

/// Name of the Instance of a Server: its uid and the epoch of the placement.
#[must_use]
pub fn instance_name(server_uid: &str, epoch: i64) -> String {
    format!("{server_uid}-{epoch}")
}

/// Name of a Port made for the interface `nic` of a Server.
///
/// A Server's name may have 253 characters, so a long one is cut and told apart by a
/// hash; the result is a DNS subdomain of at most 253 characters.
#[must_use]
pub fn server_port_name(server: &str, nic: &str) -> String {
    let name = format!("{server}-{nic}");
    if name.len() <= 253 {
        return name;
    }
    use sha2::Digest;
    let hash = hex::encode(&sha2::Sha256::digest(name.as_bytes())[..8]);
    let cut: String = name.chars().take(230).collect();
    format!("{}-{hash}", cut.trim_end_matches(['-', '.']))
}

/// A guest's host name, made of a Server's name: up to the first dot, spaces and underscores
/// as hyphens, at most 63 characters, as Nova's `sanitize_hostname` cuts it.
#[must_use]
pub fn host_name(server: &str) -> String {
    let label = server.split('.').next().unwrap_or_default();
    let cut: String = label
        .chars()
        .map(|c| {
            if c == '_' || c.is_whitespace() {
                '-'
            } else {
                c
            }
        })
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(63)
        .collect::<String>()
        .to_ascii_lowercase();
    let trimmed = cut.trim_matches('-');
    if trimmed.is_empty() {
        "server".to_owned()
    } else {
        trimmed.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::host_name;

    #[test]
    fn host_names_are_labels() {
        let long = "n".repeat(253);
        let cut = format!("{}-x", "n".repeat(62));
        for (name, host) in [
            ("web-1", "web-1"),
            ("web-1.example.org", "web-1"),
            (cut.as_str(), &long[..62]),
            ("Web Server_1.example.org", "web-server-1"),
            ("-ä-", "server"),
            (long.as_str(), &long[..63]),
        ] {
            assert_eq!(host_name(name), host);
        }
    }
}
