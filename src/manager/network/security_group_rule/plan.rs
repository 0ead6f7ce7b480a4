//! Decides about security group rules of their own. Pure.

use std::collections::{HashMap, HashSet};

use kube::ResourceExt;

use crate::network::decision::Decision;
use crate::network::kinds::{
    Decided, NetworkKind, Observed, Planning, Users, has_finalizer, is_deleting, key, owner,
};
use crate::network::security_group::plan::group_of;
use crate::network::security_group::rule;
use pileus_api::{Reason, SecurityGroup, SecurityGroupRule, SecurityGroupRuleStatus};
use pileus_network::topology::{Key, Problem, RuleIn};
use pileus_values::ClusterId;

impl NetworkKind for SecurityGroupRule {
    // Its ACL belongs to its group and is removed with it.
    const FINALIZER: bool = false;

    fn add_users(_cluster: &ClusterId, observed: &Observed, users: &mut Users) {
        let staying: HashSet<Key> = observed
            .groups
            .iter()
            .filter(|group| has_finalizer(&***group) && !is_deleting(&***group))
            .map(|group| key(&**group))
            .collect();
        for rule in &observed.rules {
            let Some(remote) = &rule.spec.rule.remote_group else {
                continue;
            };
            let group = group_of(rule);
            if *remote != group.name && staying.contains(&group) {
                let user = format!("SecurityGroupRule {}", rule.name_any());
                users.add::<SecurityGroup>(Key::new(&group.namespace, remote), user);
            }
        }
    }

    fn plan(planning: &mut Planning<'_>) -> Decided<Self> {
        // Whether the group's own rows stay, for each group that exists.
        let groups: HashMap<Key, bool> = planning
            .decisions
            .groups
            .iter()
            .map(|(group, decision)| (key(&**group), decision.stays()))
            .collect();
        let mut decided = Decided::<Self>::new();
        for rule in &planning.observed.rules {
            if is_deleting(&**rule) {
                continue;
            }
            let group = group_of(rule);
            let status = SecurityGroupRuleStatus::default();
            let name = &rule.spec.security_group;
            let decision = match groups.get(&group) {
                None => Decision::not_ready(
                    status,
                    Reason::SecurityGroupNotFound,
                    format!(
                        "SecurityGroup {name} does not exist in this namespace; make it, or correct \
                         `securityGroup`"
                    ),
                ),
                Some(stays) => {
                    if *stays {
                        add_input(planning, rule, group);
                    }
                    Decision::ready(status, format!("in force in SecurityGroup {name}"))
                }
            };
            decided.push((rule.clone(), decision));
        }
        decided
    }
}

fn add_input(planning: &mut Planning<'_>, object: &SecurityGroupRule, group: Key) {
    let owner = owner(planning.cluster, object);
    match rule::parse(&object.spec.rule) {
        Ok(rule) => planning.topology.rules.push(RuleIn {
            owner,
            group,
            name: String::new(),
            rule,
        }),
        Err(message) => planning.problems.push(Problem {
            message: format!("rule {}: {message}", owner.name),
            owner,
        }),
    }
}
