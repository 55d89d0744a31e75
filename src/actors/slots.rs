//! Where actors are found: what the process shares, and one worker's slots.
//!
//! The shard supervisor fills the slots; front end, pools and flights look actors up in them, always on one thread.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use rustls::{ClientConfig, RootCertStore};
use slab::Slab;
use tokio::time::Instant;

use super::Job;
use super::pool::Pool;
use super::provider::Provider;
use super::tally::{PoolStats, RouteStats};
use crate::attempt::{BodyHold, Call, Clock, Flights, Headroom, Memory, Vitals, system_roots, tls_config};
use crate::balance::{Affinity, CrashRecord, Health, Histogram, Permits, RetryBudget, Scouts, Turns};
use crate::chat::{Endpoint, Failure, Shape, scan};
use crate::error::GatewayError;
use crate::journal::Journal;
use crate::settings::{self, Settings};
use crate::shard::Shard;
use crate::story::Stories;

/// What all workers share; nothing here is locked on the path of a request.
pub struct Shared {
    /// The configuration.
    pub settings: Arc<Settings>,
    /// By backend index.
    pub backends: Vec<SharedBackend>,
    /// By pool index.
    pub pools: Vec<SharedPool>,
    /// What has happened.
    pub journal: Arc<Journal>,
    /// Moments for what is kept in atomics.
    pub clock: Clock,
    /// Bytes of request bodies held now.
    pub body_bytes: Arc<AtomicU64>,
    /// Requests between their head and the end of their answer.
    pub open_requests: AtomicU64,
    /// Whether the process drains.
    pub draining: AtomicBool,
    /// Worker threads.
    pub workers: AtomicUsize,
    /// Open client connections.
    pub connections: Arc<AtomicU64>,
}

/// What the workers share of one backend.
pub struct SharedBackend {
    /// Requests at once.
    pub permits: Arc<Permits>,
    /// The last incarnation's number.
    pub generation: AtomicU32,
    /// Request numbers of the simulated provider.
    pub simulated: Arc<[AtomicU64; 2]>,
    /// TLS settings.
    pub tls: Arc<ClientConfig>,
    /// What the provider wants back with its tool calls.
    pub memory: Arc<Memory>,
    /// Its circuits, and how fast it answers.
    pub health: Arc<Health>,
    /// Whether an operator has taken it out.
    pub drained: AtomicBool,
    /// When, as a raw [`crate::balance::Moment`]; 0 for never.
    pub drained_at: AtomicU64,
    /// Open connections to it.
    pub connections: Arc<AtomicU64>,
    /// What its provider says it may still be asked.
    pub headroom: Arc<Headroom>,
}

/// What the workers share of one pool.
pub struct SharedPool {
    /// Present weight of every membership, the bits of an `f64`.
    weights: Vec<AtomicU64>,
    /// The greatest of them, likewise.
    heaviest: AtomicU64,
    /// Where conversations went, if they are kept together.
    pub affinity: Option<Affinity>,
    /// What its groups may spend on looking for members that have recovered.
    scouts: Arc<[Scouts]>,
}

impl SharedPool {
    fn new(plan: &settings::Pool) -> Self {
        Self {
            weights: plan.weights.iter().map(|weight| AtomicU64::new(weight.to_bits())).collect(),
            heaviest: AtomicU64::new(plan.weights.iter().copied().fold(0.0, f64::max).to_bits()),
            affinity: plan.affinity.as_ref().map(|affinity| Affinity::new(affinity.expiry)),
            scouts: Scouts::of(plan.groups),
        }
    }

    /// The greatest present weight.
    pub fn heaviest(&self) -> f64 {
        f64::from_bits(self.heaviest.load(Ordering::Relaxed))
    }

    /// Sets the weight of a membership; returns what it was.
    pub fn set_weight(&self, edge: usize, weight: f64) -> f64 {
        let before = self.weights.get(edge).map_or(0.0, |bits| f64::from_bits(bits.swap(weight.to_bits(), Ordering::Relaxed)));
        let heaviest = (0..self.weights.len()).map(|edge| self.weight(edge)).fold(0.0, f64::max);
        self.heaviest.store(heaviest.to_bits(), Ordering::Relaxed);
        before
    }

    /// Present weight of a membership.
    pub fn weight(&self, edge: usize) -> f64 {
        self.weights.get(edge).map_or(0.0, |bits| f64::from_bits(bits.load(Ordering::Relaxed)))
    }
}

impl Shared {
    /// Prepares what the workers share.
    ///
    /// # Errors
    /// Extra certificates of a backend that cannot be used, in words.
    pub fn new(settings: Arc<Settings>) -> Result<Arc<Self>, String> {
        // The system's certificates take megabytes: they are read only if something is encrypted.
        let roots =
            if settings.backends.iter().any(|backend| backend.is_encrypted()) { system_roots() } else { RootCertStore::empty() };
        let plain = tls_config(&roots, None)?;
        let mut backends = Vec::new();
        let clock = Clock::start();
        for backend in &settings.backends {
            let tls = match &backend.network.ca_pem {
                Some(pem) if backend.is_encrypted() => {
                    tls_config(&roots, Some(pem)).map_err(|error| format!("backend `{}`: caFile: {error}", backend.name))?
                }
                Some(_) | None => Arc::clone(&plain),
            };
            backends.push(SharedBackend {
                permits: Permits::new(backend.max_concurrent),
                generation: AtomicU32::new(1),
                simulated: Arc::default(),
                tls,
                memory: Arc::default(),
                health: Arc::new(Health::new(backend.circuit.clone(), backend.model_slots())),
                drained: AtomicBool::new(false),
                drained_at: AtomicU64::new(0),
                connections: Arc::default(),
                headroom: Arc::new(Headroom::new(clock)),
            });
        }
        let pools = settings.pools.iter().map(|plan| SharedPool::new(plan)).collect();
        Ok(Arc::new(Self {
            settings,
            backends,
            pools,
            journal: Arc::default(),
            clock,
            body_bytes: Arc::default(),
            open_requests: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            workers: AtomicUsize::new(1),
            connections: Arc::default(),
        }))
    }
}

impl Shared {
    /// A chat that no client has sent; `None` if it cannot be one. `insistent` asks whatever is known of the backend.
    pub fn own_call(&self, id: String, body: &serde_json::Value, limit: Duration, insistent: bool) -> Option<Arc<Call>> {
        let body = Bytes::from(body.to_string());
        let now = Instant::now();
        Some(Arc::new(Call {
            id: id.into(),
            endpoint: Endpoint::Chat,
            scan: scan(&body, Shape::Chat).ok()?,
            body,
            hold: BodyHold::new(&self.body_bytes),
            model_at: Some(0),
            deadline: now + limit,
            started: now,
            began: self.clock.at(now),
            span: tracing::Span::none(),
            passthrough: None,
            touched: AtomicBool::new(false),
            repeatable: true,
            insistent,
            conversation: None,
            trail: Arc::default(),
        }))
    }

    /// What the attempts of a backend report to.
    pub fn vitals(&self, backend: usize) -> Vitals {
        let shared = &self.backends[backend];
        Vitals {
            backend: Arc::clone(&self.settings.backends[backend]),
            health: Arc::clone(&shared.health),
            permits: Arc::clone(&shared.permits),
            journal: Arc::clone(&self.journal),
            clock: self.clock,
        }
    }
}

/// One worker's slots.
pub struct Slots {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Worker thread.
    pub worker: usize,
    /// The supervisor.
    pub shard: RefCell<Option<Addr<Shard>>>,
    /// By backend index.
    pub providers: Vec<ProviderSlot>,
    /// By pool index.
    pub pools: Vec<PoolSlot>,
    /// Requests that are not answered to their end.
    pub open: RefCell<Slab<OpenRequest>>,
    /// Those that have ended last.
    pub stories: RefCell<Stories>,
    /// By route index + 1; the first counts requests without a route of the configuration.
    pub routes: RefCell<Vec<RouteStats>>,
}

/// A request that is not answered to its end.
#[derive(Clone)]
pub struct OpenRequest {
    /// The request.
    pub call: Arc<Call>,
    /// Name of its pool.
    pub pool: Arc<str>,
    /// Name of its route.
    pub route: Option<Arc<str>>,
    /// Name of the caller's key.
    pub caller: Option<Arc<str>>,
}

/// Where a backend's provider is found.
pub struct ProviderSlot {
    /// Up, or when it will be.
    pub state: RefCell<SlotState>,
    /// Slot of the model that was looked up last, and most likely is again.
    pub last_slot: Cell<u16>,
    /// Retries that may be spent; outlives generations.
    pub budget: Rc<RefCell<RetryBudget>>,
    /// Crashes of the last minute.
    pub crashes: RefCell<CrashRecord>,
    /// Starts after the first.
    pub restarts: Cell<u64>,
    /// Starts after a panic.
    pub crashed: Cell<u64>,
    /// Why the last restart happened.
    pub last_reason: RefCell<Option<String>>,
    /// Pauses between the pieces of its streams; outlive generations.
    pub gaps: Rc<RefCell<Histogram>>,
    /// Flights of generations that were replaced.
    pub retiring: RefCell<Vec<Rc<Flights>>>,
}

/// State of a slot.
pub enum SlotState {
    /// A provider takes jobs.
    Up(Up),
    /// None does until then.
    Down {
        /// When the next generation starts.
        until: Instant,
        /// Whether it crashed too often to be worth waiting for.
        failed: bool,
        /// The incarnation that crashed.
        generation: u32,
    },
}

/// A provider that takes jobs.
pub struct Up {
    /// Its address.
    pub addr: Addr<Provider>,
    /// Which incarnation.
    pub generation: u32,
    /// When it started.
    pub since: Instant,
    /// What it carries.
    pub flights: Rc<Flights>,
    /// Jobs that wait for a permit.
    pub queue: JobQueue,
}

/// Jobs that wait, where the supervisor can see them.
pub type JobQueue = Rc<RefCell<VecDeque<Job>>>;

/// Takes the jobs of one request, or all, out of a queue.
pub fn take_jobs(queue: &RefCell<VecDeque<Job>>, id: Option<&str>) -> VecDeque<Job> {
    let (taken, kept) = queue.borrow_mut().drain(..).partition(|job| id.is_none_or(|id| &*job.0.call.id == id));
    *queue.borrow_mut() = kept;
    taken
}

/// Where a pool is found.
pub struct PoolSlot {
    /// Its address.
    pub addr: RefCell<Option<Addr<Pool>>>,
    /// Statistics; outlive the actor.
    pub stats: RefCell<PoolStats>,
    /// What its strategies remember.
    pub turns: RefCell<Turns>,
    /// Restarts after a panic.
    pub restarts: Cell<u32>,
    /// Jobs that wait for a member to start; outlive the actor.
    pub parked: RefCell<VecDeque<Job>>,
}

impl Slots {
    /// Prepares the slots of one worker; every provider is down until the shard starts it.
    pub fn new(shared: Arc<Shared>, worker: usize) -> Rc<Self> {
        let now = Instant::now();
        let provider = |_| ProviderSlot {
            state: RefCell::new(SlotState::Down { until: now, failed: false, generation: 0 }),
            last_slot: Cell::new(0),
            budget: Rc::new(RefCell::new(RetryBudget::new(now.into_std()))),
            crashes: RefCell::default(),
            restarts: Cell::new(0),
            crashed: Cell::new(0),
            last_reason: RefCell::default(),
            gaps: Rc::default(),
            retiring: RefCell::default(),
        };
        let pool = |plan: &Arc<crate::settings::Pool>| PoolSlot {
            addr: RefCell::new(None),
            stats: RefCell::new(PoolStats::new(plan, now.into_std())),
            turns: RefCell::new(Turns::new(Arc::clone(&shared.pools[plan.index].scouts), plan.weights.len(), fastrand::f64())),
            restarts: Cell::new(0),
            parked: RefCell::default(),
        };
        let providers = shared.settings.backends.iter().map(provider).collect();
        let pools = shared.settings.pools.iter().map(pool).collect();
        let kept = shared.settings.recent_requests.div_ceil(shared.workers.load(Ordering::Relaxed).max(1));
        let stories = RefCell::new(Stories::new(kept));
        let routes = vec![RouteStats::default(); shared.settings.routes.as_ref().map_or(0, Vec::len) + 1];
        Rc::new(Self {
            shared,
            worker,
            shard: RefCell::new(None),
            providers,
            pools,
            open: RefCell::default(),
            stories,
            routes: RefCell::new(routes),
        })
    }

    /// Whether anything is kept of requests that have ended.
    pub fn tells_stories(&self) -> bool {
        self.stories.borrow().is_on()
    }

    /// The address of a pool. Lent, since a copy of an address costs two allocations.
    pub fn pool(&self, index: usize) -> Option<Ref<'_, Addr<Pool>>> {
        Ref::filter_map(self.pools.get(index)?.addr.borrow(), Option::as_ref).ok()
    }

    /// Takes a crashed provider out of its slot at once, so that no pool sends it another job; the supervisor decides
    /// when the next one starts.
    pub fn take_down(&self, backend: usize, generation: u32) {
        let slot = &self.providers[backend];
        let mut state = slot.state.borrow_mut();
        if let SlotState::Up(up) = &*state
            && up.generation == generation
        {
            slot.retiring.borrow_mut().push(Rc::clone(&up.flights));
            *state = SlotState::Down { until: Instant::now(), failed: false, generation };
        }
    }

    /// Answers a job that nobody serves; `error` is given the most telling failure so far.
    pub fn refuse(&self, mut job: Job, error: impl FnOnce(Option<Box<Failure>>) -> GatewayError) {
        if job.0.race.is_none()
            && let Some(slot) = self.pools.get(usize::from(job.0.pool))
        {
            slot.stats.borrow_mut().refused += 1;
        }
        let attempts = job.0.ledger.attempts;
        let worst = job.0.ledger.worst.take().map(|worst| Box::new(Failure { attempts, ..*worst }));
        // A caller that has left needs no answer.
        let _ = job.0.reply.send(Err(error(worst)));
    }

    /// Tells the supervisor something.
    pub fn tell_shard<M>(&self, message: M)
    where
        M: actix::Message + Send + 'static,
        M::Result: Send,
        Shard: actix::Handler<M>,
    {
        if let Some(shard) = &*self.shard.borrow() {
            shard.do_send(message);
        }
    }
}
