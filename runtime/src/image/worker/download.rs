//! One blob into `ingest`, verified, through cuts, stalls and restarts. Runs in the worker, a few side by side.
//!
//! Invariant: the first bytes of an ingest file are the first bytes that some registry sent for that digest; whether
//! they are right is known only at the end, so what a file from before holds is hashed again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use super::http::reason;
use super::remote::{Ask, Host, Remote};
use super::tell;
use crate::image::digest::Digest;
use crate::image::error::{Failure, FailureKind};
use crate::image::layout::Layout;
use crate::image::protocol::{Event, Progress};

/// Failures in a row, without a byte of progress between them, before a download is given up.
const ATTEMPTS: u32 = 6;
/// Free space is looked at after so many bytes.
const FREE_CHECK: u64 = 32 << 20;

/// Waits before attempt `attempt` (from 1): 0.25 s doubling to 8 s, with a random quarter on top, so that a
/// thousand devices do not come back at once.
pub(super) async fn pause(attempt: u32) {
    let base = Duration::from_millis(250 << attempt.saturating_sub(1).min(5));
    let random =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos() % 1000;
    tokio::time::sleep(base + base * random / 4000).await;
}

/// What is to be downloaded.
pub(super) struct Wanted<'a> {
    pub(super) digest: &'a Digest,
    pub(super) size: u64,
    pub(super) keep_free: u64,
}

/// A download under way.
struct Download<'a> {
    wanted: &'a Wanted<'a>,
    file: File,
    hasher: Sha256,
    at: u64,
    /// Whether the start came from an earlier worker, whose writes a power cut may have torn.
    inherited: bool,
    until_check: u64,
}

/// Opens a blob's file and waits until no other worker writes it; `None` when `needless` turns true meanwhile.
pub(super) async fn lock(
    layout: &Layout,
    digest: &Digest,
    needless: impl Fn() -> bool,
) -> Result<Option<File>, Failure> {
    let path = layout.ingest(digest);
    let failed = |error: io::Error| Failure::io(&path.display().to_string(), &error);
    loop {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let same =
                    path.metadata().is_ok_and(|m| file.metadata().is_ok_and(|own| own.ino() == m.ino()));
                if needless() {
                    if same {
                        let _ = fs::remove_file(&path);
                    }
                    return Ok(None);
                }
                // Else its last owner has unpacked and removed it between our open and our lock.
                if same {
                    return Ok(Some(file));
                }
            }
            Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Downloads what is missing of a blob and verifies all of it. `grown` is told how many bytes may be read while it
/// runs; it is told nothing of bytes that an earlier worker left, before they are verified.
pub(super) async fn download(
    remote: &Remote,
    wanted: &Wanted<'_>,
    file: File,
    mut grown: impl FnMut(u64, bool),
) -> Result<(), Failure> {
    let mut download = Download::resume(wanted, file)?;
    let mut failures = Vec::new();
    let mut attempt = 0;
    let mut host = 0;
    loop {
        if download.at == wanted.size {
            match download.verify()? {
                true => return Ok(()),
                false => continue,
            }
        }
        let before = download.at;
        let outcome = download.attempt(&remote.hosts()[host], &mut grown).await;
        let Err(failure) = outcome else { continue };
        if download.at > before {
            attempt = 0;
        }
        match failure.kind {
            FailureKind::Network => {
                attempt += 1;
                if attempt < ATTEMPTS {
                    let message = format!("blob {}: {}", wanted.digest, failure.message);
                    tell(&Event::Progress(Progress::Retry { message }));
                    pause(attempt).await;
                    continue;
                }
            }
            FailureKind::NotFound | FailureKind::Unauthorized => {}
            _ => return Err(failure),
        }
        failures.push(failure);
        host += 1;
        attempt = 0;
        if host == remote.hosts().len() {
            let failure = remote.summary(failures);
            return Err(Failure::new(failure.kind, format!("blob {}: {}", wanted.digest, failure.message)));
        }
    }
}

impl<'a> Download<'a> {
    /// Hashes what is there and goes on behind it.
    fn resume(wanted: &'a Wanted<'a>, file: File) -> Result<Self, Failure> {
        let mut download =
            Self { wanted, file, hasher: Sha256::new(), at: 0, inherited: false, until_check: 0 };
        let there = download.file.metadata().map_err(|e| download.failed(&e))?.len();
        if there == 0 || there > wanted.size {
            return Ok(download);
        }
        let mut buffer = vec![0; 128 << 10];
        loop {
            let read = (&download.file).read(&mut buffer).map_err(|e| download.failed(&e))?;
            if read == 0 {
                break;
            }
            download.hasher.update(&buffer[..read]);
            download.at += read as u64;
        }
        download.inherited = true;
        Ok(download)
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::io(&format!("cannot store blob {}", self.wanted.digest), error)
    }

    fn restart(&mut self) {
        self.hasher = Sha256::new();
        self.at = 0;
        self.inherited = false;
    }

    async fn attempt(&mut self, host: &Host, grown: &mut impl FnMut(u64, bool)) -> Result<(), Failure> {
        let name = self.wanted.digest.to_string();
        let ask = Ask { kind: "blobs", name: &name, accept: None, from: self.at };
        let mut response = host.ask(ask).await?;
        match response.status.as_u16() {
            206 => {
                let range = response.headers.get("content-range").and_then(|range| range.to_str().ok());
                let start =
                    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                if start != Some(self.at) {
                    self.restart();
                    return Err(self.network(host, "it answers with another range than asked for"));
                }
            }
            416 => {
                self.restart();
                return Err(self.network(host, "it has fewer bytes than are here already"));
            }
            // The whole blob, whatever was asked: write it over what is there.
            _ => self.restart(),
        }
        loop {
            let chunk = response.chunk().await;
            let Some(chunk) = chunk.map_err(|error| self.network(host, &reason(&error)))? else { break };
            self.take(&chunk, host)?;
            grown(self.at, !self.inherited);
        }
        if self.at < self.wanted.size {
            return Err(self.network(host, "the connection ended early"));
        }
        Ok(())
    }

    fn network(&self, host: &Host, why: &str) -> Failure {
        let message = format!("{} at byte {} of {}: {why}", host.name(), self.at, self.wanted.size);
        Failure::new(FailureKind::Network, message)
    }

    fn take(&mut self, chunk: &[u8], host: &Host) -> Result<(), Failure> {
        let length = chunk.len() as u64;
        if self.at + length > self.wanted.size {
            return Err(Failure::new(
                FailureKind::Digest,
                format!(
                    "blob {} from {} is longer than the {} bytes that the manifest says",
                    self.wanted.digest,
                    host.name(),
                    self.wanted.size
                ),
            ));
        }
        if self.until_check < length {
            self.until_check = FREE_CHECK;
            let stat = rustix::fs::fstatvfs(&self.file).map_err(|e| self.failed(&e.into()))?;
            if stat.f_bavail * stat.f_frsize < self.wanted.keep_free {
                return Err(Failure::new(
                    FailureKind::NoSpace,
                    format!(
                        "no space left for images: less than {} bytes would stay free; remove unused images or make room",
                        self.wanted.keep_free
                    ),
                ));
            }
        }
        self.until_check -= length.min(self.until_check);
        self.file.write_all_at(chunk, self.at).map_err(|error| self.failed(&error))?;
        self.hasher.update(chunk);
        self.at += length;
        Ok(())
    }

    /// Compares the digest. Wrong bytes that an earlier worker left are fetched again; wrong ones of now are told.
    fn verify(&mut self) -> Result<bool, Failure> {
        let found = Digest::from_hasher(std::mem::take(&mut self.hasher));
        if found == *self.wanted.digest {
            self.file.set_len(self.wanted.size).map_err(|error| self.failed(&error))?;
            return Ok(true);
        }
        let inherited = self.inherited;
        self.restart();
        self.file.set_len(0).map_err(|error| self.failed(&error))?;
        if inherited {
            return Ok(false);
        }
        Err(Failure::new(
            FailureKind::Digest,
            format!(
                "blob {}: content has digest {found}; the registry or something on the way to it is damaged",
                self.wanted.digest
            ),
        ))
    }
}
