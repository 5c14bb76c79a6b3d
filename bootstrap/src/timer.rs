//! A timer of wall time, which wakes when the clock is set too. Used by renewals; wakes at no other time.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Waits until the machine's clock has reached `deadline` or was set: look at the clock again then.
pub(crate) async fn wait_until(deadline: SystemTime) {
    if let Err(error) = wait(deadline).await {
        tracing::debug!(%error, "no timer of wall time; looking at the clock in an hour");
        let left = deadline.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(left.min(Duration::from_secs(3600))).await;
    }
}

async fn wait(deadline: SystemTime) -> io::Result<()> {
    if deadline <= SystemTime::now() {
        return Ok(());
    }
    let since = deadline.duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::sys::wait_for_clock(
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        since.subsec_nanos().into(),
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_wakes_at_its_time() {
        let deadline = SystemTime::now() + Duration::from_millis(200);
        wait(deadline).await.unwrap();
        assert!(SystemTime::now() >= deadline);
        wait(UNIX_EPOCH).await.unwrap();
    }
}
