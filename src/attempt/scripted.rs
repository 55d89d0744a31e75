//! A server on the loopback interface for the tests of what goes over a socket.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Status, header lines and body of a reply.
pub(super) type Reply = (u16, String, Vec<u8>);

/// A server, and the requests that it was sent.
pub(super) struct Scripted {
    pub(super) address: SocketAddr,
    pub(super) requests: Rc<RefCell<Vec<String>>>,
}

impl Scripted {
    /// Starts; each connection gets one of these replies, the last one ever after.
    pub(super) async fn start(replies: &[(u16, &str, &str)]) -> Self {
        let replies: Vec<Reply> =
            replies.iter().map(|(status, headers, body)| (*status, (*headers).to_owned(), body.as_bytes().to_vec())).collect();
        Self::answering(move |index, _| replies[index.min(replies.len() - 1)].clone()).await
    }

    /// Starts; the reply depends on how many requests there were before, and on the request.
    pub(super) async fn answering(answer: impl Fn(usize, &str) -> Reply + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&requests);
        actix_rt::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = Vec::new();
                while !is_whole(&bytes) {
                    match stream.read_u8().await {
                        Ok(byte) => bytes.push(byte),
                        Err(_) => break,
                    }
                }
                let request = String::from_utf8(bytes).unwrap();
                let (status, headers, body) = answer(log.borrow().len(), &request);
                log.borrow_mut().push(request);
                let length = if headers.contains("content-length") {
                    String::new()
                } else {
                    format!("content-length: {}\r\n", body.len())
                };
                let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{length}{headers}\r\n");
                // Who asked may have seen enough.
                let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
            }
        });
        Self { address, requests }
    }

    /// The requests so far; names of headers in lower case, as they are sent.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.borrow().clone()
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    if head.contains("transfer-encoding: chunked") {
        return body.ends_with("0\r\n\r\n");
    }
    let length = head.split("content-length: ").nth(1).map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
    body.len() >= length
}
