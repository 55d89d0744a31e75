//! The seam between an attempt and what answers it: the network or the simulated provider. Either yields a status,
//! headers and bytes in a dialect, so that reader, classifier, timers and permits are the same for both.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_http::{Method, StatusCode};
use bytes::Bytes;
use futures_util::Stream;

use super::http_client::HttpClient;
use crate::chat::{Endpoint, Failure};
use crate::simulate::{SimulatedBody, Simulator};

/// How a backend is reached.
pub enum Transport {
    /// Over the network.
    Http(HttpClient),
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
    /// Headers beside those of the backend.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// Body.
    pub body: OutgoingBody,
    /// Whether a connection of the pool may be used.
    pub pooled: bool,
}

/// Where a request goes.
pub enum Address<'a> {
    /// The endpoint's usual address, worked out once per endpoint (and model, where it is part of the address).
    Known {
        /// The model, when the address depends on it.
        model: Option<&'a str>,
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

/// A reply as it comes in.
pub struct Incoming {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: IncomingBody,
}

/// The bytes of a reply.
pub enum IncomingBody {
    /// From the network.
    Http(Pin<Box<dyn Stream<Item = Result<Bytes, Failure>>>>),
    /// From the simulated provider.
    Simulated(SimulatedBody),
}

impl IncomingBody {
    /// The next chunk.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        match self {
            Self::Http(stream) => stream.as_mut().poll_next(cx),
            Self::Simulated(body) => body.poll_next(cx),
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
    pub async fn send(&self, request: Outgoing<'_>) -> Result<Incoming, SendFailure> {
        match self {
            Self::Http(client) => client.send(request).await,
            Self::Simulated(simulator) => simulator.send(request).await,
        }
    }
}
