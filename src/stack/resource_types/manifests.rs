//! The manifests of a template, without a cluster.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::{Mapping, MappingInput, attribute_names, check, find, known, object_name};
use crate::functions::Known;
use crate::render::{Input, Stop};
use crate::tree::{self, Leaf};
use crate::value::{Map, Value};
use crate::{Error, Result, expand};

/// The seed for random strings of a preview.
const SEED: &[u8] = b"preview";

/// The manifests in an order of creation. Names differ from the real ones in their last part, which
/// depends on the Stack's uid; attributes that only a running cluster knows are null.
///
/// # Errors
/// When the template is wrong, or something in it is not supported.
pub fn manifests(input: &Input) -> std::result::Result<Vec<Value>, Stop> {
    let stop = |error| Stop {
        stage: "resources",
        error,
    };
    let whole = expand::expand(input)?;
    check::tree(&whole, true).map_err(stop)?;
    let made = RefCell::new(Vec::new());
    let configs = RefCell::new(BTreeMap::new());
    let wrong = RefCell::new(None);
    tree::flatten(input, &mut |path, leaf| {
        let result = one(input, path, leaf, &made, &configs);
        result.map_or_else(
            |error| {
                wrong
                    .borrow_mut()
                    .get_or_insert(error.below(&format!("resources.{path}")));
                None
            },
            Some,
        )
    })?;
    match wrong.into_inner() {
        Some(error) => Err(stop(error)),
        None => Ok(made.into_inner()),
    }
}

fn one(
    input: &Input,
    path: &str,
    leaf: &Leaf,
    made: &RefCell<Vec<Value>>,
    configs: &RefCell<BTreeMap<String, String>>,
) -> Result<Known> {
    let supported = find(&leaf.resource_type).ok_or_else(|| Error::new("is not supported yet"))?;
    if !leaf.external_id.is_null() {
        return Ok(Known {
            refid: leaf.external_id.clone(),
            attributes: Map::new(),
            open: true,
        });
    }
    let properties = leaf.properties.clone()?;
    check::refuse(supported, &properties)?;
    let identity = &input.identity;
    let name = object_name(&identity.name, &identity.id, path, 1);
    let look = |kind: &str, name: &str| {
        let made = made.borrow();
        let found = made
            .iter()
            .find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        found.cloned()
    };
    let known_configs = configs.borrow().clone();
    let request = MappingInput {
        name: &name,
        namespace: &identity.project,
        properties: &properties,
        metadata: &leaf.metadata,
        suspended: false,
        configs: &known_configs,
        find: &look,
        seed: SEED,
    };
    match supported.mapping {
        Mapping::Values(map) => {
            let value = map(&request)?;
            if let (Some(config), Some(id)) = (value.config, value.refid.as_str()) {
                configs.borrow_mut().insert(id.to_owned(), config);
            }
            Ok(Known {
                refid: value.refid,
                attributes: value.attributes,
                open: true,
            })
        }
        Mapping::Objects { map, .. } => {
            let makes = map(&request)?;
            let main = makes.objects.last().cloned().unwrap_or_default();
            let mut known = known(&leaf.resource_type, &main, &look);
            if known.attributes.is_empty() {
                known.attributes = attribute_names(&leaf.resource_type);
            }
            known.open = true;
            made.borrow_mut().extend(makes.objects);
            Ok(known)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::yaml;

    fn of(template: &str) -> std::result::Result<Vec<Value>, Stop> {
        manifests(&Input {
            template: yaml::parse(template).unwrap().into(),
            ..Input::default()
        })
    }

    #[test]
    fn a_template_becomes_manifests_that_refer_to_each_other() {
        let made = of("heat_template_version: newton\nresources:\n  net: {type: 'OS::Neutron::Net'}\n  sub: {type: 'OS::Neutron::Subnet', properties: {network: {get_resource: net}, cidr: 10.0.0.0/24}}\n  group:\n    type: OS::Heat::ResourceGroup\n    properties: {count: 2, resource_def: {type: 'OS::Nova::Server', properties: {image: i, flavor: f, networks: [{network: {get_resource: net}}]}}}\n").unwrap();
        let kinds: Vec<_> = made.iter().filter_map(|o| o["kind"].as_str()).collect();
        assert_eq!(kinds, ["Network", "Server", "Server", "Subnet"]);
        assert_eq!(
            made[1]["spec"]["networks"][0]["network"],
            crate::value::json!({"name": made[0]["metadata"]["name"]})
        );
        assert_eq!(made[3]["spec"]["network"], made[0]["metadata"]["name"]);
    }

    #[test]
    fn unsupported_types_are_reported_with_their_place() {
        let stop =
            of("heat_template_version: newton\nresources:\n  r: {type: 'OS::Neutron::Router'}\n")
                .unwrap_err();
        assert_eq!(stop.error.path, "resources.r.type");
    }
}
