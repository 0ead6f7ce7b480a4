//! Nova's hint `query`: a condition on a host, written as JSON.

use serde_json::Value;

use crate::placement::snapshot::Host;

/// A parsed query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// All of them are true.
    And(Vec<Query>),
    /// Any of them is true.
    Or(Vec<Query>),
    /// None of them is true.
    Not(Vec<Query>),
    /// Compares the first operand with each of the others: `=`, `<`, `>`, `<=`, `>=`, `in`.
    Compare(String, Vec<String>),
}

/// Deepest nesting that is accepted.
const MAX_DEPTH: usize = 16;

impl Query {
    /// Parses a query, such as `["and", [">=", "$free_ram_mb", 1024]]`.
    ///
    /// # Errors
    /// If it is invalid; the text says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
        Self::read(&value, MAX_DEPTH)
    }

    fn read(value: &Value, depth: usize) -> Result<Self, String> {
        if depth == 0 {
            return Err(format!("is nested deeper than {MAX_DEPTH}"));
        }
        let Some([Value::String(operator), rest @ ..]) = value.as_array().map(Vec::as_slice) else {
            return Err(format!(
                "has `{value}` where a list that begins with an operator is expected"
            ));
        };
        let all = || -> Result<Vec<Self>, String> {
            rest.iter().map(|v| Self::read(v, depth - 1)).collect()
        };
        match operator.as_str() {
            "and" => Ok(Self::And(all()?)),
            "or" => Ok(Self::Or(all()?)),
            "not" => Ok(Self::Not(all()?)),
            "=" | "<" | ">" | "<=" | ">=" | "in" if rest.len() >= 2 => {
                let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                Ok(Self::Compare(
                    operator.clone(),
                    rest.iter().map(text).collect(),
                ))
            }
            "=" | "<" | ">" | "<=" | ">=" | "in" => {
                Err(format!("gives `{operator}` less than two operands"))
            }
            _ => Err(format!("has the unknown operator `{operator}`")),
        }
    }

    /// Whether it is true for `host`.
    #[must_use]
    pub fn matches(&self, host: Host<'_>) -> bool {
        match self {
            Self::And(all) => all.iter().all(|q| q.matches(host)),
            Self::Or(any) => any.iter().any(|q| q.matches(host)),
            Self::Not(none) => !none.iter().any(|q| q.matches(host)),
            Self::Compare(operator, operands) => {
                let values: Option<Vec<String>> = operands.iter().map(|o| value(host, o)).collect();
                let Some([first, rest @ ..]) = values.as_deref() else {
                    return false;
                };
                let compare = |other: &String| match (first.parse::<i64>(), other.parse::<i64>()) {
                    (Ok(a), Ok(b)) => a.cmp(&b),
                    _ => first.cmp(other),
                };
                match operator.as_str() {
                    "in" => rest.contains(first),
                    "=" => rest.iter().all(|o| compare(o).is_eq()),
                    "<" => rest.iter().all(|o| compare(o).is_lt()),
                    ">" => rest.iter().all(|o| compare(o).is_gt()),
                    "<=" => rest.iter().all(|o| compare(o).is_le()),
                    _ => rest.iter().all(|o| compare(o).is_ge()),
                }
            }
        }
    }
}

/// The literal, or the value of one of Nova's `$variable`s for the host; `None` if the host has
/// none.
fn value(host: Host<'_>, operand: &str) -> Option<String> {
    let Some(variable) = operand.strip_prefix('$') else {
        return Some(operand.to_owned());
    };
    let figure = match variable {
        "free_ram_mb" => host.free(1),
        "free_disk_mb" => host.free(2).saturating_mul(1024),
        "total_usable_ram_mb" => host.capacity(1),
        "total_usable_disk_gb" => host.capacity(2),
        "vcpus_total" => host.capacity(0),
        "vcpus_free" => host.free(0),
        "num_instances" => host.servers(),
        "num_io_ops" => host.busy(),
        "host" | "hypervisor_hostname" => return Some(host.name().to_owned()),
        "hypervisor_type" => return Some(host.profile().virt_type.clone()),
        _ => return host.profile().capabilities.get(variable).cloned(),
    };
    Some(figure.to_string())
}
