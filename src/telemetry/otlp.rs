//! OpenTelemetry over OTLP: sets up providers and exporters where `telemetry.otlp` is configured, and nothing where not.
//!
//! Spans and measures wait in bounded queues, where measures are added up; both are pushed by threads of their own, so that a
//! collector that is slow, hangs or is gone costs a request nothing. Of the environment, the exporter itself adds headers
//! from `OTEL_EXPORTER_OTLP_HEADERS` and its variants for traces and metrics, and the SDK takes limits of spans from
//! `OTEL_SPAN_*_COUNT_LIMIT`; every other `OTEL_*` variable yields to the configuration.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock, mpsc};
use std::time::Duration;

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, ContextGuard, KeyValue};
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::time::Instant;
use tracing::Subscriber;
use tracing::span::{Attributes, Id, Record};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Layer;
use tracing_subscriber::layer;
use tracing_subscriber::registry::LookupSpan;

use super::conventions::directory;
use super::export::{Collector, Measures, PATIENCE, Queue};
use super::meters::Meters;
use crate::settings::{Otlp, Settings};

/// Longest wait for the last push when the process ends.
const LAST_PUSH: Duration = Duration::from_secs(2);
/// Longest time that a span waits for its push.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// Name of the instrumentation scope.
const SCOPE: &str = "stagedoor";
/// Modules whose spans are exported.
pub(super) const SPANS: [&str; 2] = ["stagedoor::http::span", "stagedoor::attempt::tries"];

static TRACES: AtomicBool = AtomicBool::new(false);
static METERS: OnceLock<Meters> = OnceLock::new();
static PROPAGATOR: LazyLock<TraceContextPropagator> = LazyLock::new(TraceContextPropagator::new);

/// Whether spans are exported: only then is it worth recording what the logs do not show.
pub fn traces() -> bool {
    TRACES.load(Ordering::Relaxed)
}

/// The instruments, where metrics are exported.
pub fn meters() -> Option<&'static Meters> {
    METERS.get()
}

/// Takes over the trace that a request belongs to by its `traceparent`: spans without a parent that begin before the guard
/// is dropped belong to it. `None` where no spans are exported.
pub fn join_trace<'h>(header: impl Fn(&str) -> Option<&'h str>) -> Option<ContextGuard> {
    traces().then(|| {
        let headers = TraceHeaders { parent: header("traceparent"), state: header("tracestate") };
        PROPAGATOR.extract_with_context(&Context::new(), &headers).attach()
    })
}

struct TraceHeaders<'h> {
    parent: Option<&'h str>,
    state: Option<&'h str>,
}

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.parent,
            "tracestate" => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// The running exporters.
#[derive(Debug, Default)]
pub(super) struct Exporters {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Exporters {
    /// Starts what is configured.
    ///
    /// # Errors
    /// An exporter that cannot be built.
    pub(super) fn start(settings: &Settings) -> Result<Self, ExporterBuildError> {
        let Some(otlp) = &settings.telemetry.otlp else {
            return Ok(Self::default());
        };
        let resource = resource(otlp);
        let base = otlp.endpoint.trim_end_matches('/');
        let headers: HashMap<String, String> =
            otlp.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
        let collector = || Collector::new(&otlp.endpoint);
        let mut exporters = Self::default();
        if otlp.traces {
            let exporter = SpanExporter::builder()
                .with_http()
                .with_http_client(collector())
                .with_headers(headers.clone())
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(format!("{base}/v1/traces"))
                .with_timeout(PATIENCE)
                .build()?;
            let queue = Queue::new(exporter, directory(&settings.backends), otlp.interval.min(LONGEST_DELAY));
            let provider = SdkTracerProvider::builder()
                .with_resource(resource.clone())
                .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(otlp.sample_ratio))))
                .with_span_processor(queue)
                .build();
            exporters.traces = Some(provider);
            TRACES.store(true, Ordering::Relaxed);
        }
        if otlp.metrics {
            let exporter = MetricExporter::builder()
                .with_http()
                .with_http_client(collector())
                .with_headers(headers)
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(format!("{base}/v1/metrics"))
                .with_timeout(PATIENCE)
                .with_temporality(Temporality::Cumulative)
                .build()?;
            let reader = PeriodicReader::builder(Measures::new(exporter)).with_interval(otlp.interval).build();
            let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
            let _ = METERS.set(Meters::new(&provider.meter(SCOPE), directory(&settings.backends)));
            exporters.metrics = Some(provider);
        }
        Ok(exporters)
    }

    /// What makes the spans, where they are exported.
    pub(super) fn tracer(&self) -> Option<SdkTracer> {
        self.traces.as_ref().map(|provider| provider.tracer(SCOPE))
    }

    /// Pushes what is left, for two seconds at most.
    pub(super) fn flush(&self) {
        let (done, pushes) = mpsc::channel();
        let mut awaited = 0;
        // A thread each: a provider may wait longer than it is told to.
        if let Some(provider) = self.traces.clone() {
            let done = done.clone();
            awaited += 1;
            std::thread::spawn(move || done.send(provider.shutdown_with_timeout(LAST_PUSH)));
        }
        if let Some(provider) = self.metrics.clone() {
            awaited += 1;
            std::thread::spawn(move || {
                meters().into_iter().for_each(|meters| meters.settle(LAST_PUSH));
                done.send(provider.shutdown_with_timeout(LAST_PUSH))
            });
        }
        let ends = Instant::now() + LAST_PUSH;
        for _ in 0..awaited {
            match pushes.recv_timeout(ends.saturating_duration_since(Instant::now())) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(target: "telemetry", %error, "the last push failed"),
                Err(_) => tracing::warn!(target: "telemetry", "the last push did not end in time"),
            }
        }
    }
}

/// What exports say about this process.
fn resource(otlp: &Otlp) -> Resource {
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_service_name(otlp.service_name.clone())
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
        ])
        .build()
}

/// The gateway's own spans as OpenTelemetry spans.
///
/// Events are left out, since a provider's words may quote a prompt. So are enter and exit: the layer within would end a
/// span when it was left last, and a stream outlives the task that began it.
pub(super) struct Spans<S>(OpenTelemetryLayer<S, SdkTracer>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Spans<S> {
    /// Prepares.
    pub(super) fn new(tracer: SdkTracer) -> Self {
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        Self(
            layer
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_context_activation(false),
        )
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans<S> {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: layer::Context<'_, S>) {
        if SPANS.contains(&attributes.metadata().target()) {
            self.0.on_new_span(attributes, id, ctx);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: layer::Context<'_, S>) {
        self.0.on_record(id, values, ctx);
    }

    fn on_close(&self, id: Id, ctx: layer::Context<'_, S>) {
        self.0.on_close(id, ctx);
    }
}
