//! The one proof in the handshake: that the answer is to this request (RFC 6455, 4.2.2). Called by `server` and `client`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// What a server answers in `Sec-WebSocket-Accept` to a request's `Sec-WebSocket-Key`.
///
/// ```
/// // The example of RFC 6455, 1.3.
/// let answer = coracle_streaming::websocket::accept_key("dGhlIHNhbXBsZSBub25jZQ==");
/// assert_eq!(answer, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
pub fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// A request's `Sec-WebSocket-Key` from sixteen random bytes.
pub fn request_key(random: [u8; 16]) -> String {
    STANDARD.encode(random)
}
