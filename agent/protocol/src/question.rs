//! How questions about names travel to the host, and answers back, all over one connection.
//!
//! ```text
//! length  4 bytes, of what follows ┐
//! number  4 bytes                  │ the greater first; an answer has its question's number
//! transport  1 byte                ┘ how it was asked: 1 datagram, 2 connection
//! message  as DNS has it (RFC 1035 §4), of at most 65,535 bytes; nothing for "no answer"
//! ```

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
pub use tokio_util::bytes::Bytes;
use tokio_util::bytes::{Buf, BufMut, BytesMut};
use tokio_util::codec::{Decoder, Encoder, Framed, LengthDelimitedCodec};

/// Most bytes that a DNS message can have: its length over TCP has two bytes.
pub const MAX_MESSAGE: usize = u16::MAX as usize;

/// Bytes before the message that are no length.
const HEADER: usize = 5;

/// A question, or the answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The asker's own; tells which question an answer is to.
    pub number: u32,
    /// How it was asked, and so how it is to be asked: a resolver cuts what does not fit.
    pub transport: Transport,
    /// The DNS message.
    pub message: Bytes,
}

/// What a question came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Datagram = 1,
    /// TCP.
    Connection = 2,
}

/// A connection as a stream and sink of questions.
pub fn framed<S: AsyncRead + AsyncWrite>(connection: S) -> Framed<S, Codec> {
    let lengths = LengthDelimitedCodec::builder()
        .max_frame_length(HEADER + MAX_MESSAGE)
        .new_codec();
    Framed::new(connection, Codec { lengths })
}

/// Questions as bytes.
#[derive(Debug)]
pub struct Codec {
    lengths: LengthDelimitedCodec,
}

impl Decoder for Codec {
    type Item = Question;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Question>> {
        let Some(mut frame) = self.lengths.decode(bytes)? else {
            return Ok(None);
        };
        if frame.len() < HEADER {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a question of {} bytes", frame.len()),
            ));
        }
        let number = frame.get_u32();
        let transport = match frame.get_u8() {
            1 => Transport::Datagram,
            2 => Transport::Connection,
            other => {
                let error = format!("a question by transport {other}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        };
        Ok(Some(Question {
            number,
            transport,
            message: frame.freeze(),
        }))
    }
}

impl Encoder<Question> for Codec {
    type Error = io::Error;

    fn encode(&mut self, question: Question, bytes: &mut BytesMut) -> io::Result<()> {
        let mut frame = BytesMut::with_capacity(HEADER + question.message.len());
        frame.put_u32(question.number);
        frame.put_u8(question.transport as u8);
        frame.put(question.message);
        self.lengths.encode(frame.freeze(), bytes)
    }
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn questions_arrive_as_they_were_asked() {
        let (ours, theirs) = tokio::io::duplex(16);
        let (mut ours, mut theirs) = (framed(ours), framed(theirs));
        let asked = [
            (7, Transport::Datagram, Bytes::from_static(b"tide")),
            (
                u32::MAX,
                Transport::Connection,
                Bytes::from(vec![1; MAX_MESSAGE]),
            ),
            (0, Transport::Datagram, Bytes::new()),
        ]
        .map(|(number, transport, message)| Question {
            number,
            transport,
            message,
        });

        let sending = async {
            for question in &asked {
                ours.send(question.clone()).await.unwrap();
            }
            drop(ours);
        };
        let receiving = async {
            let mut received = Vec::new();
            while let Some(question) = theirs.next().await {
                received.push(question.unwrap());
            }
            received
        };
        let ((), received) = tokio::join!(sending, receiving);

        assert_eq!(received, asked);
    }

    #[test]
    fn what_is_no_question_is_an_error() {
        let too_long = u32::try_from(HEADER + MAX_MESSAGE + 1).unwrap();
        for bytes in [
            &[0, 0, 0, 4, 0, 0, 0, 1][..],
            &[0, 0, 0, 5, 0, 0, 0, 1, 9],
            &too_long.to_be_bytes(),
        ] {
            let mut codec = framed(tokio::io::empty()).into_parts().codec;
            let decoded = codec.decode(&mut BytesMut::from(bytes));
            assert!(decoded.is_err(), "{bytes:?}");
        }
    }
}
