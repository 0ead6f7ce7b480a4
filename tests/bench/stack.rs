//! What a large template costs, offline: reading, validating and planning of
//! 1,000 resources with 5,000 references, and the plan of an update of it.
//!
//! `stack [ROUNDS]`, by default 30; figures are medians in ms.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use pileus_stack::plan::{self, Existing, Key};
use pileus_stack::render::{self, Input};
use pileus_stack::{Error, validate, yaml};

/// Resources of the template; every one but the first refers five times.
const RESOURCES: usize = 1000;
/// What validating and planning, or planning an update, may take, in ms.
const TARGET: f64 = 10.0;

fn template(word: &str) -> String {
    let mut text = String::from("heat_template_version: rocky\nresources:\n");
    for at in 0..RESOURCES {
        let _ = write!(
            text,
            "  r{at}:\n    type: OS::Heat::Value\n    properties:\n      value:\n        word: {word}\n        at: {at}\n"
        );
        if at > 0 {
            let _ = writeln!(text, "        others:");
            for step in 1..=5 {
                let other = at - (step * 7 % at.max(1)).max(1).min(at);
                let _ = writeln!(text, "          - {{get_resource: r{other}}}");
            }
        }
    }
    text
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn timed<T>(rounds: usize, mut work: impl FnMut() -> Result<T, Error>) -> Result<f64, Error> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        black_box(work()?);
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}

fn rendered(input: &Input) -> Result<render::Stack, Error> {
    let stack = render::stack(input).map_err(|stop| stop.error)?;
    validate::stack(&stack).map_err(|stop| stop.error)?;
    Ok(stack)
}

fn main() -> Result<(), Error> {
    let rounds = std::env::args().find_map(|a| a.parse().ok());
    let rounds: usize = rounds.unwrap_or(30).max(1);
    let (before, after) = (template("one"), template("two"));
    let read = timed(rounds, || yaml::parse(&before))?;
    let input = |text: &str| {
        yaml::parse(text).map(|template| Input {
            template: template.into(),
            ..Input::default()
        })
    };
    let (old, new) = (input(&before)?, input(&after)?);
    let nothing = BTreeMap::new();
    let create = timed(rounds, || {
        let stack = rendered(&old)?;
        plan::plan(&plan::wanted(&stack), &stack.graph, &nothing, plan::change)
    })?;
    let stack = rendered(&old)?;
    let wanted = plan::wanted(&stack);
    let made = plan::plan(&wanted, &stack.graph, &nothing, plan::change)?;
    let existing: BTreeMap<Key, Existing> = made
        .steps
        .into_iter()
        .map(|step| {
            let want = &wanted[&step.key.0];
            let existing = Existing {
                resource_type: want.resource_type.to_owned(),
                properties: want.properties.clone().into_owned(),
                requires: step.requires,
                complete: true,
                retain: false,
            };
            (step.key, existing)
        })
        .collect();
    let stack = rendered(&new)?;
    let update = timed(rounds, || {
        plan::plan(&plan::wanted(&stack), &stack.graph, &existing, plan::change)
    })?;
    println!("{RESOURCES} resources, {} references", 5 * (RESOURCES - 1));
    println!("read the text            {read:8.2} ms");
    for (what, figure) in [("validate and plan", create), ("plan of an update", update)] {
        let verdict = if figure <= TARGET { "ok" } else { "MISSED" };
        println!("{what:<24} {figure:8.2} ms  (at most {TARGET}) {verdict}");
    }
    Ok(())
}
