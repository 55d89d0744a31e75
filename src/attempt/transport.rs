//! The seam between an attempt and what answers it: the network or the simulated provider. Either yields a status,
//! headers and bytes in a dialect, so that reader, classifier, timers and permits are the same for both.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_http::{Method, Payload, ResponseHead, StatusCode};
use awc::ClientResponse;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::Either;

use super::dial::watch_end;
use super::http_client::{HttpClient, Ride};
use crate::chat::{Endpoint, Failure, FailureClass};
use crate::simulate::{SimulatedReply, Simulator};

/// How a backend is reached.
pub enum Transport {
    /// Over the network.
    Http(Box<HttpClient>),
    /// By the embedded simulated provider.
    Simulated(Simulator),
}

/// A request as it goes out.
pub struct Outgoing<'a> {
    /// What is asked for.
    pub endpoint: Endpoint,
    /// Method.
    pub method: Method,
    /// Full address.
    pub url: Address<'a>,
    /// Headers beside those of the backend. At a known address they go over the backend's own; at an address of its own,
    /// where they are the client's, below.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// Body.
    pub body: OutgoingBody,
    /// Whether a connection of the pool may be used.
    pub pooled: bool,
}

/// Where a request goes.
#[derive(Clone)]
pub enum Address<'a> {
    /// The endpoint's usual address, worked out once per endpoint (and model, where it is part of the address).
    Known {
        /// The model, when the address depends on it.
        model: Option<&'a str>,
        /// Whether a stream is asked for, which may be another address.
        stream: bool,
        /// Makes the address the first time.
        make: &'a dyn Fn() -> String,
    },
    /// An address of this request alone.
    Own(String),
}

/// What is sent.
pub enum OutgoingBody {
    /// Whole.
    Full(Bytes),
    /// As it comes in.
    Stream {
        /// Declared length.
        length: Option<u64>,
        /// Bytes.
        bytes: Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>>>>,
    },
}

/// A reply as it comes in: its head is here, its bytes are pulled.
pub enum Incoming {
    /// From the network.
    Http(Box<HttpReply>),
    /// From the simulated provider.
    Simulated(Box<SimulatedReply>),
}

/// A reply from the network.
pub struct HttpReply {
    pub(super) head: ResponseHead,
    pub(super) payload: Payload,
    #[expect(dead_code, reason = "counts while it lives")]
    pub(super) ride: Option<Ride>,
}

impl From<ClientResponse> for HttpReply {
    fn from(response: ClientResponse) -> Self {
        let mut head = ResponseHead::new(response.status());
        head.headers = response.headers().clone();
        Self { head, payload: Payload::Stream { payload: Box::pin(response) }, ride: None }
    }
}

impl Incoming {
    /// Status code.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Http(reply) => reply.head.status,
            Self::Simulated(reply) => reply.status,
        }
    }

    /// Headers.
    pub fn headers(&self) -> &HeaderMap {
        match self {
            Self::Http(reply) => &reply.head.headers,
            Self::Simulated(reply) => &reply.headers,
        }
    }

    /// The next chunk of the body. A failure is boxed: it is large, and each result would have its size.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Box<Failure>>>> {
        match self {
            Self::Http(reply) => {
                let broken = || Box::new(Failure::new(FailureClass::Malformed, "the provider's reply was cut before its end"));
                let (step, saw_end) = watch_end(|| Pin::new(&mut reply.payload).poll_next(cx));
                match step {
                    Poll::Ready(None) if saw_end && reply.head.headers.contains_key(header::TRANSFER_ENCODING) => {
                        Poll::Ready(Some(Err(broken())))
                    }
                    step => step.map(|step| step.map(|chunk| chunk.map_err(|_| broken()))),
                }
            }
            Self::Simulated(reply) => reply.body.poll_next(cx),
        }
    }
}

/// A request that got no reply.
#[derive(Debug)]
pub struct SendFailure {
    /// What it is.
    pub failure: Failure,
    /// Whether bytes may have reached the provider.
    pub sent: bool,
}

impl Transport {
    /// Called when a request was not answered in time.
    pub fn doubt_connections(&self) {
        if let Self::Http(client) = self {
            client.doubt_connections();
        }
    }

    /// Called every [`super::KEEP_ALIVE`].
    pub fn close_idle(&self) {
        if let Self::Http(client) = self {
            client.close_idle();
        }
    }

    /// Called when a job is admitted, in the actor's handler.
    pub fn on_admit(&self) {
        if let Self::Simulated(simulator) = self {
            simulator.on_admit();
        }
    }

    /// Sends a request and awaits the reply's head. Dropping the future ends the request.
    ///
    /// # Errors
    /// [`SendFailure`] when no head came.
    pub fn send<'a>(&'a self, request: Outgoing<'a>) -> impl Future<Output = Result<Incoming, SendFailure>> + use<'a> {
        match self {
            Self::Http(client) => Either::Left(client.send(request)),
            Self::Simulated(simulator) => Either::Right(Box::pin(simulator.send(request))),
        }
    }
}
