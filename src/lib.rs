//! Pileus turns a Kubernetes cluster into an infrastructure cloud: servers,
//! networks and images are custom resources, and controllers make them real on
//! KVM hosts.
//!
//! | module | what it holds | may import |
//! |---|---|---|
//! | [`api`] | the contract with users, one file per kind; no I/O | `model` |
//! | [`model`] | values parsed once, at the edge | nothing of ours |
//! | [`drivers`] | the systems we drive, behind small traits; nothing of Kubernetes | `model` |
//! | [`guest`] | what a guest is told: config drive, metadata (pure) | `api`, `model` |
//! | [`network`] | API objects in, desired OVN rows out (pure) | `api`, `model`, values of `drivers::ovn` |
//! | [`stack`] | the orchestration engine: templates, functions, graph, plan, what types become (pure) | `api` |
//! | [`stack_cli`] | `pileus stack`: the engine offline, on files | `stack` |
//! | [`kube_ext`] | what reconcilers share: reports, finalizers, backoff, leases, metrics | `api`, `model` |
//! | [`controllers`] | one directory per kind: observe, plan (pure), act, report | `api`, `model`, `guest`, `network`, `stack`, `kube_ext`, `telemetry`, `drivers::ovn`, `drivers::ovsdb` |
//! | [`scheduler`] | binds Servers to Hosts by filters and weighers | `api`, `model`, `kube_ext`, `telemetry` |
//! | [`agent`] | one host: makes its Instances real | `api`, `model`, `guest`, `network`, `kube_ext`, `telemetry`, `drivers` |
//! | [`telemetry`] | logs, health and metrics endpoints | nothing of ours |
//!
//! `controllers`, `scheduler` and `agent` never import each other; any `plan`
//! is free of clients, clocks, randomness, files and tokio. The table is kept
//! true by `tests/architecture.rs`.

pub mod agent;
pub mod api;
pub mod controllers;
pub mod drivers;
pub mod guest;
pub mod kube_ext;
pub mod model;
pub mod network;
pub mod scheduler;
pub mod stack;
pub mod stack_cli;
pub mod telemetry;
