//! What goes wrong, and with which requests. Plain data.

use std::time::Duration;

use http::Method;

/// How an answer goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status instead of the answer, with a reason and perhaps seconds to wait.
    Status(u16, &'static str, Option<u64>),
    /// The answer, later.
    Delay(Duration),
    /// No answer ever.
    Stall,
    /// The connection is closed instead of an answer.
    Close,
    /// The body breaks off after so many bytes.
    Cut(usize),
    /// The body goes silent after so many bytes.
    Silent(usize),
    /// A page of a web server, with status 200.
    Html,
}

/// Which requests go wrong, how, and how often.
#[derive(Clone, Debug)]
pub struct Rule {
    pub(super) method: Option<Method>,
    pub(super) path: String,
    pub(super) watch: Option<bool>,
    pub(super) times: Option<usize>,
    pub(super) fault: Fault,
}

impl Rule {
    /// Every request goes wrong so.
    pub fn all(fault: Fault) -> Self {
        Self { method: None, path: String::new(), watch: None, times: None, fault }
    }

    /// Only requests whose path contains this.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Only this method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Only watches, or only what is none.
    #[must_use]
    pub fn watch(mut self, watch: bool) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    /// Whether the request is meant; counts if so.
    pub(super) fn strike(&mut self, method: &Method, path: &str, query: &str) -> Option<Fault> {
        let is_watch = query.split('&').any(|pair| pair == "watch=true");
        let meant = self.method.as_ref().is_none_or(|wanted| wanted == method)
            && path.contains(&self.path)
            && self.watch.is_none_or(|wanted| wanted == is_watch)
            && self.times != Some(0);
        if !meant {
            return None;
        }
        if let Some(times) = &mut self.times {
            *times -= 1;
        }
        Some(self.fault.clone())
    }
}
