//! Answers to requests: whole texts and streams, with the kubelet's content types.

use std::io;

use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// An answer.
pub(super) type Answer = Response<Body>;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";
pub(super) const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// A whole answer.
pub(super) fn whole(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    answer(status, content_type, body)
}

/// An answer that comes as it is made. An error cuts it off, so that the client sees that something is missing.
pub(super) fn streamed(
    content_type: &'static str,
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Answer {
    // The end goes out by itself: an API server that leads a log on as WebSocket drops what comes together with it.
    let pause = stream::once(tokio::task::yield_now()).filter_map(|()| async { None });
    let body = StreamBody::new(pieces.map(|piece| piece.map(Frame::data)).chain(pause));
    answer(200, content_type, body.boxed_unsync())
}

/// A value as JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => whole(200, JSON, body),
        Err(error) => whole(500, TEXT, error.to_string()),
    }
}

/// An error as a kubelet tells it: plain words.
pub(super) fn error(status: u16, words: impl Into<String>) -> Answer {
    whole(status, TEXT, words.into())
}

/// An answer of headers alone.
pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

fn answer(status: u16, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_stream_comes_by_itself() {
        let mut body = streamed(TEXT, stream::iter([Ok(Bytes::from("a line"))])).into_body();
        assert!(body.frame().await.is_some());
        // Not together with the line, so that the line is sent first.
        assert!(body.frame().now_or_never().is_none());
        assert!(body.frame().await.is_none());
    }
}
