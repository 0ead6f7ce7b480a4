//! Resources that wait at hooks.

use super::world::World;
use pileus_api::names::CLEAR_HOOKS_ANNOTATION;

const TEMPLATE: &str = "heat_template_version: 2021-04-16
resources:
  net: {type: OS::Neutron::Net, properties: {port_security_enabled: true}}
  sub: {type: OS::Neutron::Subnet, properties: {network: {get_resource: net}, cidr: 10.0.0.0/24, dns_nameservers: [192.0.2.1]}}
  word: {type: OS::Heat::Value, properties: {value: {get_resource: sub}}}
";

impl World {
    fn hooked(text: &str) -> Self {
        let mut world = Self::new(TEMPLATE);
        world.sources.environments = vec![text.to_owned()];
        world
    }

    fn clear(&mut self, text: &str) {
        let annotations = self.stack.metadata.annotations.get_or_insert_default();
        annotations.insert(CLEAR_HOOKS_ANNOTATION.to_owned(), text.to_owned());
    }

    /// Some passes, in which nothing that is wanted can happen.
    fn some_passes(&mut self) {
        for _ in 0..10 {
            let plan = self.pass(|| false);
            self.update_objects();
            if plan.hooks_cleared {
                self.stack.metadata.annotations = None;
            }
        }
    }

    fn reason(&self, path: &str) -> String {
        let record = self.record.as_ref().unwrap();
        let entry = record.incarnations(path).next();
        entry.map_or_else(String::new, |(_, entry)| entry.reason.clone())
    }
}

#[test]
fn a_hook_stops_only_what_requires_the_resource() {
    let mut world = World::hooked(
        "resource_registry: {resources: {sub: {hooks: pre-create}, word: {hooks: post-create}}}",
    );
    world.some_passes();
    assert_eq!(world.stack_status(), "CREATE_IN_PROGRESS");
    assert_eq!(world.count("Network"), 1);
    assert_eq!(world.count("Subnet"), 0);
    assert_eq!(
        world.reason("sub"),
        "CREATE paused until Hook pre-create is cleared"
    );
    world.clear("sub:pre-create");
    world.some_passes();
    assert_eq!(world.count("Subnet"), 1);
    assert_eq!(
        world.reason("word"),
        "CREATE paused until Hook post-create is cleared"
    );
    world.clear("word");
    world.some_passes();
    assert_eq!(world.stack_status(), "CREATE_COMPLETE");
    assert!(world.stack.metadata.annotations.is_none());
}

#[test]
fn updates_and_replacements_wait_at_hooks_until_cleared_or_undone() {
    let mut world =
        World::hooked("resource_registry: {resources: {sub: {hooks: [pre-update, pre-delete]}}}");
    world.run_until_idle();
    world.change("192.0.2.1", "192.0.2.2");
    world.some_passes();
    assert_eq!(world.stack_status(), "UPDATE_IN_PROGRESS");
    assert!(world.reason("sub").contains("pre-update"));
    // As it was.
    world.change("192.0.2.2", "192.0.2.1");
    world.some_passes();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!(world.count("Subnet"), 1);
    assert!(!world.log.iter().any(|line| line.starts_with("change")));

    world.change("10.0.0.0/24", "10.0.1.0/24");
    world.some_passes();
    assert!(world.reason("sub").contains("pre-update"));
    world.clear("*");
    world.some_passes();
    assert_eq!(world.count("Subnet"), 2, "{:#?}", world.log);
    world.clear("sub:pre-delete");
    world.some_passes();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!(world.count("Subnet"), 1);
}

#[test]
fn a_failure_cancels_resources_at_hooks() {
    let mut world = World::hooked("resource_registry: {resources: {sub: {hooks: pre-create}}}");
    world.broken = Some("net");
    world.some_passes();
    assert_eq!(world.stack_status(), "CREATE_FAILED");
    world.broken = None;
    world.stack.spec.heal_requested_at = Some("1".into());
    world.some_passes();
    world.clear("sub");
    world.some_passes();
    assert_eq!(world.stack_status(), "UPDATE_COMPLETE");
    assert_eq!((world.count("Network"), world.count("Subnet")), (1, 1));
    world.delete();
    assert!(world.objects.is_empty());
}
