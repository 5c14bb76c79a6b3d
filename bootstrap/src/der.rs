//! DER, as much of it as certificates and requests for them need. Pure.

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// One value with its tag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tlv<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// The whole value, header included.
    pub(crate) whole: &'a [u8],
}

/// Reads values one after the other.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next value; `None` at the end and on what is no DER.
    pub(crate) fn next(&mut self) -> Option<Tlv<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, after) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - after.len()];
        self.0 = after;
        Some(Tlv { tag, content, whole })
    }

    /// The next value, if it has this tag; otherwise it stays.
    pub(crate) fn take(&mut self, tag: u8) -> Option<Tlv<'a>> {
        if self.0.first() != Some(&tag) {
            return None;
        }
        self.next()
    }
}

/// A value made of the parts given.
pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    if length < 0x80 {
        bytes.push(length as u8);
    } else {
        let digits: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        bytes.push(0x80 | digits.len() as u8);
        bytes.extend(digits);
    }
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// A bit string of whole bytes.
pub(crate) fn bit_string(bytes: &[u8]) -> Vec<u8> {
    tlv(BIT_STRING, &[&[0], bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_all_sizes_go_through() {
        for length in [0, 1, 127, 128, 255, 256, 65536] {
            let content = vec![7; length];
            let bytes = tlv(OCTET_STRING, &[&content]);
            let mut reader = Reader::new(&bytes);
            let read = reader.next().unwrap();
            assert_eq!((read.tag, read.content, read.whole), (OCTET_STRING, &content[..], &bytes[..]));
            assert!(reader.next().is_none());
        }
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        let bytes = tlv(SEQUENCE, &[&[1; 200]]);
        for length in 0..bytes.len() {
            assert!(Reader::new(&bytes[..length]).next().is_none());
        }
        assert!(Reader::new(&[SEQUENCE, 0x80, 0, 0]).next().is_none());
        assert!(Reader::new(&[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff, 0]).next().is_none());
    }
}
