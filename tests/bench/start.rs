//! How long a Server takes from the API server's "created" until its domain runs, next to
//! raw libvirt doing the same; how often Pileus writes on the way; what it weighs.
//!
//! `start [SAMPLES [SERVERS_AT_ONCE]]`, by default 12 and 30.

#[allow(dead_code, reason = "each bench uses a part of what they share")]
mod support;

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use virt::connect::Connect;

use support::domains::{Lifecycle, Raw, Template};
use support::lab::{HOST, Lab, NAMESPACE, TIMEOUT, ready, resource};
use support::record::{Entry, Recording};
use support::writes::{self, Writes};
use support::{Result, percentile, verdict};

/// Times of one Server, in ms after the API server accepted it.
struct Sample {
    placed: f64,
    port: f64,
    instance: f64,
    defined: f64,
    started: f64,
    running: f64,
    active: f64,
}

struct Bench {
    lab: Lab,
    recording: Recording,
    lifecycle: Lifecycle,
    libvirt: Connect,
}

#[tokio::main]
async fn main() -> Result<()> {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let samples = numbers.first().copied().unwrap_or(12);
    let at_once = numbers.get(1).copied().unwrap_or(30);

    let lab = Lab::find().await?;
    let uri = lab.libvirt_uri()?;
    let undo = lab.prepare().await?;
    let kinds = ["Server", "Instance", "Port", "IPAllocation"].map(resource);
    let bench = Bench {
        recording: Recording::start(&lab.client, &kinds).await?,
        lifecycle: Lifecycle::listen(&uri)?,
        libvirt: Connect::open(Some(&uri))?,
        lab,
    };
    println!(
        "{} build of Pileus, {HOST}, image in its cache",
        bench.lab.build()?
    );
    let measured = async {
        // The first takes the image into the host's cache and is what raw domains are made of.
        bench.server("template").await?;
        let id = bench.instance_id("template").ok_or("no instance id")?;
        let template = Template::read(&bench.lab, &bench.libvirt, &id)?;
        bench.one_by_one(&template, samples).await?;
        bench.all_at_once(&template, at_once).await
    }
    .await;
    // Also after a failure: the lab is left as it was found.
    let cleaned = bench.lab.clean(&undo).await;
    measured?;
    cleaned
}

impl Bench {
    /// Creates a Server and waits until it is Active; returns when it was accepted.
    async fn server(&self, name: &str) -> Result<Instant> {
        self.lab.create_server(name).await?;
        let accepted = Instant::now();
        let end = accepted + TIMEOUT;
        while self.active(name).is_none() {
            if Instant::now() > end {
                return Err(format!("Server {name} is not Active after {TIMEOUT:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(accepted)
    }

    fn active(&self, name: &str) -> Option<Instant> {
        self.recording
            .first(|e| is(e, "Server", name) && ready(&e.object))
    }

    fn instance_id(&self, server: &str) -> Option<String> {
        let entries = self.recording.entries();
        let entry = entries.iter().find(|e| is_instance_of(e, server))?;
        Some(entry.object["spec"]["instanceID"].as_str()?.to_owned())
    }

    fn sample(&self, name: &str, accepted: Instant) -> Result<Sample> {
        let id = self.instance_id(name).ok_or("no instance id")?;
        let domain = format!("pileus-{id}");
        let ms = |at: Option<Instant>| {
            at.map_or(f64::NAN, |at| {
                at.saturating_duration_since(accepted).as_secs_f64() * 1000.0
            })
        };
        let port = format!("{name}-eth0");
        let first = |matches: &dyn Fn(&Entry) -> bool| ms(self.recording.first(matches));
        Ok(Sample {
            placed: first(&|e| {
                is(e, "Server", name) && e.object["status"]["placement"].is_object()
            }),
            port: first(&|e| is(e, "Port", &port) && ready(&e.object)),
            instance: first(&|e| is_instance_of(e, name)),
            defined: ms(self.lifecycle.when(&domain, "Defined")),
            started: ms(self.lifecycle.when(&domain, "Started")),
            running: ms(Some(self.lifecycle.wait(&domain, "Resumed")?)),
            active: ms(self.active(name)),
        })
    }

    /// Pileus and raw libvirt in turns, so that both meet the same noise.
    async fn one_by_one(&self, template: &Template, samples: usize) -> Result<()> {
        let mut pileus = Vec::new();
        let mut raw = Vec::new();
        let mut written = Vec::new();
        println!(
            "\n{:>4} {:>7} {:>7} {:>9} {:>8} {:>8} {:>8} {:>7} | {:>7}  (ms)",
            "", "placed", "port", "instance", "defined", "paused", "running", "active", "raw"
        );
        for n in 0..samples {
            let name = format!("one-{n}");
            let accepted = self.server(&name).await?;
            let sample = self.sample(&name, accepted)?;
            written.push(writes::count(&self.recording.entries(), &name, accepted));
            self.lab.delete_servers(&[name]).await?;

            let domain = template.make()?;
            let begun = Instant::now();
            let started = domain.start(&self.libvirt);
            let running = started.and_then(|()| self.lifecycle.wait(&domain.name, "Resumed"));
            domain.remove(&self.libvirt)?;
            let took = running?.duration_since(begun).as_secs_f64() * 1000.0;
            println!(
                "{n:>4} {:7.0} {:7.0} {:9.0} {:8.0} {:8.0} {:8.0} {:7.0} | {took:7.0}",
                sample.placed,
                sample.port,
                sample.instance,
                sample.defined,
                sample.started,
                sample.running,
                sample.active,
            );
            pileus.push(sample);
            raw.push(took);
        }
        let p50 = |value: &dyn Fn(&Sample) -> f64| {
            percentile(&pileus.iter().map(value).collect::<Vec<_>>(), 50)
        };
        let running = p50(&|s| s.running);
        let raw_p50 = percentile(&raw, 50);
        let overhead = running - raw_p50;
        println!(
            "bench start_one samples={samples} pileus_p50_ms={running:.0} raw_p50_ms={raw_p50:.0} overhead_p50_ms={overhead:.0} of_that_flows_p50_ms={:.0} until_instance_p50_ms={:.0} goal_ms=300 {}",
            p50(&|s| s.running - s.started),
            p50(&|s| s.instance),
            verdict(overhead <= 300.0),
        );
        report_writes("writes_one", &written);
        Ok(())
    }

    /// Many at once, between two rounds of as many raw domains, all asked for at once over
    /// one connection, as the agent does it.
    async fn all_at_once(&self, template: &Template, count: usize) -> Result<()> {
        let mut raw = self.raw_at_once(template, count)?;
        let names: Vec<String> = (0..count).map(|n| format!("many-{n}")).collect();
        let begun = Instant::now();
        let accepted = try_join_all(names.iter().map(|name| self.server(name))).await?;
        let all = begun.elapsed().as_secs_f64();
        let samples: Vec<Sample> = names
            .iter()
            .zip(&accepted)
            .map(|(name, at)| self.sample(name, *at))
            .collect::<Result<_>>()?;
        let entries = self.recording.entries();
        let written: Vec<Writes> = names
            .iter()
            .zip(&accepted)
            .map(|(name, at)| writes::count(&entries, name, *at))
            .collect();
        println!("\nbench memory servers={count} {}", self.memory()?);
        report_writes("writes_many", &written);
        self.lab.delete_servers(&names).await?;

        raw.extend(self.raw_at_once(template, count)?);
        println!(
            "\n{count} at once, all Active after {all:.1} s\n{:>16} {:>8} {:>8}  (ms)",
            "", "p50", "p95"
        );
        let row = |title: &str, values: Vec<f64>| {
            let (p50, p95) = (percentile(&values, 50), percentile(&values, 95));
            println!("{title:>16} {p50:8.0} {p95:8.0}");
            p95
        };
        let column = |value: fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<_>>();
        row("placed", column(|s| s.placed));
        row("port ready", column(|s| s.port));
        row("instance made", column(|s| s.instance));
        row("domain defined", column(|s| s.defined));
        row("domain paused", column(|s| s.started));
        let p95 = row("domain running", column(|s| s.running));
        let flows = row("(wait for flows)", column(|s| s.running - s.started));
        row("Server Active", column(|s| s.active));
        let raw_p95 = row("raw libvirt", raw);
        println!(
            "bench start_many servers={count} pileus_p95_ms={p95:.0} raw_p95_ms={raw_p95:.0} ratio={:.2} flows_p95_ms={flows:.0} goal_ratio=1.5 {}",
            p95 / raw_p95,
            verdict(p95 <= 1.5 * raw_p95),
        );
        Ok(())
    }

    /// What the roles weigh now. The text of a debug build is several times that of a
    /// release build and counts in `VmRSS`, so the rest is shown apart.
    fn memory(&self) -> Result<String> {
        let agent = format!("{HOST}-agent");
        let of = |part: &str, field: &str| self.lab.memory_mib(part, field);
        let (manager_mib, agent_mib) = (of("manager", "VmRSS")?, of(&agent, "VmRSS")?);
        Ok(format!(
            "build={} manager_mib={manager_mib:.1} agent_mib={agent_mib:.1} scheduler_mib={:.1} manager_anon_mib={:.1} agent_anon_mib={:.1} goal_manager=60 goal_agent=50 {}",
            self.lab.build()?,
            of("scheduler", "VmRSS")?,
            of("manager", "RssAnon")?,
            of(&agent, "RssAnon")?,
            verdict(manager_mib <= 60.0 && agent_mib <= 50.0),
        ))
    }

    /// Times of `count` raw domains, in ms after all were asked for.
    fn raw_at_once(&self, template: &Template, count: usize) -> Result<Vec<f64>> {
        let domains: Vec<Raw> = (0..count).map(|_| template.make()).collect::<Result<_>>()?;
        let begun = Instant::now();
        let started: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = domains
                .iter()
                .map(|domain| scope.spawn(move || domain.start(&self.libvirt)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err("a thread died".into())))
                .collect()
        });
        let mut times = Vec::new();
        for domain in &domains {
            if let Some(at) = self.lifecycle.when(&domain.name, "Resumed") {
                times.push(at.duration_since(begun).as_secs_f64() * 1000.0);
            }
        }
        // One that could not be started has nothing to remove.
        let removed: Result<Vec<()>> = domains.iter().map(|d| d.remove(&self.libvirt)).collect();
        started.into_iter().collect::<Result<Vec<()>>>()?;
        removed?;
        Ok(times)
    }
}

/// Whether the entry is about this object of the bench.
fn is(entry: &Entry, kind: &str, name: &str) -> bool {
    entry.kind == kind && entry.name() == name && entry.object["metadata"]["namespace"] == NAMESPACE
}

fn is_instance_of(entry: &Entry, server: &str) -> bool {
    let owner = &entry.object["spec"]["server"];
    entry.kind == "Instance" && owner["name"] == server && owner["namespace"] == NAMESPACE
}

fn report_writes(figure: &str, written: &[Writes]) {
    let most = |value: fn(&Writes) -> usize| written.iter().map(value).max().unwrap_or_default();
    let (server, port) = (
        most(|w| w.server_and_instance),
        most(|w| w.port_and_address),
    );
    let worst = written
        .iter()
        .max_by_key(|w| w.server_and_instance + w.port_and_address);
    println!("\nThe writes of the Server that took the most:");
    for line in worst.iter().flat_map(|w| &w.lines) {
        println!("  {line}");
    }
    println!(
        "bench {figure} servers={} server_and_instance_max={server} port_and_address_max={port} goal=5/3 {}",
        written.len(),
        verdict(server <= 5 && port <= 3),
    );
}
