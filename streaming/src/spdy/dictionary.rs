//! The text that SPDY/3 header blocks are compressed against (SPDY/3.1 draft, section 2.6.10.1): a list of words,
//! each with its length in four bytes, then text without lengths. Part of the wire format; only `headers` reads it.

/// The words with lengths.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// What follows them.
const TEXT: &str = concat!(
    "10010120120220520630030230330430530630740240540640740840941041141241341441541641750250450520",
    "3 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unautho",
    "rized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unava",
    "ilableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat",
    ", Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+",
    "xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=is",
    "o-8859-1,utf-,*,enq=0.",
);

/// The dictionary as the decompressor wants it.
pub(super) fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
}
