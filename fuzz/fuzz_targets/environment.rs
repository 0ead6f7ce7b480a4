//! Parses environments, merges them, and uses them with a template. Lines of `%%%` separate several
//! environments.
#![no_main]

use engine::environment::Environment;
use engine::render::Input;
use engine::{cases, validate, yaml};
use libfuzzer_sys::fuzz_target;

/// A template that uses everything of an environment: parameters, types, and a type of its own.
const TEMPLATE: &str = "
heat_template_version: wallaby
parameters:
  name: {type: string, default: one, constraints: [{length: {max: 8}}]}
  size: {type: number, default: 1, constraints: [{range: {min: 1, max: 3}}]}
  list: {type: comma_delimited_list, default: []}
  map: {type: json, default: {}}
  flag: {type: boolean, default: false}
resources:
  value: {type: 'OS::Heat::Value', properties: {value: {get_param: [map, a, 0]}}}
  group: {type: 'OS::Heat::ResourceGroup', properties: {count: {get_param: size}, resource_def: {type: My::Type}}}
  mine: {type: 'My::Type', properties: {value: {get_param: list}}}
";

fuzz_target!(|text: &str| {
    let Ok(environment) = Environment::parse(text.split("\n%%%\n")) else {
        return;
    };
    for (name, kind) in [("web", "OS::Nova::Server"), ("", ""), ("a*b", "My::Type")] {
        let _ = environment.resolve_type(name, kind);
    }
    let Ok(template) = yaml::parse(TEMPLATE) else {
        return;
    };
    let input = Input {
        template: template.into(),
        environment,
        identity: cases::identity("fuzz"),
        ..Input::default()
    };
    let _ = validate::report(&input);
});
