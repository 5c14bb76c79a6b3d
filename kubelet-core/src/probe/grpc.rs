//! The gRPC health check, `grpc.health.v1.Health/Check`.
//!
//! Called by checks; one connection per call. Messages are written by hand: they are two fields.

use std::time::Duration;

use tonic::Code;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub(super) status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// Asks whether a service serves; the error is the kubelet's text.
pub(super) async fn check(address: &str, service: &str, timeout: Duration) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + timeout;
    let seconds = timeout.as_secs();
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent("kube-probe/1.36"))
        .map_err(|error| format!("error: failed to connect service at {address:?}: {error}"))?;
    let channel = loop {
        match tokio::time::timeout_at(deadline, endpoint.connect()).await {
            Ok(Ok(channel)) => break channel,
            // The kubelet's dialer blocks until its deadline, too: a server that is just starting gets its chance.
            Ok(Err(_)) if tokio::time::Instant::now() + Duration::from_millis(200) < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(Err(_)) | Err(_) => {
                return Err(format!(
                    "timeout: failed to connect service {address:?} within {seconds}s: context deadline exceeded"
                ));
            }
        }
    };
    match tokio::time::timeout_at(deadline, call(channel, service)).await {
        Err(_) => Err(format!("timeout: health rpc did not complete within {seconds}s")),
        Ok(Ok(ServingStatus::Serving)) => Ok(()),
        Ok(Ok(other)) => Err(format!("service unhealthy (responded with {:?})", name(other))),
        Ok(Err(status)) => Err(match status.code() {
            Code::Unimplemented => format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            ),
            Code::DeadlineExceeded => format!("timeout: health rpc did not complete within {seconds}s"),
            code => format!(
                "error: health rpc probe failed: rpc error: code = {code:?} desc = {}",
                status.message()
            ),
        }),
    }
}

async fn call(channel: tonic::transport::Channel, service: &str) -> Result<ServingStatus, tonic::Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(4096);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let answer = client.unary(request, path, codec).await?.into_inner();
    Ok(ServingStatus::try_from(answer.status).unwrap_or(ServingStatus::Unknown))
}

fn name(status: ServingStatus) -> &'static str {
    match status {
        ServingStatus::Unknown => "UNKNOWN",
        ServingStatus::Serving => "SERVING",
        ServingStatus::NotServing => "NOT_SERVING",
        ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN",
    }
}

#[cfg(test)]
mod tests;
