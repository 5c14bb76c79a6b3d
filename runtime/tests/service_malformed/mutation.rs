//! Makes malformed messages of good ones, on the wire: it needs no schema, so every field of every message is reached.
//!
//! A message is read as a list of fields; a field of bytes that reads as a message again may be one, and is changed
//! inside. Repeatable by the seed of its random numbers.

/// xorshift64*: a run can be repeated by its seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }
}

#[derive(Clone, Debug)]
enum Value {
    Number(u64),
    Eight([u8; 8]),
    Four([u8; 4]),
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Field {
    number: u64,
    value: Value,
}

/// Numbers at the edges of what a field holds, as the kernel and as Rust count.
const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    63,
    99,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX,
    u64::MAX - 1,
];

/// Texts that break parsers and paths; `%` stands for the name that the test looks for afterwards.
const TEXTS: [&str; 22] = [
    "",
    "\0",
    "a\0%",
    "../../../../../../%",
    "/../../../%/..",
    "/%/../%",
    "..",
    ".",
    "/",
    "//",
    "-",
    "--help",
    "%s%n%x",
    "a b\tc\nd",
    "\u{202e}\u{1f98a}\u{feff}",
    "Localhost/../../%",
    "unix:///%",
    "sha256:%",
    "18446744073709551616",
    "-9223372036854775808",
    "{\"a\":[[[[[[[[",
    "10.0.0.0/99",
];

/// A change of a message; `mark` is part of every name that the change makes up.
pub(crate) fn mutate(message: &[u8], mark: &str, random: &mut Random) -> Vec<u8> {
    let mut bytes = message.to_vec();
    // One change is what gets furthest in.
    let changes = [1, 1, 1, 2, 3][random.below(5)];
    for _ in 0..changes {
        bytes = match (parse(&bytes), random.below(16)) {
            (Some(fields), 0..=14) if !fields.is_empty() => write(&change(fields, mark, random)),
            _ => spoil(bytes, random),
        };
    }
    bytes
}

fn change(mut fields: Vec<Field>, mark: &str, random: &mut Random) -> Vec<Field> {
    let at = random.below(fields.len());
    match random.below(10) {
        0 => drop(fields.remove(at)),
        1 => {
            let copy = fields[at].clone();
            fields.push(copy);
        }
        // A message in the place of a number, a number in the place of a text, a field that nobody knows.
        2 => fields[at].value = other_kind(mark, random),
        3 => fields[at].number = 1 + random.below(40) as u64,
        _ => {
            fields[at].value = match fields[at].value.clone() {
                Value::Bytes(bytes) => match parse(&bytes).filter(|inner| !inner.is_empty()) {
                    Some(inner) if random.below(8) > 0 => Value::Bytes(write(&change(inner, mark, random))),
                    _ => Value::Bytes(text(mark, random)),
                },
                Value::Number(_) => Value::Number(NUMBERS[random.below(NUMBERS.len())]),
                other => other,
            };
        }
    }
    fields
}

fn other_kind(mark: &str, random: &mut Random) -> Value {
    match random.below(4) {
        0 => Value::Number(NUMBERS[random.below(NUMBERS.len())]),
        1 => Value::Eight([0xff; 8]),
        2 => Value::Four([0x80; 4]),
        _ => Value::Bytes(text(mark, random)),
    }
}

fn text(mark: &str, random: &mut Random) -> Vec<u8> {
    match random.below(26) {
        0 => "x".repeat(70_000).into_bytes(),
        1 => format!("/{mark}").repeat(300).into_bytes(),
        2 => vec![0xff, 0xfe, 0x80],
        3 => "a/".repeat(3000).into_bytes(),
        _ => TEXTS[random.below(TEXTS.len())].replace('%', mark).into_bytes(),
    }
}

/// Bytes that are no message, or a cut one.
fn spoil(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    match random.below(4) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => {
            for _ in 0..=random.below(8) {
                let at = random.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
        // A length past the end.
        2 => bytes.extend([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        _ => bytes = (0..random.below(200)).map(|_| random.below(256) as u8).collect(),
    }
    bytes
}

fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => Value::Eight(take(&mut bytes, 8)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, length)?.to_vec())
            }
            5 => Value::Four(take(&mut bytes, 4)?.try_into().ok()?),
            _ => return None,
        };
        if key >> 3 == 0 {
            return None;
        }
        fields.push(Field { number: key >> 3, value });
    }
    Some(fields)
}

fn write(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        let kind = match field.value {
            Value::Number(_) => 0,
            Value::Eight(_) => 1,
            Value::Bytes(_) => 2,
            Value::Four(_) => 5,
        };
        put_varint(&mut bytes, field.number << 3 | kind);
        match &field.value {
            Value::Number(number) => put_varint(&mut bytes, *number),
            Value::Eight(eight) => bytes.extend(eight),
            Value::Four(four) => bytes.extend(four),
            Value::Bytes(inner) => {
                put_varint(&mut bytes, inner.len() as u64);
                bytes.extend(inner);
            }
        }
    }
    bytes
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}
