//! The one connection to the shim, which tells when it has ended: ttrpc's server does not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// A stream that reports its end.
pub struct Connection<S> {
    stream: S,
    /// Dropped at the end of the stream, or with it.
    end: Option<oneshot::Sender<()>>,
}

impl<S> Connection<S> {
    /// Wraps `stream`; the receiver completes, with an error, when nothing more will come of it.
    pub fn new(stream: S) -> (Self, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let end = Some(end);
        (Self { stream, end }, ended)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if read.is_err() || buf.filled().len() == before {
            self.end = None;
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_end_is_told_while_the_stream_is_still_held() {
        let (mut shim, ours) = tokio::io::duplex(16);
        let (mut connection, mut ended) = Connection::new(ours);
        shim.write_all(b"call").await.unwrap();
        connection.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty));

        drop(shim);
        let read = connection.read(&mut [0; 4]).await.unwrap();

        assert_eq!(read, 0);
        assert_eq!(ended.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
