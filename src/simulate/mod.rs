//! The simulated provider: deterministic answers in a dialect, with latencies and a fault script.
//!
//! [`Simulator`] is the transport of a `simulated` backend; [`server`] puts the same behind a socket.

mod answer;
mod body;
mod schema;
mod script;
pub mod server;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix_http::StatusCode;
use actix_http::header::{self, HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

pub use body::SimulatedBody;
use body::Step;
pub use script::Script;
use script::{Fault, Plan};

use crate::attempt::{Incoming, Outgoing, OutgoingBody, SendFailure};
use crate::chat::{Endpoint, Failure, FailureClass};
use crate::settings::Simulated;

/// A provider that invents its answers.
pub struct Simulator {
    script: Script,
}

/// A reply of the simulated provider.
pub struct SimulatedReply {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: SimulatedBody,
}

/// Faults that end a request before any reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No connection.
    Connect,
    /// The connection broke.
    Reset,
}

impl Simulator {
    /// Starts; `numbers` counts requests over all workers and generations.
    pub fn new(settings: Simulated, numbers: Arc<[AtomicU64; 2]>) -> Self {
        Self { script: Script::new(settings, numbers) }
    }

    /// The place of the fault `panic-handler`.
    pub fn on_admit(&self) {
        assert!(!self.script.panics_on_admission(), "simulated panic in the handler");
    }

    /// Answers a request.
    ///
    /// # Errors
    /// [`Refused`] when the script says so.
    ///
    /// # Panics
    /// By the fault `panic-task`.
    pub async fn reply(&self, endpoint: Endpoint, body: &[u8]) -> Result<SimulatedReply, Refused> {
        let plan = self.script.next();
        match &plan.fault {
            Some(Fault::ConnectRefused) => return Err(Refused::Connect),
            Some(Fault::Reset) => return Err(Refused::Reset),
            Some(Fault::SlowHead(delay)) => tokio::time::sleep(*delay).await,
            Some(Fault::PanicTask) => panic!("simulated panic in the task"),
            Some(Fault::Status(status, retry_after)) => {
                return Ok(refusal(*status, *retry_after, "simulated status"));
            }
            _ => {}
        }
        Ok(match answer::compose(endpoint, body, &self.script.settings, plan.number) {
            answer::Composed::Whole(bytes) => whole(bytes, &plan),
            answer::Composed::Events(events) => stream(events, &plan),
            answer::Composed::Refused(message) => refusal(400, None, message),
        })
    }

    /// Answers a request of the gateway.
    ///
    /// # Errors
    /// A transport failure when the script says so.
    pub async fn send(&self, request: Outgoing<'_>) -> Result<Incoming, SendFailure> {
        let body = match request.body {
            OutgoingBody::Full(body) => body,
            OutgoingBody::Stream { .. } => Bytes::new(),
        };
        let reply = self.reply(request.endpoint, &body).await.map_err(|refused| match refused {
            Refused::Connect => SendFailure {
                failure: Failure::new(FailureClass::Socket, "no connection to the provider: connection refused"),
                sent: false,
            },
            Refused::Reset => SendFailure {
                failure: Failure::new(FailureClass::Socket, "the connection to the provider broke before it answered"),
                sent: true,
            },
        })?;
        Ok(Incoming::Simulated(Box::new(reply)))
    }
}

fn refusal(status: u16, retry_after: Option<Duration>, message: &str) -> SimulatedReply {
    let (kind, code) = match status {
        401 => ("invalid_request_error", "invalid_api_key"),
        402 => ("insufficient_quota", "insufficient_quota"),
        404 => ("invalid_request_error", "model_not_found"),
        429 => ("rate_limit_error", "rate_limit_exceeded"),
        400..=499 => ("invalid_request_error", "simulated"),
        _ => ("server_error", "simulated"),
    };
    let error = serde_json::json!({ "error": { "message": message, "type": kind, "param": null, "code": code } });
    let bytes = Bytes::from(error.to_string());
    let mut headers = headers("application/json", Some(bytes.len()));
    if let Some(value) = retry_after.and_then(|after| HeaderValue::from_str(&after.as_secs_f64().to_string()).ok()) {
        headers.insert(header::RETRY_AFTER, value);
    }
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    SimulatedReply { status, headers, body: SimulatedBody::new(vec![Step::Send(bytes)]) }
}

fn headers(content_type: &'static str, length: Option<usize>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("x-stagedoor-simulated"), HeaderValue::from_static("true"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers
}

fn whole(bytes: Bytes, plan: &Plan) -> SimulatedReply {
    let length = bytes.len();
    let mut steps = vec![Step::Wait(plan.first_token)];
    match &plan.fault {
        Some(Fault::Stall(_)) => steps.push(Step::Stall),
        Some(Fault::Cut(_)) => steps.push(Step::Send(bytes.slice(..bytes.len() / 2))),
        Some(Fault::Malformed(_)) => steps.push(Step::Send(Bytes::from(vec![b'?'; bytes.len()]))),
        Some(Fault::ErrorEvent(_)) => return refusal(500, None, "simulated error"),
        Some(Fault::PanicBody(_)) => steps.push(Step::Panic),
        _ => steps.push(Step::Send(bytes)),
    }
    SimulatedReply { status: StatusCode::OK, headers: headers("application/json", Some(length)), body: SimulatedBody::new(steps) }
}

fn stream(events: Vec<Bytes>, plan: &Plan) -> SimulatedReply {
    let mut steps = Vec::with_capacity(events.len() * 2 + 2);
    for (place, event) in events.into_iter().enumerate() {
        let place = place as u64;
        match place {
            0 => steps.push(Step::Wait(plan.first_token)),
            1 => {}
            _ => steps.push(Step::Wait(plan.gap(place))),
        }
        match &plan.fault {
            Some(Fault::Stall(at)) if *at == place => {
                steps.push(Step::Stall);
                break;
            }
            Some(Fault::Cut(at)) if *at == place => break,
            Some(Fault::Malformed(at)) if *at == place => {
                steps.push(Step::Send(Bytes::from_static(b"data: {\"choices\":[{\"delta\"\n\n")));
            }
            Some(Fault::ErrorEvent(at)) if *at == place => {
                let error =
                    br#"data: {"error":{"message":"simulated error","type":"server_error","param":null,"code":"simulated"}}"#;
                steps.push(Step::Send(Bytes::from([error.as_slice(), b"\n\n"].concat())));
                break;
            }
            Some(Fault::PanicBody(at)) if *at == place => steps.push(Step::Panic),
            _ => {}
        }
        steps.push(Step::Send(event));
    }
    SimulatedReply { status: StatusCode::OK, headers: headers("text/event-stream", None), body: SimulatedBody::new(steps) }
}
