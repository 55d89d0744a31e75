//! One run: a discrete-event simulation of the gateway in virtual time. Arrivals, choice, tries, retries, fallback and
//! streams, as the pool actor and its attempts perform them, without sockets or actors.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use stagedoor::balance::{Moment, Probe, RetryBudget, back_off};
use stagedoor::chat::Retry;

use super::policy::{Ask, Pass, Pick, Policy, Times};
use super::scenarios::Scenario;
use super::world::{Course, Fault, luck};

/// Settings of the gateway, at their defaults.
const MAX_RETRIES: u32 = 2;
const MAX_ATTEMPTS: u32 = 6;
const MAX_MOVES: u32 = 32;
const SHORT_WAIT: f64 = 2.0;
const LONG_WAIT: f64 = 4.0;
const DEADLINE: f64 = 600.0;
/// Width of the bins in which choices are counted, in seconds.
pub(crate) const BIN: f64 = 0.1;

/// What a run has shown.
pub(crate) struct Outcome {
    /// Seconds to first content of every request; of a failed one the deadline.
    pub(crate) times: Vec<f64>,
    pub(crate) failed: u32,
    pub(crate) absorbed: u32,
    /// Requests that failed while a member could have served them.
    pub(crate) lost: u32,
    /// First content by member.
    pub(crate) served: Vec<u32>,
    /// Choices by member and bin.
    pub(crate) chosen: Vec<Vec<u16>>,
    /// Mean requests in flight by member and second.
    pub(crate) carried: Vec<Vec<f64>>,
    /// When the ailing member was open to requests again, once it had recovered.
    pub(crate) open_again: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Arrive,
    /// A try has first content or has failed.
    Judge(usize),
    /// A back-off is over.
    Again(usize),
    /// A stream has ended.
    End(usize),
}

/// A request on its way.
struct Request {
    worker: usize,
    arrived: f64,
    tried: u32,
    attempts: u32,
    moves: u32,
    refused: bool,
}

/// An attempt.
struct Flight {
    request: usize,
    leaf: usize,
    pass: Pass,
    times: Times,
    tries_here: u32,
    resent: bool,
    course: Course,
}

struct Run<'a> {
    scenario: &'a Scenario,
    policy: &'a mut dyn Policy,
    seed: u64,
    random: fastrand::Rng,
    clock: Instant,
    now: f64,
    steps: BinaryHeap<Reverse<(u64, u64, Step)>>,
    number: u64,
    requests: Vec<Request>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    budgets: Vec<Vec<RetryBudget>>,
    /// At the providers, by member.
    in_flight: Vec<u32>,
    changed: Vec<f64>,
    outcome: Outcome,
}

/// Runs a scenario with a policy. The arrivals, and the luck of every try, depend on nothing but the seed.
pub(crate) fn run(scenario: &Scenario, policy: &mut dyn Policy, seed: u64, clock: Instant) -> Outcome {
    let members = scenario.members.len();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few minutes or hours")]
    let (bins, seconds) = ((scenario.seconds / BIN) as usize + 1, scenario.seconds as usize + 1);
    let outcome = Outcome {
        times: Vec::new(),
        failed: 0,
        absorbed: 0,
        lost: 0,
        served: vec![0; members],
        chosen: vec![vec![0; bins]; members],
        carried: vec![vec![0.0; seconds]; members],
        open_again: None,
    };
    let mut run = Run {
        scenario,
        policy,
        seed,
        random: luck(seed, usize::MAX, 1, 0),
        clock,
        now: 0.0,
        steps: BinaryHeap::new(),
        number: 0,
        requests: Vec::new(),
        flights: Vec::new(),
        free: Vec::new(),
        budgets: (0..scenario.workers).map(|_| (0..members).map(|_| RetryBudget::new(clock)).collect()).collect(),
        in_flight: vec![0; members],
        changed: vec![0.0; members],
        outcome,
    };
    run.drive();
    run.outcome
}

fn micros(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds).as_micros()).unwrap_or(u64::MAX)
}

impl Run<'_> {
    fn drive(&mut self) {
        let mut arrivals = luck(self.seed, usize::MAX, 0, 0);
        self.plan(0.0, Step::Arrive);
        while let Some(Reverse((at, _, step))) = self.steps.pop() {
            self.now = Duration::from_micros(at).as_secs_f64();
            self.watch();
            match step {
                Step::Arrive => {
                    let worker = arrivals.usize(..self.scenario.workers);
                    let gap = -(1.0 - arrivals.f64()).ln() / self.scenario.rate;
                    if self.now + gap < self.scenario.seconds {
                        self.plan(gap, Step::Arrive);
                    }
                    let request = Request { worker, arrived: self.now, tried: 0, attempts: 0, moves: 0, refused: false };
                    self.requests.push(request);
                    self.place(self.requests.len() - 1);
                }
                Step::Judge(flight) => self.judge(flight),
                Step::Again(flight) => self.send(flight),
                Step::End(flight) => {
                    let leaf = self.flights[flight].as_ref().map_or(0, |flight| flight.leaf);
                    self.carry(leaf, -1);
                    self.end(flight, true);
                }
            }
        }
        for leaf in 0..self.in_flight.len() {
            assert_eq!(self.in_flight[leaf], 0, "everything ends");
        }
    }

    fn plan(&mut self, after: f64, step: Step) {
        self.number += 1;
        self.steps.push(Reverse((micros(self.now + after), self.number, step)));
    }

    fn moment(&self) -> Moment {
        Moment::after(Duration::from_secs_f64(self.now))
    }

    fn spend(&mut self, worker: usize, leaf: usize) -> bool {
        let now = self.std_now();
        self.budgets[worker][leaf].spend(now)
    }

    fn std_now(&self) -> std::time::Instant {
        self.clock + Duration::from_secs_f64(self.now)
    }

    /// Notes when the member that ailed is open again.
    fn watch(&mut self) {
        if let Some(ailing) = &self.scenario.ailing
            && self.outcome.open_again.is_none()
            && self.now >= ailing.to
            && !self.policy.is_shut(ailing.member, self.moment())
        {
            self.outcome.open_again = Some(self.now);
        }
    }

    /// As `Pool::place`.
    fn place(&mut self, number: usize) {
        loop {
            let now = self.moment();
            let request = &self.requests[number];
            if self.now - request.arrived >= DEADLINE {
                return self.fail(number);
            }
            let worker = request.worker;
            let ask = Ask {
                worker,
                tried: request.tried,
                refused: request.refused,
                now,
                seconds: self.now,
                world: &self.scenario.members,
                in_flight: &self.in_flight,
            };
            let Some(pick) = self.policy.choose(&ask, &mut self.random) else { return self.fail(number) };
            let Some(pass) = self.policy.admit(worker, &pick, now) else {
                let request = &mut self.requests[number];
                request.refused |= pick.last_resort;
                request.moves += 1;
                if request.moves > MAX_MOVES {
                    return self.fail(number);
                }
                continue;
            };
            return self.launch(number, &pick, pass);
        }
    }

    fn launch(&mut self, request: usize, pick: &Pick, pass: Pass) {
        let leaf = pick.leaf;
        let worker = self.requests[request].worker;
        let now = self.std_now();
        self.budgets[worker][leaf].earn(now);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bins")]
        if let Some(count) = self.outcome.chosen[leaf].get_mut((self.now / BIN) as usize) {
            *count += 1;
        }
        let times = Times { started: self.moment(), try_started: self.moment() };
        let course = Course { after: 0.0, end: Ok(0.0) };
        let flight = Some(Flight { request, leaf, pass, times, tries_here: 0, resent: false, course });
        let place = self.free.pop().unwrap_or(self.flights.len());
        if place == self.flights.len() {
            self.flights.push(flight);
        } else {
            self.flights[place] = flight;
        }
        self.send(place);
    }

    /// Begins a try.
    fn send(&mut self, place: usize) {
        let now = self.moment();
        let Some(flight) = self.flights[place].as_mut() else { return };
        let (leaf, request) = (flight.leaf, flight.request);
        flight.tries_here += 1;
        flight.times.try_started = now;
        self.requests[request].attempts += 1;
        let tries = flight.tries_here;
        self.carry(leaf, 1);
        let mut luck = luck(self.seed, request, leaf, tries);
        let course = self.scenario.members[leaf].course(self.now, self.in_flight[leaf], &mut luck);
        if let Some(flight) = self.flights[place].as_mut() {
            flight.course = course;
        }
        self.plan(course.after, Step::Judge(place));
    }

    fn judge(&mut self, place: usize) {
        let now = self.moment();
        let Some(flight) = self.flights[place].as_ref() else { return };
        let request = &self.requests[flight.request];
        let (leaf, worker) = (flight.leaf, request.worker);
        match flight.course.end {
            Ok(stream) => {
                self.outcome.times.push(self.now - request.arrived);
                self.outcome.absorbed += u32::from(request.attempts > 1);
                self.outcome.served[leaf] += 1;
                self.policy.answered(worker, leaf, &flight.pass, flight.times, now);
                self.plan(stream, Step::End(place));
            }
            Err(fault) => {
                self.carry(leaf, -1);
                self.failed(place, fault);
            }
        }
    }

    /// As the tries of an attempt, and `Pool::take_back` after the last.
    fn failed(&mut self, place: usize, fault: Fault) {
        let now = self.moment();
        let verdict = fault.class.verdict();
        let Some(flight) = self.flights[place].as_mut() else { return };
        let (number, leaf, times) = (flight.request, flight.leaf, flight.times);
        let worker = self.requests[number].worker;
        if verdict.retry_here == Retry::OnceAtOnce && !flight.resent {
            flight.resent = true;
            return self.send(place);
        }
        self.policy.failed(worker, leaf, &fault, times, now);
        let tries_here = flight.tries_here;
        let is_probe = flight.pass.probe != Probe::default();
        let wait = match verdict.retry_here {
            Retry::BackOff => Some(fault.retry_after.unwrap_or_else(|| back_off(tries_here, self.random.f64()).as_secs_f64())),
            Retry::WhenTold => fault.retry_after.filter(|wait| *wait <= SHORT_WAIT),
            Retry::Never | Retry::OnceAtOnce => None,
        };
        let request = &self.requests[number];
        let (attempts, left) = (request.attempts, DEADLINE - (self.now - request.arrived));
        if let Some(wait) = wait
            && tries_here <= MAX_RETRIES
            && !is_probe
            && attempts < MAX_ATTEMPTS
            && wait <= LONG_WAIT.min(left)
            && self.spend(worker, leaf)
        {
            return self.plan(wait, Step::Again(place));
        }
        self.end(place, false);
        let request = &mut self.requests[number];
        let is_first = request.tried == 0;
        request.tried |= 1 << leaf;
        if verdict.next_member && attempts < MAX_ATTEMPTS && (is_first || self.spend(worker, leaf)) {
            self.place(number);
        } else {
            self.fail(number);
        }
    }

    fn end(&mut self, place: usize, served: bool) {
        let now = self.moment();
        let Some(flight) = self.flights[place].take() else { return };
        self.free.push(place);
        let worker = self.requests[flight.request].worker;
        self.policy.ended(worker, flight.leaf, flight.pass, served, flight.times, now);
    }

    fn fail(&mut self, number: usize) {
        debug_assert!(self.requests[number].arrived <= self.now, "time runs forward");
        self.outcome.times.push(DEADLINE);
        self.outcome.failed += 1;
        // Every fault of these worlds but one that lasts to the deadline lets somebody serve.
        self.outcome.lost += u32::from(self.scenario.members.iter().any(|member| member.is_able(self.now)));
    }

    /// Changes what a member carries, and keeps the mean of every second.
    fn carry(&mut self, leaf: usize, change: i32) {
        let carried = &mut self.outcome.carried[leaf];
        let mut from = self.changed[leaf];
        while from < self.now {
            let to = (from.floor() + 1.0).min(self.now);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of seconds")]
            if let Some(second) = carried.get_mut(from as usize) {
                *second += f64::from(self.in_flight[leaf]) * (to - from);
            }
            from = to;
        }
        self.changed[leaf] = self.now;
        self.in_flight[leaf] = self.in_flight[leaf].saturating_add_signed(change);
    }
}
