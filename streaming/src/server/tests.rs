//! What is answered to which request, as tables, and that client and server agree.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::*;
use crate::client::{AnswerError, Ask, Transport};

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers
            .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    headers
}

const SPDY_UPGRADE: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
const WEBSOCKET_UPGRADE: [(&str, &str); 4] = [
    ("connection", "keep-alive, Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[test]
fn the_clients_first_choice_that_is_ours_wins() {
    let spdy = [&SPDY_UPGRADE[..], &[("x-stream-protocol-version", "v9.channel.k8s.io, v3.channel.k8s.io")]]
        .concat();
    let upgrade = exec_upgrade(&Method::POST, &headers(&spdy)).unwrap();
    assert_eq!(upgrade.protocol, ExecProtocol::Spdy(Version::V3));
    assert_eq!(upgrade.headers["x-stream-protocol-version"], "v3.channel.k8s.io");
    assert_eq!(upgrade.headers["upgrade"], "SPDY/3.1");

    let choices = [
        ("v5.channel.k8s.io, v4.channel.k8s.io", Version::V5, Encoding::Binary),
        ("v3.channel.k8s.io, v4.base64.channel.k8s.io", Version::V4, Encoding::Base64),
        ("base64.channel.k8s.io", Version::V1, Encoding::Base64),
    ];
    for (offer, version, encoding) in choices {
        let websocket = [&WEBSOCKET_UPGRADE[..], &[("sec-websocket-protocol", offer)]].concat();
        let upgrade = exec_upgrade(&Method::GET, &headers(&websocket)).unwrap();
        assert_eq!(upgrade.protocol, ExecProtocol::WebSocket(version, encoding));
        assert_eq!(upgrade.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
    let bare = exec_upgrade(&Method::GET, &headers(&WEBSOCKET_UPGRADE)).unwrap();
    assert_eq!(bare.protocol, ExecProtocol::WebSocket(Version::V1, Encoding::Binary));
    assert!(!bare.headers.contains_key("sec-websocket-protocol"));
}

#[test]
fn refusals_say_what_is_missing() {
    let status =
        |method: Method, pairs: &[(&str, &str)]| exec_upgrade(&method, &headers(pairs)).unwrap_err().status;
    assert_eq!(status(Method::POST, &[]), StatusCode::BAD_REQUEST);
    assert_eq!(status(Method::POST, &SPDY_UPGRADE), StatusCode::BAD_REQUEST);
    assert_eq!(status(Method::POST, &WEBSOCKET_UPGRADE), StatusCode::BAD_REQUEST);
    assert_eq!(status(Method::GET, &WEBSOCKET_UPGRADE[..2]), StatusCode::UPGRADE_REQUIRED);
    assert_eq!(status(Method::GET, &WEBSOCKET_UPGRADE[..3]), StatusCode::BAD_REQUEST);
    let foreign = [&WEBSOCKET_UPGRADE[..], &[("sec-websocket-protocol", "chat")]].concat();
    assert_eq!(status(Method::GET, &foreign), StatusCode::FORBIDDEN);

    let unknown = [&SPDY_UPGRADE[..], &[("x-stream-protocol-version", "v9.channel.k8s.io")]].concat();
    let refusal = exec_upgrade(&Method::POST, &headers(&unknown)).unwrap_err();
    assert_eq!(refusal.status, StatusCode::FORBIDDEN);
    assert_eq!(refusal.headers.iter().filter(|(name, _)| name == ACCEPTED_VERSIONS).count(), 4);
}

#[test]
fn what_a_client_asks_for_is_what_a_server_grants() {
    for (transport, method) in [(Transport::Spdy, Method::POST), (Transport::WebSocket, Method::GET)] {
        let ask = Ask::exec(transport);
        let upgrade = exec_upgrade(&method, ask.headers()).unwrap();
        let agreed = ask.exec_answer(StatusCode::SWITCHING_PROTOCOLS, &upgrade.headers).unwrap();
        assert_eq!(agreed, upgrade.protocol);

        let ask = Ask::port_forward(transport);
        let upgrade = forward_upgrade(&method, ask.headers()).unwrap();
        let agreed = ask.port_forward_answer(StatusCode::SWITCHING_PROTOCOLS, &upgrade.headers).unwrap();
        assert_eq!(agreed, upgrade.protocol);

        let refused = ask.port_forward_answer(StatusCode::FORBIDDEN, &HeaderMap::new());
        assert!(matches!(refused, Err(AnswerError::Status(StatusCode::FORBIDDEN))));
        let other = ask.port_forward_answer(StatusCode::SWITCHING_PROTOCOLS, &HeaderMap::new());
        assert!(matches!(other, Err(AnswerError::Upgrade)));
    }
    // An answer to somebody else's question.
    let (one, two) = (Ask::exec(Transport::WebSocket), Ask::exec(Transport::WebSocket));
    let upgrade = exec_upgrade(&Method::GET, one.headers()).unwrap();
    assert!(two.exec_answer(StatusCode::SWITCHING_PROTOCOLS, &upgrade.headers).is_err());
}

#[test]
fn ports_come_one_by_one_or_in_a_list() {
    assert_eq!(ports_from_query("port=80&port=8080,9090"), Some(vec![80, 8080, 9090]));
    assert_eq!(ports_from_query("port=80%2C81"), Some(vec![80, 81]));
    for wrong in ["", "port=", "port=0", "port=65536", "port=http", "ports=80"] {
        assert_eq!(ports_from_query(wrong), None, "{wrong}");
    }
}
