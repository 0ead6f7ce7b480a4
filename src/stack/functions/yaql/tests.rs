#![allow(clippy::unwrap_used, reason = "tests")]
use crate::Result;
use crate::budget::Budget;
use crate::value::{Value, json};

fn evaluate(expression: &str, data: Value) -> Result<Value> {
    super::evaluate(expression, data, &Budget::default())
}

/// Expressions as their language's manual has them, and what they give.
#[test]
fn expressions_have_the_documented_results() {
    let data = json!({
        "nums": [3, 1, 2], "words": ["b", "a"], "name": "web",
        "servers": [
            {"name": "a", "az": "x", "ram": 4, "nets": ["n1"]},
            {"name": "b", "az": "y", "ram": 2, "nets": ["n1", "n2"]},
            {"name": "c", "az": "x", "ram": 1, "nets": []}],
        "map": {"k1": {"a": 1, "l": [1]}, "k2": {"b": 2, "l": [2]}}, "none": null});
    let cases = [
        ("$.data.nums.sum()", json!(6)),
        ("$.data.nums.max()", json!(3)),
        ("$.data.nums.select($ * 2)", json!([6, 2, 4])),
        ("$.data.nums.where($ > 1).len()", json!(2)),
        ("$.data.nums.orderBy($)", json!([1, 2, 3])),
        ("$.data.nums.orderByDescending($).first()", json!(3)),
        (
            "$.data.servers.orderBy($.az).thenByDescending($.name).select($.name)",
            json!(["c", "a", "b"]),
        ),
        ("$.data.servers.name", json!(["a", "b", "c"])),
        (
            "$.data.servers.where($.az = x and $.ram > 1).name",
            json!(["a"]),
        ),
        (
            "$.data.servers.where(not $.nets.any()).select($.name)",
            json!(["c"]),
        ),
        (
            "$.data.servers.selectMany($.nets).distinct()",
            json!(["n1", "n2"]),
        ),
        (
            "$.data.servers.groupBy($.az, $.ram)",
            json!([["x", [4, 1]], ["y", [2]]]),
        ),
        (
            "$.data.servers.groupBy($.az, $.ram, $.sum())",
            json!([["x", 5], ["y", 2]]),
        ),
        (
            "$.data.servers.toDict($.name, $.ram)",
            json!({"a": 4, "b": 2, "c": 1}),
        ),
        (
            "dict($.data.servers.select([$.name, $.ram])).get(b)",
            json!(2),
        ),
        ("$.data.map.items().select($[0])", json!(["k1", "k2"])),
        (
            "$.data.map.values().reduce($1.mergeWith($2))",
            json!({"a": 1, "b": 2, "l": [1, 2]}),
        ),
        ("$.data.map.get(k3, {}).get(a, 7)", json!(7)),
        ("$.data.words.join(', ')", json!("b, a")),
        ("','.join($.data.words)", json!("b,a")),
        ("$.data.name.toUpper() + '-' + str(1)", json!("WEB-1")),
        ("'a-b'.split('-').last()", json!("b")),
        ("switch($.data.name = db => 1, true => 2)", json!(2)),
        ("coalesce($.data.none, default)", json!("default")),
        ("$.data.none?.x", Value::Null),
        (
            "let(x => 2) -> $.data.nums.select($ + $x)",
            json!([5, 3, 4]),
        ),
        (
            "range(0, 3).select({$ => $ * $})",
            json!([{"0": 0}, {"1": 1}, {"2": 4}]),
        ),
        ("$.data.nums.aggregate($1 + $2, 10)", json!(16)),
        ("[1, [2, [3]]].flatten()", json!([1, 2, 3])),
        ("7 / 2 + 7 mod 4 - -1", json!(7)),
        ("-7 / 2", json!(-4)),
        ("'web1' =~ 'web[0-9]'", json!(true)),
        ("regex('(\\\\w+)@x').replace('me@x', '\\\\1')", json!("me")),
        ("2 in $.data.nums", json!(true)),
        ("$.data.nums.indexOf(2)", json!(2)),
        ("$.data.nums.skip(1).limit(1)", json!([1])),
        ("$.data.nums.zip($.data.words)", json!([[3, "b"], [1, "a"]])),
        ("{a => 1}.containsKey(a)", json!(true)),
        ("isString($.data.name)", json!(true)),
        ("int('4') + float('0.5')", json!(4.5)),
        ("min(3, 2)", json!(2)),
        ("$.data.nums[0]", json!(3)),
        ("$.data.nums[-1]", json!(2)),
    ];
    for (expression, wanted) in cases {
        let got = evaluate(expression, data.clone());
        assert_eq!(got.as_ref().ok(), Some(&wanted), "{expression}: {got:?}");
    }
}

#[test]
fn maps_keep_their_order() {
    let data = json!({"map": {"z": 1, "c": 2, "a": 3, "b": 4}, "more": {"y": 5, "c": 6},
        "rows": [{"k": "z", "v": 1}, {"k": "a", "v": 2}]});
    let cases = [
        ("$.data.map.keys()", r#"["z","c","a","b"]"#),
        ("$.data.map.values()", "[1,2,3,4]"),
        (
            "$.data.map.items().toList()",
            r#"[["z",1],["c",2],["a",3],["b",4]]"#,
        ),
        ("$.data.map.keys().select($)", r#"["z","c","a","b"]"#),
        ("$.data.map.delete(z)", r#"{"c":2,"a":3,"b":4}"#),
        ("$.data.map.set(c, 0)", r#"{"z":1,"c":0,"a":3,"b":4}"#),
        (
            "$.data.map + $.data.more",
            r#"{"z":1,"c":6,"a":3,"b":4,"y":5}"#,
        ),
        (
            "$.data.map.mergeWith($.data.more)",
            r#"{"z":1,"c":6,"a":3,"b":4,"y":5}"#,
        ),
        ("$.data.rows.toDict($.k, $.v)", r#"{"z":1,"a":2}"#),
        ("dict($.data.rows.select([$.k, $.v]))", r#"{"z":1,"a":2}"#),
        ("{z => 1, a => 2}", r#"{"z":1,"a":2}"#),
        (
            "$.data.map.items().groupBy($[1] mod 2)",
            r#"[[1,[["z",1],["a",3]]],[0,[["c",2],["b",4]]]]"#,
        ),
    ];
    for (expression, given) in cases {
        let found = evaluate(expression, data.clone()).unwrap();
        assert_eq!(found.to_string(), given, "{expression}");
    }
}

#[test]
fn unknown_functions_are_refused_by_name() {
    let error = evaluate("$.data.frobnicate()", json!([])).unwrap_err();
    assert!(error.to_string().contains("frobnicate"), "{error}");
    assert!(evaluate("random()", json!([])).is_err());
    for bad in [
        "invalid(", "$.data +", "'open", "$..x", ")", "", "$[", "{a}",
    ] {
        assert!(evaluate(bad, json!({})).is_err(), "{bad}");
    }
}

#[test]
fn expensive_expressions_are_refused() {
    for costly in [
        "range(0, 1000000)",
        "range(0, 5000).select(range(0, 5000).sum()).sum()",
        "'x' * 100000000",
        "repeat(1)",
    ] {
        assert!(evaluate(costly, json!({})).is_err(), "{costly}");
    }
    assert!(evaluate(&"(".repeat(5000), json!({})).is_err());
    assert!(evaluate(&"-".repeat(5000), json!({})).is_err());
    assert!(evaluate(&"not ".repeat(5000), json!({})).is_err());
    assert!(evaluate(&format!("$.data{}", ".a()".repeat(5000)), json!({})).is_err());
}

proptest::proptest! {
    #[test]
    fn any_text_is_evaluated_or_refused(text in "[$.a-c0-2(){}\\[\\],=> '+*/<-]{0,40}") {
        let _ = evaluate(&text, json!({"a": [1, {"b": "c"}]}));
    }

    #[test]
    fn any_characters_are_evaluated_or_refused(text in "\\PC{0,40}") {
        let _ = evaluate(&text, json!(1));
    }
}

#[test]
fn iterators_are_not_lists() {
    let data = json!({"l": [1, 2], "m": {"a": 1}, "d": [{"a": 1}, {"a": 2}]});
    for refused in [
        "$.data.l.where(true)[0]",
        "$.data.d.a[0]",
        "$.data.m.keys()[0]",
        "$.data.m.values().len()",
        "$.data.l.select($) * 2",
        "[1].union([2])",
    ] {
        assert!(evaluate(refused, data.clone()).is_err(), "{refused}");
    }
    for (expression, given) in [
        ("$.data.l.where(true).toList()[0]", json!(1)),
        ("($.data.l + [3])[2]", json!(3)),
        ("list($.data.l)", json!([[1, 2]])),
        ("list($.data.l.select($ + 1), 9)", json!([2, 3, 9])),
        ("set($.data.l.append(2)).where(true)", json!([1, 2])),
        ("$.data.l.where(false) and yes", json!("yes")),
        ("not $.data.l.where(false)", json!(false)),
        ("$.data.l.where(true) = [1, 2]", json!(false)),
        ("set(1, 2) = set(2, 1)", json!(true)),
        ("isList($.data.l.where(true))", json!(false)),
        ("let(x => $.data.d.a) -> isList($x)", json!(false)),
    ] {
        let got = evaluate(expression, data.clone());
        assert_eq!(got.as_ref().ok(), Some(&given), "{expression}: {got:?}");
    }
}

#[test]
fn functions_accept_the_same_arguments_as_in_yaql() {
    let data = json!({"l": [3, null, 1], "m": {"a": 1}, "t": "a b c"});
    for refused in [
        "$.data.m.where(true)",
        "$.data.m.contains(a)",
        "a in $.data.m",
        "$.data.t.contains(a)",
        "where($.data.l, true)",
        "max([1, 2])",
        "[1] < [2]",
        "1 + true",
        "true < false",
        "$.data.t.split(nope => 1)",
        "'a'.concat(b)",
        "dict({a => 1})",
        "[1, 2,]",
        "str(1,)",
    ] {
        assert!(evaluate(refused, data.clone()).is_err(), "{refused}");
    }
    for (expression, given) in [
        ("$.data.l.max()", json!(3)),
        ("1 = true", json!(true)),
        ("str([1])", json!("(1,)")),
        ("str({a => [1, null]})", json!("{'a': (1, None)}")),
        ("$.data.t.split(maxSplits => 1)", json!(["a", "b c"])),
        ("$.data.t.rightSplit(' ', 1)[0]", json!("a b")),
        ("'abcdef'.substring(-3, 2)", json!("de")),
        ("'abcabc'.indexOf(b, 2)", json!(4)),
        ("dict(a => 1, b => 2).b", json!(2)),
        ("$.data.m.set(b => 2)", json!({"a": 1, "b": 2})),
        ("[1, 2, 3].splitAt(-1)", json!([[1, 2], [3]])),
        ("[1, 1, 2, 1].sliceWhere($ = 1)", json!([[1, 1], [2], [1]])),
        ("[1, 2, 3].splitWhere($ = 2)", json!([[1], [3]])),
        ("hex(-255)", json!("-0xff")),
        ("round(2.675, 2)", json!(2.67)),
        ("round(1250, -2)", json!(1200)),
        ("regex('(b)').split(abc)", json!(["a", "b", "c"])),
        (
            "regex('[bc]').replace(abc, '<\\\\g<0>>', 1)",
            json!("a<b>c"),
        ),
        ("regex('(.)b').search(abc, $2.value)", json!("a")),
        ("abc.replaceBy(regex('[ab]'), $.start)", json!("01c")),
        ("generate(1, $ < 9, $ * 2)", json!([1, 2, 4, 8])),
        ("let(5) -> $ + $1", json!(10)),
        ("let(a => 5) -> $.data.m.a", json!(1)),
        ("isEmpty(null) and not isEmpty(' ', false)", json!(true)),
    ] {
        let got = evaluate(expression, data.clone());
        assert_eq!(got.as_ref().ok(), Some(&given), "{expression}: {got:?}");
    }
}

#[test]
fn large_sets_are_fast() {
    let many = "range(9999)";
    for (set, length) in [
        (format!("{many}.toSet()"), 9999),
        (format!("set({many})"), 9999),
        (format!("{many}.toSet().union({many}.toSet())"), 9999),
        (format!("{many}.toSet().intersect({many}.toSet())"), 9999),
        (format!("{many}.toSet().difference({many}.toSet())"), 0),
        (format!("{many}.distinct($ mod 100)"), 100),
        (
            format!("{{a => {many}.toList()}}.mergeWith({{a => {many}.toList()}}).a"),
            9999,
        ),
    ] {
        let sum = format!("range(10).select({set}.len()).sum()");
        assert_eq!(evaluate(&sum, json!({})).unwrap(), 10 * length, "{set}");
    }
    let same = format!("range(10).select({many}.toSet() = {many}.toSet()).distinct().first()");
    assert_eq!(evaluate(&same, json!({})).unwrap(), true);
}

#[test]
fn lists_cannot_be_in_sets() {
    let data = json!({"map": {"a": 1}, "none": {}});
    assert!(evaluate("$.data.map.items()", data.clone()).is_err());
    assert_eq!(evaluate("$.data.none.items()", data).unwrap(), json!([]));
}
