#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::value::json;

fn evaluate(version: Version, value: &Value) -> Result<Value> {
    let parameters = json!({"env": "prod", "map": {"a": [1, 2]}});
    let conditions = json!({"prod": {"equals": [{"get_param": "env"}, "prod"]}, "x": {"not": "y"}, "y": {"not": "x"}});
    let mut resources = BTreeMap::new();
    let attributes = json!({"ips": {"net": ["10.0.0.5"]}, "show": {}});
    resources.insert(
        "web".to_owned(),
        Known {
            refid: json!("web-id"),
            attributes: attributes.as_object().unwrap().clone(),
            open: false,
        },
    );
    Scope {
        version,
        parameters: parameters.as_object().unwrap(),
        resources: &resources,
        existing: None,
        files: &crate::files::Files::default(),
        mappings: &Map::new(),
        conditions: conditions.as_object().unwrap(),
        facade: &Map::new(),
        budget: Budget::default(),
        held: RefCell::default(),
    }
    .evaluate(value)
}

#[test]
fn references_are_followed() {
    let run = |value| evaluate(Version::Rocky, &value).unwrap();
    assert_eq!(run(json!({"get_param": ["map", "a", 1]})), json!(2));
    assert_eq!(run(json!({"get_resource": "web"})), json!("web-id"));
    assert_eq!(
        run(json!({"get_attr": ["web", "ips", "net", 0]})),
        json!("10.0.0.5")
    );
    assert_eq!(
        run(json!({"get_attr": ["web"]})),
        json!({"ips": {"net": ["10.0.0.5"]}})
    );
}

#[test]
fn str_replace_does_not_replace_its_own_results() {
    let value =
        json!({"str_replace": {"template": "a ab b", "params": {"a": "b", "ab": "X", "b": "a"}}});
    assert_eq!(evaluate(Version::Rocky, &value).unwrap(), json!("b X a"));
}

#[test]
fn strict_replacement_requires_every_key() {
    let value = json!({"str_replace_strict": {"template": "a", "params": {"b": "1"}}});
    assert!(evaluate(Version::Rocky, &value).is_err());
}

#[test]
fn repeat_makes_every_combination() {
    let value =
        json!({"repeat": {"for_each": {"%a%": ["1", "2"], "%b%": ["x"]}, "template": "%a%%b%"}});
    assert_eq!(
        evaluate(Version::Rocky, &value).unwrap(),
        json!(["1x", "2x"])
    );
}

#[test]
fn repeat_limits_the_number_of_combinations() {
    let list: Vec<String> = (0..200).map(|n: usize| n.to_string()).collect();
    let value =
        json!({"repeat": {"for_each": {"a": list, "b": list, "c": list}, "template": "abc"}});
    assert!(evaluate(Version::Rocky, &value).is_err());
}

#[test]
fn an_if_without_else_is_removed() {
    let value =
        json!({"k": {"if": [false, 1]}, "l": [1, {"if": [false, 2]}], "p": {"if": ["prod", 3]}});
    assert_eq!(
        evaluate(Version::Wallaby, &value).unwrap(),
        json!({"l": [1], "p": 3})
    );
    assert!(evaluate(Version::Rocky, &value).is_err());
}

#[test]
fn circular_conditions_are_reported_with_their_path() {
    let error = evaluate(Version::Rocky, &json!({"if": ["x", 1, 2]})).unwrap_err();
    assert!(error.message.contains("x → y → x"), "{error}");
}

#[test]
fn a_function_of_a_later_version_is_a_plain_map() {
    let value = json!({"make_url": {"host": "h"}});
    assert_eq!(evaluate(Version::Ocata, &value).unwrap(), value);
    assert_eq!(evaluate(Version::Pike, &value).unwrap(), json!("//h"));
}

#[test]
fn yaql_works_in_values_and_conditions() {
    let value = json!({"yaql": {"expression": "$.data.a.sum()", "data": {"a": {"get_param": ["map", "a"]}}}});
    assert_eq!(evaluate(Version::Rocky, &value).unwrap(), json!(3));
    let value = json!({"if": [{"yaql": {"expression": "$.data > 1", "data": 2}}, "yes", "no"]});
    assert_eq!(evaluate(Version::Rocky, &value).unwrap(), json!("yes"));
    let value = json!({"yaql": {"expression": "$.data.frob()", "data": {}}});
    let error = evaluate(Version::Rocky, &value).unwrap_err();
    assert!(error.to_string().contains("frob"), "{error}");
}

#[test]
fn functions_that_double_at_every_level_are_refused() {
    let mut value = json!("aaaaaaaa");
    for _ in 0..40 {
        value = json!({"str_replace": {"template": "xx", "params": {"x": value}}});
    }
    assert!(evaluate(Version::Rocky, &value).is_err());
    let mut value = json!(["a"]);
    for _ in 0..40 {
        value = json!({"repeat": {"template": ["%i%", "%i%"], "for_each": {"%i%": value}}});
    }
    assert!(evaluate(Version::Rocky, &value).is_err());
}

/// What a template's text gives, as text: equal maps of another order are other texts.
fn text_of(template: &str) -> String {
    let value = crate::yaml::parse(template).unwrap();
    evaluate(Version::Rocky, &value).unwrap().to_string()
}

#[test]
fn maps_keep_the_order_of_the_template() {
    let cases = [
        ("{z: 1, a: {y: 2, b: 3}}", r#"{"z":1,"a":{"y":2,"b":3}}"#),
        (
            "repeat: {template: i-%n%, for_each: {'%n%': {web: 1, db: 2, app: 3}}}",
            r#"["i-web","i-db","i-app"]"#,
        ),
        // The first of the template's names is the outermost.
        (
            "repeat: {template: '%z%%a%', for_each: {'%z%': ['1', '2'], '%a%': [x, y]}}",
            r#"["1x","1y","2x","2y"]"#,
        ),
        (
            "repeat: {template: {'%n%': 1, a: '%n%'}, for_each: {'%n%': [q]}}",
            r#"[{"q":1,"a":"q"}]"#,
        ),
        (
            "make_url: {scheme: http, host: h, query: {q: x, limit: 5, a: b}}",
            r#""http://h?q=x&limit=5&a=b""#,
        ),
        // A merged value replaces the old one in its place, a new one is appended.
        (
            "map_merge: [{z: 1, b: 1}, {a: 2, z: 2}]",
            r#"{"z":2,"b":1,"a":2}"#,
        ),
        (
            "map_replace: [{z: 1, b: 2, a: 3}, {keys: {b: y}}]",
            r#"{"z":1,"y":2,"a":3}"#,
        ),
        (
            "yaql: {expression: $.data.keys(), data: {z: 1, a: 2, m: 3}}",
            r#"["z","a","m"]"#,
        ),
    ];
    for (template, given) in cases {
        assert_eq!(text_of(template), given, "{template}");
    }
}

#[test]
fn maps_in_texts_are_sorted_by_key() {
    let cases = [
        (
            "list_join: [',', [{z: 1, a: {y: 2, b: 3}}]]",
            r#"{"a": {"b": 3, "y": 2}, "z": 1}"#,
        ),
        (
            "str_replace: {template: m, params: {m: [{z: 1, a: 2}]}}",
            r#"[{"a": 2, "z": 1}]"#,
        ),
        // Of names of one length the lesser is put in first, whichever the template has first.
        ("str_replace: {template: abc, params: {bc: X, ab: Y}}", "Yc"),
    ];
    for (template, given) in cases {
        assert_eq!(
            text_of(template),
            Value::from(given).to_string(),
            "{template}"
        );
    }
}

#[test]
fn a_removed_argument_keeps_the_order_of_the_others() {
    let attributes = json!({"show": {}, "z": 1, "b": 2, "a": 3});
    let known = Known {
        attributes: attributes.as_object().unwrap().clone(),
        ..Known::default()
    };
    let resources = BTreeMap::from([("web".to_owned(), known)]);
    let none = Map::new();
    let scope = Scope {
        version: Version::Rocky,
        parameters: &none,
        resources: &resources,
        existing: None,
        files: &crate::files::Files::default(),
        mappings: &none,
        conditions: &none,
        facade: &none,
        budget: Budget::default(),
        held: RefCell::default(),
    };
    let all = scope.evaluate(&json!({"get_attr": ["web"]})).unwrap();
    assert_eq!(all.to_string(), r#"{"z":1,"b":2,"a":3}"#);
}

#[test]
fn values_of_the_wrong_type_are_refused_as_in_heat() {
    for value in [
        json!({"list_join": [",", ["a", 1]]}),
        json!({"list_join": [null, ["a"]]}),
        json!({"str_replace": {"template": null, "params": {}}}),
        json!({"str_replace": {"template": 5, "params": {}}}),
        json!({"str_replace_vstrict": {"template": "a", "params": {"a": []}}}),
        json!({"repeat": {"template": "%a%", "for_each": {"%a%": [1]}}}),
        json!({"repeat": {"template": "%a%", "for_each": {}}}),
        json!({"repeat": {"template": "a", "for_each": {"a": []}, "permutations": "false"}}),
        json!({"contains": ["a", {"a": 1}]}),
        json!({"digest": ["md5", "日"]}),
        json!({"if": [{"not": ["prod"]}, 1, 2]}),
        json!({"if": [{"get_param": "map"}, 1, 2]}),
        json!({"if": [{"and": ["prod", {"get_attr": ["web", "ips"]}]}, 1, 2]}),
    ] {
        assert!(evaluate(Version::Rocky, &value).is_err(), "{value}");
    }
    let members = json!({"Fn::MemberListToMap": ["Name", "Value", ["x"]]});
    assert!(evaluate(Version::V2013, &members).is_err());
}

#[test]
fn values_are_converted_as_in_python() {
    let cases = [
        (
            json!({"list_join": ["-", ["a", {"k": 1e16}, null]]}),
            json!("a-{\"k\": 1e+16}-"),
        ),
        (json!({"list_join": ["-", ["a"], false, ""]}), json!("a")),
        (
            json!({"str_replace": {"template": "x y", "params": {"x": 1.5e-7, "y": true}}}),
            json!("1.5e-07 True"),
        ),
        (
            json!({"str_split": [null, " a\tb ", true, "unread"]}),
            json!("b"),
        ),
        (
            json!({"list_concat_unique": [[1, {"a": 1}], [1.0, true, {"a": 1.0}]]}),
            json!([1, {"a": 1}]),
        ),
        (json!({"filter": [[0], [false, "0"]]}), json!(["0"])),
        (json!({"filter": [null, [1]]}), json!([1])),
        (
            json!({"map_replace": [{"a": 1}, {"keys": {"a": null}}]}),
            json!({"a": 1}),
        ),
        (
            json!({"digest": ["MD5", "ÿ"]}),
            json!("00594fd4f42ba43fc1ca0427a0576295"),
        ),
        (json!({"get_param": ["env", "0"]}), json!("p")),
        (json!({"get_attr": ["web", "ips", "net", "0"]}), json!(null)),
        (
            json!({"get_attr": ["web", null]}),
            json!({"ips": {"net": ["10.0.0.5"]}}),
        ),
        (json!({"if": [null, 1, 2]}), json!(1)),
        (json!({"if": [{"or": ["prod", "unknown"]}, 1, 2]}), json!(1)),
        (
            json!({"repeat": {"template": {"str_replace": {"template": "a-%i%", "params": {"a": "%i%"}}}, "for_each": {"%i%": ["1"]}}}),
            json!(["1-1"]),
        ),
        (
            json!({"repeat": {"template": "%a%%b%", "for_each": {"%a%": ["1"], "%b%": null}, "permutations": false}}),
            json!([]),
        ),
    ];
    for (value, given) in cases {
        assert_eq!(evaluate(Version::Rocky, &value).unwrap(), given, "{value}");
    }
    let members = json!({"Fn::MemberListToMap": ["N", "V", [
        ".member.1.N=b", ".member.1.V=c=d", "x.member.0.N=y", ".member.0.N=z"]]});
    assert_eq!(
        evaluate(Version::V2013, &members).unwrap(),
        json!({"b": "c=d"})
    );
    let select = json!({"Fn::Select": [true, "[1, 2]"]});
    assert_eq!(evaluate(Version::Kilo, &select).unwrap(), json!(2));
}

#[test]
fn a_missing_argument_keeps_its_position() {
    let run = |value| evaluate(Version::Wallaby, &value).unwrap();
    let nothing = json!({"if": [{"equals": [1, 2]}, "x"]});
    let filter = json!({"filter": [nothing, ["a"]]});
    assert_eq!(run(filter), json!(["a"]));
    assert_eq!(run(json!({"contains": [nothing, ["a"]]})), json!(false));
    assert_eq!(run(json!({"list_join": [",", nothing]})), json!(""));
    // If the list is empty, the values to remove are not evaluated.
    let unknown = json!({"get_attr": ["web", "nope"]});
    assert_eq!(run(json!({"filter": [unknown, []]})), json!([]));
    assert!(evaluate(Version::Wallaby, &json!({"filter": [unknown, ["a"]]})).is_err());
}

#[test]
fn errors_of_validation_only_do_not_prevent_evaluation() {
    let case = |stage: &str, snippet: &Value| {
        crate::cases::function(
            &json!({"version": "2018-08-31", "stage": stage, "snippet": snippet}),
        )
    };
    let removed = json!({"Fn::GetAZs": "x"});
    for (snippet, result) in [
        (&removed, &removed),
        (
            &json!({"make_url": {"host": "h", "hots": "x"}}),
            &json!("//h"),
        ),
    ] {
        assert_eq!(&case("resolve", snippet)["result"], result);
        assert!(case("validate", snippet).get("error").is_some());
    }
    let template = json!({"heat_template_version": "rocky", "outputs": {"o": {"value": removed}}});
    let input = crate::cases::input(json!({"template": template})).unwrap();
    assert!(crate::validate::report(&input).get("error").is_some());
}

#[test]
fn resource_facade_keys_depend_on_the_language() {
    let case =
        |snippet: Value| crate::cases::function(&json!({"version": "rocky", "snippet": snippet}));
    assert_eq!(
        case(json!({"resource_facade": "deletion_policy"}))["result"],
        "Delete"
    );
    assert!(
        case(json!({"resource_facade": "DeletionPolicy"}))
            .get("error")
            .is_some()
    );
}

#[test]
fn paths_of_get_attr_are_keys() {
    let value = json!({"get_attr": ["web", "ips", ["net"]]});
    assert!(evaluate(Version::Rocky, &value).is_err());
    assert_eq!(evaluate(Version::V2013, &value).unwrap(), Value::Null);
}

#[test]
fn availability_zones_ignore_the_region() {
    let value = json!({"Fn::GetAZs": {"Fn::FindInMap": ["no", "such", "map"]}});
    assert_eq!(evaluate(Version::Cfn2010, &value).unwrap(), json!(["nova"]));
}
