//! How datagrams travel over the connection of a forward: each behind its length, two bytes, the
//! greater first.

use tokio::io::{AsyncRead, AsyncWrite};
pub use tokio_util::bytes::Bytes;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// Most bytes that a datagram can have; UDP carries up to 65,507.
pub const MAX: usize = u16::MAX as usize;

/// A connection as a stream and sink of datagrams.
pub fn framed<S: AsyncRead + AsyncWrite>(connection: S) -> Framed<S, LengthDelimitedCodec> {
    let codec = LengthDelimitedCodec::builder()
        .length_field_type::<u16>()
        .max_frame_length(MAX)
        .new_codec();
    Framed::new(connection, codec)
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn datagrams_keep_their_bounds() {
        let (ours, theirs) = tokio::io::duplex(16);
        let (mut ours, mut theirs) = (framed(ours), framed(theirs));
        let sent = [
            Bytes::from_static(b"tide"),
            Bytes::new(),
            Bytes::from(vec![7; MAX]),
        ];

        let sending = async {
            for datagram in &sent {
                ours.send(datagram.clone()).await.unwrap();
            }
            drop(ours);
        };
        let receiving = async {
            let mut received = Vec::new();
            while let Some(datagram) = theirs.next().await {
                received.push(datagram.unwrap().freeze());
            }
            received
        };
        let ((), received) = tokio::join!(sending, receiving);

        assert_eq!(received, sent);
    }
}
