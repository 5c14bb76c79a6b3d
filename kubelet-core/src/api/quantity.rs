//! Resource quantities: `100m`, `1.5Gi`, `2e3`; the grammar of apimachinery's `resource.Quantity`.

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

/// A quantity, kept as it was written, with its value in thousandths. Equal values are equal however they are
/// written: an API server writes `1` for `1000m`.
#[derive(Clone, Debug)]
pub struct Quantity {
    text: Box<str>,
    /// Thousandths of a unit; saturates at the bounds of i128, rounds up below a thousandth.
    milli: i128,
}

/// Why a text is no quantity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', got {text:?}"
)]
pub struct ParseQuantityError {
    text: String,
}

impl Quantity {
    /// Whole units, rounded up as `Quantity.Value` does; saturates.
    pub fn value(&self) -> i64 {
        clamp(div_ceil(self.milli, 1000))
    }

    /// Thousandths of a unit, rounded up; saturates.
    pub fn milli_value(&self) -> i64 {
        clamp(self.milli)
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.milli == 0
    }

    /// The text it was written as.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// A number of bytes as the API writes it: `3884676Ki`; what is no multiple of 1024 without a suffix.
    pub fn from_bytes(value: i64) -> Self {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let (mut number, mut power) = (value, 0);
        while number != 0 && number % 1024 == 0 && power + 1 < SUFFIXES.len() {
            number /= 1024;
            power += 1;
        }
        Self { text: format!("{number}{}", SUFFIXES[power]).into(), milli: i128::from(value) * 1000 }
    }

    /// Thousandths of a unit as the API writes them: `1900m`, `2`.
    pub fn from_milli(milli: i64) -> Self {
        let text = if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") };
        Self { text: text.into(), milli: i128::from(milli) }
    }

    /// Whether both are the same amount, however they are written.
    pub fn is_same_amount(&self, other: &Self) -> bool {
        self.milli == other.milli
    }

    /// Whether it is written in powers of 1024, such as `64Mi`.
    pub fn is_binary(&self) -> bool {
        self.text.ends_with('i')
    }

    /// Thousandths of a unit in the shortest form that an API server writes: with a suffix of powers of 1024 or of
    /// 1000.
    pub fn canonical(milli: i128, binary: bool) -> Self {
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        const DECIMAL: [&str; 8] = ["m", "", "k", "M", "G", "T", "P", "E"];
        let units = milli / 1000;
        let is_binary = binary && milli % 1000 == 0 && units.abs() >= 1024;
        let (mut value, base, suffixes) =
            if is_binary { (units, 1024, &BINARY[..]) } else { (milli, 1000, &DECIMAL[..]) };
        let mut power = 0;
        while value != 0 && value % base == 0 && power + 1 < suffixes.len() {
            value /= base;
            power += 1;
        }
        let suffix = if value == 0 { "" } else { suffixes[power] };
        Self { text: format!("{value}{suffix}").into(), milli }
    }

    /// A quantity of whole units.
    pub fn from_value(value: i64) -> Self {
        Self { text: value.to_string().into(), milli: i128::from(value) * 1000 }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.milli == other.milli
    }
}

impl Eq for Quantity {}

impl Default for Quantity {
    fn default() -> Self {
        Self::from_value(0)
    }
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let milli = parse_milli(text).ok_or_else(|| ParseQuantityError { text: text.to_owned() })?;
        Ok(Self { text: text.into(), milli })
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn div_ceil(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

/// The value in thousandths, or `None` if the text is no quantity.
fn parse_milli(text: &str) -> Option<i128> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (multiplier, exponent) = scale(suffix)?;
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let mantissa: i128 = if digits.is_empty() {
        0
    } else if digits.len() > 27 {
        return Some(if negative { i128::MIN / 2 } else { i128::MAX / 2 });
    } else {
        digits.parse().ok()?
    };
    let shift = exponent + 3 - i32::try_from(fraction.len()).ok()?;
    let scaled = mantissa.saturating_mul(multiplier);
    let milli = if shift >= 0 {
        scaled.saturating_mul(10_i128.saturating_pow(u32::try_from(shift).ok()?))
    } else {
        let divisor = 10_i128.saturating_pow(u32::try_from(-shift).ok()?);
        div_ceil(scaled, divisor)
    };
    Some(if negative { -milli } else { milli })
}

/// Multiplier and power of ten of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(power) = BINARY.iter().position(|s| *s == suffix) {
        return Some((1 << (10 * (power + 1)), 0));
    }
    let exponent = match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "" => 0,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        _ => suffix.strip_prefix(['e', 'E'])?.parse().ok().filter(|e: &i32| e.abs() <= 30)?,
    };
    Some((1, exponent))
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map_err(D::Error::custom),
            serde_json::Value::Number(number) => number.to_string().parse().map_err(D::Error::custom),
            other => Err(D::Error::custom(format_args!("a quantity is a string or a number, got {other}"))),
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}
