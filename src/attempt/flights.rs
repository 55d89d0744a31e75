//! The flight table: every attempt that one generation of a provider carries, from its start until its one outcome is settled.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use slab::Slab;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::call::Call;
use super::end::{Cut, End, Ended, Settled};
use super::flight::{Due, Flight, FlightGuard};
use super::memory::Memory;
use super::token::Minter;
use super::vitals::Vitals;
use crate::balance::{Histogram, Moment, Permit, Probe};
use crate::settings::Backend;

/// Where settled attempts are reported and full queues are woken; implemented by the provider actor's address.
pub trait Tower {
    /// Reports the outcome to the pool that sent the job.
    fn settled(&self, pool: u16, settled: Settled);
    /// A permit was returned while jobs wait for one.
    fn permit_returned(&self);
    /// A panic was caught in a task or body.
    fn crashed(&self, reason: String);
}

/// Every attempt of one generation of a provider.
pub struct Flights {
    all: RefCell<Slab<Rc<Flight>>>,
    /// Those whose reply is being passed on.
    live: RefCell<Slab<Rc<Flight>>>,
    pub(super) tower: Box<dyn Tower>,
    pub(super) memory: Arc<Memory>,
    pub(super) vitals: Vitals,
    /// Pauses between the pieces of its streams.
    pub(super) gaps: Rc<RefCell<Histogram>>,
    /// Whether jobs wait for a permit.
    pub has_queue: Cell<bool>,
    /// Flights that ended by themselves.
    pub completed: Cell<u64>,
    /// Of these, those that failed or broke.
    pub failed: Cell<u64>,
    /// Flights that were cut.
    pub cut: Cell<u64>,
    /// Of the cut ones, those that somebody else has taken over.
    pub moved: Cell<u64>,
}

/// What a flight starts with.
pub struct FlightPlan {
    /// The request.
    pub call: Arc<Call>,
    /// Who it goes to.
    pub backend: Arc<Backend>,
    /// What its access tokens come from, if it takes any.
    pub minter: Option<Rc<Minter>>,
    /// The pool that sent the job.
    pub pool: u16,
    /// Place of the member in that pool.
    pub member: u16,
    /// Slot of the model that is asked for.
    pub slot: u16,
    /// Leases, if this attempt decides about a circuit.
    pub probe: Probe,
    /// Whether it was started beside another one that is slow.
    pub is_hedge: bool,
    /// The permit it holds until it is settled.
    pub permit: Permit,
}

impl Flights {
    /// Starts empty.
    pub fn new(tower: Box<dyn Tower>, memory: Arc<Memory>, vitals: Vitals, gaps: Rc<RefCell<Histogram>>) -> Rc<Self> {
        Rc::new(Self {
            all: RefCell::default(),
            live: RefCell::default(),
            tower,
            memory,
            vitals,
            gaps,
            has_queue: Cell::new(false),
            completed: Cell::new(0),
            failed: Cell::new(0),
            cut: Cell::new(0),
            moved: Cell::new(0),
        })
    }

    /// Enters an attempt.
    pub fn enter(self: &Rc<Self>, plan: FlightPlan) -> FlightGuard {
        let flight = Rc::new(Flight::new(self, plan));
        flight.place.set(self.all.borrow_mut().insert(Rc::clone(&flight)));
        FlightGuard::new(flight)
    }

    /// The reply of a flight is passed on from here.
    pub(super) fn note_live(&self, flight: &Rc<Flight>) {
        flight.live_place.set(Some(self.live.borrow_mut().insert(Rc::clone(flight))));
    }

    /// A flight has ended so.
    pub(super) fn leave(&self, flight: &Flight, end: End) {
        self.all.borrow_mut().try_remove(flight.place.get());
        if let Some(place) = flight.live_place.take() {
            self.live.borrow_mut().try_remove(place);
        }
        let counter = if end == End::Cut { &self.cut } else { &self.completed };
        counter.set(counter.get() + 1);
        if matches!(end, End::Failed(_) | End::Truncated(_)) {
            self.failed.set(self.failed.get() + 1);
        }
    }

    /// Flights carried now.
    pub fn len(&self) -> usize {
        self.all.borrow().len()
    }

    /// Whether none is carried.
    pub fn is_empty(&self) -> bool {
        self.all.borrow().is_empty()
    }

    /// Ends what has passed a limit of its own; the provider's timer calls this. A flight without a reply is
    /// bounded by its own task.
    pub fn enforce(&self, now: Instant) {
        let live = self.live.borrow();
        let due: Vec<_> = live.iter().filter_map(|(_, flight)| flight.due(now).map(|due| (Rc::clone(flight), due))).collect();
        drop(live);
        for (flight, due) in due {
            match due {
                Due::End(cut) => flight.end_by(cut),
                Due::Comment => flight.wake(),
            }
        }
    }

    /// Ends every flight, or the one with this request id; says how many.
    pub fn cut_all(&self, cut: Cut, id: Option<&str>) -> Ended {
        let chosen = |flight: &Rc<Flight>| flight.cut().is_none() && id.is_none_or(|id| &*flight.call.id == id);
        let mut ended = Ended::default();
        for flight in self.all().into_iter().filter(chosen) {
            flight.end_by(cut);
            *(if flight.is_moving() { &mut ended.moved } else { &mut ended.cut }) += 1;
        }
        ended
    }

    /// The flights of the oldest requests, at most so many, as an operator sees them.
    pub fn views(&self, limit: usize, now: Moment) -> Vec<FlightView> {
        let mut flights = self.all();
        if flights.len() > limit {
            flights.select_nth_unstable_by_key(limit, |flight| flight.call.began);
            flights.truncate(limit);
        }
        flights.iter().map(|flight| flight.view(now)).collect()
    }

    fn all(&self) -> Vec<Rc<Flight>> {
        self.all.borrow().iter().map(|(_, flight)| Rc::clone(flight)).collect()
    }
}

/// A flight as an operator sees it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FlightView {
    /// The request's id.
    pub id: String,
    /// Index of its pool.
    #[serde(skip)]
    pub pool: u16,
    /// The model that the client asked for.
    #[schema(value_type = Option<String>)]
    pub model: Option<Box<str>>,
    /// Seconds since the request was taken.
    pub age_seconds: f64,
    /// Number of the present try, from 1; 0 while there is none.
    pub attempt: usize,
    /// `parked`, `queued`, `waiting` before first content, `streaming` after it.
    pub phase: &'static str,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// Events with content so far: about as many tokens.
    pub content_events: u64,
    /// The same per second since the first.
    pub content_events_per_second: Option<f64>,
}

impl FlightView {
    /// A request that nobody is asked for yet.
    pub fn waiting(call: &Call, pool: u16, phase: &'static str, now: Moment) -> Self {
        Self {
            id: call.id.to_string(),
            pool,
            model: call.scan.model.as_deref().map(|model| model.chars().take(SHOWN_MODEL).collect()),
            age_seconds: call.age(now).as_secs_f64(),
            attempt: 0,
            phase,
            stream: call.is_stream(),
            content_events: 0,
            content_events_per_second: None,
        }
    }
}

/// Characters that are shown of a model's name as its client wrote it.
const SHOWN_MODEL: usize = 80;
