//! A body that comes in steps: bytes, pauses, silence, a panic.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::chat::Failure;

/// One step of a body.
#[derive(Debug)]
pub enum Step {
    /// Bytes.
    Send(Bytes),
    /// A pause.
    Wait(Duration),
    /// Silence for ever.
    Stall,
    /// A panic.
    Panic,
}

/// A body of the simulated provider.
pub struct SimulatedBody {
    steps: VecDeque<Step>,
    pause: Option<Pin<Box<Sleep>>>,
    /// When the present pause began: the pace does not depend on how fast the body is pulled.
    clock: Option<Instant>,
}

impl SimulatedBody {
    /// Starts with the first step.
    pub fn new(steps: Vec<Step>) -> Self {
        Self { steps: steps.into(), pause: None, clock: None }
    }

    /// The next bytes.
    ///
    /// # Panics
    /// By the step `Panic`.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Box<Failure>>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match self.steps.pop_front() {
                None => return Poll::Ready(None),
                Some(Step::Send(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Some(Step::Wait(duration)) => {
                    let due = self.clock.unwrap_or_else(Instant::now) + duration;
                    self.clock = Some(due);
                    if due > Instant::now() {
                        self.pause = Some(Box::pin(sleep_until(due)));
                    }
                }
                Some(Step::Stall) => {
                    self.steps.push_front(Step::Stall);
                    return Poll::Pending;
                }
                Some(Step::Panic) => panic!("simulated panic in the body"),
            }
        }
    }
}
