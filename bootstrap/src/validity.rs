//! Whether the client certificate counts at a time, and what is said of one that does not. Pure but for the log; called
//! by the node's start and by the renewal.

use std::time::SystemTime;

use crate::clock::show;
use crate::join::JoinConfig;
use crate::x509::Certificate;

/// What a certificate is at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    /// The clock is before it.
    Early,
    Counts,
    Ended,
}

pub(crate) fn of(certificate: &Certificate, now: SystemTime) -> Validity {
    if now < certificate.not_before {
        Validity::Early
    } else if now < certificate.not_after {
        Validity::Counts
    } else {
        Validity::Ended
    }
}

impl Validity {
    /// Says what is wrong with the certificate and what to do; nothing of one that counts.
    pub(crate) fn tell(self, certificate: &Certificate, config: &JoinConfig) {
        let now = show(config.clock.now());
        match self {
            Self::Counts => {}
            Self::Early => tracing::error!(
                "the clock says {now}, before the node's certificate begins to count at {}: set the clock (NTP); \
                 pods run on meanwhile as the cluster wanted them last",
                show(certificate.not_before)
            ),
            Self::Ended => {
                let cure = if config.source.may_join() {
                    "it joins again as soon as the API server answers"
                } else {
                    "set the clock if it is wrong; otherwise join again with a new token (coracle join)"
                };
                tracing::error!(
                    "the node's certificate ended at {}, and the clock says {now}: {cure}; pods run on meanwhile as \
                     the cluster wanted them last",
                    show(certificate.not_after)
                );
            }
        }
    }
}
