//! The program pileus: roles and commands.

mod stack;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use k8s_openapi::jiff::Timestamp;

use pileus_api::{crd, names};
use pileus_kube_ext::role::{self, Result};
use pileus_manager::Tls;
use pileus_scheduler::questions::{advice, cluster, simulate};

/// An infrastructure cloud as Kubernetes custom resources.
#[derive(Parser)]
#[command(name = "pileus", version)]
struct ProgramArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reconciles every kind but Stacks, and keeps OVN as the objects say.
    Manager(ManagerArguments),
    /// Makes Stacks real, in the namespaces that let it.
    Stacks(role::Arguments),
    /// Places Servers on Hosts.
    Scheduler(role::Arguments),
    /// Says why a Server is where it is, or nowhere, and the smallest change that would help.
    Why {
        /// Name of the Server.
        server: String,
        /// Its namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Advises which Servers to move, by the filters and weighers that place them.
    Advise {
        /// What the moves are for.
        #[arg(value_enum, default_value = "spread")]
        goal: Goal,
    },
    /// Says where Servers would go, offline: by the scheduler's own code and files alone.
    Simulate {
        /// Hosts, Servers and what they refer to, as `kubectl get … -o yaml` prints them.
        #[arg(short, long = "file", required = true)]
        files: Vec<PathBuf>,
        /// Host to be emptied: would everything on it fit elsewhere?
        #[arg(long)]
        drain: Vec<String>,
        /// Advice of which Servers to move.
        #[arg(long, value_enum)]
        advise: Option<Goal>,
    },
    /// Checks and renders Heat templates offline, without a cluster.
    #[command(subcommand)]
    Stack(stack::Command),
    /// Prints the CustomResourceDefinitions as YAML.
    Crds,
}

#[derive(Clone, Copy, ValueEnum)]
enum Goal {
    /// Hosts that are evenly full.
    Spread,
    /// Hosts that are empty.
    Empty,
}

impl Goal {
    fn of(self) -> advice::Goal {
        match self {
            Self::Spread => advice::Goal::Spread,
            Self::Empty => advice::Goal::Empty,
        }
    }
}

#[derive(Args)]
struct ManagerArguments {
    #[command(flatten)]
    role: role::Arguments,
    /// OVN's northbound database, such as unix:/run/ovn/ovnnb_db.sock or ssl:ADDRESS:6641.
    #[arg(
        long,
        env = "PILEUS_OVN_NB",
        default_value = "unix:/run/ovn/ovnnb_db.sock"
    )]
    ovn_nb: String,
    /// File of the private key for `ssl:` endpoints, in PEM.
    #[arg(
        long,
        env = "PILEUS_OVN_NB_PRIVATE_KEY",
        requires_all = ["ovn_nb_certificate", "ovn_nb_ca_cert"]
    )]
    ovn_nb_private_key: Option<PathBuf>,
    /// File of our certificate, in PEM.
    #[arg(
        long,
        env = "PILEUS_OVN_NB_CERTIFICATE",
        requires = "ovn_nb_private_key"
    )]
    ovn_nb_certificate: Option<PathBuf>,
    /// File of the CA's certificate that the database's is signed by, in PEM.
    #[arg(long, env = "PILEUS_OVN_NB_CA_CERT", requires = "ovn_nb_private_key")]
    ovn_nb_ca_cert: Option<PathBuf>,
    /// Largest packet of the network between the hosts, in bytes.
    #[arg(long, env = "PILEUS_UNDERLAY_MTU", default_value_t = 1500)]
    underlay_mtu: i32,
    /// The network between the hosts is IPv6.
    #[arg(long, env = "PILEUS_UNDERLAY_IPV6")]
    underlay_ipv6: bool,
}

fn main() -> ExitCode {
    let command = ProgramArguments::parse().command;
    if let Command::Crds = command {
        return ended(print_crds());
    }
    if let Command::Simulate {
        files,
        drain,
        advise,
    } = command
    {
        let advise = advise.map(Goal::of);
        return answered(simulate(&files, &simulate::Question { drain, advise }));
    }
    if let Command::Stack(command) = &command {
        return stack::run(command).unwrap_or_else(|error| ended(Err(error.into())));
    }
    ended(role::block_on(async {
        match command {
            Command::Why { server, namespace } => why(namespace, server).await,
            Command::Advise { goal } => advise(goal).await,
            Command::Manager(arguments) => manager(arguments).await,
            Command::Stacks(arguments) => stacks(&arguments).await,
            Command::Scheduler(arguments) => scheduler(&arguments).await,
            // Answered above, without a runtime.
            Command::Crds | Command::Simulate { .. } | Command::Stack(_) => Ok(()),
        }
    }))
}

fn ended(result: Result<()>) -> ExitCode {
    role::exit_code("pileus", result)
}

/// An answer goes to the output; whether all is well is the exit code.
fn answered(answer: Result<simulate::Answer>) -> ExitCode {
    match answer {
        Ok(answer) => {
            print!("{}", answer.text);
            if answer.all_fit {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => ended(Err(error)),
    }
}

fn simulate(files: &[PathBuf], question: &simulate::Question) -> Result<simulate::Answer> {
    let mut texts = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file);
        texts.push(text.map_err(|e| format!("cannot read {}: {e}", file.display()))?);
    }
    Ok(simulate::simulate(&texts, question, Timestamp::now())?)
}

async fn why(namespace: String, server: String) -> Result<()> {
    let client = pileus_kube_ext::client().await?;
    let mut state = cluster::read(&client).await?;
    let answer = state.why(&(namespace, server), Timestamp::now());
    println!("{answer}");
    Ok(())
}

async fn advise(goal: Goal) -> Result<()> {
    let client = pileus_kube_ext::client().await?;
    let state = cluster::read(&client).await?;
    let advice = advice::advise(&state, goal.of(), Timestamp::now());
    print!("{advice}");
    Ok(())
}

async fn manager(arguments: ManagerArguments) -> Result<()> {
    let files = (
        arguments.ovn_nb_private_key,
        arguments.ovn_nb_certificate,
        arguments.ovn_nb_ca_cert,
    );
    let ovn_tls = match files {
        (Some(private_key), Some(certificate), Some(ca_certificate)) => Some(Tls {
            private_key,
            certificate,
            ca_certificate,
        }),
        _ => None,
    };
    let config = pileus_manager::Config {
        ovn_nb: arguments.ovn_nb,
        ovn_tls,
        underlay_mtu: arguments.underlay_mtu,
        underlay_ipv6: arguments.underlay_ipv6,
        identity: role::identity(),
    };
    role::run(&arguments.role, names::MANAGER, |role| {
        pileus_manager::run(config, role.context, role.ready, role.stop)
    })
    .await
}

async fn stacks(arguments: &role::Arguments) -> Result<()> {
    let identity = role::identity();
    role::run(arguments, names::STACKS, |role| {
        pileus_manager::stack::run(identity, role.context, role.ready, role.stop)
    })
    .await
}

async fn scheduler(arguments: &role::Arguments) -> Result<()> {
    let config = pileus_scheduler::Config {
        identity: Some(role::identity()),
    };
    role::run(arguments, names::SCHEDULER, |role| {
        let ready = role.ready;
        pileus_scheduler::run(config, role.context, move || ready.set(true), role.stop)
    })
    .await
}

fn print_crds() -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    for crd in crd::all() {
        let value = crd::to_json(&crd)?;
        write!(out, "---\n{}", serde_saphyr::to_string(&value)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        ProgramArguments::command().debug_assert();
    }
}
