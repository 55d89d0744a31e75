//! The simulated provider: deterministic answers in a dialect, with latencies and a fault script.
//!
//! [`Simulator`] is the transport of a `simulated` backend; [`server`] puts the same behind a socket. `answer` decides
//! what is said, `wire` says it in the dialect, `script` decides what goes wrong.

mod answer;
mod body;
mod schema;
mod script;
pub mod server;
mod wire;

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
use wire::{Asked, Composed, Event, Trouble, Turn, Wire};

use crate::attempt::{Address, Incoming, Outgoing, OutgoingBody, SendFailure};
use crate::chat::{Endpoint, Failure, FailureClass};
use crate::settings::{Simulated, SimulatedDialect};

/// A provider that invents its answers.
pub struct Simulator {
    script: Script,
    wire: &'static dyn Wire,
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
        Self { wire: wire::of(settings.dialect), script: Script::new(settings, numbers) }
    }

    /// The place of the fault `panic-handler`.
    pub fn on_admit(&self) {
        assert!(!self.script.panics_on_admission(), "simulated panic in the handler");
    }

    /// Answers a request; `target` is its path and query, where dialects other than OpenAI's say what is asked for.
    ///
    /// # Errors
    /// [`Refused`] when the script says so.
    ///
    /// # Panics
    /// By the fault `panic-task`.
    pub async fn reply(&self, endpoint: Endpoint, target: &str, body: &[u8]) -> Result<SimulatedReply, Refused> {
        let plan = self.script.next();
        match &plan.fault {
            Some(Fault::ConnectRefused) => return Err(Refused::Connect),
            Some(Fault::Reset) => return Err(Refused::Reset),
            Some(Fault::SlowHead(delay)) => tokio::time::sleep(*delay).await,
            Some(Fault::PanicTask) => panic!("simulated panic in the task"),
            Some(Fault::Status(status, retry_after)) => {
                return Ok(self.refusal(&plan, *status, *retry_after, "simulated status"));
            }
            _ => {}
        }
        let turn = Turn { settings: &self.script.settings, number: plan.number };
        Ok(match wire::compose(self.wire, &Asked { endpoint, target, body }, &turn) {
            Ok(Composed::Whole(bytes)) => self.whole(bytes, &plan),
            Ok(Composed::Events(events)) => self.stream(events, &plan),
            Err(message) => self.refusal(&plan, 400, None, message),
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
        let url = match request.url {
            // The endpoint alone says it all.
            Address::Known { .. } if self.script.settings.dialect == SimulatedDialect::OpenAi => String::new(),
            Address::Known { make, .. } => make(),
            Address::Own(url) => url,
        };
        let reply = self.reply(request.endpoint, &url, &body).await.map_err(|refused| match refused {
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

    /// The dialect's list of models, as JSON.
    fn models(&self) -> String {
        self.wire.models().to_string()
    }

    fn refusal(&self, plan: &Plan, status: u16, retry_after: Option<Duration>, message: &str) -> SimulatedReply {
        let error = self.wire.error(&Trouble { number: plan.number, status, retry_after, message });
        let bytes = Bytes::from(error.to_string());
        let mut headers = self.headers(plan, "application/json", Some(bytes.len()));
        if let Some(after) = retry_after.filter(|_| self.wire.has_retry_header())
            && let Ok(value) = HeaderValue::from_str(&after.as_secs_f64().to_string())
        {
            headers.insert(header::RETRY_AFTER, value);
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        SimulatedReply { status, headers, body: SimulatedBody::new(vec![Step::Send(bytes)]) }
    }

    fn headers(&self, plan: &Plan, content_type: &'static str, length: Option<usize>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static("x-stagedoor-simulated"), HeaderValue::from_static("true"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some((name, value)) = self.wire.identity(plan.number) {
            headers.insert(name, value);
        }
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        headers
    }

    fn whole(&self, bytes: Bytes, plan: &Plan) -> SimulatedReply {
        let headers = self.headers(plan, "application/json", Some(bytes.len()));
        let mut steps = vec![Step::Wait(plan.first_token)];
        match &plan.fault {
            Some(Fault::Stall(_)) => steps.push(Step::Stall),
            Some(Fault::Cut(_)) => steps.push(Step::Send(bytes.slice(..bytes.len() / 2))),
            Some(Fault::Malformed(_)) => steps.push(Step::Send(Bytes::from(vec![b'?'; bytes.len()]))),
            Some(Fault::ErrorEvent(_)) => return self.refusal(plan, 500, None, "simulated error"),
            Some(Fault::PanicBody(_)) => steps.push(Step::Panic),
            _ => steps.push(Step::Send(bytes)),
        }
        SimulatedReply { status: StatusCode::OK, headers, body: SimulatedBody::new(steps) }
    }

    fn stream(&self, events: Vec<Event>, plan: &Plan) -> SimulatedReply {
        let mut steps = Vec::with_capacity(events.len() * 2 + 2);
        for (place, event) in events.into_iter().enumerate() {
            let place = place as u64;
            if place == 0 {
                steps.push(Step::Wait(plan.first_token));
            } else if event.paced {
                steps.push(Step::Wait(plan.gap(place)));
            }
            match &plan.fault {
                Some(Fault::Stall(at)) if *at == place => {
                    steps.push(Step::Stall);
                    break;
                }
                Some(Fault::Cut(at)) if *at == place => break,
                Some(Fault::Malformed(at)) if *at == place => {
                    steps.push(Step::Send(Bytes::from_static(self.wire.malformed())));
                }
                Some(Fault::ErrorEvent(at)) if *at == place => {
                    steps.push(Step::Send(self.error_event(plan)));
                    break;
                }
                Some(Fault::PanicBody(at)) if *at == place => steps.push(Step::Panic),
                _ => {}
            }
            steps.push(Step::Send(event.bytes));
        }
        let headers = self.headers(plan, "text/event-stream", None);
        SimulatedReply { status: StatusCode::OK, headers, body: SimulatedBody::new(steps) }
    }

    fn error_event(&self, plan: &Plan) -> Bytes {
        let trouble = Trouble { number: plan.number, status: 500, retry_after: None, message: "simulated error" };
        self.wire.frame(&self.wire.error(&trouble))
    }
}
