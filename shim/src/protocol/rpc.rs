//! ttrpc's envelope: what is inside each frame. Plain data for both sides of the protocol.

/// `ttrpc.Request`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Full name of the service, such as `containerd.task.v2.Task`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Name of the method in it.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The method's message, encoded.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller waits, in nanoseconds; 0 is for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// Headers. containerd sends its namespace here.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// `ttrpc.KeyValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// Name of the header.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `ttrpc.Response`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Absent, or of code 0, when the call went well.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The method's answer, encoded.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`, without the details that nobody here sends.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    /// A [`Code`] as a number.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// What went wrong, for people.
    #[prost(string, tag = "2")]
    pub message: String,
}

impl Status {
    /// A failure.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as i32, message: message.into() }
    }

    /// The code; one that is not gRPC's counts as [`Code::Unknown`].
    pub fn kind(&self) -> Code {
        Code::from_number(self.code)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// gRPC's status codes as far as the Task API uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// Went well.
    Ok = 0,
    /// The caller gave up.
    Canceled = 1,
    /// The container's maker failed, or something without a better code did.
    Unknown = 2,
    /// The request cannot be right.
    InvalidArgument = 3,
    /// The maker ran past the caller's time and was killed.
    DeadlineExceeded = 4,
    /// No such container, exec or process.
    NotFound = 5,
    /// A container or exec of that name is there.
    AlreadyExists = 6,
    /// A bound was reached.
    ResourceExhausted = 8,
    /// Not in this phase of the container's life.
    FailedPrecondition = 9,
    /// The shim does not do this.
    Unimplemented = 12,
    /// The shim itself failed.
    Internal = 13,
    /// The shim is ending.
    Unavailable = 14,
}

impl Code {
    /// The code of that number, or [`Code::Unknown`].
    pub fn from_number(number: i32) -> Self {
        match number {
            0 => Self::Ok,
            1 => Self::Canceled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}
