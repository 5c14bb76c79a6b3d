//! The health check against a small gRPC server of our own.

use prost::Message as _;
use tonic::codegen::{Bytes, http};

use super::*;

/// Answers one connection after another: `""` serves, `down` does not, others are unknown.
async fn serve(listener: tokio::net::TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert!(request.headers()["user-agent"].to_str().unwrap().starts_with("kube-probe/1.36"));
                let mut bytes = Vec::new();
                let mut body = request.into_body();
                while let Some(Ok(data)) = body.data().await {
                    bytes.extend_from_slice(&data);
                }
                let asked = HealthCheckRequest::decode(&bytes[5..]).unwrap().service;
                let status = if asked == "down" { ServingStatus::NotServing } else { ServingStatus::Serving };
                let head = http::Response::builder().header("content-type", "application/grpc");
                let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
                let known = matches!(asked.as_str(), "" | "down");
                if known {
                    let message = HealthCheckResponse { status: status.into() }.encode_to_vec();
                    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
                    frame.extend(message);
                    send.send_data(Bytes::from(frame), false).unwrap();
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", if known { "0" } else { "5" }.parse().unwrap());
                trailers.insert("grpc-message", "unknown service".parse().unwrap());
                send.send_trailers(trailers).unwrap();
            });
        }
    }
}

#[tokio::test]
async fn answers_are_told_in_the_kubelets_words() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(serve(listener));
    let timeout = Duration::from_secs(5);
    assert_eq!(check(&address, "", timeout).await, Ok(()));
    let down = check(&address, "down", timeout).await.unwrap_err();
    assert_eq!(down, "service unhealthy (responded with \"NOT_SERVING\")");
    let unknown = check(&address, "other", timeout).await.unwrap_err();
    assert_eq!(unknown, "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service");
    server.abort();
}

#[tokio::test]
async fn a_port_without_a_server_times_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = check(&address, "", Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(
        error,
        format!("timeout: failed to connect service {address:?} within 1s: context deadline exceeded")
    );
}
