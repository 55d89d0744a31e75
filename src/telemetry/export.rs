//! The way to the collector: a blocking HTTP client for the exporters' own threads, a bounded queue before them, and one
//! log line a minute about what did not get through. Nothing here runs on a worker's thread but [`Queue::on_end`].

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use tokio::time::Instant;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::conventions::{Directory, dress};

/// Spans that may wait for the collector, about 1 KB each; what comes on top is dropped.
const QUEUE: usize = 8_192;
/// Spans of one push.
const BATCH: usize = 1_024;
/// Longest wait for the collector's answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const LONGEST_ANSWER: u64 = 1 << 20;
/// Shortest time between two log lines about the same loss.
const SILENCE: Duration = Duration::from_secs(60);

/// The collector, as the exporters reach it: directly, whatever proxy the environment names.
#[derive(Debug)]
pub(super) struct Collector(ureq::Agent);

impl Collector {
    /// Prepares; certificates are loaded where the address needs them.
    pub(super) fn new(endpoint: &str) -> Self {
        let config =
            ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).max_redirects(0).proxy(None);
        let config = if endpoint.starts_with("https:") { config.tls_config(trust()) } else { config };
        Self(config.build().new_agent())
    }
}

/// TLS by the ring provider with the system's certificates.
fn trust() -> TlsConfig {
    let found = rustls_native_certs::load_native_certs();
    let roots: Vec<Certificate<'static>> = found.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect();
    TlsConfig::builder()
        .root_certs(RootCerts::from(roots.into_iter()))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let (head, mut body) = self.0.run(Request::from_parts(head, &body[..]))?.into_parts();
        let body = body.with_config().limit(LONGEST_ANSWER).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

/// What did not reach the collector, told at most once a minute.
#[derive(Debug, Default)]
pub(super) struct Losses {
    lost: AtomicU64,
    reason: Mutex<Option<String>>,
    told: Mutex<Option<Instant>>,
}

impl Losses {
    fn add(&self, lost: usize, reason: String) {
        self.lost.fetch_add(lost as u64, Ordering::Relaxed);
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Logs what was lost since the last line, if that is a minute ago.
    fn tell(&self, what: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < SILENCE) {
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).take();
        if lost > 0 || reason.is_some() {
            *told = Some(Instant::now());
            let reason = reason.unwrap_or_else(|| "the queue is full".to_owned());
            tracing::warn!(target: "telemetry", lost, reason, "{what} did not reach the collector");
        }
    }
}

/// What the queue and the exporter behind it share.
#[derive(Debug, Default)]
struct Gate {
    waiting: AtomicUsize,
    losses: Losses,
}

/// The batch processor behind a bound of its own, so that what is dropped can be counted.
#[derive(Debug)]
pub(super) struct Queue {
    batches: BatchSpanProcessor,
    gate: Arc<Gate>,
}

impl Queue {
    /// Starts the exporter's thread; it pushes every `delay`, or when a batch is full.
    pub(super) fn new<E: SpanExporter + 'static>(exporter: E, directory: Directory, delay: Duration) -> Self {
        let gate = Arc::new(Gate::default());
        let dresser = Dresser { exporter, directory, gate: Arc::clone(&gate) };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(delay)
            .build();
        Self { batches: BatchSpanProcessor::builder(dresser).with_batch_config(config).build(), gate }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.batches.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if self.gate.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE {
            self.gate.waiting.fetch_sub(1, Ordering::Relaxed);
            self.gate.losses.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Puts spans into the form of the conventions, on the exporter's thread.
struct Dresser<E> {
    exporter: E,
    directory: Directory,
    gate: Arc<Gate>,
}

impl<E> fmt::Debug for Dresser<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dresser")
    }
}

impl<E: SpanExporter> SpanExporter for Dresser<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        self.gate.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        batch.retain_mut(|span| dress(span, &self.directory));
        let count = batch.len();
        let result = if count == 0 { Ok(()) } else { self.exporter.export(batch).await };
        if let Err(error) = &result {
            self.gate.losses.add(count, error.to_string());
        }
        self.gate.losses.tell("spans");
        result
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The exporter of measures. They are totals, so that a push that fails loses nothing but time.
#[derive(Debug)]
pub(super) struct Measures {
    exporter: MetricExporter,
    losses: Losses,
}

impl Measures {
    /// Wraps the exporter.
    pub(super) fn new(exporter: MetricExporter) -> Self {
        Self { exporter, losses: Losses::default() }
    }
}

impl PushMetricExporter for Measures {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.exporter.export(metrics).await;
        if let Err(error) = &result {
            self.losses.add(1, error.to_string());
        }
        self.losses.tell("metrics");
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use opentelemetry::KeyValue;
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    /// An exporter that is held until its test lets it go.
    #[derive(Debug)]
    struct Held {
        go: Mutex<Receiver<()>>,
        exported: Arc<AtomicUsize>,
    }

    impl SpanExporter for Held {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let _ = self.go.lock().unwrap().recv();
            self.exported.fetch_add(batch.len(), Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn spans_beyond_the_queue_are_dropped_and_counted_while_the_collector_hangs() {
        let (go, held) = channel();
        let exported = Arc::new(AtomicUsize::new(0));
        let exporter = Held { go: Mutex::new(held), exported: Arc::clone(&exported) };
        let queue = Queue::new(exporter, Directory::new(), Duration::from_secs(3_600));
        let gate = Arc::clone(&queue.gate);
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        let tracer = provider.tracer("test");
        let sent = QUEUE + BATCH + 500;
        for _ in 0..sent {
            let mut span = tracer.start("request");
            span.set_attribute(KeyValue::new("outcome", "served"));
            span.end();
        }
        // What the exporter has taken out of the queue meanwhile made room.
        let lost = usize::try_from(gate.losses.lost.load(Ordering::Relaxed)).unwrap();
        assert!((500..=sent - QUEUE).contains(&lost), "{lost}");
        drop(go);
        provider.shutdown().unwrap();
        assert_eq!(exported.load(Ordering::Relaxed) + lost, sent);
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn losses_are_told_once_a_minute() {
        let losses = Losses::default();
        losses.add(3, "gone".to_owned());
        losses.tell("spans");
        losses.add(4, "gone".to_owned());
        losses.tell("spans");
        assert_eq!(losses.lost.load(Ordering::Relaxed), 4, "kept for the next line");
    }
}
