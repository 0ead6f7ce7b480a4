//! Decides about security groups. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kube::ResourceExt;

use super::rule;
use crate::list_some;
use crate::network::decision::Decision;
use crate::network::kinds::{
    Decided, NetworkKind, Observed, Planning, Problems, Users, has_finalizer, is_deleting, key,
    owner,
};
use pileus_api::conditions::Observation;
use pileus_api::{ConditionType, Reason, SecurityGroup, SecurityGroupRule, SecurityGroupStatus};
use pileus_network::topology::{GroupIn, Key, Problem, RuleIn};
use pileus_values::ClusterId;

impl NetworkKind for SecurityGroup {
    fn add_users(_cluster: &ClusterId, observed: &Observed, users: &mut Users) {
        for group in &observed.groups {
            // A group that is being deleted itself does not block another, or two that refer to
            // each other would stay for ever.
            if !has_finalizer(&**group) || is_deleting(&**group) {
                continue;
            }
            let Key { namespace, name } = key(&**group);
            let rules = group.spec.rules.iter();
            for remote in rules.filter_map(|named| named.rule.remote_group.as_ref()) {
                if *remote != name {
                    let user = format!("SecurityGroup {name}");
                    users.add::<Self>(Key::new(&namespace, remote), user);
                }
            }
        }
    }

    fn plan(planning: &mut Planning<'_>) -> Decided<Self> {
        let mut decided = Decided::<Self>::new();
        for group in &planning.observed.groups {
            if !has_finalizer(&**group) {
                continue;
            }
            let status = SecurityGroupStatus::default();
            let decision = if is_deleting(&**group) {
                Decision::deleting(status, "SecurityGroup", planning.users.of(&**group))
            } else {
                // The number of rules is known once they are compiled.
                Decision::ready(status, "")
            };
            if decision.stays() {
                add_input(planning, group);
            }
            decided.push((group.clone(), decision));
        }
        decided
    }

    fn apply_problems(decided: &mut Decided<Self>, observed: &Observed, problems: &Problems) {
        let mut rules: HashMap<Key, Vec<&SecurityGroupRule>> = HashMap::new();
        for rule in &observed.rules {
            rules.entry(group_of(rule)).or_default().push(rule);
        }
        for (group, decision) in decided {
            let unusable = problems.of(&**group).cloned().unwrap_or_default();
            let added = rules.get(&key(&**group)).into_iter().flatten();
            let added = added.filter(|rule| problems.of(**rule).is_none() && !is_deleting(**rule));
            let usable = group.spec.rules.len().saturating_sub(unusable.len()) + added.count();
            decision.status.rules = i64::try_from(usable).ok();
            if decision.ready.status != Some(true) {
                continue;
            }
            if unusable.is_empty() {
                decision.ready.message = format!("{usable} rules are in force");
                continue;
            }
            let message = format!(
                "{} of its rules cannot be used: {}",
                unusable.len(),
                list_some(unusable)
            );
            decision.ready = Observation::no(ConditionType::Ready, Reason::InvalidSpec, message);
        }
    }
}

fn add_input(planning: &mut Planning<'_>, group: &Arc<SecurityGroup>) {
    let owner = owner(planning.cluster, &**group);
    for named in &group.spec.rules {
        match rule::parse(&named.rule) {
            Ok(rule) => planning.topology.rules.push(RuleIn {
                owner: owner.clone(),
                group: key(&**group),
                name: named.name.clone(),
                rule,
            }),
            Err(message) => planning.problems.push(Problem {
                owner: owner.clone(),
                message: format!("rule {}: {message}", named.name),
            }),
        }
    }
    planning.topology.groups.push(GroupIn { owner });
}

/// The group that a rule of its own adds to.
#[must_use]
pub fn group_of(rule: &SecurityGroupRule) -> Key {
    Key {
        namespace: rule.namespace().unwrap_or_default(),
        name: rule.spec.security_group.clone(),
    }
}

/// The security groups that exist.
#[must_use]
pub fn existing_groups(observed: &Observed) -> HashSet<Key> {
    let groups = observed.groups.iter();
    groups
        .filter(|group| has_finalizer(&***group))
        .map(|group| key(&**group))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::ovn_addresses::OvnAddresses;
    use crate::network::plan::plan;
    use pileus_api::SecurityGroupSpec;
    use pileus_api::names::MANAGER_FINALIZER;
    use pileus_api::security_group::{NamedRule, SecurityRule};

    fn decided(protocols: &[&str]) -> (Option<i64>, String) {
        let rules = protocols
            .iter()
            .enumerate()
            .map(|(at, protocol)| NamedRule {
                name: format!("r{at}"),
                rule: SecurityRule {
                    protocol: Some((*protocol).into()),
                    ..SecurityRule::default()
                },
            });
        let mut group = SecurityGroup::new(
            "g",
            SecurityGroupSpec {
                description: None,
                rules: rules.collect(),
            },
        );
        group.metadata.namespace = Some("d".into());
        group.metadata.uid = Some("u".into());
        group.metadata.finalizers = Some(vec![MANAGER_FINALIZER.into()]);
        let observed = Observed {
            groups: vec![Arc::new(group)],
            ..Observed::default()
        };
        let cluster = ClusterId("c".into());
        let plan = plan(&cluster, 1442, &observed, &OvnAddresses::default());
        let (_, decision) = plan.decisions.groups.into_iter().next().unwrap();
        (decision.status.rules, decision.ready.message)
    }

    #[test]
    fn rules_that_cannot_be_used_are_named_and_not_counted() {
        assert_eq!(
            decided(&["tcp", "udp"]),
            (Some(2), "2 rules are in force".into())
        );
        let (rules, message) = decided(&["tcp", "nonsense"]);
        assert_eq!(rules, Some(1));
        assert!(
            message.contains("rule r1: protocol `nonsense`"),
            "{message}"
        );
    }
}
