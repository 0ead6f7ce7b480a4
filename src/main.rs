//! Arguments, telemetry, one role.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An infrastructure cloud as Kubernetes custom resources.
#[derive(Parser)]
#[command(name = "pileus", version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Prints the CustomResourceDefinitions as YAML.
    Crds {
        /// Leaves out CEL rules, which API servers below 1.25 refuse.
        #[arg(long)]
        without_cel: bool,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().role {
        Role::Crds { without_cel } => match print_crds(!without_cel) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("pileus: cannot print the CRDs: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn print_crds(cel: bool) -> Result<(), Box<dyn std::error::Error>> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    for crd in pileus::api::crd::all() {
        let value = pileus::api::crd::to_json(&crd, cel)?;
        write!(out, "---\n{}", serde_saphyr::to_string(&value)?)?;
    }
    Ok(())
}
