//! What is measured of each request when it has ended. Workers only put it into a queue: the instruments have locks, and
//! belong to one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::metrics::{Histogram, Meter};
use opentelemetry::{KeyValue, StringValue};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::conventions::{BACKEND, Directory, ERROR, MODEL, OPERATION, POOL, PROVIDER, operation};
use crate::chat::Usage;
use crate::story::Outcome;

/// Buckets that the conventions recommend.
const DURATIONS: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const FIRST_TOKEN: [f64; 16] = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const NEXT_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// Stands for every model that neither the configuration nor the catalogue names: clients must not add series.
const OTHER: &str = "other";

/// Requests that may wait to be measured.
const WAITING: usize = 8_192;

/// Where requests are measured.
pub struct Meters {
    directory: Directory,
    queue: mpsc::Sender<Measure>,
    lost: Arc<AtomicU64>,
}

/// What waits to be measured.
enum Measure {
    Request(Box<Request>),
    /// Everything before it has been measured.
    Mark(std::sync::mpsc::Sender<()>),
}

/// A request with its labels.
struct Request {
    labels: Vec<KeyValue>,
    usage: Option<Usage>,
    /// Of a stream that was served: to its first token.
    first_token: Option<Duration>,
    duration: Duration,
    error: Option<&'static str>,
}

/// The instruments.
struct Instruments {
    duration: Histogram<f64>,
    tokens: Histogram<u64>,
    first_token: Histogram<f64>,
    next_token: Histogram<f64>,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Ended<'a> {
    /// What was asked for.
    pub operation: &'static str,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Who served it, or failed last.
    pub backend: Option<&'a str>,
    /// The pool that took it.
    pub pool: Option<&'a str>,
    /// The model that was asked for upstream; where nobody answered, the one that the client named.
    pub model: Option<&'a str>,
    /// `served`, `failed`, `cancelled`, `truncated` or `cut`.
    pub outcome: Outcome,
    /// Class of its failure.
    pub class: Option<&'static str>,
    /// From its first byte to the end of its reply.
    pub duration: Duration,
    /// To the first content.
    pub first_content: Option<Duration>,
    /// Tokens.
    pub usage: Option<Usage>,
}

impl Meters {
    /// Makes the instruments, and starts the thread that they belong to; it ends with the process.
    pub(super) fn new(meter: &Meter, directory: Directory) -> Self {
        let instruments = Instruments::new(meter);
        let (queue, mut measures) = mpsc::channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        std::thread::spawn(move || {
            let mut told = None;
            while let Some(measure) = measures.blocking_recv() {
                match measure {
                    Measure::Request(request) => instruments.record(*request),
                    // Who has asked may have stopped waiting.
                    Measure::Mark(reached) => drop(reached.send(())),
                }
                tell_lost(&counted, &mut told);
            }
        });
        Self { directory, queue, lost }
    }

    /// Waits until everything that ended before has been measured.
    pub(super) fn settle(&self, patience: Duration) {
        let (reached, mark) = std::sync::mpsc::channel();
        if self.queue.try_send(Measure::Mark(reached)).is_ok() {
            let _ = mark.recv_timeout(patience);
        }
    }

    /// Puts a request into the queue; one that finds it full is not measured.
    pub fn record(&self, ended: &Ended<'_>) {
        let request = Request {
            labels: self.labels(ended),
            usage: ended.usage.filter(|usage| !usage.estimated),
            // A whole reply says nothing about its first token.
            first_token: ended.first_content.filter(|_| ended.stream && ended.outcome == Outcome::Served),
            duration: ended.duration,
            error: (ended.outcome != Outcome::Served).then(|| ended.class.unwrap_or_else(|| ended.outcome.word())),
        };
        if self.queue.try_send(Measure::Request(Box::new(request))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn labels(&self, ended: &Ended<'_>) -> Vec<KeyValue> {
        let facts = ended.backend.and_then(|name| self.directory.get(name));
        let mut labels = Vec::with_capacity(8);
        labels.push(KeyValue::new(OPERATION, operation(ended.operation)));
        if let Some(facts) = facts {
            labels.push(KeyValue::new(PROVIDER, facts.provider));
            labels.push(KeyValue::new(BACKEND, facts.name.clone()));
        }
        if let Some(model) = ended.model {
            let known = match facts {
                Some(facts) => facts.models.get(model),
                None => self.directory.values().find_map(|facts| facts.models.get(model)),
            };
            labels.push(KeyValue::new(MODEL, known.cloned().unwrap_or_else(|| StringValue::from(OTHER))));
        }
        labels.extend(ended.pool.map(|pool| KeyValue::new(POOL, pool.to_owned())));
        labels
    }
}

/// One line a minute says how many were not measured.
fn tell_lost(lost: &AtomicU64, told: &mut Option<Instant>) {
    if lost.load(Ordering::Relaxed) == 0 || told.is_some_and(|told| told.elapsed() < Duration::from_secs(60)) {
        return;
    }
    *told = Some(Instant::now());
    let count = lost.swap(0, Ordering::Relaxed);
    tracing::warn!(target: "telemetry", requests = count, "requests ended faster than they could be measured");
}

impl Instruments {
    fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, words: &'static str, bounds: &[f64]| {
            meter.f64_histogram(name).with_unit("s").with_description(words).with_boundaries(bounds.to_vec()).build()
        };
        Self {
            duration: seconds("gen_ai.client.operation.duration", "GenAI operation duration.", &DURATIONS),
            tokens: meter
                .u64_histogram("gen_ai.client.token.usage")
                .with_unit("{token}")
                .with_description("Number of input and output tokens used.")
                .with_boundaries(TOKENS.to_vec())
                .build(),
            first_token: seconds(
                "gen_ai.server.time_to_first_token",
                "Time to generate first token for successful responses.",
                &FIRST_TOKEN,
            ),
            next_token: seconds(
                "gen_ai.server.time_per_output_token",
                "Time per output token generated after the first token for successful responses.",
                &NEXT_TOKEN,
            ),
        }
    }

    fn record(&self, request: Request) {
        let Request { mut labels, usage, first_token, duration, error } = request;
        for (kind, count) in usage.iter().flat_map(|usage| [("input", usage.prompt_tokens), ("output", usage.completion_tokens)])
        {
            if count > 0 {
                labels.push(KeyValue::new("gen_ai.token.type", kind));
                self.tokens.record(count, &labels);
                labels.pop();
            }
        }
        if let Some(first) = first_token {
            self.first_token.record(first.as_secs_f64(), &labels);
            let further = usage.map_or(0, |usage| usage.completion_tokens.saturating_sub(1));
            if further > 0 {
                let rest = duration.saturating_sub(first);
                self.next_token.record(rest.as_secs_f64() / as_float(further), &labels);
            }
        }
        labels.extend(error.map(|error| KeyValue::new(ERROR, error)));
        self.duration.record(duration.as_secs_f64(), &labels);
    }
}

#[expect(clippy::cast_precision_loss, reason = "tokens are far fewer than what a float counts exactly")]
fn as_float(count: u64) -> f64 {
    count as f64
}
