//! A Heat template on two real hosts: guests with their user data that reach each other, a
//! group that grows and shrinks, a replacement, an update that fails and returns, and nothing
//! left in the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use pileus_api::{ConditionType, Flavor, Server, Stack, conditions};
use pileus_tests::lab::{Lab, Project, devstack, eventually};
use serde_json::{Value, json};

/// Several guests boot at once, emulated.
const TIMEOUT: Duration = Duration::from_secs(240);

const PAIR: &str = r#"heat_template_version: 2021-04-16
parameters:
  flavor: {type: string, default: m1.nano}
  word: {type: string, hidden: true, default: the-secret-word}
resources:
  net: {type: OS::Neutron::Net, properties: {name: private net}}
  subnet:
    type: OS::Neutron::Subnet
    properties: {network: {get_resource: net}, cidr: 10.20.0.0/24}
  group:
    type: OS::Neutron::SecurityGroup
    properties:
      rules: [{protocol: icmp, remote_ip_prefix: 10.20.0.0/24}]
  port1:
    type: OS::Neutron::Port
    properties:
      network: {get_resource: net}
      security_groups: [{get_resource: group}]
      fixed_ips: [{subnet: {get_resource: subnet}, ip_address: 10.20.0.11}]
  port2:
    type: OS::Neutron::Port
    properties:
      network: {get_resource: net}
      security_groups: [{get_resource: group}]
  apart: {type: OS::Nova::ServerGroup, properties: {policies: [anti-affinity]}}
  first:
    type: OS::Nova::Server
    properties:
      scheduler_hints: {group: {get_resource: apart}}
      name: First Server
      image: default/tiny
      flavor: m1.nano
      networks: [{port: {get_resource: port1}}]
      user_data_format: RAW
      user_data:
        str_replace:
          template: |
            #!/bin/sh
            echo user data says $word
          params: {$word: {get_param: word}}
  second:
    type: OS::Nova::Server
    properties:
      image: default/tiny
      flavor: {get_param: flavor}
      networks: [{port: {get_resource: port2}}]
      scheduler_hints: {group: {get_resource: apart}, different_host: [{get_resource: first}]}
outputs:
  first: {value: {get_attr: [first, first_address]}}
  second: {value: {get_attr: [second, first_address]}}
  word: {value: {get_param: word}}
"#;

const GROUP: &str = r"heat_template_version: 2021-04-16
parameters: {count: {type: number}, flavor: {type: string, default: m1.nano}}
resources:
  members:
    type: OS::Heat::ResourceGroup
    properties:
      count: {get_param: count}
      resource_def: {type: member.yaml, properties: {flavor: {get_param: flavor}}}
outputs:
  names: {value: {get_attr: [members, name]}}
";

const MEMBER: &str = r"heat_template_version: 2021-04-16
parameters: {flavor: {type: string}}
resources:
  server: {type: OS::Nova::Server, properties: {image: default/tiny, flavor: {get_param: flavor}}}
outputs:
  name: {value: {get_attr: [server, name]}}
";

fn apply(project: &Project, name: &str, spec: &Value) {
    let stack = json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Stack",
        "metadata": {"name": name}, "spec": spec,
    });
    project.apply(&stack.to_string());
}

async fn becomes(stacks: &Api<Stack>, name: &str, word: &str) -> Stack {
    eventually(&format!("Stack {name} is {word}"), TIMEOUT, async || {
        let stack = stacks.get(name).await.map_err(|e| e.to_string())?;
        let status = stack.status.clone().unwrap_or_default();
        let fresh = status.observed_generation == stack.metadata.generation;
        if fresh && status.stack_status.as_deref() == Some(word) {
            Ok(stack)
        } else {
            Err(format!("{:?} {:#?}", status.stack_status, status.resources))
        }
    })
    .await
}

fn output(stack: &Stack, name: &str) -> Value {
    let outputs = stack.status.clone().unwrap().outputs;
    let found = outputs.into_iter().find(|output| output.name == name);
    found.and_then(|output| output.value).unwrap_or_default()
}

fn server_of(stack: &Stack, resource: &str) -> String {
    let rows = stack.status.clone().unwrap().resources;
    let row = rows.into_iter().find(|row| row.name == resource).unwrap();
    row.object.unwrap().split_once('/').unwrap().1.to_owned()
}

#[tokio::test]
async fn a_template_becomes_guests_that_reach_each_other() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-stack").await;
    let stacks: Api<Stack> = Api::namespaced(lab.client.clone(), "e2e-stack");
    apply(&project, "pair", &json!({"template": PAIR}));
    let made = becomes(&stacks, "pair", "CREATE_COMPLETE").await;
    assert_eq!(output(&made, "first"), json!("10.20.0.11"));
    let second = output(&made, "second").as_str().unwrap().to_owned();
    assert!(second.starts_with("10.20.0."), "{second}");
    assert_eq!(output(&made, "word"), json!("******"));
    let servers = project.servers();
    let host = async |name: &str| {
        let server = servers.get(&server_of(&made, name)).await.unwrap();
        server.status.unwrap().placement.unwrap().host
    };
    assert_ne!(host("first").await, host("second").await);

    let console = project.console(&server_of(&made, "first")).await;
    console.says("PILEUS-GUEST: ready", TIMEOUT).await;
    let log = console.log();
    assert!(log.contains("user data says the-secret-word"), "{log}");
    assert!(log.contains("hostname=first-server"), "{log}");
    let mut other = project.console(&server_of(&made, "second")).await;
    other.says("PILEUS-GUEST: ready", TIMEOUT).await;
    other.try_shell("ping -c 1 -W 5 10.20.0.11", TIMEOUT).await;
    other.shell("ping -c 3 -W 5 10.20.0.11").await;

    // Another flavor: another Server on the same Port, with the same address.
    let patch = json!({"spec": {"parameters": {"flavor": "m1.micro"}}});
    let params = PatchParams::default();
    stacks
        .patch("pair", &params, &Patch::Merge(&patch))
        .await
        .unwrap();
    let replaced = becomes(&stacks, "pair", "UPDATE_COMPLETE").await;
    assert_ne!(server_of(&replaced, "second"), server_of(&made, "second"));
    assert_eq!(server_of(&replaced, "first"), server_of(&made, "first"));
    assert_eq!(output(&replaced, "second"), json!(second));
    stacks
        .delete("pair", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the Stack is gone", TIMEOUT, async || {
        let stack = stacks.get_opt("pair").await.map_err(|e| e.to_string())?;
        stack.map_or(Ok(()), |stack| Err(format!("{:#?}", stack.status)))
    })
    .await;
    project.leaves_nothing().await;
}

#[tokio::test]
async fn a_group_of_templates_grows_shrinks_and_returns() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-group").await;
    let stacks: Api<Stack> = Api::namespaced(lab.client.clone(), "e2e-group");
    let spec = |count: i64, flavor: &str| {
        json!({"template": GROUP, "files": {"member.yaml": MEMBER}, "onFailure": "Rollback",
            "timeoutMinutes": 4, "parameters": {"count": count, "flavor": flavor}})
    };
    let mut word = "CREATE_COMPLETE";
    for count in [3, 5, 2] {
        apply(&project, "many", &spec(count, "m1.nano"));
        let stack = eventually("the group has its size", TIMEOUT, async || {
            let stack = becomes(&stacks, "many", word).await;
            let names = output(&stack, "names");
            let size = names.as_array().map(Vec::len);
            if size == usize::try_from(count).ok() {
                Ok(stack)
            } else {
                Err(names.to_string())
            }
        })
        .await;
        word = "UPDATE_COMPLETE";
        assert!(output(&stack, "names").is_array());
        let list = project
            .servers()
            .list(&ListParams::default())
            .await
            .unwrap();
        assert_eq!(i64::try_from(list.items.len()).unwrap(), count);
    }
    let names = async || -> Vec<String> {
        let list: Vec<Server> = project
            .servers()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items;
        list.into_iter()
            .map(|server| server.metadata.name.unwrap())
            .collect()
    };
    let before = names().await;
    // A typing error changes nothing at all.
    apply(&project, "many", &spec(2, "no-such-flavor"));
    eventually("the Stack names its error", TIMEOUT, async || {
        let stack = stacks.get("many").await.map_err(|e| e.to_string())?;
        let status = stack.status.unwrap_or_default();
        let ready = conditions::find(&status.conditions, ConditionType::Ready);
        match ready {
            Some(ready) if ready.message.contains("no-such-flavor") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(names().await, before);
    // Nothing of this size can be: it is given up after a while, and nothing has changed.
    project.apply(
        "apiVersion: pileus.dev/v1alpha1\nkind: Flavor\nmetadata: {name: e2e-huge}\n\
         spec: {vcpus: 512, memory: 64Mi, disk: 1Gi}\n",
    );
    let mut failing = spec(2, "e2e-huge");
    failing["timeoutMinutes"] = json!(1);
    apply(&project, "many", &failing);
    becomes(&stacks, "many", "ROLLBACK_COMPLETE").await;
    assert_eq!(names().await, before);
    apply(&project, "many", &spec(2, "m1.nano"));
    let flavors: Api<Flavor> = Api::all(lab.client.clone());
    flavors
        .delete("e2e-huge", &DeleteParams::default())
        .await
        .unwrap();
    project.leaves_nothing().await;
}

#[tokio::test]
async fn a_manager_that_is_killed_at_any_moment_leaves_the_same_end() {
    let lab = Lab::get().await;
    let project = Project::new(&lab, "e2e-stack-crash").await;
    let stacks: Api<Stack> = Api::namespaced(lab.client.clone(), "e2e-stack-crash");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let mut seed: u64 = number("PILEUS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = number("PILEUS_ROUNDS").unwrap_or(40);
    println!("PILEUS_SEED={seed} PILEUS_ROUNDS={rounds}");
    let spec = |count: u64, flavor: &str| {
        json!({"template": GROUP, "files": {"member.yaml": MEMBER},
            "parameters": {"count": count, "flavor": flavor}})
    };
    for _ in 0..rounds {
        // A linear congruence is random enough for moments.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let flavor = if (seed >> 50) & 1 == 0 {
            "m1.nano"
        } else {
            "m1.micro"
        };
        apply(&project, "many", &spec((seed >> 40) & 3, flavor));
        tokio::time::sleep(Duration::from_millis((seed >> 30) % 1500)).await;
        tokio::task::spawn_blocking(|| {
            devstack(&["role", "stacks", "kill"]);
            devstack(&["role", "stacks", "start"]);
        })
        .await
        .unwrap();
    }
    apply(&project, "many", &spec(2, "m1.nano"));
    eventually("the Stack is ready", TIMEOUT, async || {
        let stack = stacks.get("many").await.map_err(|e| e.to_string())?;
        let status = stack.status.clone().unwrap_or_default();
        let fresh = status.observed_generation == stack.metadata.generation;
        if fresh && conditions::is_true(&status.conditions, ConditionType::Ready) {
            Ok(())
        } else {
            Err(format!("{:?} {:#?}", status.stack_status, status.resources))
        }
    })
    .await;
    let servers = project.servers().list(&ListParams::default()).await;
    let flavors: Vec<_> = servers
        .unwrap()
        .into_iter()
        .map(|s| s.spec.flavor)
        .collect();
    assert_eq!(
        flavors,
        [Some("m1.nano".to_owned()), Some("m1.nano".to_owned())]
    );
    stacks
        .delete("many", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the Stack is gone", TIMEOUT, async || {
        let stack = stacks.get_opt("many").await.map_err(|e| e.to_string())?;
        stack.map_or(Ok(()), |stack| Err(format!("{:#?}", stack.status)))
    })
    .await;
    project.leaves_nothing().await;
}
