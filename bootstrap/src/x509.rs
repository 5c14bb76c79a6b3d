//! Certificates as far as joining looks into them, requests for them, and self-signed ones. Pure: keys sign outside.
//!
//! Nothing here decides whom to trust; that is rustls's.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::der::{self, Reader, tlv};
use crate::key::Key;

const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];
const EXT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// A name that a serving certificate vouches for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SubjectName {
    /// A host name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl SubjectName {
    /// Addresses are told from names by their form.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Dns(text.to_owned()), Self::Ip)
    }
}

/// What matters of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's CN; empty without one.
    pub common_name: String,
    /// The subject's O, all of them.
    pub organizations: Vec<String>,
    /// When it begins to count.
    pub not_before: SystemTime,
    /// When it ceases to.
    pub not_after: SystemTime,
    /// Names and addresses it vouches for.
    pub names: Vec<SubjectName>,
    /// SubjectPublicKeyInfo in DER, which pins and comparisons with keys look at.
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Reads a certificate in DER; `None` if it is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut outer = Reader::new(Reader::new(bytes).take(der::SEQUENCE)?.content);
        let mut tbs = Reader::new(outer.take(der::SEQUENCE)?.content);
        tbs.take(0xa0);
        tbs.take(der::INTEGER)?;
        tbs.take(der::SEQUENCE)?; // Signature algorithm.
        tbs.take(der::SEQUENCE)?; // Issuer.
        let mut validity = Reader::new(tbs.take(der::SEQUENCE)?.content);
        let not_before = time(validity.next()?)?;
        let not_after = time(validity.next()?)?;
        let (mut common_name, mut organizations) = (String::new(), Vec::new());
        let mut subject = Reader::new(tbs.take(der::SEQUENCE)?.content);
        while let Some(set) = subject.take(der::SET) {
            let mut pair = Reader::new(Reader::new(set.content).take(der::SEQUENCE)?.content);
            let oid = pair.take(der::OID)?.content;
            let text = String::from_utf8_lossy(pair.next()?.content).into_owned();
            match oid {
                COMMON_NAME => common_name = text,
                ORGANIZATION => organizations.push(text),
                _ => {}
            }
        }
        let public_key = tbs.take(der::SEQUENCE)?.whole.to_vec();
        tbs.take(0xa1);
        tbs.take(0xa2);
        let names = tbs.take(0xa3).map_or_else(Vec::new, |extensions| alternative_names(extensions.content));
        Some(Self { common_name, organizations, not_before, not_after, names, public_key })
    }

    /// How long it counts in all.
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// The pin that `--ca-cert-hash` takes: `sha256:` and 64 digits.
    pub fn pin(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.public_key);
        let digits: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{digits}")
    }
}

fn alternative_names(extensions: &[u8]) -> Vec<SubjectName> {
    let mut names = Vec::new();
    let Some(list) = Reader::new(extensions).take(der::SEQUENCE) else { return names };
    let mut list = Reader::new(list.content);
    while let Some(extension) = list.take(der::SEQUENCE) {
        let mut extension = Reader::new(extension.content);
        let is_names = extension.take(der::OID).is_some_and(|oid| oid.content == SUBJECT_ALT_NAME);
        extension.take(der::BOOLEAN);
        let Some(value) = extension.take(der::OCTET_STRING).filter(|_| is_names) else { continue };
        let Some(value) = Reader::new(value.content).take(der::SEQUENCE) else { continue };
        let mut value = Reader::new(value.content);
        while let Some(name) = value.next() {
            match (name.tag, name.content.len()) {
                (0x82, _) => names.push(SubjectName::Dns(String::from_utf8_lossy(name.content).into_owned())),
                (0x87, 4) => {
                    let bytes: [u8; 4] = name.content.try_into().expect("the length was looked at");
                    names.push(SubjectName::Ip(bytes.into()));
                }
                (0x87, 16) => {
                    let bytes: [u8; 16] = name.content.try_into().expect("the length was looked at");
                    names.push(SubjectName::Ip(bytes.into()));
                }
                _ => {}
            }
        }
    }
    names
}

fn time(value: der::Tlv<'_>) -> Option<SystemTime> {
    let text = std::str::from_utf8(value.content).ok()?.strip_suffix('Z')?;
    let full = match value.tag {
        der::UTC_TIME => {
            let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            format!("{century}{text}")
        }
        der::GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let part = |range: std::ops::Range<usize>| full.get(range)?.parse::<i16>().ok();
    let small = |range| part(range).and_then(|number| i8::try_from(number).ok());
    let civil = jiff::civil::DateTime::new(
        part(0..4)?,
        small(4..6)?,
        small(6..8)?,
        small(8..10)?,
        small(10..12)?,
        small(12..14)?,
        0,
    );
    let stamp = civil.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    Some(SystemTime::from(stamp))
}

fn time_bytes(at: SystemTime) -> Vec<u8> {
    let stamp = jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let civil = jiff::tz::TimeZone::UTC.to_datetime(stamp);
    let (y, mo, d) = (civil.year(), civil.month(), civil.day());
    let (h, mi, s) = (civil.hour(), civil.minute(), civil.second());
    if (1950..2050).contains(&y) {
        let text = format!("{:02}{mo:02}{d:02}{h:02}{mi:02}{s:02}Z", y % 100);
        return tlv(der::UTC_TIME, &[text.as_bytes()]);
    }
    tlv(der::GENERALIZED_TIME, &[format!("{y:04}{mo:02}{d:02}{h:02}{mi:02}{s:02}Z").as_bytes()])
}

/// A subject as the cluster wants it of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) organization: String,
    pub(crate) common_name: String,
}

impl Subject {
    pub(crate) fn of_node(node_name: &str) -> Self {
        Self { organization: "system:nodes".to_owned(), common_name: format!("system:node:{node_name}") }
    }

    fn der(&self) -> Vec<u8> {
        let attribute = |oid: &[u8], text: &str| {
            let pair =
                tlv(der::SEQUENCE, &[&tlv(der::OID, &[oid]), &tlv(der::UTF8_STRING, &[text.as_bytes()])]);
            tlv(der::SET, &[&pair])
        };
        let mut parts = Vec::new();
        if !self.organization.is_empty() {
            parts.push(attribute(ORGANIZATION, &self.organization));
        }
        parts.push(attribute(COMMON_NAME, &self.common_name));
        tlv(der::SEQUENCE, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }
}

/// SubjectPublicKeyInfo of a P-256 key from its uncompressed point.
pub(crate) fn public_key_info(point: &[u8]) -> Vec<u8> {
    let algorithm = tlv(der::SEQUENCE, &[&tlv(der::OID, &[EC_PUBLIC_KEY]), &tlv(der::OID, &[P256])]);
    tlv(der::SEQUENCE, &[&algorithm, &der::bit_string(point)])
}

fn signed(body: &[u8], key: &Key) -> Vec<u8> {
    let algorithm = tlv(der::SEQUENCE, &[&tlv(der::OID, &[ECDSA_SHA256])]);
    tlv(der::SEQUENCE, &[body, &algorithm, &der::bit_string(&key.sign(body))])
}

fn names_extension(names: &[SubjectName]) -> Vec<u8> {
    let parts: Vec<Vec<u8>> = names
        .iter()
        .map(|name| match name {
            SubjectName::Dns(name) => tlv(0x82, &[name.as_bytes()]),
            SubjectName::Ip(IpAddr::V4(address)) => tlv(0x87, &[&address.octets()]),
            SubjectName::Ip(IpAddr::V6(address)) => tlv(0x87, &[&address.octets()]),
        })
        .collect();
    let list = tlv(der::SEQUENCE, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    tlv(der::SEQUENCE, &[&tlv(der::OID, &[SUBJECT_ALT_NAME]), &tlv(der::OCTET_STRING, &[&list])])
}

/// A PKCS#10 request in DER, signed by the key it is for.
pub(crate) fn request(subject: &Subject, names: &[SubjectName], key: &Key) -> Vec<u8> {
    let attributes = if names.is_empty() {
        tlv(0xa0, &[])
    } else {
        let extensions = tlv(der::SEQUENCE, &[&names_extension(names)]);
        let values = tlv(der::SET, &[&extensions]);
        let attribute = tlv(der::SEQUENCE, &[&tlv(der::OID, &[EXTENSION_REQUEST]), &values]);
        tlv(0xa0, &[&attribute])
    };
    let version = tlv(der::INTEGER, &[&[0]]);
    let body = tlv(der::SEQUENCE, &[&version, &subject.der(), key.public_key_info(), &attributes]);
    signed(&body, key)
}

/// A certificate that vouches for itself, in DER, from an hour ago on.
pub(crate) fn self_signed(
    subject: &Subject,
    names: &[SubjectName],
    key: &Key,
    serial: [u8; 16],
    now: SystemTime,
    lifetime: Duration,
) -> Vec<u8> {
    let begin = now.checked_sub(Duration::from_secs(3600)).filter(|at| *at > UNIX_EPOCH).unwrap_or(now);
    let mut serial = serial;
    serial[0] = serial[0] & 0x7f | 0x40;
    let algorithm = tlv(der::SEQUENCE, &[&tlv(der::OID, &[ECDSA_SHA256])]);
    let validity = tlv(der::SEQUENCE, &[&time_bytes(begin), &time_bytes(now + lifetime)]);
    let usage = tlv(der::SEQUENCE, &[&tlv(der::OID, &[SERVER_AUTH])]);
    let usage = tlv(der::SEQUENCE, &[&tlv(der::OID, &[EXT_KEY_USAGE]), &tlv(der::OCTET_STRING, &[&usage])]);
    let extensions = tlv(der::SEQUENCE, &[&usage, &names_extension(names)]);
    let name = subject.der();
    let body = tlv(
        der::SEQUENCE,
        &[
            &tlv(0xa0, &[&tlv(der::INTEGER, &[&[2]])]),
            &tlv(der::INTEGER, &[&serial]),
            &algorithm,
            &name,
            &validity,
            &name,
            key.public_key_info(),
            &tlv(0xa3, &[&extensions]),
        ],
    );
    signed(&body, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<SubjectName> {
        ["edge-1", "192.0.2.7", "2001:db8::7"].into_iter().map(SubjectName::parse).collect()
    }

    #[test]
    fn certificates_of_another_maker_are_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters =
            rcgen::CertificateParams::new(vec!["edge-1".into(), "192.0.2.7".into(), "2001:db8::7".into()])
                .unwrap();
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "system:node:edge-1");
        parameters.not_before = rcgen::date_time_ymd(2025, 2, 3);
        parameters.not_after = rcgen::date_time_ymd(2061, 2, 3);
        let made = parameters.self_signed(&key).unwrap();
        let read = Certificate::parse(made.der()).unwrap();
        assert_eq!(read.common_name, "system:node:edge-1");
        assert_eq!(read.organizations, ["system:nodes"]);
        assert_eq!(read.names, names());
        let stamp = |at: SystemTime| jiff::Timestamp::try_from(at).unwrap().to_string();
        assert_eq!(
            (stamp(read.not_before).as_str(), stamp(read.not_after).as_str()),
            ("2025-02-03T00:00:00Z", "2061-02-03T00:00:00Z")
        );
        for length in 0..made.der().len() {
            assert_eq!(Certificate::parse(&made.der()[..length]), None);
        }
    }

    #[test]
    fn a_self_signed_certificate_serves_and_vouches_for_its_names() {
        let key = Key::generate().unwrap();
        let now = SystemTime::now();
        let subject = Subject { organization: String::new(), common_name: "edge-1@1".into() };
        let der = self_signed(&subject, &names(), &key, [0xff; 16], now, Duration::from_secs(86400));
        let read = Certificate::parse(&der).unwrap();
        assert_eq!((read.names, read.public_key.as_slice()), (names(), key.public_key_info()));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der.into()).expect("rustls reads it");
    }

    #[test]
    fn a_request_says_what_it_asks_for_and_is_signed() {
        let key = Key::generate().unwrap();
        let der = request(&Subject::of_node("edge-1"), &names(), &key);
        let parsed = rcgen::CertificateSigningRequestParams::from_der(&der.into())
            .expect("another reads and verifies it");
        assert_eq!(parsed.params.subject_alt_names.len(), 3);
        let name = &parsed.params.distinguished_name;
        assert_eq!(
            name.get(&rcgen::DnType::CommonName),
            Some(&rcgen::DnValue::Utf8String("system:node:edge-1".into()))
        );
    }
}
