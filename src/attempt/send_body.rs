//! A request's body as it is handed to a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_http::body::{BodySize, MessageBody};
use bytes::Bytes;
use futures_util::Stream;

use super::large::Large;

/// What is sent behind a request's head.
pub(super) enum SendBody {
    /// Nothing, not even its length.
    None,
    /// One piece.
    Whole(Bytes),
    /// One piece that is not copied.
    Large(Large),
    /// What its client still sends.
    Stream {
        /// Declared length.
        length: Option<u64>,
        /// Bytes.
        bytes: Pin<Box<dyn Stream<Item = io::Result<Bytes>>>>,
    },
}

impl SendBody {
    /// A body of at least [`LARGE`](super::large::LARGE) bytes.
    pub(super) fn large(body: Bytes) -> Self {
        Self::Large(Large::new(body))
    }
}

impl MessageBody for SendBody {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        match self {
            Self::None => BodySize::None,
            Self::Whole(bytes) => BodySize::Sized(bytes.len() as u64),
            Self::Large(large) => large.size(),
            Self::Stream { length, .. } => length.map_or(BodySize::Stream, BodySize::Sized),
        }
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self.get_mut() {
            Self::None => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready((!bytes.is_empty()).then(|| Ok(std::mem::take(bytes)))),
            Self::Large(large) => Pin::new(large).poll_next(cx),
            // An empty piece would be the end of a body that is cut into chunks.
            Self::Stream { bytes, .. } => loop {
                match ready!(bytes.as_mut().poll_next(cx)) {
                    Some(Ok(piece)) if piece.is_empty() => {}
                    step => return Poll::Ready(step),
                }
            },
        }
    }
}
