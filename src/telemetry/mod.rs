//! Logs, traces and metrics: the subscriber, and what is exported over OTLP ([`otlp`]).
//!
//! Span fields are kept as JSON fragments: recording one appends to a string, so that a request costs no parse.

mod conventions;
mod export;
mod meters;
pub mod otlp;

use std::cell::Cell;
use std::fmt;
use std::io::IsTerminal as _;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::trace::SdkTracer;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, WorkerGuard};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use meters::{Ended, Meters};

use crate::settings::Settings;
use otlp::Exporters;

/// Lines that may wait to be written: with a line for each request, and where only events are told. Memory for them is set
/// aside at once, and so much of it in one piece takes 4 MiB of the allocator's.
const LINES: (usize, usize) = (8_192, 1_024);

static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Log lines that were lost, since whoever reads them is too slow and no request waits for that.
pub fn lost_lines() -> u64 {
    LOST.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// An exporter cannot be built.
    #[error("telemetry.otlp cannot be set up")]
    Otlp(#[from] ExporterBuildError),
}

/// Telemetry at work.
pub struct Telemetry {
    /// Never dropped: providers push once more then, and wait for it, also where the process must end at once.
    exporters: ManuallyDrop<Exporters>,
    /// Writes what is left of the lines when it is dropped.
    _lines: WorkerGuard,
}

impl Telemetry {
    /// Pushes the last spans and measures to the collector, for two seconds at most; blocks this thread.
    pub fn flush(&self) {
        self.exporters.flush();
    }
}

/// Installs the subscriber and starts the exporters; lines are written by a thread of their own until the value is dropped.
///
/// # Errors
/// An exporter that cannot be built.
pub fn init(settings: &Settings) -> Result<Telemetry, TelemetryError> {
    let exporters = ManuallyDrop::new(Exporters::start(settings)?);
    let settings = &settings.telemetry;
    let (writer, guard) = tracing_appender::non_blocking::NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(if settings.access_log { LINES.0 } else { LINES.1 })
        .finish(std::io::stdout());
    // Whoever installs a second one (in tests) counts by the first.
    let _ = LOST.set(writer.error_counter());
    // The plan has checked the directives.
    let filter = settings.logs.level.parse::<Targets>().unwrap_or_else(|_| Targets::new().with_default(Level::INFO));
    // They have switches of their own.
    let mut filter = filter.with_target("access", Level::INFO).with_target("audit", Level::INFO);
    if settings.access_log {
        // The access line is of the request's span: without it nothing but its time would be left.
        filter = filter.with_target(otlp::SPANS[0], Level::INFO);
    }
    let tracer = exporters.tracer();
    if tracer.is_some() {
        // So have the spans.
        filter = filter.with_targets(otlp::SPANS.map(|target| (target, Level::INFO)));
    }
    let mut layer = tracing_subscriber::fmt::layer().with_writer(writer);
    if !std::io::stdout().is_terminal() {
        // Else as the environment wants it (`NO_COLOR`).
        layer.set_ansi(false);
    }
    let registry = tracing_subscriber::registry().with(filter);
    if settings.logs.format == "pretty" {
        install(registry.with(layer.with_target(false)), tracer);
    } else {
        let fields = Fragments { late: settings.access_log };
        install(registry.with(layer.fmt_fields(fields).event_format(JsonLines)), tracer);
    }
    Ok(Telemetry { exporters, _lines: guard })
}

fn install<S>(subscriber: S, tracer: Option<SdkTracer>)
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    // A subscriber that is there already (in tests) stays.
    let _ = match tracer {
        Some(tracer) => subscriber.with(otlp::Spans::new(tracer)).try_init(),
        None => subscriber.try_init(),
    };
}

/// Writes fields as `"name":value` fragments, each followed by a comma.
struct Fragments {
    /// Whether fields that are recorded after a span has begun are kept: only the access line shows them.
    late: bool,
}

impl<'w> FormatFields<'w> for Fragments {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        // Put together beside, so that the span's own text is allocated once and fits.
        let mut text = TEXT.take();
        text.clear();
        fields.record(&mut FragmentVisitor(&mut text));
        let result = writer.write_str(&text);
        TEXT.set(text);
        result
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &tracing::span::Record<'_>) -> fmt::Result {
        if !self.late {
            return Ok(());
        }
        self.format_fields(current.as_writer(), fields)
    }
}

thread_local! {
    static TEXT: Cell<String> = const { Cell::new(String::new()) };
}

struct FragmentVisitor<'t>(&'t mut String);

impl FragmentVisitor<'_> {
    /// Written piece by piece: the formatting machinery would cost more than the bytes.
    fn put(&mut self, field: &Field, write: impl FnOnce(&mut String)) {
        self.0.push('"');
        self.0.push_str(field.name());
        self.0.push_str("\":");
        write(self.0);
        self.0.push(',');
    }
}

impl Visit for FragmentVisitor<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        let mut digits = ryu::Buffer::new();
        self.put(field, |text| text.push_str(if value.is_finite() { digits.format_finite(value) } else { "null" }));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, |text| text.push_str(itoa::Buffer::new().format(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, |text| text.push_str(itoa::Buffer::new().format(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, |text| text.push_str(if value { "true" } else { "false" }));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, |text| quote(text, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let shown = format!("{value:?}");
        self.put(field, |text| quote(text, &shown));
    }
}

/// Writes a value as a JSON string.
fn quote(text: &mut String, value: &str) {
    let is_special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    // To the end always: so many bytes are looked at in one step.
    if value.bytes().fold(false, |found, byte| found | is_special(byte)) {
        return text.push_str(&serde_json::Value::from(value).to_string());
    }
    text.push('"');
    text.push_str(value);
    text.push('"');
}

/// One JSON object a line: the event's fields, then each span's under its name.
struct JsonLines;

impl<S> FormatEvent<S, Fragments> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, Fragments>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let meta = event.metadata();
        let time = humantime::format_rfc3339_micros(std::time::SystemTime::now());
        write!(writer, "{{\"time\":\"{time}\",\"level\":\"{}\",\"target\":\"{}\"", meta.level(), meta.target())?;
        let mut fields = String::new();
        Fragments { late: false }.format_fields(Writer::new(&mut fields), event)?;
        if !fields.is_empty() {
            write!(writer, ",{}", fields.trim_end_matches(','))?;
        }
        for span in ctx.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<Fragments>>() {
                write!(writer, ",\"{}\":{{{}}}", span.name(), fields.fields.trim_end_matches(','))?;
            }
        }
        writeln!(writer, "}}")
    }
}
