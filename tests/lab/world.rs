//! The simulated providers: how long they take, by their speed, their load and the script of the scenario.
//!
//! Every draw is a function of (seed, request, member, try), so that every policy meets the same luck.

use stagedoor::chat::{FailureClass, Phase};

/// Seconds after which the gateway gives up waiting for first content.
pub(crate) const FIRST_CONTENT_LIMIT: f64 = 60.0;
/// Seconds until a provider that refuses a connection, a request or fails has said so.
const REFUSED_AFTER: f64 = 0.002;
const SAID_NO_AFTER: f64 = 0.05;
const FAILED_AFTER: f64 = 0.2;

/// A provider.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Median seconds to first content when it is idle.
    pub(crate) median: f64,
    /// Spread of the log-normal time to first content.
    pub(crate) sigma: f64,
    /// Requests in flight at which it takes twice as long: the time grows by 1 + (in flight / capacity)^2.
    pub(crate) capacity: f64,
    /// Median seconds from first content to the end of a stream; spread 0.5.
    pub(crate) stream: f64,
    /// A slow wave over its speed: period in seconds, amplitude and phase of the logarithm.
    pub(crate) drift: Option<(f64, f64, f64)>,
    /// What happens to it; the first span that covers a moment counts.
    pub(crate) script: Vec<Span>,
}

/// Something that happens to a provider for a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) event: Event,
}

/// What may happen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// It takes this many times as long.
    Slow(f64),
    /// It takes this many times as long, and this share of requests fails with a 5xx.
    Brown { slow: f64, failing: f64 },
    /// It answers 429, with this Retry-After.
    Limited(Option<f64>),
    /// It never answers.
    Hangs,
    /// It refuses connections.
    Refuses,
}

/// How one try goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Course {
    /// Seconds until first content or failure.
    pub(crate) after: f64,
    /// Seconds of the stream after it, or the failure.
    pub(crate) end: Result<f64, Fault>,
}

/// A failed try.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) class: FailureClass,
    pub(crate) sent: bool,
    pub(crate) retry_after: Option<f64>,
}

impl Member {
    fn event(&self, now: f64) -> Option<Event> {
        self.script.iter().find(|span| (span.from..span.to).contains(&now)).map(|span| span.event)
    }

    /// Median seconds to first content now, with so many requests in flight, the new one among them.
    fn typical(&self, now: f64, in_flight: u32) -> f64 {
        let load = f64::from(in_flight) / self.capacity;
        let wave = self
            .drift
            .map_or(0.0, |(period, amplitude, phase)| amplitude * (std::f64::consts::TAU * (now / period + phase)).sin());
        let slow = match self.event(now) {
            Some(Event::Slow(factor) | Event::Brown { slow: factor, .. }) => factor,
            Some(Event::Limited(_) | Event::Hangs | Event::Refuses) | None => 1.0,
        };
        self.median * wave.exp() * slow * (1.0 + load * load)
    }

    /// Mean seconds to first content that one more request would meet: what an oracle knows. Infinite while it cannot serve.
    pub(crate) fn expected(&self, now: f64, in_flight: u32) -> f64 {
        let mean = self.typical(now, in_flight + 1) * (self.sigma * self.sigma / 2.0).exp();
        match self.event(now) {
            Some(Event::Limited(_) | Event::Hangs | Event::Refuses) => f64::INFINITY,
            Some(Event::Brown { failing, .. }) => mean + failing * FAILED_AFTER / (1.0 - failing),
            Some(Event::Slow(_)) | None => mean,
        }
    }

    /// Whether it can serve at all.
    pub(crate) fn is_able(&self, now: f64) -> bool {
        !matches!(self.event(now), Some(Event::Limited(_) | Event::Hangs | Event::Refuses))
    }

    /// How a try that begins now goes.
    pub(crate) fn course(&self, now: f64, in_flight: u32, luck: &mut fastrand::Rng) -> Course {
        let (first, stream, fate) = (normal(luck), normal(luck), luck.f64());
        let fails = |after, class, sent, retry_after| Course { after, end: Err(Fault { class, sent, retry_after }) };
        match self.event(now) {
            Some(Event::Refuses) => fails(REFUSED_AFTER, FailureClass::Socket, false, None),
            Some(Event::Limited(wait)) => fails(SAID_NO_AFTER, FailureClass::RateLimited, true, wait),
            Some(Event::Brown { failing, .. }) if fate < failing => fails(FAILED_AFTER, FailureClass::Server, true, None),
            Some(Event::Hangs) => fails(FIRST_CONTENT_LIMIT, FailureClass::Timeout(Phase::FirstContent), true, None),
            Some(Event::Slow(_) | Event::Brown { .. }) | None => {
                let after = self.typical(now, in_flight) * (self.sigma * first).exp();
                if after >= FIRST_CONTENT_LIMIT {
                    return fails(FIRST_CONTENT_LIMIT, FailureClass::Timeout(Phase::FirstContent), true, None);
                }
                Course { after, end: Ok(self.stream * (0.5 * stream).exp()) }
            }
        }
    }
}

/// The luck of one try.
pub(crate) fn luck(seed: u64, request: usize, member: usize, attempt: u32) -> fastrand::Rng {
    let mut key = seed;
    for part in [request as u64, member as u64, u64::from(attempt)] {
        // The finalizer of SplitMix64.
        key = (key ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
        key = (key ^ (key >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        key = (key ^ (key >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        key ^= key >> 31;
    }
    fastrand::Rng::with_seed(key)
}

/// A draw from the standard normal distribution.
fn normal(luck: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - luck.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * luck.f64()).cos()
}
