//! Evaluates syntax trees.

use std::borrow::Cow;
use std::cell::Cell;

use super::library;
use super::meter::Meter;
use super::parse::{Ast, Call};
use super::regexes;
use super::signatures::{Shape, shape_of};
use super::unique::Unique;
use crate::budget::Budget;
use crate::value::{Map, Number, Value};
use crate::{Error, Result, python_type};

/// How deep lambdas may nest.
const MAX_DEPTH: usize = 100;

/// The variables of an expression, and its budgets.
pub(super) struct Env<'e> {
    outer: Option<&'e Env<'e>>,
    names: Vec<(String, Value, Shape)>,
    /// The shape of the list that was evaluated last.
    shape: &'e Cell<Shape>,
    meter: &'e Meter<'e>,
    depth: usize,
    /// How many variables there are in all: looking for one costs as much.
    width: usize,
}

/// Evaluates `ast` where `$` is `root`.
pub(super) fn run(ast: &Ast, root: Value, stack: &Budget) -> Result<Value> {
    let env = Env {
        outer: None,
        names: vec![(String::new(), root, Shape::List)],
        shape: &Cell::new(Shape::List),
        meter: &Meter::of(stack),
        depth: 0,
        width: 1,
    };
    let value = env.eval(ast)?;
    let list = |item: &Value| item.is_array() || item.is_object();
    if env.shape() == Shape::Set && value.as_array().is_some_and(|items| items.iter().any(list)) {
        return Err(Error::new(
            "gives a set of lists or maps, of which there is none: make a list of it by `.toList()`",
        ));
    }
    Ok(value)
}

pub(super) fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(map) => map.values().map(size).sum(),
        Value::String(text) => text.len() / 64,
        _ => 0,
    }
}

impl<'e> Env<'e> {
    /// Takes the cost of this number of values from the budget.
    pub(super) fn spend(&self, cost: usize) -> Result<()> {
        self.meter.spend(cost)
    }

    /// What everything that costs is charged to.
    pub(super) fn meter(&self) -> &Meter<'e> {
        self.meter
    }

    /// The shape of the list that was evaluated last.
    pub(super) fn shape(&self) -> Shape {
        self.shape.get()
    }

    /// Whether the value that was evaluated last counts as true.
    pub(super) fn truthy(&self, value: &Value) -> bool {
        match value {
            Value::Array(_) if matches!(self.shape(), Shape::Iterator | Shape::Ordering) => true,
            value => truthy(value),
        }
    }

    /// Whether a lambda gives true for `arguments`.
    pub(super) fn test(&self, lambda: &Ast, arguments: &[&Value]) -> Result<bool> {
        let value = self.apply(lambda, arguments)?;
        Ok(self.truthy(&value))
    }

    fn with(&'e self, names: Vec<(String, Value, Shape)>) -> Result<Self> {
        if self.depth > MAX_DEPTH {
            return Err(Error::new("lambdas nest too deep"));
        }
        Ok(Self {
            outer: Some(self),
            width: self.width + names.len(),
            names,
            shape: self.shape,
            meter: self.meter,
            depth: self.depth + 1,
        })
    }

    /// Calls a lambda with `arguments`: `$` and `$1` are the first.
    pub(super) fn apply(&self, lambda: &Ast, arguments: &[&Value]) -> Result<Value> {
        self.spend(1 + arguments.iter().map(|value| size(value)).sum::<usize>())?;
        let mut names = Vec::with_capacity(arguments.len() + 1);
        if let Some(first) = arguments.first() {
            names.push((String::new(), (*first).clone(), Shape::List));
        }
        for (index, value) in arguments.iter().enumerate() {
            names.push(((index + 1).to_string(), (*value).clone(), Shape::List));
        }
        self.with(names)?.eval(lambda)
    }

    fn lookup(&self, name: &str) -> Option<(&Value, Shape)> {
        // `$` is `$1`.
        let same = |own: &str| own == name || (own.is_empty() && name == "1");
        let first = |own: &str| name.is_empty() && own == "1";
        let own = self.names.iter().rev();
        let own = own
            .clone()
            .find(|(n, ..)| same(n))
            .or_else(|| own.clone().find(|(n, ..)| first(n)));
        match (own, self.outer) {
            (Some((_, value, shape)), _) => Some((value, *shape)),
            (None, Some(outer)) => outer.lookup(name),
            (None, None) => None,
        }
    }

    /// The value without a copy, if it is a part of an existing value.
    fn borrow<'s>(&'s self, ast: &Ast) -> Result<Cow<'s, Value>> {
        match ast {
            Ast::Variable(name) => {
                self.spend(self.width / 8)?;
                let Some((value, shape)) = self.lookup(name) else {
                    return Ok(Cow::Owned(Value::Null));
                };
                self.shape.set(shape);
                Ok(Cow::Borrowed(value))
            }
            Ast::Member(receiver, name, safe) => {
                let value = self.borrow(receiver)?;
                // The member of a list is that of each item.
                self.shape.set(if value.is_array() {
                    Shape::Iterator
                } else {
                    Shape::List
                });
                match value {
                    Cow::Borrowed(Value::Object(map)) => match map.get(name) {
                        Some(value) => Ok(Cow::Borrowed(value)),
                        None => Err(no_key(name)),
                    },
                    value => {
                        // A list's items are all walked, whatever is taken of them then.
                        self.spend(value.as_array().map_or(0, |_| size(&value)))?;
                        member(&value, name, *safe).map(Cow::Owned)
                    }
                }
            }
            other => self.eval(other).map(Cow::Owned),
        }
    }

    /// The value of `ast`.
    pub(super) fn eval(&self, ast: &Ast) -> Result<Value> {
        self.spend(1)?;
        match ast {
            Ast::Constant(value) => Ok(value.clone()),
            Ast::Variable(_) | Ast::Member(..) => {
                let value = self.borrow(ast)?;
                self.spend(size(&value))?;
                Ok(value.into_owned())
            }
            Ast::List(items) => {
                let items = items.iter().map(|item| self.eval(item)).collect();
                self.shape.set(Shape::List);
                items
            }
            Ast::Rule(..) => Err(Error::new("`=>` has no place here")),
            Ast::Map(entries) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    map.insert(key_text(&self.eval(key)?)?, self.eval(value)?);
                }
                Ok(Value::Object(map))
            }
            Ast::Unary("not", operand) => {
                let value = self.eval(operand)?;
                Ok(Value::Bool(!self.truthy(&value)))
            }
            Ast::Unary(sign, operand) => {
                let value = self.eval(operand)?;
                if value.is_number() {
                    arithmetic(sign, &Value::from(0), &value)
                } else {
                    Err(wrong("a sign", &value))
                }
            }
            Ast::Binary(operator, left, right) => self.binary(operator, left, right),
            Ast::Index(receiver, indexes) => {
                let value = self.borrow(receiver)?;
                if value.is_array() && self.shape() != Shape::List {
                    return Err(Error::new(
                        "this has no places: make a list of it, `toList()`",
                    ));
                }
                let indexes = indexes
                    .iter()
                    .map(|index| self.eval(index))
                    .collect::<Result<Vec<_>>>()?;
                let found = index(&value, &indexes)?;
                self.spend(size(&found))?;
                self.shape.set(Shape::List);
                Ok(found)
            }
            Ast::Call(call) => self.call(call),
        }
    }

    fn call(&self, call: &Call) -> Result<Value> {
        let receiver = match &call.receiver {
            // `thenBy` is evaluated together with its `orderBy`.
            Some(inner) if call.name.starts_with("thenBy") => {
                let ordered = library::order(self, call, inner);
                self.shape.set(Shape::Ordering);
                return ordered;
            }
            Some(receiver) => Some(self.eval(receiver)?),
            None => None,
        };
        if call.safe && receiver == Some(Value::Null) {
            return Ok(Value::Null);
        }
        let subject = self.shape();
        let value = library::call(self, receiver, call)
            .map_err(|error| error.below(&format!("{}()", call.name)))?;
        if let Some(shape) = shape_of(&call.name, subject) {
            self.shape.set(shape);
        }
        self.spend(size(&value))?;
        Ok(value)
    }

    fn binary(&self, operator: &str, left: &Ast, right: &Ast) -> Result<Value> {
        match operator {
            "and" => {
                let value = self.eval(left)?;
                return if self.truthy(&value) {
                    self.eval(right)
                } else {
                    Ok(value)
                };
            }
            "or" => {
                let value = self.eval(left)?;
                return if self.truthy(&value) {
                    Ok(value)
                } else {
                    self.eval(right)
                };
            }
            "->" => return self.send(left, right),
            _ => {}
        }
        let left = self.eval(left)?;
        let first = self.shape();
        let right = self.eval(right)?;
        let second = self.shape();
        let lists = (left.is_array(), right.is_array());
        let written = (!lists.0 || first == Shape::List) && (!lists.1 || second == Shape::List);
        self.shape.set(match (first, second) {
            _ if written => Shape::List,
            (Shape::Set, Shape::Set) if operator == "-" => Shape::Set,
            _ => Shape::Iterator,
        });
        if !written && first == Shape::Set && second == Shape::Set {
            return sets(operator, &left, &right);
        }
        if !written {
            match operator {
                // An iterator equals no other value.
                "=" | "!=" => return Ok(Value::Bool(operator == "!=")),
                "*" => return Err(Error::new("`*` takes a list that has places")),
                _ => {}
            }
        }
        let value = match operator {
            "=~" | "!~" => {
                let found = regexes::matches(self.meter, &right, &left)?;
                Value::Bool(found == (operator == "=~"))
            }
            _ => {
                // Operands without a copy of their own were not paid for here.
                self.spend((size(&left) + size(&right)) / 8)?;
                operate(operator, &left, &right)?
            }
        };
        self.spend(size(&value))?;
        Ok(value)
    }

    /// `let(a => 1) -> $a`, `with(1, 2) -> $1 + $2`.
    fn send(&self, left: &Ast, right: &Ast) -> Result<Value> {
        let Ast::Call(call) = left else {
            return Err(Error::new("`->` comes after `let()` or `with()`"));
        };
        let mut names = Vec::new();
        match call.name.as_str() {
            "let" | "with" if call.receiver.is_none() => {
                for (index, argument) in call.arguments.iter().enumerate() {
                    let value = self.eval(argument)?;
                    if index == 0 && call.name == "with" {
                        names.push((String::new(), value.clone(), self.shape()));
                    }
                    names.push(((index + 1).to_string(), value, self.shape()));
                }
            }
            "unpack" => {
                let Some(receiver) = &call.receiver else {
                    return Err(Error::new("`unpack` takes a list"));
                };
                let list = self.eval(receiver)?;
                let list = list.as_array().cloned().unwrap_or_default();
                for (index, value) in list.into_iter().enumerate() {
                    let name = match call.arguments.get(index).map(|name| self.eval(name)) {
                        Some(name) => key_text(&name?)?,
                        None => (index + 1).to_string(),
                    };
                    names.push((name, value, Shape::List));
                }
            }
            _ => return Err(Error::new("`->` comes after `let()` or `with()`")),
        }
        for (name, argument) in &call.named {
            let value = self.eval(argument)?;
            names.push((name.clone(), value, self.shape()));
        }
        self.with(names)?.eval(right)
    }
}

/// Operators on two sets: subset tests, and the difference.
fn sets(operator: &str, left: &Value, right: &Value) -> Result<Value> {
    let (Value::Array(a), Value::Array(b)) = (left, right) else {
        return operate(operator, left, right);
    };
    let (all_of_a, all_of_b) = (Unique::of(a), Unique::of(b));
    let under = a.iter().all(|item| all_of_b.contains(item));
    let over = b.iter().all(|item| all_of_a.contains(item));
    Ok(Value::Bool(match operator {
        "=" => under && over,
        "!=" => !(under && over),
        "<" => under && !over,
        ">" => over && !under,
        "<=" => under,
        ">=" => over,
        "-" => {
            let left = a.iter().filter(|item| !all_of_b.contains(item));
            return Ok(left.cloned().collect());
        }
        _ => return operate(operator, left, right),
    }))
}

fn no_key(name: &str) -> Error {
    Error::new(format!("there is no key `{name}`"))
}

pub(super) fn wrong(what: &str, value: &Value) -> Error {
    Error::new(format!("{what} does not take {}", python_type(value)))
}

/// `value.name`: of a map, or of every item of a list.
fn member(value: &Value, name: &str, safe: bool) -> Result<Value> {
    match value {
        Value::Object(map) => map.get(name).cloned().ok_or_else(|| no_key(name)),
        Value::Array(items) => items.iter().map(|item| member(item, name, safe)).collect(),
        Value::Null if safe => Ok(Value::Null),
        other => Err(wrong(&format!("`.{name}`"), other)),
    }
}

fn index(value: &Value, indexes: &[Value]) -> Result<Value> {
    match (value, indexes) {
        (Value::Array(items), [at]) => {
            let at = at
                .as_i64()
                .ok_or_else(|| Error::new("a list's index must be a number"))?;
            let found = if at < 0 {
                let back = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
                items.len().checked_sub(back)
            } else {
                usize::try_from(at).ok()
            };
            found
                .and_then(|at| items.get(at).cloned())
                .ok_or_else(|| Error::new(format!("there is no item {at} of {}", items.len())))
        }
        (Value::Object(map), [key]) => {
            let key = key_text(key)?;
            map.get(&key).cloned().ok_or_else(|| no_key(&key))
        }
        (Value::Object(map), [key, default]) => {
            Ok(map.get(&key_text(key)?).unwrap_or(default).clone())
        }
        (other, _) => Err(wrong("an index", other)),
    }
}

/// Whether a value is true in Python.
pub(super) use crate::functions::python::truthy;

/// A map's key as text, as in JSON.
pub(super) fn key_text(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.to_string()),
        Value::Array(_) | Value::Object(_) => Err(wrong("a key", value)),
        other => Ok(other.to_string()),
    }
}

/// Whether two values are the same, as Python sees them.
pub(super) use crate::functions::python::equal;

/// The order of two values: numbers, or texts; nothing is less than anything.
pub(super) fn compare(left: &Value, right: &Value) -> Result<std::cmp::Ordering> {
    use std::cmp::Ordering;
    match (left, right) {
        (Value::Null, Value::Null) => Ok(Ordering::Equal),
        (Value::Null, _) => Ok(Ordering::Less),
        (_, Value::Null) => Ok(Ordering::Greater),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => (a.as_f64().partial_cmp(&b.as_f64()))
                .ok_or_else(|| Error::new("numbers that do not compare")),
        },
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        _ => Err(Error::new(format!(
            "{} and {} do not compare",
            python_type(left),
            python_type(right)
        ))),
    }
}

/// A binary operator on two values.
pub(super) fn operate(operator: &str, left: &Value, right: &Value) -> Result<Value> {
    use std::cmp::Ordering;
    let order = || compare(left, right);
    Ok(Value::Bool(match operator {
        "=" => equal(left, right),
        "!=" => !equal(left, right),
        ">" => order()? == Ordering::Greater,
        "<" => order()? == Ordering::Less,
        ">=" => order()? != Ordering::Less,
        "<=" => order()? != Ordering::Greater,
        "in" => match (left, right) {
            (Value::String(part), Value::String(text)) => text.contains(part.as_str()),
            (item, Value::Array(items)) => items.iter().any(|other| equal(item, other)),
            (_, other) => return Err(wrong("`in`", other)),
        },
        _ => return arithmetic(operator, left, right),
    }))
}

fn arithmetic(operator: &str, left: &Value, right: &Value) -> Result<Value> {
    match (operator, left, right) {
        ("+", Value::String(a), Value::String(b)) => Ok(Value::from(format!("{a}{b}"))),
        ("+", Value::Array(a), Value::Array(b)) => Ok(a.iter().chain(b).cloned().collect()),
        ("+", Value::Object(a), Value::Object(b)) => {
            let mut all = a.clone();
            all.extend(b.clone());
            Ok(Value::Object(all))
        }
        ("*", Value::String(text), Value::Number(n))
        | ("*", Value::Number(n), Value::String(text)) => {
            let times = times(n, text.len())?;
            Ok(Value::from(text.repeat(times)))
        }
        ("*", Value::Array(items), Value::Number(n))
        | ("*", Value::Number(n), Value::Array(items)) => {
            let times = times(n, items.len())?;
            Ok((0..times).flat_map(|_| items.iter().cloned()).collect())
        }
        (_, Value::Number(a), Value::Number(b)) => numbers(operator, a, b).map(Value::Number),
        _ => Err(Error::new(format!(
            "`{operator}` does not take {} and {}",
            python_type(left),
            python_type(right)
        ))),
    }
}

fn times(number: &Number, length: usize) -> Result<usize> {
    let times = number.as_i64().unwrap_or(0).max(0);
    usize::try_from(times)
        .ok()
        .filter(|times| times.saturating_mul(length) <= 1_000_000)
        .ok_or_else(|| Error::new("repeated too often"))
}

fn numbers(operator: &str, a: &Number, b: &Number) -> Result<Number> {
    let zero = || Error::new("a division by zero");
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
        let whole = match operator {
            "+" => a.checked_add(b),
            "-" => a.checked_sub(b),
            "*" => a.checked_mul(b),
            _ if b == 0 => return Err(zero()),
            // Python rounds down, also below zero.
            "/" => a
                .checked_div(b)
                .map(|q| q - i64::from(a % b != 0 && (a < 0) != (b < 0))),
            _ => a.checked_rem(b).map(|r| {
                if r != 0 && (r < 0) != (b < 0) {
                    r + b
                } else {
                    r
                }
            }),
        };
        return whole
            .map(Number::from)
            .ok_or_else(|| Error::new("a number too large"));
    }
    let (a, b) = (a.as_f64().unwrap_or(0.0), b.as_f64().unwrap_or(0.0));
    let value = match operator {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        _ if b == 0.0 => return Err(zero()),
        "/" => a / b,
        _ => a - b * (a / b).floor(),
    };
    Number::from_f64(value).ok_or_else(|| Error::new("a number too large"))
}
