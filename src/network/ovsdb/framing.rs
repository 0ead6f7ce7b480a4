//! Cuts a stream of bytes into JSON texts.
//!
//! RFC 7047 puts nothing between messages, so their ends are found by counting brackets
//! outside of strings. This finds only where a message ends; the parser decides whether it is
//! JSON.

use super::Error;

/// Collects bytes until they are whole messages.
#[derive(Debug)]
pub(super) struct Framer {
    buffer: Vec<u8>,
    /// How far `buffer` has been looked at.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    limit: usize,
}

impl Framer {
    /// A framer for messages of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            buffer: Vec::new(),
            scanned: 0,
            depth: 0,
            in_string: false,
            escaped: false,
            limit,
        }
    }

    /// Adds what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' if self.depth > 0 => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or_else(bytes_between_messages)?;
                    if self.depth == 0 {
                        let rest = self.buffer.split_off(self.scanned);
                        self.scanned = 0;
                        return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
                    }
                }
                b' ' | b'\n' | b'\r' | b'\t' => {}
                _ if self.depth == 0 => return Err(bytes_between_messages()),
                _ => {}
            }
        }
        if self.buffer.len() > self.limit {
            return Err(Error::TooLarge {
                size: self.buffer.len(),
                limit: self.limit,
            });
        }
        Ok(None)
    }
}

fn bytes_between_messages() -> Error {
    Error::Protocol("bytes between two messages".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(parts: &[&str], limit: usize) -> Result<Vec<String>, Error> {
        let mut framer = Framer::new(limit);
        let mut out = Vec::new();
        for part in parts {
            framer.push(part.as_bytes());
            while let Some(message) = framer.next()? {
                out.push(String::from_utf8(message).unwrap());
            }
        }
        Ok(out)
    }

    #[test]
    fn messages_are_cut_wherever_the_stream_is_split() {
        let text = r#"{"a":"}{\"","b":[1,{}]}{"c":"\\"}"#;
        for at in 0..=text.len() {
            let (left, right) = text.split_at(at);
            let messages = cut(&[left, right], 1000).unwrap();
            assert_eq!(
                messages,
                [r#"{"a":"}{\"","b":[1,{}]}"#, r#"{"c":"\\"}"#],
                "{at}"
            );
        }
    }

    #[test]
    fn a_message_over_the_limit_or_between_messages_is_an_error() {
        assert!(matches!(
            cut(&["{\"a\":\"xxxxxxxxxxxxxxx"], 10),
            Err(Error::TooLarge { .. })
        ));
        assert!(matches!(cut(&["{} hello"], 100), Err(Error::Protocol(_))));
        assert!(matches!(cut(&["}"], 100), Err(Error::Protocol(_))));
    }
}
