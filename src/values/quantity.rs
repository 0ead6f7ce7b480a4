//! Kubernetes quantities: `512Mi`, `20Gi`, `1.5`.

use std::fmt;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub i64);

/// Bytes in one MiB.
pub const MIB: i64 = 1 << 20;
/// Bytes in one GiB.
pub const GIB: i64 = 1 << 30;

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with one of Kubernetes' suffixes.
    #[error("`{0}` is not a quantity; write it as 512Mi, 20Gi or 1.5")]
    Malformed(String),
    /// Below zero, or above what 63 bits hold.
    #[error("`{0}` is out of range")]
    OutOfRange(String),
}

impl Bytes {
    /// Reads a Kubernetes quantity as bytes; fractions of a byte round up, as
    /// Kubernetes does.
    ///
    /// # Errors
    /// When the text is malformed, negative or too big.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let milli = parse_thousandths(text)?;
        let bytes = (milli + 999) / 1000;
        i64::try_from(bytes)
            .map(Self)
            .map_err(|_| QuantityError::OutOfRange(text.to_owned()))
    }

    /// Whole MiB, rounded up.
    #[must_use]
    pub fn mib(self) -> i64 {
        (self.0 + MIB - 1) / MIB
    }

    /// Whole GiB, rounded up.
    #[must_use]
    pub fn gib(self) -> i64 {
        (self.0 + GIB - 1) / GIB
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n != 0 && n % GIB == 0 => write!(f, "{}Gi", n / GIB),
            n if n != 0 && n % MIB == 0 => write!(f, "{}Mi", n / MIB),
            n => write!(f, "{n}"),
        }
    }
}

/// Reads a quantity as thousandths, for ratios: `1.5` is 1500.
///
/// # Errors
/// When the text is malformed, negative or too big.
pub fn parse_milli(text: &str) -> Result<i64, QuantityError> {
    i64::try_from(parse_thousandths(text)?).map_err(|_| QuantityError::OutOfRange(text.to_owned()))
}

/// Reads a figure that may be below zero as thousandths, for multipliers: `-1.5` is -1500.
///
/// # Errors
/// When the text is malformed or too big.
pub fn parse_signed_milli(text: &str) -> Result<i64, QuantityError> {
    match text.strip_prefix('-') {
        Some(figure) => parse_milli(figure).map(|n| -n),
        None => parse_milli(text),
    }
}

fn parse_thousandths(text: &str) -> Result<i128, QuantityError> {
    let malformed = || QuantityError::Malformed(text.to_owned());
    let out_of_range = || QuantityError::OutOfRange(text.to_owned());
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-'));
    let (number, suffix) = text.split_at(split.unwrap_or(text.len()));
    let number = number.strip_prefix('+').unwrap_or(number);
    if number.starts_with('-') {
        return Err(out_of_range());
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return Err(malformed());
    }
    if whole.len() > 18 || fraction.len() > 9 {
        return Err(out_of_range());
    }
    // (numerator, denominator) of the suffix, in thousandths.
    let (mul, div): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        _ => return Err(malformed()),
    };
    let scale = 10_i128.pow(u32::try_from(fraction.len()).map_err(|_| out_of_range())?);
    let joined: i128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| malformed())?;
    let value = joined.checked_mul(mul).ok_or_else(out_of_range)?;
    let div = div * scale;
    Ok((value + div - 1) / div)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("512Mi", 512 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("1G", 1_000_000_000),
            ("100", 100),
            ("1500m", 2),
            ("0", 0),
            (".5Ki", 512),
        ] {
            assert_eq!(Bytes::parse(text), Ok(Bytes(bytes)), "{text}");
        }
        assert_eq!(parse_milli("1.5"), Ok(1500));
        assert_eq!(parse_milli("16"), Ok(16_000));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "Mi", "1 Gi", "1MiB", "1e", "0x10", "1.2.3", "."] {
            assert!(
                matches!(Bytes::parse(text), Err(QuantityError::Malformed(_))),
                "{text}"
            );
        }
        for text in ["-1", "99999999999999999999", "10000Pi"] {
            assert!(
                matches!(Bytes::parse(text), Err(QuantityError::OutOfRange(_))),
                "{text}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            let _ = Bytes::parse(&text);
        }
    }
}
