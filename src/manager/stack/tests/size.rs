//! Stacks of many resources, and of long chains.

use super::GROUP;
use super::world::World;

#[test]
fn a_stack_of_five_hundred_servers_is_created() {
    let mut world = World::new(&GROUP.replace("count: 3", "count: 500"));
    world.run_until_idle();
    assert_eq!(world.count("Server"), 500);
}

#[test]
fn a_long_chain_of_values_is_created_and_deleted() {
    let first = "heat_template_version: rocky\nresources:\n  r000: {type: OS::Heat::Value, properties: {value: x}}\n";
    let others = (1..400).map(|at| {
        let before = at - 1;
        format!(
            "  r{at:03}: {{type: OS::Heat::Value, properties: {{value: {{get_attr: [r{before:03}, value]}}}}}}\n"
        )
    });
    let template: String = std::iter::once(first.to_owned()).chain(others).collect();
    let mut world = World::new(&template);
    world.run_until_idle();
    assert_eq!(world.stack_status(), "CREATE_COMPLETE");
    world.delete();
}
