//! Decides about security groups and rules. Pure. Whether a rule makes sense the network's
//! compiler says; here its words become conditions.

use std::collections::{BTreeMap, HashMap};

use kube::ResourceExt;

use crate::name_some;
use crate::network::decision::Decision;
use pileus_api::{
    Reason, SecurityGroup, SecurityGroupRule, SecurityGroupRuleStatus, SecurityGroupStatus,
};

/// The compiler's complaints by the owner's uid.
pub type Problems = HashMap<String, Vec<String>>;

/// Decides about a group that `extra` rules of their own add to. `users` names the Ports
/// and groups that refer to it.
#[must_use]
pub fn group(
    group: &SecurityGroup,
    extra: &[&SecurityGroupRule],
    users: Vec<String>,
    problems: &Problems,
) -> Decision<SecurityGroupStatus> {
    let of = |uid: Option<String>| uid.and_then(|uid| problems.get(&uid));
    let bad = of(group.uid()).cloned().unwrap_or_default();
    let good = group.spec.rules.len().saturating_sub(bad.len())
        + extra
            .iter()
            .filter(|rule| of(rule.uid()).is_none() && rule.metadata.deletion_timestamp.is_none())
            .count();
    let status = SecurityGroupStatus {
        rules: i64::try_from(good).ok(),
        ..SecurityGroupStatus::default()
    };
    if group.metadata.deletion_timestamp.is_some() {
        return Decision::deleting(status, "SecurityGroup", users);
    }
    if bad.is_empty() {
        return Decision::ready(status, format!("{good} rules are in force"));
    }
    let message = format!(
        "{} of its rules cannot be used: {}",
        bad.len(),
        name_some(bad)
    );
    Decision::not_ready(status, Reason::InvalidSpec, message)
}

/// Decides about a rule of its own, whose group is there or not.
#[must_use]
pub fn rule(
    rule: &SecurityGroupRule,
    has_group: bool,
    problems: &Problems,
) -> Decision<SecurityGroupRuleStatus> {
    let name = &rule.spec.security_group;
    let problem = rule.uid().and_then(|uid| problems.get(&uid));
    let status = SecurityGroupRuleStatus::default();
    if !has_group {
        let message = format!(
            "SecurityGroup {name} does not exist in this namespace; make it, or correct `securityGroup`"
        );
        return Decision::not_ready(status, Reason::SecurityGroupNotFound, message);
    }
    match problem {
        Some(problem) => Decision::not_ready(status, Reason::InvalidSpec, problem.join("; ")),
        None => Decision::ready(status, format!("in force in SecurityGroup {name}")),
    }
}

/// Which groups of a namespace a group's rules refer to, itself left out.
#[must_use]
pub fn remote_groups(
    groups: &[std::sync::Arc<SecurityGroup>],
    rules: &[std::sync::Arc<SecurityGroupRule>],
) -> BTreeMap<(String, String), Vec<String>> {
    let mut users: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut note = |namespace: String, own: &str, remote: Option<&String>, user: String| {
        if let Some(remote) = remote.filter(|r| *r != own) {
            users
                .entry((namespace, remote.clone()))
                .or_default()
                .push(user);
        }
    };
    for group in groups {
        for named in &group.spec.rules {
            let user = format!("SecurityGroup {}", group.name_any());
            let remote = named.rule.remote_group.as_ref();
            note(
                group.namespace().unwrap_or_default(),
                &group.name_any(),
                remote,
                user,
            );
        }
    }
    for rule in rules {
        let user = format!("SecurityGroupRule {}", rule.name_any());
        let remote = rule.spec.rule.remote_group.as_ref();
        note(
            rule.namespace().unwrap_or_default(),
            &rule.spec.security_group,
            remote,
            user,
        );
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;
    use pileus_api::SecurityGroupSpec;
    use pileus_api::security_group::NamedRule;

    #[test]
    fn rules_that_cannot_be_used_are_named_and_not_counted() {
        let rules = ["a", "b"].map(|name| NamedRule {
            name: name.into(),
            ..NamedRule::default()
        });
        let mut it = SecurityGroup::new(
            "g",
            SecurityGroupSpec {
                description: None,
                rules: rules.to_vec(),
            },
        );
        it.metadata.uid = Some("u".into());
        let problems = Problems::from([("u".to_owned(), vec!["rule a: protocol `x`".to_owned()])]);
        let decision = group(&it, &[], vec![], &problems);
        assert_eq!(decision.status.rules, Some(1));
        assert!(decision.ready.message.contains("rule a: protocol `x`"));
        assert_eq!(
            group(&it, &[], vec![], &Problems::new()).status.rules,
            Some(2)
        );
    }
}
