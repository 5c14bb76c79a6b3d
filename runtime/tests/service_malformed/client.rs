//! A gRPC client that sends whatever bytes it is given, and what is not even gRPC.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::mutation::Random;

/// Bytes as they are.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Plain;
    type Decoder = Plain;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; from.remaining()];
        from.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// A connection to a runtime's socket.
#[derive(Clone)]
pub(crate) struct Client(Channel);

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Self {
        let address = format!("unix://{}", socket.display());
        Self(Endpoint::from_shared(address).unwrap().connect().await.unwrap())
    }

    /// Sends a request that may be none. A call that is still open after `patience` is dropped.
    pub(crate) async fn call(
        &self,
        method: &str,
        request: Vec<u8>,
        patience: Duration,
    ) -> Option<Result<Vec<u8>, Status>> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.unwrap();
        let path = method.parse().unwrap();
        let call = async {
            let mut stream = grpc.server_streaming(Request::new(request), path, Plain).await?.into_inner();
            let mut last = Vec::new();
            while let Some(message) = stream.message().await? {
                last = message;
            }
            Ok(last)
        };
        tokio::time::timeout(patience, call).await.ok()
    }
}

/// Writes what is no HTTP/2, or a broken one, and goes away once the runtime has closed or has said nothing for a while.
pub(crate) fn send_garbage(socket: &Path, random: &mut Random) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut bytes = Vec::new();
    if random.below(3) > 0 {
        bytes.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        for _ in 0..random.below(20) {
            // Length, type, flags, stream: a header that may promise far more than comes.
            let length = random.below(1 << 14) as u32;
            let frame = length.to_be_bytes();
            bytes.extend(&frame[1..]);
            bytes.extend([random.below(12) as u8, random.below(256) as u8, 0, 0, 0, random.below(8) as u8]);
            bytes.extend((0..random.below(64)).map(|_| random.below(256) as u8));
        }
    } else {
        bytes.extend((0..random.below(4000)).map(|_| random.below(256) as u8));
    }
    // A runtime that has hung up already has done right.
    let _ = stream.write_all(&bytes);
    let mut answer = [0; 4096];
    while matches!(stream.read(&mut answer), Ok(length) if length > 0) {}
}
