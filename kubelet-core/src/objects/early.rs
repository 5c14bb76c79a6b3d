//! Requests for the sake of a pod that the API server does not know of yet.
//!
//! Its admission and its authorizer learn of pods by watches of their own, and now and then a pod is here sooner than
//! there. Such a refusal passes within moments; the back-off of a watch would be most of the pod's start.

use std::time::Duration;

use coracle_cluster::ApiError;

/// Between tries.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(400)];

/// Asks again while the API server does not know of the pod, a few times.
pub(super) async fn once_known<T, F>(mut ask: impl FnMut() -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    for pause in PAUSES {
        match ask().await {
            Err(error) if is_too_early(&error) => tokio::time::sleep(pause).await,
            answer => return answer,
        }
    }
    ask().await
}

fn is_too_early(error: &ApiError) -> bool {
    let message = error.message();
    match error.code() {
        Some(404) => message.starts_with("pod \"") || message.starts_with("pods \""),
        Some(403) => message.contains("no relationship found between node"),
        _ => false,
    }
}
