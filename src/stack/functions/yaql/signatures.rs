//! The signatures of functions: yaql calls the overload that fits the arguments.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::parse::{Ast, Call};
use super::regexes;
use crate::value::Value;
use crate::{Error, Result};

/// The origin of a list, which decides what can be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A literal or a given list, with indexes.
    List,
    /// An iterator, as `select` returns it: without indexes, and never false.
    Iterator,
    /// Keys, items and sets, without indexes.
    Set,
    /// The values of a map, without indexes and length.
    Values,
    /// The result of `orderBy`: the same, and never false.
    Ordering,
}

/// Functions that return iterators.
const ITERATORS: [&str; 32] = [
    "accumulate",
    "append",
    "concat",
    "cycle",
    "delete",
    "distinct",
    "enumerate",
    "filter",
    "flatten",
    "generate",
    "groupBy",
    "insertMany",
    "join",
    "limit",
    "map",
    "range",
    "repeat",
    "replace",
    "replaceMany",
    "reverse",
    "searchAll",
    "select",
    "selectMany",
    "sequence",
    "skip",
    "skipWhile",
    "slice",
    "sliceWhere",
    "splitWhere",
    "take",
    "takeWhile",
    "where",
];

/// The shape of the list that the function `name` returns for a `subject`; `None` if it is the shape of
/// the value that was evaluated last.
pub(super) fn shape_of(name: &str, subject: Shape) -> Option<Shape> {
    Some(match name {
        "coalesce" | "switch" | "switchCase" | "assert" | "aggregate" | "reduce" => return None,
        "zip" | "zipLongest" => Shape::Iterator,
        "insert" | "memorize" | "defaultIfEmpty" if subject == Shape::List => Shape::List,
        "insert" | "memorize" | "defaultIfEmpty" => Shape::Iterator,
        "keys"
        | "items"
        | "toSet"
        | "set"
        | "union"
        | "intersect"
        | "difference"
        | "symmetricDifference"
        | "add"
        | "remove" => Shape::Set,
        "values" => Shape::Values,
        "orderBy" | "orderByDescending" | "thenBy" | "thenByDescending" => Shape::Ordering,
        name if ITERATORS.contains(&name) => Shape::Iterator,
        _ => Shape::List,
    })
}

/// The functions: `F` is called as one, `M` on a value. Of parameters: `i` is any list, `q` one
/// with places, `g` an iterator, `t` a set, `m` a map, `s` text, `S` text or nothing, `n` a
/// number, `N` that or nothing, `I` a whole number or boolean, `B` a boolean, `b` that or
/// nothing, `p` a pattern, `l` an expression, `r` a rule `key => value`, `o` anything. `=` stands
/// after those that may be left out, `*` before those that may be there more than once.
const TABLE: &str = "\
abs F op:n
accumulate M collection:i selector:l seed:o=
add M set:t *values:o
aggregate M collection:i selector:l seed:o=
all FM collection:i predicate:l=
any FM collection:i predicate:l=
append FM collection:i *args:o
assert M obj:o condition:l message:s=
bitwiseAnd F left:I right:I
bitwiseNot F arg:I
bitwiseOr F left:I right:I
bitwiseXor F left:I right:I
bool F value:o
call F name:s args:q kwargs:m receiver:o=
coalesce F *args:l
concat FM *collections:i
concat F *args:s
contains M collection:i value:o
containsKey M dict:m key:o
containsValue M dict:m value:o
count M collection:i
cycle M collection:i
def F name:s func:l
defaultIfEmpty M collection:i default:i
delete M dict:m *keys:o
delete M collection:i position:I count:I=
deleteAll M dict:m keys:i
dict F items:i
dict F *args:r
difference M left:t right:t
distinct FM collection:i keySelector:l=
endsWith M string:s *suffixes:s
enumerate FM collection:i start:I=
escapeRegex F string:s
filter M collection:i predicate:l
first M collection:i default:o=
flatten M collection:i
float F value:o
generate F initial:o predicate:l producer:l selector:l= decycle:B=
generateMany F initial:o producer:l selector:l= decycle:B= depthFirst:B=
get M dict:m key:o default:o=
groupBy M collection:i keySelector:l valueSelector:l= aggregator:l=
hex F num:N
indexOf M string:s sub:s start:I=
indexOf M collection:i item:o
indexOf M string:s sub:s start:I length:I
indexWhere M collection:i predicate:l
insert M collection:i position:I value:o
insert M collection:q position:I value:o
insertMany M collection:i position:I values:i
int F value:o
intersect M left:t right:t
isBoolean F value:o
isDict F arg:o
isEmpty FM string:S trim:B= chars:S=
isInteger F value:o
isIterable F value:o
isList F arg:o
isNumber F value:o
isRegex F value:o
isSet F arg:o
isString F arg:o
items M dict:m
join M collection1:i collection2:i predicate:l selector:l
join M separator:s sequence:i
join M sequence:i separator:s
keys M dict:m
last M collection:i default:o=
lastIndexOf M collection:i item:o
lastIndexOf M string:s sub:s start:I length:I
lastIndexOf M string:s sub:s start:I=
lastIndexWhere M collection:i predicate:l
len FM string:s
len FM collection:g
len FM set:t
len FM dict:m
len FM sequence:q
limit M collection:i count:I
list F *args:o
map M collection:i selector:l
matches M string:s regexp:s
matches M regexp:p string:s
max F a:o b:o
max M collection:i initial:o=
memorize M collection:i
mergeWith M dict:m another:m listMerger:l= itemMerger:l= maxLevels:I=
min M collection:i initial:o=
min F a:o b:o
norm FM string:S chars:S=
orderBy M collection:i selector:l
orderByDescending M collection:i selector:l
pow F a:n b:n c:N=
range F stop:I
range F start:I stop:I step:I=
reduce M collection:i selector:l seed:o=
regex F pattern:s ignoreCase:b= multiLine:b= dotAll:b=
remove M set:t *values:o
repeat M value:o times:I=
replace M string:s regexp:p repl:s count:I=
replace M string:s old:s new:s count:I=
replace M regexp:p string:s repl:s count:I=
replace M string:s replacements:m count:I=
replace M collection:i position:I value:o count:I=
replaceBy M string:s regexp:p repl:l count:I=
replaceBy M regexp:p string:s repl:l count:I=
replaceMany M collection:i position:I values:i count:I=
reverse M collection:i
rightSplit M string:s separator:S= maxSplits:I=
round F number:n ndigits:I=
search M regexp:p string:s selector:l=
searchAll M regexp:p string:s selector:l=
select M collection:i selector:l
selectAllCases F *args:l
selectCase F *args:l
selectMany M collection:i selector:l
sequence F start:I= step:I=
set M dict:m *args:r
set M dict:m replacements:m
set M dict:m key:o value:o
set F *args:o
shiftBitsLeft F value:I bitsNumber:I
shiftBitsRight F value:I bitsNumber:I
sign F num:n
single M collection:i
skip M collection:i count:I
skipWhile M collection:i predicate:l
slice M collection:i length:I
sliceWhere M collection:i predicate:l
split M string:s separator:S= maxSplits:I=
split M regexp:p string:s maxSplit:I=
split M string:s regexp:p maxSplit:I=
splitAt M collection:i index:I
splitWhere M collection:i predicate:l
startsWith M string:s *prefixes:s
str F value:o
substring M string:s start:I length:I=
sum M collection:i initial:o=
switch F *args:r
switchCase M case:I *args:l
symmetricDifference M left:t right:t
take M collection:i count:I
takeWhile M collection:i predicate:l
toCharArray M string:s
toDict M collection:i keySelector:l valueSelector:l=
toList M collection:i
toLower M string:s
toSet M collection:i
toUpper M string:s
trim M string:s chars:S=
trimLeft M string:s chars:S=
trimRight M string:s chars:S=
union M left:t right:t
values M dict:m
where M collection:i predicate:l
zip M *collections:i
zipLongest M *collections:i **kwargs:o";

#[derive(Debug)]
pub(super) struct Parameter {
    name: &'static str,
    kind: char,
    optional: bool,
    many: bool,
    named: bool,
}

/// One of the functions of a name.
#[derive(Debug)]
pub(super) struct Overload {
    function: bool,
    method: bool,
    parameters: Vec<Parameter>,
}

fn table() -> &'static HashMap<&'static str, Vec<Overload>> {
    static MADE: OnceLock<HashMap<&'static str, Vec<Overload>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut table: HashMap<_, Vec<Overload>> = HashMap::new();
        for line in TABLE.lines() {
            let mut words = line.split(' ');
            let (name, kinds) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let parameter = |word: &'static str| {
                let (name, kind) = word.split_once(':').unwrap_or((word, "o"));
                Parameter {
                    name: name.trim_start_matches('*'),
                    kind: kind.chars().next().unwrap_or('o'),
                    optional: kind.ends_with('='),
                    many: name.starts_with('*') && !name.starts_with("**"),
                    named: name.starts_with("**"),
                }
            };
            table.entry(name).or_default().push(Overload {
                function: kinds.contains('F'),
                method: kinds.contains('M'),
                parameters: words.map(parameter).collect(),
            });
        }
        table
    })
}

/// The error for a function that does not exist.
pub(super) fn lacking(name: &str) -> Error {
    Error::new(format!("yaql has no function `{name}` for this here"))
}

static LEFT_OUT: Ast = Ast::Constant(Value::Null);

/// The arguments of `call`, those with names in their places, and the functions that take as
/// many.
///
/// # Errors
/// When there is no such function.
pub(super) fn arrange(call: &Call) -> Result<(Vec<&Ast>, Vec<&'static Overload>)> {
    let method = call.receiver.is_some();
    let all = table().get(call.name.as_str());
    let all = all.ok_or_else(|| lacking(&call.name))?;
    let mut arranged = None;
    let mut fitting = Vec::new();
    for overload in all {
        if !(if method {
            overload.method
        } else {
            overload.function
        }) {
            continue;
        }
        if let Some(arguments) = overload.place(call, usize::from(method)) {
            arranged.get_or_insert(arguments);
            fitting.push(overload);
        }
    }
    arranged
        .map(|arguments| (arguments, fitting))
        .ok_or_else(|| lacking(&call.name))
}

impl Overload {
    fn place<'c>(&self, call: &'c Call, before: usize) -> Option<Vec<&'c Ast>> {
        let mut arguments: Vec<&Ast> = call.arguments.iter().collect();
        let many = self.parameters.iter().any(|parameter| parameter.many);
        let usual = self.parameters.iter().filter(|p| !p.named);
        let usual: Vec<_> = usual.collect();
        if !many && before + arguments.len() > usual.len() {
            return None;
        }
        for (name, argument) in &call.named {
            let Some(at) = usual.iter().position(|p| p.name == name && !p.many) else {
                if self.parameters.iter().any(|parameter| parameter.named) {
                    continue;
                }
                return None;
            };
            let at = at.checked_sub(before)?;
            if arguments
                .get(at)
                .is_some_and(|there| !std::ptr::eq(*there, &raw const LEFT_OUT))
            {
                return None;
            }
            while arguments.len() <= at {
                arguments.push(&LEFT_OUT);
            }
            arguments[at] = argument;
        }
        let needed = usual.iter().filter(|p| !p.optional && !p.many).count();
        let given = before + arguments.len();
        (given >= needed).then_some(arguments)
    }

    fn parameter(&self, at: usize) -> Option<&Parameter> {
        let last = self.parameters.iter().find(|parameter| parameter.many);
        self.parameters.get(at).filter(|p| !p.named).or(last)
    }

    /// Whether the argument at a place may be `value`.
    pub(super) fn takes(&self, at: usize, value: &Value, shape: Shape) -> bool {
        self.parameter(at).is_some_and(|parameter| {
            (parameter.optional && value.is_null() && parameter.kind != 'i')
                || fits(parameter.kind, value, shape)
        })
    }
}

fn fits(kind: char, value: &Value, shape: Shape) -> bool {
    let pattern = regexes::is(value);
    match kind {
        'i' => value.is_array(),
        'q' => value.is_array() && shape == Shape::List,
        'g' => value.is_array() && shape == Shape::Iterator,
        't' => value.is_array() && shape == Shape::Set,
        'm' => value.is_object() && !pattern,
        's' => value.is_string(),
        'S' => value.is_string() || value.is_null(),
        'n' => value.is_number(),
        'N' => value.is_number() || value.is_null(),
        'I' => value.is_i64() || value.is_u64() || value.is_boolean(),
        'B' => value.is_boolean(),
        'b' => value.is_boolean() || value.is_null(),
        'p' => pattern,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_line_of_the_table_is_parsed() {
        for (name, overloads) in table() {
            for overload in overloads {
                assert!(overload.function || overload.method, "{name}");
                for parameter in &overload.parameters {
                    assert!("iqgtmsSnNIBbplro".contains(parameter.kind), "{name}");
                }
            }
        }
        for name in ITERATORS {
            assert!(table().contains_key(name), "{name}");
        }
    }
}
