//! History: what was counted so far at even steps, so that numbers of the last minutes and of the last hour can be told.
//! Bounded: eleven whole frames and 120 points for each backend.

use std::collections::VecDeque;
use std::time::Duration;

use super::books::Books;
use super::state::{BackendHistory, History};
use crate::balance::{MemberStats, Moment};

/// Time between two frames.
pub(super) const STEP: Duration = Duration::from_secs(30);
/// Frames that are kept: five minutes and the frame they begin at.
const FRAMES: usize = 11;
/// Points that are kept: an hour.
const POINTS: usize = 120;

/// What was counted up to a moment.
struct Frame {
    at: Moment,
    books: Books,
}

/// One step of one backend.
#[derive(Clone, Copy)]
struct Point {
    served: u32,
    failed: u32,
    p50: Option<f32>,
    p99: Option<f32>,
    tokens_per_second: f32,
}

/// One step of the gateway.
#[derive(Clone, Copy)]
struct Sum {
    requests: u64,
    failed: u64,
    absorbed: u64,
}

/// Frames and points of one process.
pub(super) struct Past {
    frames: VecDeque<Frame>,
    sums: VecDeque<Sum>,
    /// By backend.
    points: Vec<VecDeque<Point>>,
    /// Unix time of the last frame.
    ends_at: f64,
}

impl Past {
    /// Begins with what was counted at the start: nothing.
    pub(super) fn new(books: Books, at: Moment) -> Self {
        let points = vec![VecDeque::new(); books.backends.len()];
        Self { frames: VecDeque::from([Frame { at, books }]), sums: VecDeque::new(), points, ends_at: 0.0 }
    }

    /// Whether it is time for the next frame.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.frames.back().is_none_or(|last| now.since(last.at) >= STEP)
    }

    /// Adds a frame.
    pub(super) fn add(&mut self, books: Books, now: Moment, unix_seconds: f64) {
        if let Some(last) = self.frames.back() {
            let seconds = now.since(last.at).as_secs_f64();
            for ((points, now), before) in self.points.iter_mut().zip(&books.backends).zip(&last.books.backends) {
                push(points, point(now, before, seconds));
            }
            let (now, before) = (&books.gateway, &last.books.gateway);
            push(
                &mut self.sums,
                Sum {
                    requests: now.answered().saturating_sub(before.answered()),
                    failed: now.failed().saturating_sub(before.failed()),
                    absorbed: now.absorbed.saturating_sub(before.absorbed),
                },
            );
        }
        self.frames.push_back(Frame { at: now, books });
        while self.frames.len() > FRAMES {
            self.frames.pop_front();
        }
        self.ends_at = unix_seconds;
    }

    /// What was counted about so long ago, at least, and how long ago exactly; less after a start.
    pub(super) fn before(&self, span: Duration, now: Moment) -> Option<(&Books, Duration)> {
        let frame = self.frames.iter().rev().find(|frame| now.since(frame.at) >= span).or_else(|| self.frames.front());
        frame.map(|frame| (&frame.books, now.since(frame.at)))
    }

    /// The last hour; `names` in the order of the backends.
    pub(super) fn told<'n>(&self, names: impl Iterator<Item = &'n str>) -> History {
        let backends = names.zip(&self.points).map(|(name, points)| BackendHistory {
            name: name.to_owned(),
            served: points.iter().map(|point| point.served).collect(),
            failed: points.iter().map(|point| point.failed).collect(),
            first_content_p50: points.iter().map(|point| point.p50).collect(),
            first_content_p99: points.iter().map(|point| point.p99).collect(),
            tokens_per_second: points.iter().map(|point| point.tokens_per_second).collect(),
        });
        History {
            step_seconds: STEP.as_secs_f64(),
            ends_at: self.ends_at,
            steps: self.sums.len(),
            requests: self.sums.iter().map(|sum| sum.requests).collect(),
            failed: self.sums.iter().map(|sum| sum.failed).collect(),
            absorbed: self.sums.iter().map(|sum| sum.absorbed).collect(),
            backends: backends.collect(),
        }
    }
}

fn push<T>(ring: &mut VecDeque<T>, next: T) {
    if ring.len() >= POINTS {
        ring.pop_front();
    }
    ring.push_back(next);
}

#[expect(clippy::cast_possible_truncation, reason = "a picture needs no more")]
fn point(now: &MemberStats, before: &MemberStats, seconds: f64) -> Point {
    let first_content = now.first_content.since(&before.first_content);
    let quantile = |share| first_content.quantile(share).map(|time| time.as_secs_f32());
    Point {
        served: u32::try_from(now.served.saturating_sub(before.served)).unwrap_or(u32::MAX),
        failed: u32::try_from(now.ill_tries().saturating_sub(before.ill_tries())).unwrap_or(u32::MAX),
        p50: quantile(0.5),
        p99: quantile(0.99),
        tokens_per_second: (now.completion_tokens.saturating_sub(before.completion_tokens) as f64 / seconds.max(0.001)) as f32,
    }
}
