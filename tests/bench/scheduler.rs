//! How fast the scheduler's core decides, and how much memory it takes: one thread, no
//! API server. `cargo bench --bench scheduler [hosts…] [case…]`: all sizes and all cases
//! when none is named; `filters` is each filter alone.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pileus_api::common::Claim;
use pileus_scheduler::filters;
use pileus_scheduler::placement::facts::{
    Aggregate, Allocation, Device, HostFacts, Inventory, NumaNode, NumaRequest, Profile, Taint,
    Units,
};
use pileus_scheduler::placement::placer::Placer;
use pileus_scheduler::placement::policy::Policy;
use pileus_scheduler::placement::query::Query;
use pileus_scheduler::placement::request::{
    Group, GroupPolicy, Request, ServerReference, Spread, Toleration, mix,
};
use pileus_scheduler::placement::snapshot::Snapshot;

/// Counts what is allocated, so that nothing is forgotten or estimated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[allow(
    unsafe_code,
    reason = "what an allocator is; the system's own does the work"
)]
// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

const ZONES: u64 = 20;
/// vCPUs, MiB, GiB, as m1.tiny to m1.xlarge and some that are long in one thing.
const FLAVORS: [(i64, i64, i64); 8] = [
    (1, 512, 1),
    (1, 2048, 20),
    (2, 4096, 40),
    (4, 8192, 80),
    (8, 16384, 160),
    (2, 16384, 20),
    (8, 8192, 20),
    (1, 1024, 200),
];

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 += 1;
        mix(self.0, 77) % n
    }
}

/// Gives a host something for every filter to look at.
fn enrich(host: &mut HostFacts) {
    let words = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pairs.collect()
    };
    host.address = Some([10, 1, 2, 3].into());
    let profile = &mut host.profile;
    profile.aggregates = vec![Aggregate {
        name: "all".into(),
        properties: words(&[("ssd", "yes"), ("instance_type", "m1"), ("os", "linux")]),
        namespaces: (0..100).map(|n| format!("tenant-{n}")).collect(),
    }];
    profile.traits = ["CUSTOM_SSD".to_owned()].into();
    profile.capabilities = words(&[("hypervisor_version", "10")]);
    profile.taints = vec![Taint {
        key: "dedicated".into(),
        value: "yes".into(),
        effect: "NoSchedule".into(),
    }];
    let inventory = Inventory {
        total: 1_000_000,
        ratio: 1000,
        units: Units::default(),
        reserved: 0,
    };
    profile.inventories = [("CUSTOM_LICENSE".to_owned(), inventory)].into();
    let device = |i| Device {
        address: format!("0000:{i:02x}:00.0"),
        alias: "gpu".to_owned(),
        node: None,
    };
    profile.devices = (0..8).map(device).collect();
    let cell = NumaNode {
        cpus: 1_000_000,
        memory_mib: 1_000_000_000,
        ..NumaNode::default()
    };
    profile.numa_nodes = vec![cell.clone(), NumaNode { id: 1, ..cell }];
    profile.physical_networks = Some(["physnet1".to_owned()].into());
}

/// Makes a request ask for all of that, so that every filter is asked.
fn ask_for_all(request: &mut Request, n: u64) {
    let requirements = &mut request.requirements;
    for (key, value) in [
        ("capabilities:hypervisor_version", ">= 9"),
        ("aggregate_instance_extra_specs:ssd", "yes"),
        ("trait:CUSTOM_SSD", "required"),
    ] {
        requirements.extra_specs.insert(key.into(), value.into());
    }
    requirements
        .image_properties
        .insert("os".into(), "linux".into());
    requirements.flavor = Some("m1".into());
    requirements.host_selector = [("os".to_owned(), "linux".to_owned())].into();
    requirements.tolerations = vec![Toleration::default()];
    requirements.host_cidr = "10.1.0.0/16".parse().ok();
    requirements.query =
        Query::parse(r#"["and", [">=", "$free_ram_mb", 1], [">=", "$vcpus_free", 1]]"#).ok();
    requirements.physical_networks = ["physnet1".to_owned()].into();
    requirements.volume_hosts = Some((0..100).map(|i| format!("host-{i:05}")).collect());
    let claim = requirements.resources.claim;
    requirements.resources.classes = [("CUSTOM_LICENSE".to_owned(), 1)].into();
    requirements.resources.pci = [("gpu".to_owned(), 1)].into();
    requirements.resources.numa = Some(NumaRequest {
        nodes: vec![(claim.vcpus, claim.memory_mib)],
        pinned: true,
        page_kib: None,
    });
    request.refused_by = [("host-00000".to_owned(), String::new())].into();
    let placed = |n: u64| ServerReference {
        name: "peer".into(),
        uid: Some(uid(n)),
    };
    request.same_host = (1..10).map(|back| placed(n - back)).collect();
    request.different_host = (10..20).map(|back| placed(n - back)).collect();
}

fn host(i: u64, dice: &mut Dice) -> HostFacts {
    let size = 1 + dice.below(3).cast_signed();
    HostFacts {
        name: format!("host-{i:05}"),
        ready: dice.below(100) > 0,
        schedulable: true,
        capacity: Claim {
            vcpus: 32 * size,
            memory_mib: 131_072 * size,
            disk_gib: 2000 * size,
        },
        overhead_mib: 100,
        labels: [
            ("kubernetes.io/hostname".to_owned(), format!("host-{i:05}")),
            ("rack".to_owned(), format!("rack-{}", i / 20)),
            ("os".to_owned(), "linux".to_owned()),
        ]
        .into(),
        images: (0..10)
            .filter(|_| dice.below(4) == 0)
            .map(|n| format!("sha256:{n}"))
            .collect(),
        profile: Profile {
            architecture: "x86_64".into(),
            virt_type: "kvm".into(),
            zone: Some(format!("zone-{}", i % ZONES)),
            ..Profile::default()
        },
        ..HostFacts::default()
    }
}

/// A Server that any host may take (`zoned` false), or that every other time names a zone.
fn request(n: u64, zoned: bool, dice: &mut Dice) -> Request {
    let (vcpus, memory_mib, disk_gib) = FLAVORS[dice.below(FLAVORS.len() as u64) as usize];
    let mut request = Request {
        seed: mix(n, 1),
        image_digest: Some(format!("sha256:{}", dice.below(10))),
        namespace: format!("tenant-{}", dice.below(100)),
        ..Request::default()
    };
    request.requirements.resources.claim = Claim {
        vcpus,
        memory_mib,
        disk_gib,
    };
    request.requirements.image_properties =
        [("hw_architecture".to_owned(), "x86_64".to_owned())].into();
    if zoned && dice.below(2) == 0 {
        request.requirements.zone = Some(format!("zone-{}", dice.below(ZONES)));
    }
    request
}

fn uid(n: u64) -> String {
    uuid::Uuid::from_u64_pair(mix(n, 3), mix(n, 4)).to_string()
}

/// Hosts with Servers, and the bytes of each.
fn cloud(hosts: u64, servers: u64, rich: bool, dice: &mut Dice) -> (Snapshot, usize, usize) {
    let empty = live();
    let mut snapshot = Snapshot::default();
    for i in 0..hosts {
        let mut facts = host(i, dice);
        if rich {
            enrich(&mut facts);
        }
        snapshot.set_host(facts);
    }
    let bare = live();
    for n in 0..servers {
        let requirements = request(n, false, dice).requirements;
        let allocation = Allocation {
            host: format!("host-{:05}", dice.below(hosts)),
            resources: requirements.resources,
            ..Allocation::default()
        };
        snapshot.allocate(&uid(n), allocation);
    }
    (snapshot, bare - empty, live() - bare)
}

struct Case<'a> {
    name: &'a str,
    hosts: u64,
    servers: u64,
    group: Option<(GroupPolicy, u64)>,
    zoned: bool,
    spread: bool,
    only: Option<&'a str>,
}

/// Decides, enters each decision, and takes an old Server out for each, so that the cloud
/// stays as full as it was; only the decision itself is timed.
fn run(case: &Case<'_>) {
    let mut dice = Dice(1);
    let (mut snapshot, host_bytes, server_bytes) =
        cloud(case.hosts, case.servers, case.only.is_some(), &mut dice);
    let policy = match case.only {
        None => Policy::default(),
        Some(name) => {
            let mut all = filters::all();
            all.retain(|f| f.name() == name);
            Policy::only(all.remove(0))
        }
    };
    let mut placer = Placer::new(policy);
    let mut took: Vec<Duration> = Vec::new();
    let (mut n, mut nowhere) = (case.servers, 0);
    let start = Instant::now();
    // The first decisions are counted as well: they are what a restart costs.
    while took.len() < 2000 || (start.elapsed() < Duration::from_secs(2) && took.len() < 100_000) {
        let mut cycle = request(n, case.zoned, &mut dice);
        if let Some((policy, size)) = case.group {
            let id = format!("group-{}", n / size);
            cycle.group = Some(Group {
                id,
                policy,
                max_per_host: 1,
                min_members: 0,
            });
        }
        if case.spread {
            cycle.spread = vec![Spread {
                key: "rack".into(),
                max_skew: 1,
            }];
            cycle.spread_set = Some(format!("spread-{}", n / 50));
        }
        if case.only.is_some() {
            ask_for_all(&mut cycle, n);
        }
        let began = Instant::now();
        let decided = placer.place(&snapshot, &cycle);
        took.push(began.elapsed());
        if let Ok(host) = decided {
            let allocation = Allocation {
                host: host.to_owned(),
                resources: cycle.requirements.resources,
                group: cycle.group.map(|g| g.id),
                spread: cycle.spread_set,
                ..Allocation::default()
            };
            snapshot.allocate(&uid(n), allocation);
            if case.servers > 0 {
                snapshot.release(&uid(n - case.servers));
            }
        } else {
            nowhere += 1;
        }
        n += 1;
    }
    let total: Duration = took.iter().sum();
    let per_second = took.len() as f64 / total.as_secs_f64();
    took.sort_unstable();
    let at = |share: usize| took[took.len() * share / 100].as_secs_f64() * 1e6;
    let (hosts, servers) = (case.hosts, case.servers);
    println!(
        "bench scheduler case={} hosts={hosts} servers={servers} decisions_per_s={per_second:.0} \
         p50_us={:.0} p99_us={:.0} nowhere={nowhere}",
        case.name,
        at(50),
        at(99),
    );
    if case.name == "default" {
        // What decisions leave behind counts for the hosts.
        let before = live();
        drop(placer);
        let host_bytes = host_bytes + before - live();
        println!(
            "bench scheduler case=memory hosts={hosts} servers={servers} bytes_per_host={} \
             bytes_per_server={}",
            host_bytes as u64 / hosts,
            server_bytes as u64 / servers.max(1),
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut sizes: Vec<u64> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![100, 1000, 10_000];
    }
    let cases: Vec<&String> = arguments
        .iter()
        .filter(|a| a.parse::<u64>().is_err() && !a.starts_with('-'))
        .collect();
    let wanted = |name: &str| cases.is_empty() || cases.iter().any(|c| *c == name);
    let case = |name, hosts| Case {
        name,
        hosts,
        servers: hosts * 10,
        group: None,
        zoned: true,
        spread: false,
        only: None,
    };
    for &hosts in &sizes {
        let grouped = |name, policy, size| Case {
            group: Some((policy, size)),
            ..case(name, hosts)
        };
        let all = [
            case("default", hosts),
            Case {
                zoned: false,
                ..case("any-zone", hosts)
            },
            grouped("anti-affinity-50", GroupPolicy::AntiAffinity, 50),
            grouped("soft-anti-affinity-50", GroupPolicy::SoftAntiAffinity, 50),
            grouped("affinity-5", GroupPolicy::Affinity, 5),
            Case {
                spread: true,
                ..case("topology-spread-50", hosts)
            },
        ];
        all.iter().filter(|c| wanted(c.name)).for_each(run);
    }
    let most = sizes.iter().max().copied().unwrap_or(1);
    for filter in filters::all() {
        let name = filter.name();
        if wanted("filters") || wanted(name) {
            let affine = name == "ServerGroupAffinityFilter";
            run(&Case {
                only: Some(name),
                group: Some(if affine {
                    (GroupPolicy::Affinity, 5)
                } else {
                    (GroupPolicy::AntiAffinity, 50)
                }),
                spread: true,
                ..case(name, most)
            });
        }
    }
}
