//! Who a client certificate names: CN is the user, each O a group.
//!
//! Pure: walks the DER of a certificate whose signature was checked elsewhere. Knows just so much of X.509 as lies
//! before and in the subject.

/// User and groups of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const EXPLICIT_VERSION: u8 = 0xa0;
/// 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const ORGANIZATION: [u8; 3] = [0x55, 0x04, 0x0a];
/// Strings that are ASCII or UTF-8: UTF8String, PrintableString, T61String, IA5String.
const STRINGS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];

/// Reads the subject; `None` if this is no certificate, or one without a common name.
pub(super) fn subject(certificate: &[u8]) -> Option<Subject> {
    let (mut outer, _) = expect(certificate, SEQUENCE)?;
    let (body, _) = expect(outer, SEQUENCE)?;
    outer = body;
    if outer.first() == Some(&EXPLICIT_VERSION) {
        outer = element(outer)?.2;
    }
    // Serial number, signature algorithm, issuer, validity.
    for _ in 0..4 {
        outer = element(outer)?.2;
    }
    let (mut names, _) = expect(outer, SEQUENCE)?;
    let mut subject = Subject::default();
    while !names.is_empty() {
        let (mut set, rest) = expect(names, SET)?;
        names = rest;
        while !set.is_empty() {
            let (pair, rest) = expect(set, SEQUENCE)?;
            set = rest;
            take(pair, &mut subject)?;
        }
    }
    (!subject.common_name.is_empty()).then_some(subject)
}

/// One attribute and its value.
fn take(pair: &[u8], subject: &mut Subject) -> Option<()> {
    let (kind, rest) = expect(pair, OBJECT_IDENTIFIER)?;
    let (tag, value, _) = element(rest)?;
    if kind != COMMON_NAME && kind != ORGANIZATION {
        return Some(());
    }
    if !STRINGS.contains(&tag) {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?.to_owned();
    if kind == COMMON_NAME {
        subject.common_name = text;
    } else {
        subject.organizations.push(text);
    }
    Some(())
}

/// The content of an element of that tag, and what follows it.
fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(bytes)?;
    (found == tag).then_some((content, rest))
}

/// Tag and content of the first element, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        let (digits, rest) = rest.split_at(count);
        (digits.iter().fold(0_usize, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    if rest.len() < length {
        return None;
    }
    let (content, rest) = rest.split_at(length);
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut out = vec![tag];
        if content.len() < 128 {
            out.push(content.len() as u8);
        } else {
            out.extend([0x82, (content.len() >> 8) as u8, content.len() as u8]);
        }
        out.extend(content);
        out
    }

    fn name(kind: &[u8], text: &str) -> Vec<u8> {
        der(SET, &[&der(SEQUENCE, &[&der(OBJECT_IDENTIFIER, &[kind]), &der(0x0c, &[text.as_bytes()])])])
    }

    fn certificate(names: &[Vec<u8>]) -> Vec<u8> {
        let number = der(0x02, &[&[1]]);
        let empty = der(SEQUENCE, &[]);
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let body = der(
            SEQUENCE,
            &[
                &der(EXPLICIT_VERSION, &[&number]),
                &number,
                &empty,
                &empty,
                &empty,
                &der(SEQUENCE, &names),
                &empty,
            ],
        );
        der(SEQUENCE, &[&body, &empty])
    }

    #[test]
    fn user_and_groups_are_read() {
        let long = "g".repeat(200);
        let names = [
            name(&ORGANIZATION, "system:masters"),
            name(&[0x55, 0x04, 0x06], "DE"),
            name(&ORGANIZATION, &long),
            name(&COMMON_NAME, "kube-apiserver-kubelet-client"),
        ];
        let found = subject(&certificate(&names)).unwrap();
        assert_eq!(found.common_name, "kube-apiserver-kubelet-client");
        assert_eq!(found.organizations, ["system:masters", long.as_str()]);
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        assert_eq!(subject(&[]), None);
        assert_eq!(subject(&certificate(&[])), None);
        let whole = certificate(&[name(&COMMON_NAME, "me")]);
        for length in 0..whole.len() - 3 {
            // Cut off anywhere it must not panic.
            let _ = subject(&whole[..length]);
        }
    }
}
