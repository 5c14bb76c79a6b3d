//! Writes tars member by member without any of the checks that a decent tar writer has.

/// One member's header.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// Type flag, `b'0'` for a file.
    pub flag: u8,
    /// Name; longer than 100 bytes needs a record of its own, see [`Tarball::gnu_long`] and [`Tarball::pax`].
    pub name: &'a str,
    /// Target of a link.
    pub link: &'a str,
    /// Permissions with setuid bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Content.
    pub content: &'a [u8],
}

impl Default for Member<'_> {
    fn default() -> Self {
        Self {
            flag: b'0',
            name: "",
            link: "",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            content: b"",
        }
    }
}

/// A tar being written.
#[derive(Clone, Debug, Default)]
pub struct Tarball(Vec<u8>);

impl Tarball {
    /// An empty tar.
    pub fn new() -> Self {
        Self::default()
    }

    /// Any member.
    #[must_use]
    pub fn member(mut self, member: &Member<'_>) -> Self {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let name = member.name.as_bytes();
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{:07o}", member.mode).as_bytes());
        put(108, format!("{:07o}", member.uid & 0o7_777_777).as_bytes());
        put(116, format!("{:07o}", member.gid & 0o7_777_777).as_bytes());
        put(124, format!("{:011o}", member.content.len()).as_bytes());
        put(136, format!("{:011o}", member.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[member.flag]);
        let link = member.link.as_bytes();
        put(157, &link[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", member.device.0).as_bytes());
        put(337, format!("{:07o}", member.device.1).as_bytes());
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self.padded(member.content);
        self
    }

    fn padded(&mut self, content: &[u8]) {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// A plain file.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.member(&Member { name, content, ..Member::default() })
    }

    /// An executable file.
    #[must_use]
    pub fn executable(self, name: &str, content: &[u8]) -> Self {
        self.member(&Member { name, content, mode: 0o755, ..Member::default() })
    }

    /// A folder.
    #[must_use]
    pub fn dir(self, name: &str) -> Self {
        self.member(&Member { flag: b'5', name, mode: 0o755, ..Member::default() })
    }

    /// A symlink.
    #[must_use]
    pub fn symlink(self, name: &str, link: &str) -> Self {
        self.member(&Member { flag: b'2', name, link, mode: 0o777, ..Member::default() })
    }

    /// A hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, link: &str) -> Self {
        self.member(&Member { flag: b'1', name, link, ..Member::default() })
    }

    /// A PAX header for the next member.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.member(&Member { flag: b'x', name: "PaxHeaders/0", content: &content, ..Member::default() })
    }

    /// A GNU long name (`b'L'`) or long link (`b'K'`) for the next member.
    #[must_use]
    pub fn gnu_long(self, flag: u8, text: &str) -> Self {
        let content = [text.as_bytes(), b"\0"].concat();
        self.member(&Member { flag, name: "././@LongLink", content: &content, ..Member::default() })
    }

    /// Bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The tar with its end mark.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
