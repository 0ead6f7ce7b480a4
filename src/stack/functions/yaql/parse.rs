//! Expressions into trees.

use crate::value::Value;
use crate::{Error, Result};

/// How deep an expression may nest.
const MAX_DEPTH: usize = 60;

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ast {
    Constant(Value),
    /// `$`, `$1`, `$name`; without the dollar.
    Variable(String),
    List(Vec<Ast>),
    Map(Vec<(Ast, Ast)>),
    Unary(&'static str, Box<Ast>),
    Binary(&'static str, Box<Ast>, Box<Ast>),
    /// `receiver.name`, `receiver?.name`
    Member(Box<Ast>, String, bool),
    Index(Box<Ast>, Vec<Ast>),
    /// `key => value` among arguments.
    Rule(Box<Ast>, Box<Ast>),
    Call(Call),
}

/// A function's call, on a receiver or without.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub receiver: Option<Box<Ast>>,
    /// `?.`: nothing gives nothing.
    pub safe: bool,
    pub name: String,
    pub arguments: Vec<Ast>,
    pub named: Vec<(String, Ast)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Number(Value),
    Text(String),
    Word(String),
    /// A name with its opening parenthesis.
    Function(String),
    Variable(String),
    Symbol(&'static str),
}

/// Longest first, so that `<=` is not `<` and `=`.
const SYMBOLS: [&str; 27] = [
    "=>", "->", "?.", "=~", "!~", ">=", "<=", "!=", ".", "[", "]", "{", "}", "(", ")", ",", "+",
    "-", "*", "/", ">", "<", "=", "mod", "in", "and", "or",
];

/// Binary operators by how tight they bind, loosest first.
const LEVELS: [&[&str]; 7] = [
    &["->"],
    &["or"],
    &["and"],
    &[">", "<", ">=", "<=", "!=", "=", "in"],
    &["+", "-"],
    &["*", "/", "mod"],
    &["=~", "!~"],
];

/// The tree of `text`.
///
/// # Errors
/// When it is no expression; with the place.
pub(super) fn parse(text: &str) -> Result<Ast> {
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
    };
    let ast = parser.binary(0)?;
    match parser.tokens.get(parser.at) {
        None => Ok(ast),
        Some(token) => Err(bad(&format!("{token:?} is not expected"))),
    }
}

fn bad(what: &str) -> Error {
    Error::new(format!("not a yaql expression: {what}"))
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while let Some(&c) = chars.get(at) {
        let word =
            |from: usize| -> String { chars[from..].iter().take_while(|c| is_word(**c)).collect() };
        if c.is_whitespace() {
            at += 1;
        } else if c == '$' {
            let name = word(at + 1);
            at += 1 + name.chars().count();
            tokens.push(Token::Variable(name));
        } else if c.is_ascii_digit() {
            let (number, length) = number(&chars[at..]);
            at += length;
            tokens.push(Token::Number(
                number.ok_or_else(|| bad("a number too large"))?,
            ));
        } else if is_word(c) {
            let name = word(at);
            at += name.chars().count();
            if chars.get(at) == Some(&'(') {
                at += 1;
                tokens.push(Token::Function(name));
            } else if let Some(symbol) = SYMBOLS[23..].iter().find(|s| **s == name) {
                tokens.push(Token::Symbol(symbol));
            } else {
                tokens.push(Token::Word(name));
            }
        } else if matches!(c, '"' | '\'' | '`') {
            let (value, length) = quoted(&chars[at..], c)?;
            at += length;
            tokens.push(Token::Text(value));
        } else {
            let rest: String = chars[at..].iter().take(2).collect();
            let found = SYMBOLS[..23].iter().find(|s| rest.starts_with(**s));
            let symbol = found.ok_or_else(|| bad(&format!("`{c}` at {}", at + 1)))?;
            at += symbol.len();
            tokens.push(Token::Symbol(symbol));
        }
    }
    Ok(tokens)
}

fn number(chars: &[char]) -> (Option<Value>, usize) {
    let digits = |from: usize| {
        chars[from..]
            .iter()
            .take_while(|c| c.is_ascii_digit())
            .count()
    };
    let whole = digits(0);
    let fraction = match chars.get(whole) {
        Some('.') => digits(whole + 1),
        _ => 0,
    };
    let length = if fraction > 0 {
        whole + 1 + fraction
    } else {
        whole
    };
    let text: String = chars[..length].iter().collect();
    let value = if fraction > 0 {
        text.parse::<f64>().ok().map(Value::from)
    } else {
        text.parse::<i64>().ok().map(Value::from)
    };
    (value, length)
}

fn quoted(chars: &[char], quote: char) -> Result<(String, usize)> {
    let mut value = String::new();
    let mut at = 1;
    loop {
        let c = *chars.get(at).ok_or_else(|| bad("a quote is not closed"))?;
        at += 1;
        if c == quote {
            return Ok((value, at));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let next = *chars.get(at).ok_or_else(|| bad("a quote is not closed"))?;
        at += 1;
        if quote == '`' {
            if next != '`' {
                value.push('\\');
            }
            value.push(next);
            continue;
        }
        let mut hex = |length: usize| -> Result<char> {
            let text: String = chars.iter().skip(at).take(length).collect();
            at += length;
            u32::from_str_radix(&text, 16)
                .ok()
                .and_then(char::from_u32)
                .ok_or_else(|| bad("an escape that is no character"))
        };
        match next {
            'n' => value.push('\n'),
            't' => value.push('\t'),
            'r' => value.push('\r'),
            'a' => value.push('\u{7}'),
            'b' => value.push('\u{8}'),
            'f' => value.push('\u{c}'),
            'v' => value.push('\u{b}'),
            'x' => value.push(hex(2)?),
            'u' => value.push(hex(4)?),
            'U' => value.push(hex(8)?),
            '\\' | '\'' | '"' => value.push(next),
            other => value.extend(['\\', other]),
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self, symbol: &str) -> bool {
        matches!(self.tokens.get(self.at), Some(Token::Symbol(s)) if *s == symbol)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.peek(symbol);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: &str) -> Result<()> {
        if self.take(symbol) {
            Ok(())
        } else {
            Err(bad(&format!("`{symbol}` is missing")))
        }
    }

    fn binary(&mut self, level: usize) -> Result<Ast> {
        self.depth += 1;
        if self.depth > MAX_DEPTH * LEVELS.len() {
            return Err(bad("nested too deep"));
        }
        let result = self.binary_inner(level);
        self.depth -= 1;
        result
    }

    fn binary_inner(&mut self, level: usize) -> Result<Ast> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        // `not` binds looser than comparisons and tighter than `and`.
        if level == 3
            && matches!(self.tokens.get(self.at), Some(Token::Word(word)) if word == "not")
        {
            self.at += 1;
            return Ok(Ast::Unary("not", Box::new(self.binary(level)?)));
        }
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.peek(operator)) {
            self.at += 1;
            // `->` binds to the right.
            let right = self.binary(if level == 0 { 0 } else { level + 1 })?;
            left = Ast::Binary(operator, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Ast> {
        for sign in ["-", "+"] {
            if self.take(sign) {
                self.depth += 1;
                if self.depth > MAX_DEPTH * LEVELS.len() {
                    return Err(bad("nested too deep"));
                }
                let operand = self.unary()?;
                self.depth -= 1;
                let sign = if sign == "-" { "-" } else { "+" };
                return Ok(Ast::Unary(sign, Box::new(operand)));
            }
        }
        let mut value = self.primary()?;
        let mut length = 0;
        loop {
            length += 1;
            // A chain is a tree as deep as it is long.
            if length > MAX_DEPTH * 4 {
                return Err(bad("a chain too long"));
            }
            if self.take("[") {
                let indexes = self.list("]")?;
                value = Ast::Index(Box::new(value), indexes);
                continue;
            }
            let safe = self.peek("?.");
            if !self.take(".") && !self.take("?.") {
                return Ok(value);
            }
            match self.tokens.get(self.at).cloned() {
                Some(Token::Word(name)) => {
                    self.at += 1;
                    value = Ast::Member(Box::new(value), name, safe);
                }
                Some(Token::Function(name)) => {
                    self.at += 1;
                    value = self.call(name, Some(Box::new(value)), safe)?;
                }
                // Words that are operators elsewhere are names here.
                Some(Token::Symbol(name)) if SYMBOLS[23..].contains(&name) => {
                    self.at += 1;
                    value = Ast::Member(Box::new(value), name.to_owned(), safe);
                }
                _ => return Err(bad("a name is missing after `.`")),
            }
        }
    }

    fn primary(&mut self) -> Result<Ast> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        match token {
            Some(Token::Number(number)) => Ok(Ast::Constant(number)),
            Some(Token::Text(text)) => Ok(Ast::Constant(Value::from(text))),
            Some(Token::Variable(name)) => Ok(Ast::Variable(name)),
            Some(Token::Function(name)) => self.call(name, None, false),
            Some(Token::Word(word)) => Ok(Ast::Constant(match word.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                _ => Value::from(word),
            })),
            Some(Token::Symbol("(")) => {
                let inner = self.binary(0)?;
                self.expect(")")?;
                Ok(inner)
            }
            Some(Token::Symbol("[")) => self.list("]").map(Ast::List),
            Some(Token::Symbol("{")) => {
                let mut entries = Vec::new();
                if !self.take("}") {
                    loop {
                        let key = self.binary(0)?;
                        self.expect("=>")?;
                        entries.push((key, self.binary(0)?));
                        if self.take("}") {
                            break;
                        }
                        self.expect(",")?;
                    }
                }
                Ok(Ast::Map(entries))
            }
            Some(token) => Err(bad(&format!("{token:?} is not expected"))),
            None => Err(bad("it ends too early")),
        }
    }

    fn list(&mut self, end: &str) -> Result<Vec<Ast>> {
        let mut items = Vec::new();
        if self.take(end) {
            return Ok(items);
        }
        loop {
            items.push(self.binary(0)?);
            if self.take(end) {
                return Ok(items);
            }
            self.expect(",")?;
        }
    }

    fn call(&mut self, name: String, receiver: Option<Box<Ast>>, safe: bool) -> Result<Ast> {
        let mut arguments = Vec::new();
        let mut named = Vec::new();
        while !self.take(")") {
            // An argument left out is null.
            if self.take(",") {
                arguments.push(Ast::Constant(Value::Null));
                continue;
            }
            let argument = self.binary(0)?;
            if self.take("=>") {
                let value = self.binary(0)?;
                match argument {
                    key if matches!(name.as_str(), "dict" | "switch" | "set") => {
                        arguments.push(Ast::Rule(Box::new(key), Box::new(value)));
                    }
                    Ast::Constant(Value::String(key)) => named.push((key.into(), value)),
                    _ => return Err(bad("an argument's name is no name")),
                }
            } else {
                arguments.push(argument);
            }
            if !self.peek(")") {
                self.expect(",")?;
                if self.peek(")") {
                    return Err(bad("an argument is missing after `,`"));
                }
            }
        }
        Ok(Ast::Call(Call {
            receiver,
            safe,
            name,
            arguments,
            named,
        }))
    }
}
