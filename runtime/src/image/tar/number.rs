//! The fields of a tar header: octal and base-256 numbers, texts, the header's check sum. Pure functions.

use std::io;

use super::{BLOCK, invalid};

/// A text field up to its first zero byte.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// A number that cannot be negative.
pub(super) fn number(field: &[u8]) -> io::Result<u64> {
    u64::try_from(signed(field)?).map_err(|_| invalid("a number in a tar header is negative"))
}

/// A time, which may lie before 1970.
pub(super) fn time(field: &[u8]) -> io::Result<i64> {
    signed(field)
}

fn signed(field: &[u8]) -> io::Result<i64> {
    let out_of_range = || invalid("a number in a tar header is past 63 bits");
    if field[0] & 0x80 != 0 {
        // GNU base-256: two's complement whose top bit is the mark.
        let mut value: i128 = if field[0] & 0x40 != 0 { -1 } else { 0 };
        for (index, &byte) in field.iter().enumerate() {
            let byte = match (index, field[0] & 0x40 != 0) {
                (0, false) => byte & 0x7f,
                _ => byte,
            };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| out_of_range());
    }
    let digits = text(field).trim_ascii();
    let mut value = 0_i64;
    for &digit in digits {
        let digit = match digit {
            b'0'..=b'7' => i64::from(digit - b'0'),
            _ => return Err(invalid("a number in a tar header is not octal")),
        };
        value = value.checked_mul(8).and_then(|v| v.checked_add(digit)).ok_or_else(out_of_range)?;
    }
    Ok(value)
}

/// Compares the header with its sum, computed as if the sum itself were spaces, bytes unsigned or signed.
pub(super) fn check_sum(block: &[u8; BLOCK]) -> io::Result<()> {
    // Text that is no number is no check sum either.
    let wanted = signed(&block[148..156]).ok();
    let sum = |value: fn(u8) -> i64| -> i64 {
        let fields = block.iter().enumerate();
        fields.map(|(i, &b)| value(if (148..156).contains(&i) { b' ' } else { b })).sum()
    };
    if wanted == Some(sum(i64::from)) || wanted == Some(sum(|b| i64::from(b.cast_signed()))) {
        return Ok(());
    }
    Err(invalid("not a tar header: its check sum does not match"))
}
