//! Dependencies between resources: those that the template names, and implicit ones of the types.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use super::render::Rendered;
use super::{Error, Result};
use crate::value::Value;

/// Resources and their requirements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    /// By name: the names it requires.
    pub requires: BTreeMap<String, BTreeSet<String>>,
}

/// The graph with numbers for names, in the order of names: faster for large stacks.
pub(super) struct Numbered<'g> {
    graph: &'g Graph,
    /// Name by number.
    pub names: Vec<&'g String>,
    numbers: HashMap<&'g str, usize>,
    /// The index in `required` at which the requirements of each begin, and the end of the last ones.
    starts: Vec<usize>,
    required: Vec<usize>,
}

impl Numbered<'_> {
    /// The number of `name`.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    /// The requirements of `at` that are in the graph, in the order of names.
    pub fn requires(&self, at: usize) -> &[usize] {
        &self.required[self.starts[at]..self.starts[at + 1]]
    }

    /// An order in which every name comes after its requirements: of the names that may come next, the
    /// first one is taken.
    ///
    /// # Errors
    /// When there is a cycle; the message is its path.
    pub fn order(&self) -> Result<Vec<usize>> {
        let count = self.names.len();
        let mut waits: Vec<usize> = (0..count).map(|at| self.requires(at).len()).collect();
        // The reverse graph, in the same form: the dependents of each.
        let mut ends = vec![0; count + 1];
        for &required in &self.required {
            ends[required] += 1;
        }
        let mut end = 0;
        for count in &mut ends {
            end += *count;
            *count = end;
        }
        let mut dependents = vec![0; self.required.len()];
        for at in 0..count {
            for &required in self.requires(at) {
                ends[required] -= 1;
                dependents[ends[required]] = at;
            }
        }
        let ready = (0..count).filter(|at| waits[*at] == 0).map(Reverse);
        let mut ready: BinaryHeap<Reverse<usize>> = ready.collect();
        let mut order = Vec::with_capacity(count);
        while let Some(Reverse(at)) = ready.pop() {
            order.push(at);
            for &dependent in &dependents[ends[at]..ends[at + 1]] {
                waits[dependent] -= 1;
                if waits[dependent] == 0 {
                    ready.push(Reverse(dependent));
                }
            }
        }
        if order.len() == count {
            return Ok(order);
        }
        let waits: BTreeMap<&str, usize> = (self.names.iter().zip(waits))
            .map(|(name, count)| (name.as_str(), count))
            .collect();
        Err(Error::at(
            "resources",
            format!(
                "circular dependency: {}",
                self.graph.cycle(&waits).join(" → ")
            ),
        ))
    }
}

impl Graph {
    /// The graph with numbers for names.
    pub(super) fn numbered(&self) -> Numbered<'_> {
        let names: Vec<&String> = self.requires.keys().collect();
        let numbers: HashMap<&str, usize> = (names.iter().enumerate())
            .map(|(at, name)| (name.as_str(), at))
            .collect();
        let mut starts = Vec::with_capacity(names.len() + 1);
        let mut required = Vec::new();
        starts.push(0);
        for requires in self.requires.values() {
            let known = requires.iter().filter_map(|r| numbers.get(r.as_str()));
            required.extend(known);
            starts.push(required.len());
        }
        Numbered {
            graph: self,
            names,
            numbers,
            starts,
            required,
        }
    }

    /// An order in which every name comes after its requirements.
    ///
    /// # Errors
    /// When there is a cycle; the message is its path.
    pub fn order(&self) -> Result<Vec<String>> {
        let numbered = self.numbered();
        let order = numbered.order()?.into_iter();
        Ok(order.map(|at| numbered.names[at].clone()).collect())
    }

    /// Follows unresolved requirements until a name is repeated.
    fn cycle(&self, waits: &BTreeMap<&str, usize>) -> Vec<String> {
        let stuck = |name: &str| waits.get(name).is_some_and(|count| *count > 0);
        let mut path: Vec<String> = Vec::new();
        let mut current = waits
            .keys()
            .find(|name| stuck(name))
            .map(|name| (*name).to_owned());
        while let Some(name) = current {
            if let Some(start) = path.iter().position(|before| *before == name) {
                path.drain(..start);
                path.push(name);
                return path;
            }
            current = self.requires[&name]
                .iter()
                .find(|next| stuck(next))
                .cloned();
            path.push(name);
        }
        path
    }
}

/// The resources of a stack that others implicitly require.
#[derive(Default)]
struct Network<'r> {
    subnets: Vec<(&'r String, &'r Rendered)>,
    interfaces: Vec<(&'r String, &'r Rendered)>,
    gateways: Vec<(&'r String, &'r Rendered)>,
    routers: Vec<(&'r String, &'r Rendered)>,
}

impl<'r> Network<'r> {
    fn among(resources: &'r BTreeMap<String, Rendered>) -> Self {
        let mut all = Self::default();
        for (name, resource) in resources {
            let resource_type = resource.resource_type.as_str();
            let families = ["OS::Neutron::", "OS::Quantum::"];
            let found = match families
                .iter()
                .find_map(|family| resource_type.strip_prefix(family))
            {
                Some("Subnet") => &mut all.subnets,
                Some("RouterInterface") => &mut all.interfaces,
                Some("RouterGateway") => &mut all.gateways,
                Some("Router") => &mut all.routers,
                _ => continue,
            };
            found.push((name, resource));
        }
        all
    }
}

/// Adds the implicit dependencies of Heat's types (`add_dependencies` of its plugins): a port needs the
/// subnets of its network, a floating address the router to its network. Returns what it has added.
pub(super) fn add_implicit(
    graph: &mut Graph,
    resources: &BTreeMap<String, Rendered>,
) -> BTreeMap<String, BTreeSet<String>> {
    let Network {
        subnets,
        interfaces,
        gateways,
        routers,
    } = Network::among(resources);
    let mut found: Vec<(String, String)> = Vec::new();
    for (name, resource) in resources {
        let mut wait = |others: &[(&String, &Rendered)], test: &dyn Fn(&Rendered) -> bool| {
            for (other, rendered) in others {
                if *other != name && test(rendered) {
                    found.push((name.clone(), (*other).clone()));
                }
            }
        };
        match current_type(resource) {
            "OS::Neutron::Port" => {
                let network = property(resource, &["network"]);
                wait(&subnets, &|other| {
                    known_equal(property(other, &["network"]), network)
                });
            }
            "OS::Nova::Server" => {
                let networks = property(resource, &["networks"]).and_then(Value::as_array);
                let Some(networks) = networks.filter(|list| !list.is_empty()) else {
                    continue;
                };
                wait(&subnets, &|other| {
                    let Some(own) = property(other, &["network"]).filter(|v| given(v)) else {
                        return other.typed.is_ok();
                    };
                    // A network that is not known yet could be this subnet's.
                    networks.iter().any(|item| {
                        item.get("network")
                            .is_none_or(|net| !given(net) || net == own)
                    })
                });
            }
            "OS::Neutron::FloatingIP" => {
                let network = property(resource, &["floating_network"]);
                wait(&gateways, &|other| {
                    known_equal(property(other, &["network"]), network)
                });
                wait(&routers, &|other| {
                    let own = property(other, &["external_gateway_info"]);
                    own.is_some_and(|own| known_equal(own.get("network"), network))
                });
            }
            "OS::Neutron::Router" => {
                let network = property(resource, &["external_gateway_info"]);
                if let Some(network) = network.and_then(|info| info.get("network")) {
                    let network = Some(network);
                    wait(&subnets, &|other| {
                        known_equal(property(other, &["network"]), network)
                    });
                }
            }
            "OS::Neutron::RouterGateway" => {
                let router = property(resource, &["router_id"]);
                let network = property(resource, &["network"]);
                wait(&interfaces, &|other| {
                    known_equal(property(other, &["router"]), router)
                });
                wait(&subnets, &|other| {
                    known_equal(property(other, &["network"]), network)
                });
            }
            "OS::Neutron::ExtraRoute" => {
                let router = property(resource, &["router_id"]);
                wait(&interfaces, &|other| {
                    known_equal(property(other, &["router"]), router)
                });
                wait(&gateways, &|other| {
                    known_equal(property(other, &["router_id"]), router)
                });
            }
            "OS::Neutron::ExtraRouteSet" => {
                let router = property(resource, &["router"]);
                wait(&interfaces, &|other| {
                    known_equal(property(other, &["router"]), router)
                });
            }
            _ => {}
        }
    }
    found.extend(through_interfaces(graph, resources, &interfaces));
    let mut added: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, other) in found {
        let requires = graph.requires.entry(name.clone()).or_default();
        if requires.insert(other.clone()) {
            added.entry(name).or_default().insert(other);
        }
    }
    added
}

/// Whether a resource may have implicit requirements, which depend on its values.
pub(super) fn may_have_implicit_requirements(resource: &Rendered) -> bool {
    let resource_type = current_type(resource);
    resource_type.starts_with("OS::Neutron::") || resource_type == "OS::Nova::Server"
}

/// A floating address of a port requires the router interface of the port's subnet.
fn through_interfaces(
    graph: &Graph,
    resources: &BTreeMap<String, Rendered>,
    interfaces: &[(&String, &Rendered)],
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, requires) in &graph.requires {
        let resource_type = resources.get(name).map_or("", current_type);
        if !matches!(
            resource_type,
            "OS::Neutron::FloatingIP"
                | "OS::Neutron::FloatingIPAssociation"
                | "OS::Neutron::FloatingIPPortForward"
        ) {
            continue;
        }
        for (interface, rendered) in interfaces {
            let subnet = property(rendered, &["subnet"]);
            let on_subnet = |port: &Rendered| {
                let fixed = property(port, &["fixed_ips"]).and_then(Value::as_array);
                let first = fixed.and_then(|list| list.first());
                current_type(port) == "OS::Neutron::Port"
                    && first.is_some_and(|first| known_equal(first.get("subnet"), subnet))
            };
            if requires
                .iter()
                .any(|r| resources.get(r).is_some_and(on_subnet))
            {
                found.push((name.clone(), (*interface).clone()));
            }
        }
    }
    found
}

fn current_type(resource: &Rendered) -> &str {
    match resource.resource_type.as_str() {
        "OS::Quantum::Port" => "OS::Neutron::Port",
        "OS::Quantum::FloatingIP" => "OS::Neutron::FloatingIP",
        "OS::Quantum::FloatingIPAssociation" => "OS::Neutron::FloatingIPAssociation",
        "OS::Quantum::RouterGateway" => "OS::Neutron::RouterGateway",
        other => other,
    }
}

fn property<'a>(resource: &'a Rendered, names: &[&str]) -> Option<&'a Value> {
    let typed = resource.typed.as_ref().ok()?;
    names.iter().find_map(|name| typed.get(name))
}

fn given(value: &Value) -> bool {
    !value.is_null() && value.as_str() != Some("")
}

fn known_equal(a: Option<&Value>, b: Option<&Value>) -> bool {
    a.is_some() && a == b
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn build(text: &str) -> Result<Graph> {
        let input = super::super::render::Input {
            template: super::super::yaml::parse(text).unwrap().into(),
            ..Default::default()
        };
        let stack = super::super::render::stack(&input).map_err(|stop| stop.error)?;
        stack.order.map(|_| stack.graph)
    }

    #[test]
    fn a_port_waits_for_the_subnets_of_its_network() {
        let graph = build("heat_template_version: newton\nresources:\n  net: {type: 'OS::Neutron::Net'}\n  sub: {type: 'OS::Neutron::Subnet', properties: {network: {get_resource: net}, cidr: 10.0.0.0/24}}\n  port: {type: 'OS::Neutron::Port', properties: {network: {get_resource: net}}}\n").unwrap();
        assert!(graph.requires["port"].contains("sub"));
        assert_eq!(graph.order().unwrap(), ["net", "sub", "port"]);
    }

    #[test]
    fn a_cycle_is_reported_with_its_path() {
        let error = build("heat_template_version: newton\nresources:\n  a: {type: X, depends_on: b}\n  b: {type: X, depends_on: c}\n  c: {type: X, depends_on: b}\n").unwrap_err();
        assert_eq!(error.message, "circular dependency: b → c → b");
    }

    #[test]
    fn a_dangling_reference_is_named() {
        let error = build("heat_template_version: newton\nresources:\n  a: {type: X, properties: {p: [{get_resource: nope}]}}\n").unwrap_err();
        assert!(error.message.contains("nope"));
    }
}
