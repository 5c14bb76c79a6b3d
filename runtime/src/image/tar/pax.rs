//! PAX extended headers: the records that a layer needs. Pure parsing of bounded bytes.

use std::io;

use super::invalid;

/// Records of one extended header; `None` where it says nothing.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    /// Form 0.1: `offset,length,…` in one record. Form 0.0's repeated records are gathered into it.
    sparse_map: Option<Vec<u8>>,
    sparse_major: u64,
}

/// What an entry sees: its own records over the global ones.
pub(super) struct Records<'a> {
    pub(super) path: Option<&'a [u8]>,
    pub(super) link: Option<&'a [u8]>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_name: Option<&'a [u8]>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_in_content: bool,
    map: Option<&'a [u8]>,
}

impl Pax {
    /// Parses the `length key=value\n` records of one header.
    pub(super) fn parse(mut bytes: &[u8]) -> io::Result<Self> {
        let mut pax = Self::default();
        let malformed = || invalid("a PAX record is malformed");
        // A header may be filled up with zero bytes.
        while !bytes.is_empty() && bytes[0] != 0 {
            let space = bytes.iter().position(|&b| b == b' ').ok_or_else(malformed)?;
            let length = decimal(&bytes[..space])? as usize;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &bytes[space + 1..length - 1];
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(malformed)?;
            pax.take(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[length..];
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(id(value)?),
            b"gid" => self.gid = Some(id(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(decimal(value)?),
            b"GNU.sparse.major" => self.sparse_major = decimal(value)?,
            b"GNU.sparse.map" => self.sparse_map = Some(value.to_vec()),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let map = self.sparse_map.get_or_insert_default();
                if !map.is_empty() {
                    map.push(b',');
                }
                map.extend_from_slice(value);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// These records where they say something, else the global ones'.
    pub(super) fn over<'a>(&'a self, global: &'a Self) -> Records<'a> {
        let mut xattrs = global.xattrs.clone();
        xattrs.extend(self.xattrs.iter().cloned());
        Records {
            path: self.path.as_deref().or(global.path.as_deref()),
            link: self.link.as_deref().or(global.link.as_deref()),
            size: self.size.or(global.size),
            uid: self.uid.or(global.uid),
            gid: self.gid.or(global.gid),
            mtime: self.mtime.or(global.mtime),
            xattrs,
            sparse_name: self.sparse_name.as_deref(),
            sparse_size: self.sparse_size,
            sparse_in_content: self.sparse_major == 1,
            map: self.sparse_map.as_deref(),
        }
    }
}

impl Records<'_> {
    /// The extents of forms 0.0 and 0.1, `None` when there are none.
    pub(super) fn sparse_map(&self) -> Option<io::Result<Vec<(u64, u64)>>> {
        let map = self.map?;
        let numbers: io::Result<Vec<u64>> = map.split(|&b| b == b',').map(decimal).collect();
        Some(numbers.and_then(|numbers| {
            if numbers.len() % 2 != 0 {
                return Err(invalid("a sparse map ends in an offset without length"));
            }
            Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
        }))
    }
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("a number in a PAX record is not decimal"))
}

fn id(text: &[u8]) -> io::Result<u32> {
    u32::try_from(decimal(text)?).map_err(|_| invalid("an owner in a PAX record is past 32 bits"))
}

/// Seconds with an optional fraction, of which nanoseconds are kept.
fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let text = std::str::from_utf8(text).map_err(|_| invalid("a time in a PAX record is not decimal"))?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| invalid("a time in a PAX record is not decimal"))?;
    let digits = format!("{:0<9.9}", fraction);
    let nanoseconds: u32 = digits.parse().map_err(|_| invalid("a time in a PAX record is not decimal"))?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok((seconds - 1, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}
