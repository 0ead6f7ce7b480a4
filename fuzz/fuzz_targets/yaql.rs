//! Evaluates a yaql expression on the data after a line of `%%%`.
#![no_main]

use engine::value::Value;
use engine::{cases, yaml};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|text: &str| {
    let (expression, data) = text.split_once("\n%%%\n").unwrap_or((text, ""));
    let data = yaml::parse(data).unwrap_or(Value::Null);
    let snippet = json!({"yaql": {"expression": expression, "data": data}});
    let _ =
        cases::function(&json!({"version": "2018-08-31", "snippet": snippet}).into()).to_string();
});
