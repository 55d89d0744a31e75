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
    /// One piece, perhaps empty.
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
            Self::Whole(bytes) => BodySize::Sized(bytes.len() as u64),
            Self::Large(large) => large.size(),
            Self::Stream { length, .. } => length.map_or(BodySize::Stream, BodySize::Sized),
        }
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self.get_mut() {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use actix_http::Method;
    use futures_util::stream;

    use super::super::scripted::Scripted;
    use super::super::{Address, HttpClient, Outgoing, OutgoingBody, tls_config};
    use super::*;
    use crate::chat::Endpoint;
    use crate::settings;

    /// The head and body of a request as they arrive at its host.
    async fn arrived(method: Method, body: OutgoingBody) -> String {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let host = Scripted::start(&[(200, "", "{}")]).await;
        let document = r#"{"backends":[{"name":"b","type":"meta","config":{"endpoint":"http://h","models":["m"]}}]}"#;
        let settings = settings::from_text("test", document, &std::collections::BTreeMap::new()).unwrap();
        let tls = tls_config(&rustls::RootCertStore::empty(), None).unwrap();
        let client = HttpClient::new(&settings.backends[0], &tls, Vec::new(), &Arc::default());
        let url = Address::Own(host.url("/path"));
        let request = Outgoing { endpoint: Endpoint::Passthrough, method, url, headers: &[], body, pooled: false };
        assert_eq!(client.send(request).await.unwrap().status(), 200);
        host.requests().remove(0).to_ascii_lowercase()
    }

    fn pieces(pieces: &'static [&'static str]) -> Pin<Box<dyn Stream<Item = io::Result<Bytes>>>> {
        Box::pin(stream::iter(pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes())))))
    }

    #[actix_rt::test]
    async fn an_empty_body_says_its_length() {
        for method in [Method::PUT, Method::POST, Method::GET] {
            let request = arrived(method, OutgoingBody::Full(Bytes::new())).await;
            assert!(request.contains("\r\ncontent-length: 0\r\n") && request.ends_with("\r\n\r\n"), "{request}");
        }
    }

    #[actix_rt::test]
    async fn a_streamed_body_ends_with_its_last_piece_and_not_with_an_empty_one() {
        let body = OutgoingBody::Stream { length: Some(4), bytes: pieces(&["ab", "", "cd"]) };
        let request = arrived(Method::POST, body).await;
        assert!(request.contains("\r\ncontent-length: 4\r\n") && request.ends_with("\r\n\r\nabcd"), "{request}");
        let body = OutgoingBody::Stream { length: None, bytes: pieces(&["ab", "", "cd"]) };
        let request = arrived(Method::POST, body).await;
        assert!(request.contains("\r\ntransfer-encoding: chunked\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"), "{request}");
    }
}
