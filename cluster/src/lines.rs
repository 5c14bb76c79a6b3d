//! Cuts the body of a watch into lines and keeps no more of it than one line. Owned by one watch.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use kube::client::Body;

/// The longest line that is read: etcd holds objects of up to 1.5 MiB, and JSON may well be larger than what is
/// stored.
pub(crate) const LINE_LIMIT: usize = 8 << 20;

/// A buffer larger than this is given back once its line was read.
const KEPT: usize = 64 << 10;

/// One line, or what stands in its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A whole line without its end.
    Text(Bytes),
    /// A line longer than the limit was passed over.
    TooLong,
}

/// The lines of a body.
pub(crate) struct Lines {
    body: Body,
    buffer: BytesMut,
    searched: usize,
    skipping: bool,
    limit: usize,
}

impl Lines {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0, skipping: false, limit: LINE_LIMIT }
    }

    /// The next line; `None` at the body's end. A last line without an end was cut off and is dropped.
    ///
    /// Cancel-safe: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, kube::Error> {
        loop {
            if let Some(line) = self.cut() {
                return Ok(Some(line));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.take(data);
                    }
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(None),
            }
        }
    }

    fn take(&mut self, mut data: Bytes) {
        if self.skipping {
            match data.iter().position(|byte| *byte == b'\n') {
                // The newline itself stays: it ends the line that was skipped.
                Some(end) => data.advance(end),
                None => return,
            }
        }
        self.buffer.extend_from_slice(&data);
    }

    fn cut(&mut self) -> Option<Line> {
        let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            if self.buffer.len() > self.limit {
                self.skipping = true;
                self.forget();
            }
            return None;
        };
        let line = self.buffer.split_to(self.searched + end).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        if self.buffer.is_empty() && line.len() > KEPT {
            self.forget();
        }
        if std::mem::take(&mut self.skipping) || line.len() > self.limit {
            return Some(Line::TooLong);
        }
        Some(Line::Text(line))
    }

    fn forget(&mut self) {
        self.buffer = BytesMut::new();
        self.searched = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(limit: usize) -> Lines {
        Lines { limit, ..Lines::new(Body::empty()) }
    }

    fn text(text: &'static str) -> Line {
        Line::Text(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn lines_are_cut_wherever_frames_end() {
        let mut lines = lines(100);
        let mut seen = Vec::new();
        for byte in b"one\ntwo\n\nthr" {
            lines.take(Bytes::copy_from_slice(&[*byte]));
            seen.extend(lines.cut());
        }
        assert_eq!(seen, [text("one"), text("two"), text("")]);
        lines.take(Bytes::from_static(b"ee\nfour\n"));
        assert_eq!((lines.cut(), lines.cut(), lines.cut()), (Some(text("three")), Some(text("four")), None));
    }

    #[test]
    fn a_line_beyond_the_limit_is_passed_over_without_being_held() {
        let mut lines = lines(8);
        lines.take(Bytes::from_static(b"0123456789"));
        assert_eq!(lines.cut(), None);
        for _ in 0..100 {
            lines.take(Bytes::from_static(b"0123456789"));
            assert_eq!(lines.cut(), None);
            assert!(lines.buffer.len() <= 10);
        }
        lines.take(Bytes::from_static(b"tail\nnext\n"));
        assert_eq!(lines.cut(), Some(Line::TooLong));
        assert_eq!(lines.cut(), Some(text("next")));
    }
}
