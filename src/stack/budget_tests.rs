//! Small templates that ask for a lot: each is answered at once, or refused. What is not would
//! not end within anybody's patience, or take more memory than there is.
#![allow(clippy::unwrap_used, reason = "tests")]
use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::super::functions::Known;
use super::super::render::{self, Input};
use super::super::tree::{self, Flat};
use super::super::{expand, yaml};
use crate::value::{Map, Value, json};

fn input(template: &str, files: &[(&str, &str)]) -> Input {
    let files = files.iter();
    Input {
        template: yaml::parse(template).unwrap().into(),
        files: files
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect(),
        ..Input::default()
    }
}

/// Evaluated as when everything settles at once, a Value with what it is given.
fn flat(input: &Input) -> std::result::Result<Flat, String> {
    tree::flatten(input, &mut |_, leaf| {
        let value = leaf.properties.as_ref().ok()?.get("value").cloned();
        let mut attributes = Map::new();
        attributes.insert("value".to_owned(), value.unwrap_or_default());
        Some(Known {
            refid: Value::from("id"),
            attributes,
            open: false,
        })
    })
    .map_err(|stop| stop.error.message)
}

/// Why it is refused.
fn refused(input: &Input) -> String {
    flat(input).map(drop).unwrap_err()
}

fn with_outputs(outputs: &str) -> String {
    format!(
        "heat_template_version: 2021-04-16\nresources: {{r: {{type: OS::Heat::None}}}}\n{outputs}"
    )
}

/// What an output says, or why it has no value.
fn output(template: &str) -> std::result::Result<Value, String> {
    let stack = render::stack(&input(template, &[])).map_err(|stop| stop.error.message)?;
    let (_, value) = stack.outputs.into_values().next_back().unwrap();
    value.map_err(|error| error.message)
}

#[test]
fn a_condition_is_evaluated_once() {
    let mut text = with_outputs("outputs: {o: {value: {if: [c60, yes, no]}}}\nconditions:\n");
    text.push_str("  c0: {equals: [a, a]}\n");
    for at in 1..=60 {
        let before = at - 1;
        writeln!(text, "  c{at}: {{and: [c{before}, c{before}]}}").unwrap();
    }
    assert_eq!(output(&text), Ok(json!(true)));
}

#[test]
fn conditions_that_refer_to_each_other_endlessly_are_refused() {
    let mut text = with_outputs("outputs: {o: {value: {if: [c5000, 1, 2]}}}\nconditions:\n");
    text.push_str("  c0: {equals: [a, a]}\n");
    for at in 1..=5000 {
        writeln!(text, "  c{at}: {{not: c{}}}", at - 1).unwrap();
    }
    assert!(output(&text).unwrap_err().contains("levels"));
}

#[test]
fn nested_groups_are_limited_to_the_resources_of_one_stack() {
    let group = |inner: &str| {
        format!(
            "{{type: OS::Heat::ResourceGroup, properties: {{count: {{get_attr: [v, value]}}, resource_def: {inner}}}}}"
        )
    };
    let empty = "{type: OS::Heat::ResourceGroup, properties: {count: 0, resource_def: {type: OS::Heat::None}}}";
    let text = format!(
        "heat_template_version: 2021-04-16\nresources:\n  v: {{type: OS::Heat::Value, properties: {{value: 1000}}}}\n  g: {}\n",
        group(&group(&group(empty)))
    );
    let input = input(&text, &[]);
    assert!(expand::expand(&input).is_ok(), "the count is not known yet");
    assert!(refused(&input).contains("more than 1000"));
}

#[test]
fn a_long_text_is_not_multiplied_by_aliases() {
    let text = format!(
        "a: &a '{}'\nb: [{}*a]\n",
        "x".repeat(50_000),
        "*a, ".repeat(9_999)
    );
    assert!(yaml::parse(&text).unwrap_err().message.contains("aliases"));
}

#[test]
fn nested_stacks_share_one_budget() {
    let long = "ab".repeat(4000);
    let twice =
        "{str_replace: {template: INNER, params: {a: '0123456789012345678901234567890123456789'}}}";
    let member = format!(
        "heat_template_version: 2021-04-16\nparameters: {{i: {{type: string}}}}\nresources: {{r: {{type: OS::Heat::Value, properties: {{value: {}}}}}}}\n",
        twice.replace(
            "INNER",
            &format!(
                "{{str_replace: {{template: '{long}', params: {{b: '{}'}}}}}}",
                "a".repeat(20)
            )
        )
    );
    let text = "heat_template_version: 2021-04-16\nresources:\n  g: {type: OS::Heat::ResourceGroup, properties: {count: 490, resource_def: {type: n.yaml, properties: {i: '%index%'}}}}\n";
    let input = input(text, &[("n.yaml", &member)]);
    let refused = refused(&input);
    assert!(refused.contains("too much"), "{refused}");
}

#[test]
fn expressions_of_one_stack_share_one_budget() {
    let mut text = with_outputs("outputs:\n");
    for at in 0..2000 {
        writeln!(text, "  o{at}: {{value: {{yaql: {{expression: 'range(1400).select($ * range(500).len()).len()', data: 1}}}}}}").unwrap();
    }
    assert!(output(&text).unwrap_err().contains("too much"));
}

#[test]
fn expensive_patterns_and_lists_are_refused() {
    let expression = |text: &str| {
        with_outputs(&format!(
            "outputs: {{o: {{value: {{yaql: {{expression: \"{text}\", data: 1}}}}}}}}\n"
        ))
    };
    let large = expression(r"range(100000).select('a' =~ '(\\w{0,100}){0,9}').len()");
    assert!(output(&large).is_err());
    let many =
        expression(r"range(90000).select('aaaaaaaaaaaaaaaaaaaaaaaaaaaa!' =~ '(?=(a+)+$)b').len()");
    assert!(output(&many).is_err());
    let items: Vec<String> = (0..50_000).map(|at| at.to_string()).collect();
    let unique = with_outputs(&format!(
        "outputs: {{o: {{value: {{list_concat_unique: [[{}]]}}}}}}\n",
        items.join(",")
    ));
    assert!(output(&unique).unwrap_err().contains("too much"));
}

#[test]
fn a_long_chain_is_evaluated_in_order() {
    let mut text = "heat_template_version: 2021-04-16\nresources:\n  r000: {type: OS::Heat::Value, properties: {value: x}}\n".to_owned();
    for at in 1..1000 {
        let before = at - 1;
        writeln!(text, "  r{at:03}: {{type: OS::Heat::Value, properties: {{value: {{get_attr: [r{before:03}, value]}}}}}}").unwrap();
    }
    text.push_str("outputs: {o: {value: {get_attr: [r999, value]}}}\n");
    let flat = flat(&input(&text, &[])).unwrap();
    assert_eq!(flat.leaves.len(), 1000);
    assert_eq!(flat.outputs["o"].value, Ok(json!("x")));
    let values = flat.leaves.values();
    let values: BTreeSet<String> = values
        .map(|leaf| leaf.properties.clone().unwrap()["value"].to_string())
        .collect();
    assert_eq!(values.len(), 1, "each has the value of the first");
}

/// An expression over this data, as an output.
fn of_expression(expression: &str, data: &str) -> std::result::Result<Value, String> {
    output(&with_outputs(&format!(
        "outputs: {{o: {{value: {{yaql: {{expression: \"{expression}\", data: {data}}}}}}}}}\n"
    )))
}

/// Everything that takes time is charged: each of these would take from minutes to days.
#[test]
fn what_takes_long_costs_too_much() {
    // A list and texts that the expression makes itself.
    let text = "('ab' * 30000)";
    let items: Vec<String> = (0..20_000).map(|at| format!("{{x: a{at}}}")).collect();
    let list = format!("[{}]", items.join(","));
    let names: Vec<String> = (0..20_000).map(|at| format!("a{at}")).collect();
    let names = format!("[{}]", names.join(","));
    let mut wrong = Vec::new();
    for (expression, data) in [
        // One match for each character, and each walks to the end of the text.
        (
            format!("range(10000).select({text}.split(regex('[^c]*c|a')).len())"),
            "1",
        ),
        (
            format!("range(10000).select(regex('[^c]*c|a').searchAll({text}).len())"),
            "1",
        ),
        (format!("range(10000).select({text} =~ '(a|b)*c')"), "1"),
        (
            "range(10000).select(('ab' * 8000) =~ 'x(?=c)')".to_owned(),
            "1",
        ),
        // Places in the text are counted for each match.
        (
            format!("range(10000).select(regex('a').searchAll({text}, $.start).len())"),
            "1",
        ),
        // Patterns that are all different, each compiled.
        (
            "range(9000).select('a' =~ ('\\\\w{1,60}' + str($))).len()".to_owned(),
            "1",
        ),
        // Of a long list one item is taken.
        (
            "let(d => $.data) -> range(10000).select($d.x.toList()[0]).len()".to_owned(),
            &*list,
        ),
        (
            "let(d => $.data) -> range(10000).select($d = 1).len()".to_owned(),
            &*names,
        ),
        // Many variables.
        (
            "$.data.unpack() -> range(10000).select($9 + $8)".to_owned(),
            &*names,
        ),
        // Characters among characters, and separators between items.
        (format!("range(10000).select({text}.trim({text}))"), "1"),
        (
            format!("let(t => {text}) -> range(10000).select(str($)).join($t)"),
            "1",
        ),
        (
            format!("let(t => {text}) -> range(10000).select($t).sum()"),
            "1",
        ),
    ] {
        let failed = of_expression(&expression, data).map(|_| "it works".to_owned());
        let failed = failed.unwrap_or_else(|error| error);
        if !failed.contains("too much") {
            wrong.push(format!("{expression}: {failed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn usual_expressions_cost_little() {
    let lines: Vec<String> = (0..500)
        .map(|at| format!("host-{at} 10.0.0.{at} up"))
        .collect();
    let data = format!("'{}'", lines.join(";"));
    for expression in [
        "$.data.split(';').where($ =~ '^host-[0-9]+ ').select($.split(' ')[1]).len()",
        "$.data.split(regex(';')).len()",
        "regex('host-([0-9]+)').searchAll($.data, $2.value).len()",
        "regex('(?<=host-)[0-9]+').searchAll($.data).len()",
    ] {
        assert_eq!(
            of_expression(expression, &data),
            Ok(json!(500)),
            "{expression}"
        );
    }
}

#[test]
fn names_that_are_put_into_each_other_are_paid_for_before() {
    // Each step makes the text a thousand times longer.
    let long = |name: &str| name.repeat(1000);
    let text = with_outputs(&format!(
        "outputs: {{o: {{value: {{repeat: {{template: a, for_each: {{a: [{}], b: [{}], c: [{}], d: [{}]}}}}}}}}}}\n",
        long("b"),
        long("c"),
        long("d"),
        long("e")
    ));
    assert!(output(&text).unwrap_err().contains("too much"));
}

#[test]
fn the_resources_of_a_stack_have_a_size() {
    let member =
        "{type: OS::Heat::Value, properties: {value: {list_join: ['x', {get_param: parts}]}}}";
    let parts = vec!["x".repeat(100); 4_000].join(",");
    let mut text = format!(
        "heat_template_version: 2021-04-16\nparameters: {{parts: {{type: comma_delimited_list, default: '{parts}'}}}}\nresources:\n"
    );
    for at in 0..200 {
        writeln!(text, "  r{at}: {member}").unwrap();
    }
    let refused = refused(&input(&text, &[]));
    assert!(
        refused.contains("64 MiB") || refused.contains("too much"),
        "{refused}"
    );
}
