//! Tests that status and record of a Stack contain no secrets.

use std::collections::BTreeSet;

use super::super::plan::Plan;
use super::super::record::Hidden;
use super::super::status::status;
use super::world::World;
use pileus_api::Reason;
use pileus_stack::masking::{add_text, mask_text};
use pileus_stack::value::json;

const SECRET: &str = "hunter2-hunter2";

/// A world whose template is made of `body`, with the parameter `p` from a Secret.
fn world(body: &str) -> World {
    let template =
        format!("heat_template_version: newton\nparameters: {{p: {{type: string}}}}\n{body}");
    let mut world = World::new(&template);
    world.sources.parameters.insert("p", SECRET.into());
    world.sources.secret.insert("p".into());
    world
}

/// The status and the record after a pass.
fn reported(world: &World, plan: &Plan) -> String {
    let status = status(&world.stack, plan, "record", &|_| None, world.now);
    let status = serde_json::to_string(&status).unwrap();
    format!("{status}{}", serde_json::to_string(&plan.record).unwrap())
}

#[test]
fn a_secret_in_an_error_is_masked_before_anything_is_created() {
    let mut world = world(
        "resources:
  s: {type: OS::Nova::Server, properties: {flavor: f, image: i, user_data: {get_file: {get_param: p}}}}
",
    );
    let plan = world.pass(|| false);
    let text = reported(&world, &plan);
    assert!(!text.contains(SECRET), "{text}");
    assert!(text.contains("******"), "{text}");
}

#[test]
fn a_malformed_hidden_number_is_not_shown() {
    let mut world = World::new(
        "heat_template_version: newton
parameters: {n: {type: number, hidden: true}}
resources: {r: {type: OS::Heat::None}}
",
    );
    world.sources.parameters.insert("n", "7x".into());
    let plan = world.pass(|| false);
    let problem = plan.problem.unwrap();
    assert_eq!(problem.reason, Reason::InvalidTemplate);
    assert!(!problem.message.contains("7x"), "{}", problem.message);
}

#[test]
fn masked_messages_stay_masked_after_a_deletion_or_a_new_secret() {
    let mut world = world(
        "resources:
  net: {type: OS::Neutron::Net, properties: {name: {get_param: p}}}
",
    );
    // The condition of the object contains the value.
    world
        .sources
        .parameters
        .insert("p", "it cannot work".into());
    world.broken = Some("-net-");
    let plan = world.run_until_idle();
    assert_eq!(world.stack_status(), "CREATE_FAILED");
    let text = reported(&world, &plan);
    assert!(!text.contains("it cannot work"), "{text}");
    world.sources.parameters.insert("p", "another".into());
    let plan = world.pass(|| false);
    let text = reported(&world, &plan);
    assert!(!text.contains("it cannot work"), "{text}");
    world.stored.clear();
    world.sources.parameters = Default::default();
    world.stack.metadata.deletion_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now),
    );
    let plan = world.pass(|| true);
    let text = reported(&world, &plan);
    assert!(!text.contains("it cannot work"), "{text}");
}

#[test]
fn a_file_from_a_secret_and_its_parts_are_in_no_output() {
    let mut world = World::new(
        "heat_template_version: newton
resources:
  v: {type: OS::Heat::Value, properties: {value: {get_file: key}}}
outputs:
  whole: {value: {get_file: key}}
  parts: {value: {str_split: [' ', {get_file: key}]}}
  digest: {value: {digest: [md5, {get_file: key}]}}
  through: {value: {get_attr: [v, value]}}
  other: {value: {get_file: open}}
",
    );
    world.sources.files = [
        ("key".to_owned(), "top secret words".to_owned()),
        ("open".to_owned(), "for all".to_owned()),
    ]
    .into();
    world.sources.hidden = Hidden {
        files: BTreeSet::from(["key".to_owned()]),
        ..Hidden::default()
    };
    let outputs = world.run_until_idle().outputs.unwrap();
    for output in outputs {
        let shown = if output.name == "other" {
            "for all"
        } else {
            "******"
        };
        assert_eq!(output.value, Some(json!(shown).into()), "{}", output.name);
    }
}

#[test]
fn parameters_of_an_environment_from_a_secret_are_hidden() {
    let mut world = World::new(
        "heat_template_version: newton
parameters: {word: {type: string}}
resources: {}
outputs:
  word: {value: {get_param: word}}
  part: {value: {str_replace: {template: 'a-w', params: {w: {get_param: word}}}}}
",
    );
    world.sources.environments = vec!["parameters: {word: abc}".to_owned()];
    world.sources.hidden.environments.insert(0);
    let outputs = world.run_until_idle().outputs.unwrap();
    for output in outputs {
        assert_eq!(
            output.value,
            Some(json!("******").into()),
            "{}",
            output.name
        );
    }
    world.sources.environments = vec![format!("{SECRET}: x")];
    let plan = world.pass(|| false);
    let text = reported(&world, &plan);
    assert!(!text.contains(SECRET), "{text}");
    assert!(text.contains("environments[0]"), "{text}");
}

#[test]
fn a_malformed_template_from_a_secret_is_not_quoted() {
    for text in [
        SECRET.to_owned(),
        format!("{SECRET}: {SECRET}"),
        format!("'{SECRET}"),
    ] {
        let mut world = World::new(&text);
        world.sources.hidden.template = true;
        let plan = world.pass(|| false);
        assert_eq!(
            plan.problem.as_ref().unwrap().reason,
            Reason::InvalidTemplate
        );
        let text = reported(&world, &plan);
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[test]
fn secrets_are_masked_in_every_encoding() {
    let mut secrets = BTreeSet::new();
    add_text("-----BEGIN KEY-----\nMII/\"x y\"\n", &mut secrets);
    add_text("hunt", &mut secrets);
    add_text("hunter2", &mut secrets);
    for text in [
        r#"Invalid value: "-----BEGIN KEY-----\nMII/\"x y\"\n": no"#,
        "https://u:-----BEGIN%20KEY-----%0AMII%2F%22x%20y%22@h",
        "it is hunter2",
    ] {
        let masked = mask_text(text, &secrets);
        assert!(masked.contains("******"), "{masked}");
        for part in ["MII", "KEY", "er2"] {
            assert!(!masked.contains(part), "{masked}");
        }
    }
    let mut of_json = BTreeSet::new();
    pileus_stack::masking::add_texts(&json!({"a": ["deep-secret", 4711]}), &mut of_json);
    assert_eq!(of_json, ["4711", "deep-secret"].map(str::to_owned).into());
}
