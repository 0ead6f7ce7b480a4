//! The engine beside Heat's own, on the cases that Heat made, one after the other: what both
//! programs take from start to end (`pileus stack render --cases` and `heat/render.py`, which do
//! the same and whose results are compared with the cases'), and what both engines take for the
//! cases once they are loaded and the cases are read.
//!
//! `stack_heat [ROUNDS]`, by default 3; the best round of each counts. The cases are
//! `golden.jsonl` of the folder that `PILEUS_HEAT_CASES` names, or of `shared/heat` beside
//! the repository, with `compare.py`. Heat is run by the Python that `PILEUS_HEAT_PYTHON` names,
//! or `heat/bin/python` in the cache folder, once made by
//! `python3 -m venv ~/.cache/pileus/heat && ~/.cache/pileus/heat/bin/pip install openstack-heat`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// How many times as fast as Heat all cases are to be rendered, from start to end.
const TARGET: f64 = 200.0;

type Error = Box<dyn std::error::Error>;

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

fn python() -> PathBuf {
    let cache = variable("PILEUS_CACHE_DIR").or_else(|| {
        let home = variable("HOME")?;
        Some(home.join(".cache/pileus"))
    });
    variable("PILEUS_HEAT_PYTHON")
        .unwrap_or_else(|| cache.unwrap_or_default().join("heat/bin/python"))
}

/// Seconds that the best of some rounds of `work` took, and what it gave.
fn best<T>(rounds: usize, work: impl Fn() -> Result<T, Error>) -> Result<(f64, T), Error> {
    let mut best = None;
    for _ in 0..rounds {
        let start = Instant::now();
        let result = work()?;
        let took = start.elapsed().as_secs_f64();
        if best.as_ref().is_none_or(|(least, _)| took < *least) {
            best = Some((took, result));
        }
    }
    best.ok_or_else(|| "no round".into())
}

/// Seconds that the engine took for all cases of a file, as `heat/render.py` counts them: one
/// after the other, without reading them and without writing the results.
fn engine(cases: &Path) -> Result<f64, Error> {
    let text = std::fs::read_to_string(cases)?;
    let mut spent = 0.0;
    for line in text.lines() {
        let case: pileus_stack::value::Value = serde_json::from_str(line)?;
        let start = Instant::now();
        let result = std::hint::black_box(pileus_stack::cases::render(case));
        spent += start.elapsed().as_secs_f64();
        drop(result);
    }
    Ok(spent)
}

fn run(command: &mut Command) -> Result<Vec<u8>, Error> {
    let output = command.stderr(Stdio::inherit()).output()?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("{command:?} ended with {}", output.status).into())
    }
}

/// A file for the results of one program, gone with this.
struct Results(PathBuf);

impl Results {
    fn of(name: &str) -> Self {
        let file = format!("pileus-bench-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(file))
    }

    /// Runs a program that writes them, into a file as for `compare.py`: a pipe would have
    /// its reader take part of the processors.
    fn made_by(&self, command: &mut Command) -> Result<(), Error> {
        run(command.stdout(std::fs::File::create(&self.0)?)).map(drop)
    }

    /// How many of them are the cases', in the words of `compare.py`.
    fn equal(&self, python: &Path, cases: &Path) -> Result<String, Error> {
        let mut compare = Command::new(python);
        let compare = compare.arg(cases.with_file_name("compare.py"));
        let told = String::from_utf8(run(compare.arg("render").arg(cases).arg(&self.0))?)?;
        let line = told.lines().find_map(|line| line.strip_prefix("render: "));
        Ok(line.unwrap_or("not compared").to_owned())
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        // It is the temporary folder's if it cannot go.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn main() -> Result<(), Error> {
    let root = pileus_tests::program::root();
    let rounds = std::env::args().find_map(|argument| argument.parse().ok());
    let rounds: usize = rounds.unwrap_or(3).max(1);
    let folder = variable("PILEUS_HEAT_CASES").unwrap_or_else(|| root.join("../shared/heat"));
    let cases = folder.join("golden.jsonl");
    let python = python();
    for needed in [&cases, &python] {
        if !needed.exists() {
            println!(
                "{} is not there; see the head of tests/bench/stack_heat.rs",
                needed.display()
            );
            return Ok(());
        }
    }
    let driver = root.join("tests/bench/heat/render.py");
    let (rendered, theirs) = (Results::of("pileus"), Results::of("heat"));
    let (ours, ()) = best(rounds, || {
        let mut command = Command::new(pileus_tests::program::program("pileus"));
        rendered.made_by(command.args(["stack", "render", "--cases"]).arg(&cases))
    })?;
    let (heats, ()) = best(rounds, || {
        theirs.made_by(Command::new(&python).arg(&driver).arg(&cases))
    })?;
    println!("pileus: {}", rendered.equal(&python, &cases)?);
    println!("heat: {}", theirs.equal(&python, &cases)?);
    let mut alone = f64::INFINITY;
    for _ in 0..rounds {
        alone = alone.min(engine(&cases)?);
    }
    // Heat's own rounds are inside of one process: its engine takes seconds to load.
    let mut command = Command::new(&python);
    let command = command.arg(driver).arg("--seconds").arg(rounds.to_string());
    let told: serde_json::Value = serde_json::from_slice(&run(command.arg(&cases))?)?;
    let heats_alone = told["seconds"].as_f64().ok_or("no seconds from Heat")?;
    let ratio = heats / ours;
    println!(
        "bench stack case=golden heat_s={heats:.3} pileus_s={ours:.4} ratio={ratio:.0} \
         heat_engine_s={heats_alone:.3} pileus_engine_s={alone:.4} ratio_engine={:.0} \
         target={TARGET} {}",
        heats_alone / alone,
        if ratio >= TARGET { "ok" } else { "MISSED" }
    );
    Ok(())
}
