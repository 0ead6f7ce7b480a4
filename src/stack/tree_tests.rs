#![allow(clippy::unwrap_used, clippy::unnecessary_wraps, reason = "tests")]
use super::*;
use crate::environment::Environment;
use crate::yaml;

fn input(template: &str, files: &[(&str, &str)], environment: &str) -> Input {
    Input {
        template: yaml::parse(template).unwrap().into(),
        files: files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect(),
        environment: Environment::parse([environment]).unwrap(),
        ..Input::default()
    }
}

/// Every resource is there; its id is its path, its value is its property's.
fn all(path: &str, leaf: &Leaf) -> Option<Known> {
    let properties = leaf.properties.clone().unwrap();
    let mut attributes = Map::new();
    attributes.insert(
        "value",
        properties.get("value").cloned().unwrap_or_default(),
    );
    Some(Known {
        refid: Value::from(path),
        attributes,
        open: true,
    })
}

const MEMBER: &str = "heat_template_version: newton\nparameters: {n: {type: string}}\nresources:\n  v: {type: 'OS::Heat::Value', properties: {value: {get_param: n}}}\noutputs:\n  said: {value: {get_attr: [v, value]}}\n";
const GROUP: &str = "heat_template_version: newton\nresources:\n  size: {type: 'OS::Heat::Value', properties: {value: 3}}\n  group:\n    type: OS::Heat::ResourceGroup\n    properties:\n      count: {get_attr: [size, value]}\n      resource_def: {type: m.yaml, properties: {n: 'x%index%'}}\n  after: {type: 'OS::Heat::Value', properties: {value: {get_attr: [group, said]}}}\noutputs:\n  list: {value: {get_attr: [after, value]}}\n  one: {value: {get_attr: [group, resource.1.said]}}\n";

#[test]
fn a_group_is_expanded_once_its_size_is_known() {
    let input = input(GROUP, &[("m.yaml", MEMBER)], "{}");
    let flat = flatten(&input, &mut |_, _| None).unwrap();
    assert_eq!(flat.leaves.keys().collect::<Vec<_>>(), ["after", "size"]);
    assert_eq!(flat.unexpanded.iter().collect::<Vec<_>>(), ["group"]);
    assert!(!flat.leaves["after"].ready && flat.leaves["size"].ready);

    let flat = flatten(&input, &mut all).unwrap();
    assert!(flat.unexpanded.is_empty());
    assert_eq!(
        flat.leaves.keys().collect::<Vec<_>>(),
        ["after", "group/0/v", "group/1/v", "group/2/v", "size"]
    );
    // What comes after a group comes after everything in it, and everything in it after what
    // the group comes after.
    assert_eq!(flat.leaves["after"].requires.len(), 3);
    assert_eq!(
        flat.leaves["group/0/v"].requires.iter().collect::<Vec<_>>(),
        ["size"]
    );
    assert_eq!(flat.outputs["list"].value, Ok(json!(["x0", "x1", "x2"])));
    assert_eq!(flat.outputs["one"].value, Ok(json!("x1")));
}

#[test]
fn each_resource_is_resolved_once_and_after_its_requirements() {
    let input = input(GROUP, &[("m.yaml", MEMBER)], "{}");
    let mut asked: Vec<String> = Vec::new();
    flatten(&input, &mut |path, leaf| {
        assert!(leaf.ready && leaf.requires.iter().all(|r| asked.contains(r)));
        assert!(!asked.contains(&path.to_owned()));
        asked.push(path.to_owned());
        all(path, leaf)
    })
    .unwrap();
    assert_eq!(asked.len(), 5);
}

#[test]
fn values_from_hidden_parameters_are_masked() {
    let nested = "heat_template_version: newton\nparameters: {p: {type: string}}\nresources:\n  v: {type: 'OS::Heat::Value', properties: {value: {digest: [md5, {get_param: p}]}}}\noutputs:\n  said: {value: {get_attr: [v, value]}}\n";
    let template = "heat_template_version: newton\nparameters:\n  p: {type: string, hidden: true}\n  q: {type: string}\nresources:\n  v: {type: 'OS::Heat::Value', properties: {value: {get_param: p}}}\n  w: {type: 'OS::Heat::Value', properties: {value: {digest: [md5, {get_attr: [v, value]}]}}}\n  n: {type: n.yaml, properties: {p: {get_param: p}}}\noutputs:\n  plain: {value: {get_param: p}}\n  part: {value: [1, {a: {list_join: ['-', [x, {get_param: p}]]}}]}\n  through: {value: {get_attr: [w, value]}}\n  nested: {value: {get_attr: [n, said]}}\n  open: {value: {get_param: q}}\n";
    let environment = "parameters: {p: a-secret, q: seen}";
    let flat = flatten(
        &input(template, &[("n.yaml", nested)], environment),
        &mut all,
    )
    .unwrap();
    for name in ["plain", "part", "through", "nested"] {
        assert_eq!(flat.outputs[name].value, Ok(json!(MASK)), "{name}");
    }
    assert_eq!(flat.outputs["open"].value, Ok(json!("seen")));
    assert_eq!(flat.masked("no `a-secret` there"), "no `******` there");
    assert!(flat.leaves["v"].hidden && flat.leaves["n/v"].hidden);
}

#[test]
fn parameters_from_a_secret_are_hidden_too() {
    let template = "heat_template_version: newton\nparameters: {p: {type: string}}\noutputs:\n  o: {value: {list_join: ['', [a, {get_param: p}]]}}\n";
    let mut input = input(template, &[], "parameters: {p: xy}");
    input.secret.insert("p".to_owned());
    let flat = flatten(&input, &mut all).unwrap();
    assert_eq!(flat.outputs["o"].value, Ok(json!(MASK)));
}

#[test]
fn a_member_knows_its_group() {
    let template = "heat_template_version: newton\nresources:\n  group:\n    type: OS::Heat::ResourceGroup\n    update_policy: {rolling_update: {max_batch_size: 2, pause_time: 5}}\n    properties: {count: 1, resource_def: {type: m.yaml, properties: {n: x}}}\n";
    let flat = flatten(&input(template, &[("m.yaml", MEMBER)], "{}"), &mut all).unwrap();
    let batch = Batch {
        group: "group".into(),
        member: "group/0".into(),
        target: 1,
        create: None,
        update: Some(Policy {
            size: 2,
            min_in_service: 0,
            pause: 5.0,
        }),
    };
    assert_eq!(flat.leaves["group/0/v"].batches, [batch]);
}

#[test]
fn a_template_that_contains_itself_is_refused() {
    let own = "heat_template_version: newton\nresources: {r: {type: own.yaml}}\n";
    let stop = flatten(&input(own, &[("own.yaml", own)], "{}"), &mut all).unwrap_err();
    assert!(stop.error.message.contains("nest"), "{stop:?}");
}
