//! Errors as they travel: a gRPC status is a header, and headers are short.
//!
//! Called by the server for every answer, and by a runtime that quotes what others wrote. Keeps nothing.

use tonic::Status;

/// The longest message of an error, in bytes; in a header each may take three, and a client takes 16 KiB of headers.
const LONGEST_ERROR: usize = 4096;

/// An error whose message fits into a header: a longer one would end the whole connection, with everybody's calls.
pub fn bounded(status: Status) -> Status {
    let message = status.message();
    if message.len() <= LONGEST_ERROR {
        return status;
    }
    // What failed is named at the beginning, and why at the end.
    let (head, tail) = (LONGEST_ERROR / 2, message.len() - LONGEST_ERROR / 4);
    let (head, tail) = (message.floor_char_boundary(head), message.ceil_char_boundary(tail));
    let short = format!("{}… ({} bytes) …{}", &message[..head], message.len(), &message[tail..]);
    Status::with_details_and_metadata(
        status.code(),
        short,
        bytes::Bytes::copy_from_slice(status.details()),
        status.metadata().clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        let short = bounded(Status::not_found("no image"));
        assert_eq!(short.message(), "no image");
        let long = bounded(Status::not_found(format!("image {}: no such host", "é".repeat(50_000))));
        assert_eq!(long.code(), Code::NotFound);
        assert!(long.message().starts_with("image é") && long.message().ends_with("é: no such host"));
        assert!(long.message().len() <= LONGEST_ERROR);
    }
}
