//! `pileus stack`: reads, checks and renders templates offline, without a cluster. The engine is
//! [`pileus_stack`]; this module handles files and flags.

mod batch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::de::Deserializer;

use pileus_stack::environment::Environment;
use pileus_stack::parameters::Identity;
use pileus_stack::render::{self, Input};
use pileus_stack::resource_types::manifests;
use pileus_stack::value::{Value, json};
use pileus_stack::{Error, cases, expand, json_output, validate, yaml};

/// What to do with a template.
#[derive(Subcommand)]
pub enum Command {
    /// Says whether a template could become a stack, nested templates included.
    Validate(Source),
    /// Prints a template with everything evaluated.
    Render {
        /// The template.
        #[command(flatten)]
        source: Source,
        /// Reference ids and attributes of resources: a JSON or YAML map of name to refid and attrs.
        #[arg(long)]
        resources: Option<PathBuf>,
        /// Renders each line of a file of cases instead, one JSON result a line; - is standard input.
        #[arg(long, conflicts_with = "template")]
        cases: Option<PathBuf>,
    },
    /// Prints the objects that a template would become, without a cluster.
    Preview(Source),
    /// Evaluates functions: each line of a file of cases, one JSON result a line.
    Functions {
        /// The cases; - is standard input.
        #[arg(long)]
        cases: PathBuf,
    },
}

/// A template and what goes with it.
#[derive(Args)]
pub struct Source {
    /// The template, YAML or JSON; - is standard input.
    template: Option<PathBuf>,
    /// A parameter's value, as name=value; may be given often.
    #[arg(short = 'P', long = "parameter", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// An environment; a later one wins.
    #[arg(short, long = "environment", value_name = "FILE")]
    environments: Vec<PathBuf>,
    /// Where get_file and nested templates are looked for [default: beside the template].
    #[arg(long)]
    files: Option<PathBuf>,
    /// The stack's name.
    #[arg(long, default_value = "stack")]
    stack_name: String,
    /// How the result is written.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON.
    #[default]
    Json,
    /// YAML.
    Yaml,
    /// Objects as `kubectl apply` takes them; for a preview.
    Manifests,
}

/// Runs `command`. Errors of a template are printed on standard output, as the result would be, with
/// exit code 1.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(command: &Command) -> std::io::Result<ExitCode> {
    match command {
        Command::Validate(source) => {
            let result = match source.input() {
                Ok(input) => validate::report(&input),
                Err(error) => failed(&error),
            };
            print(&result, source.output)
        }
        Command::Render {
            source,
            resources,
            cases,
        } => {
            if let Some(path) = cases {
                return batch::each_line(path, render_line);
            }
            let input = source.input().and_then(|mut input| {
                if let Some(path) = resources {
                    input.resources = cases::known(yaml::parse(&read(path)?)?);
                }
                Ok(input)
            });
            match input.map(|input| render::stack(&input)) {
                Ok(Ok(stack)) => {
                    write(&stack, source.output)?;
                    Ok(ExitCode::SUCCESS)
                }
                Ok(Err(stop)) => print(&stop.to_json(), source.output),
                Err(error) => print(&failed(&error), source.output),
            }
        }
        Command::Preview(source) => {
            let made = match source.input() {
                Ok(input) => manifests::manifests(&input).map_err(|stop| stop.to_json()),
                Err(error) => Err(failed(&error)),
            };
            match made {
                Err(wrong) => print(&wrong, source.output),
                Ok(made) if source.output == Format::Manifests => {
                    let mut out = std::io::stdout().lock();
                    for object in made {
                        let text = serde_saphyr::to_string(&object);
                        write!(out, "---\n{}", text.map_err(std::io::Error::other)?)?;
                    }
                    Ok(ExitCode::SUCCESS)
                }
                Ok(made) => print(&json!({"manifests": made}), source.output),
            }
        }
        Command::Functions { cases } => batch::each_line(cases, function_line),
    }
}

fn failed(error: &Error) -> Value {
    json!({"error": json_output::error_json("input", error)})
}

fn write(result: &impl serde::Serialize, format: Format) -> std::io::Result<()> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(result)? + "\n",
        Format::Yaml | Format::Manifests => {
            serde_saphyr::to_string(result).map_err(std::io::Error::other)?
        }
    };
    std::io::stdout().lock().write_all(text.as_bytes())
}

/// Prints a result; the exit code depends on whether it contains an error.
fn print(result: &Value, format: Format) -> std::io::Result<ExitCode> {
    write(result, format)?;
    Ok(if result.get("error").is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The case of a line `{"case": …, "expected": …}`; the rest of the line after it is not parsed.
#[derive(Default)]
struct Case(Option<Value>);

impl<'de> serde::de::Visitor<'de> for &mut Case {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a case")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut line: A) -> Result<(), A::Error> {
        while let Some(key) = line.next_key::<Cow<'de, str>>()? {
            if key == "case" {
                self.0 = Some(line.next_value()?);
                break;
            }
            line.next_value::<serde::de::IgnoredAny>()?;
        }
        Ok(())
    }
}

fn render_line(line: &[u8], out: &mut Vec<u8>) -> serde_json::Result<()> {
    let mut case = Case::default();
    // After the case, errors in the rest of the line do not matter.
    let _ = serde_json::Deserializer::from_slice(line).deserialize_map(&mut case);
    let case = case.0.map_or_else(|| serde_json::from_slice(line), Ok)?;
    match cases::render(case) {
        Ok(stack) => serde_json::to_writer(out, &stack),
        Err(stop) => serde_json::to_writer(out, &stop),
    }
}

fn function_line(line: &[u8], out: &mut Vec<u8>) -> serde_json::Result<()> {
    serde_json::to_writer(out, &cases::function(&serde_json::from_slice(line)?))
}

/// The text of a file within the limit of a document.
fn read(path: &Path) -> pileus_stack::Result<String> {
    let place = path.display().to_string();
    let result = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin().lock())
    } else {
        std::fs::read_to_string(path)
    };
    result.map_err(|error| Error::at(place, format!("cannot be read: {error}")))
}

impl Source {
    fn input(&self) -> pileus_stack::Result<Input> {
        let Some(path) = &self.template else {
            return Err(Error::new("name a template"));
        };
        let place = path.display().to_string();
        let template = yaml::parse(&read(path)?).map_err(|error| error.below(&place))?;
        let mut environment = Environment::default();
        for path in &self.environments {
            let place = path.display().to_string();
            let value = yaml::parse(&read(path)?).map_err(|error| error.below(&place))?;
            environment
                .merge(&value)
                .map_err(|error| error.below(&place))?;
        }
        for parameter in &self.parameters {
            let Some((name, value)) = parameter.split_once('=') else {
                return Err(Error::new(format!("`{parameter}` is not name=value")));
            };
            environment
                .parameters
                .insert(name.to_owned(), Value::from(value));
        }
        let folder = match &self.files {
            Some(folder) => folder.clone(),
            None => path.parent().map(Path::to_path_buf).unwrap_or_default(),
        };
        let mut files = BTreeMap::new();
        let registry = Value::Object(environment.registry.clone());
        read_files(&folder, &template, &mut files, 0);
        read_files(&folder, &registry, &mut files, 0);
        Ok(Input {
            template: template.into(),
            files: files.into(),
            environment,
            identity: Identity {
                name: self.stack_name.clone(),
                ..cases::identity("")
            },
            ..Input::default()
        })
    }
}

/// Reads the files that a template names (`get_file` and templates used as types), and the files that
/// those name. A missing file is reported where it is used.
fn read_files(folder: &Path, value: &Value, files: &mut BTreeMap<String, String>, depth: usize) {
    let mut names = Vec::new();
    file_names(value, &mut names);
    for (name, template) in names {
        if files.contains_key(&name) || depth > expand::MAX_NESTING {
            continue;
        }
        // Only files in the folder: a template must not read other files of the machine.
        let path = Path::new(&name);
        let outside = path.components().any(|part| {
            !matches!(
                part,
                std::path::Component::Normal(_) | std::path::Component::CurDir
            )
        });
        if outside {
            continue;
        }
        if let Ok(text) = std::fs::read_to_string(folder.join(path)) {
            let inner = template.then(|| yaml::parse(&text).unwrap_or_default());
            files.insert(name, text);
            if let Some(inner) = inner {
                read_files(folder, &inner, files, depth + 1);
            }
        }
    }
}

/// The names of files in a value, and whether each is a template.
fn file_names(value: &Value, names: &mut Vec<(String, bool)>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| file_names(item, names)),
        Value::Object(map) => {
            for (key, item) in map {
                match item {
                    Value::String(name) if key == "get_file" => {
                        names.push((name.to_string(), false));
                    }
                    Value::String(name) if render::is_template_name(name) => {
                        names.push((name.to_string(), true));
                    }
                    other => file_names(other, names),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn rendered(line: &str) -> serde_json::Result<Value> {
        let mut out = Vec::new();
        render_line(line.as_bytes(), &mut out)?;
        serde_json::from_slice(&out)
    }

    #[test]
    fn a_case_is_found_at_any_place_in_its_line() {
        let case = r#"{"template": {"heat_template_version": "pike", "resources": {"r": {"type": "OS::Heat::None"}}}}"#;
        for line in [
            case.to_owned(),
            format!(r#"{{"case": {case}, "expected": {{"anything": [1]}}}}"#),
            format!(r#"{{"expected": [{{"case": 1}}], "c\u0061se": {case}}}"#),
            format!(r#"{{"case": {case}, "expected": "#),
        ] {
            let result = rendered(&line).unwrap();
            assert_eq!(result["resources"]["r"]["type"], "OS::Heat::None", "{line}");
        }
        assert!(rendered(&case[..case.len() - 1]).is_err());
        assert!(rendered(&format!(r#"{{"case": {}"#, &case[..case.len() - 1])).is_err());
        assert!(rendered(r#"{"case": null}"#).unwrap()["error"].is_object());
        assert!(rendered("[]").unwrap()["error"].is_object());
    }
}
