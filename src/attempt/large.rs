//! Large bodies past awc's buffer: where a connection is not encrypted, the socket sends a body from where it lies.
//!
//! awc copies what a body yields behind the head, into one buffer. A large body yields its first bytes only, and leaves
//! the rest to the socket, which sends it in one system call with the buffer. Both happen within one poll of the request,
//! so the rest cannot get to another one's socket: [`in_one_poll`] sees to that.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_http::RequestHead;
use actix_http::body::{BodySize, MessageBody};
use actix_http::header::{self, HeaderMap, HeaderValue};
use bytes::Bytes;

/// From this length on a body is large, in bytes: below, copying costs less than going about it.
pub(super) const LARGE: usize = 32 << 10;
/// So much of it goes through awc's buffer: something must, for an empty chunk is the end of a body.
const FIRST: usize = 512;

thread_local! {
    static LEFT: Cell<Bytes> = const { Cell::new(Bytes::new()) };
}

/// What a body has left to the socket that is written next.
pub(super) fn take_left() -> Bytes {
    LEFT.take()
}

/// Polls the sending of a request. `None` when a body left something that no socket took: it must not be sent on.
pub(super) fn in_one_poll<F: Future + ?Sized>(sending: Pin<&mut F>, cx: &mut Context<'_>) -> Option<Poll<F::Output>> {
    let step = sending.poll(cx);
    take_left().is_empty().then_some(step)
}

/// A large body. Its head must be made by [`with_length`].
pub(super) struct Large {
    first: Bytes,
    rest: Bytes,
}

impl Large {
    /// The body, at least [`LARGE`] long.
    pub(super) fn new(mut body: Bytes) -> Self {
        Self { first: body.split_to(FIRST.min(body.len())), rest: body }
    }
}

impl MessageBody for Large {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
        }
        LEFT.set(std::mem::take(&mut self.rest));
        Poll::Ready(None)
    }
}

/// The head for a large body, with all its headers. Its length stands among them, where awc would cut the body into chunks.
pub(super) fn with_length(head: &RequestHead, extra: Option<HeaderMap>, length: usize) -> Rc<RequestHead> {
    let mut head = head.clone();
    for (name, value) in extra.into_iter().flatten() {
        head.headers.insert(name, value);
    }
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    head.no_chunking(true);
    Rc::new(head)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use actix_http::Method;
    use futures_util::future::join_all;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpSocket, TcpStream};

    use super::super::{Address, HttpClient, Incoming, Outgoing, OutgoingBody, SendFailure, tls_config};
    use super::*;
    use crate::chat::Endpoint;
    use crate::settings;

    fn client(base: &str) -> HttpClient {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let document =
            format!(r#"{{"backends":[{{"name":"b","type":"meta","config":{{"endpoint":"{base}","models":["m"]}}}}]}}"#);
        let settings = settings::from_text("test", &document, &std::collections::BTreeMap::new()).unwrap();
        let tls = tls_config(&rustls::RootCertStore::empty(), None).unwrap();
        HttpClient::new(&settings.backends[0], &tls, vec![("authorization".into(), "own".into())], &Arc::default())
    }

    async fn post(client: &HttpClient, url: &str, body: Bytes) -> Result<Incoming, SendFailure> {
        let make = || url.to_owned();
        let url = Address::Known { model: None, stream: false, make: &make };
        let body = OutgoingBody::Full(body);
        client.send(Outgoing { endpoint: Endpoint::Chat, method: Method::POST, url, headers: &[], body, pooled: true }).await
    }

    /// Answers each request with its length and a sum over its body. Reads in small parts, as a slow host does.
    async fn answer(mut stream: TcpStream) -> Option<()> {
        let (mut seen, mut part) = (Vec::new(), vec![0; 16 << 10]);
        loop {
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                let read = stream.read(&mut part).await.ok().filter(|read| *read > 0)?;
                seen.extend_from_slice(&part[..read]);
            }
            let end = seen.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
            let head = String::from_utf8(seen[..end].to_vec()).ok()?;
            assert!(!head.contains("transfer-encoding") && head.matches("authorization: own").count() == 1, "{head}");
            let lengths: Vec<usize> =
                head.lines().filter_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).collect();
            let [length] = lengths[..] else { panic!("{head}") };
            while seen.len() < end + length {
                let read = stream.read(&mut part).await.ok().filter(|read| *read > 0)?;
                seen.extend_from_slice(&part[..read]);
                tokio::task::yield_now().await;
            }
            assert_eq!(seen.len(), end + length, "nothing follows the body");
            let answer = format!("{length} {}", sum(&seen[end..]));
            seen.clear();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-answer: {answer}\r\n\r\n", answer.len());
            stream.write_all(format!("{head}{answer}").as_bytes()).await.ok()?;
        }
    }

    /// Differs when bytes change or change places.
    fn sum(bytes: &[u8]) -> u64 {
        bytes.iter().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
    }

    #[actix_rt::test]
    async fn bodies_of_every_length_arrive_whole_at_a_slow_host_beside_each_other() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(64).unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        actix_rt::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                actix_rt::spawn(answer(stream));
            }
        });
        let (client, url) = (client(&base), format!("{base}/v1/chat/completions"));
        for round in 0..3_u8 {
            let lengths = [0, 2, FIRST, LARGE - 1, LARGE, LARGE + 1, 100_000, 300_000, 1 << 20, 3 << 20, 100_000, 3 << 20];
            let bodies = lengths.iter().zip(0_u8..).map(|(length, nth)| {
                let mut random = fastrand::Rng::with_seed(u64::from(round) << 8 | u64::from(nth));
                Bytes::from((0..*length).map(|_| random.u8(..)).collect::<Vec<_>>())
            });
            join_all(bodies.map(async |body| {
                let mut incoming = post(&client, &url, body.clone()).await.unwrap();
                let answer = incoming.headers().get("x-answer").unwrap().to_str().unwrap().to_owned();
                assert_eq!(answer, format!("{} {}", body.len(), sum(&body)));
                assert_eq!(super::super::replies::collect(&mut incoming, 1 << 10).await.unwrap(), answer);
            }))
            .await;
        }
    }

    #[actix_rt::test]
    async fn a_host_that_goes_away_within_the_body_is_a_broken_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        actix_rt::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 64]).await;
            }
        });
        let sending = post(&client(&base), &base, Bytes::from(vec![b' '; 16 << 20])).await;
        let failure = sending.err().expect("nobody took the body");
        assert!(failure.sent && failure.failure.message.contains("connection"), "{failure:?}");
        assert!(take_left().is_empty());
    }

    #[actix_rt::test]
    async fn a_host_that_does_not_read_holds_the_body_up_and_giving_up_ends_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let client = client(&base);
        let body = Bytes::from(vec![b' '; 32 << 20]);
        let given_up = actix_rt::time::timeout(Duration::from_millis(300), post(&client, &base, body.clone())).await;
        assert!(given_up.is_err());
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got).await;
        assert!(got.len() < body.len(), "the connection has ended within the body");
    }

    #[actix_rt::test]
    async fn what_no_socket_takes_is_not_left_for_another_one() {
        let mut large = Large::new(Bytes::from(vec![b' '; LARGE]));
        let mut sending = std::pin::pin!(async move {
            let mut length = 0;
            while let Some(Ok(chunk)) = std::future::poll_fn(|cx| Pin::new(&mut large).poll_next(cx)).await {
                length += chunk.len();
            }
            length
        });
        let step = std::future::poll_fn(|cx| Poll::Ready(in_one_poll(sending.as_mut(), cx))).await;
        assert!(step.is_none() && take_left().is_empty());
    }
}
