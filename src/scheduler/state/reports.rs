//! Statuses that the scheduler writes to HostAggregates, ServerGroups, Hosts and
//! SchedulerPolicies. Pure.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use crate::objects::catalogue::Catalogue;
use crate::placement::policy::Policy;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::host::AllocationRatios;
use pileus_api::host_aggregate::HostAggregateStatus;
use pileus_api::scheduler_policy::{SCHEDULER_POLICY, SchedulerPolicyStatus};
use pileus_api::server_group::ServerGroupStatus;
use pileus_api::{Host, HostAggregate, Reason, SchedulerPolicy, ServerGroup, validation};

/// How many Hosts a message names.
const MAX_NAMED: usize = 3;

/// A status to be written if it differs.
#[derive(Clone, Debug)]
pub enum Report {
    /// Of a HostAggregate.
    Aggregate(Box<HostAggregate>, HostAggregateStatus),
    /// Of a ServerGroup.
    Group(Box<ServerGroup>, ServerGroupStatus),
    /// Of a Host: the ratios of its aggregates, and the metrics that it shall measure.
    Host(Box<Host>, HostReport),
    /// Of a SchedulerPolicy.
    Policy(Box<SchedulerPolicy>, SchedulerPolicyStatus),
}

/// The scheduler's part of a Host's status.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostReport {
    /// Ratios of its aggregates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation_ratios: Option<AllocationRatios>,
    /// Metrics that the policy in use weighs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wanted_metrics: Vec<String>,
}

/// The current status of all of them.
#[must_use]
pub fn all(
    catalogue: &Catalogue,
    hosts: &[&Host],
    policies: &[SchedulerPolicy],
    metrics: &[String],
    now: Timestamp,
) -> Vec<Report> {
    let aggregates = catalogue.aggregates.values().map(|a| {
        let status = aggregate(a, catalogue, hosts, now);
        Report::Aggregate(Box::new(a.clone()), status)
    });
    let groups = catalogue.groups.values().map(|g| {
        let old = g.status.as_ref().map(|s| s.conditions.as_slice());
        let observation = Observation::yes(ConditionType::Ready, Reason::Ready, "");
        let generation = g.metadata.generation;
        let status = ServerGroupStatus {
            observed_generation: generation,
            conditions: conditions::merge(old.unwrap_or_default(), [observation], generation, now),
        };
        Report::Group(Box::new(g.clone()), status)
    });
    let policies = policies.iter().map(|p| {
        let old = p.status.as_ref().map(|s| s.conditions.as_slice());
        let generation = p.metadata.generation;
        let observation = policy(p);
        let status = SchedulerPolicyStatus {
            observed_generation: generation,
            conditions: conditions::merge(old.unwrap_or_default(), [observation], generation, now),
        };
        Report::Policy(Box::new(p.clone()), status)
    });
    let hosts = hosts.iter().filter_map(|h| {
        let allocation_ratios = catalogue.effective_ratios(h);
        let status = h.status.as_ref();
        let current = HostReport {
            allocation_ratios: status.and_then(|s| s.allocation_ratios.clone()),
            wanted_metrics: status.map(|s| s.wanted_metrics.clone()).unwrap_or_default(),
        };
        let report = HostReport {
            allocation_ratios,
            wanted_metrics: metrics.to_vec(),
        };
        (current != report).then(|| Report::Host(Box::new((*h).clone()), report))
    });
    aggregates
        .chain(groups)
        .chain(hosts)
        .chain(policies)
        .collect()
}

fn aggregate(
    aggregate: &HostAggregate,
    catalogue: &Catalogue,
    hosts: &[&Host],
    now: Timestamp,
) -> HostAggregateStatus {
    let (count, conflicts) = catalogue.hosts_and_conflicts(aggregate, hosts.iter().copied());
    let observation = if let Err(wrong) = validation::host_aggregate(&aggregate.spec) {
        Observation::no(ConditionType::Ready, Reason::InvalidSpec, wrong)
    } else if conflicts.is_empty() {
        Observation::yes(ConditionType::Ready, Reason::Ready, "")
    } else {
        let named = conflicts.iter().take(MAX_NAMED).map(|(host, by, zone)| {
            format!("Host {host} is in zone {zone} by the older HostAggregate {by}")
        });
        let mut message = named.collect::<Vec<_>>().join("; ");
        if conflicts.len() > MAX_NAMED {
            message = format!("{message}; and {} more", conflicts.len() - MAX_NAMED);
        }
        let own = aggregate.spec.availability_zone.as_deref();
        let message = format!(
            "{message}. A Host can be in only one zone: remove it from one of the HostAggregates, or \
             give both the same availabilityZone; until then it is not in zone {}",
            own.unwrap_or_default()
        );
        Observation::no(ConditionType::Ready, Reason::ZoneConflict, message)
    };
    let old = aggregate.status.as_ref().map(|s| s.conditions.as_slice());
    let generation = aggregate.metadata.generation;
    HostAggregateStatus {
        observed_generation: generation,
        hosts: Some(count),
        conditions: conditions::merge(old.unwrap_or_default(), [observation], generation, now),
    }
}

fn policy(policy: &SchedulerPolicy) -> Observation {
    if policy.name_any() != SCHEDULER_POLICY {
        let message = format!(
            "only the SchedulerPolicy named `{SCHEDULER_POLICY}` is used; rename this one or delete \
             it"
        );
        return Observation::no(ConditionType::Ready, Reason::NotUsed, message);
    }
    match Policy::new(&policy.spec) {
        Ok(_) => Observation::yes(ConditionType::Ready, Reason::Ready, "is in use"),
        Err(wrong) => {
            let message = format!(
                "{wrong}. Until this is corrected the last valid policy stays in use; after a \
                 restart of the scheduler Nova's defaults are used"
            );
            Observation::no(ConditionType::Ready, Reason::InvalidSpec, message)
        }
    }
}
