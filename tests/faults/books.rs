//! The books that `/admin/api/state` shows, and the sums in them that must agree.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::client::Usage;

/// The state of the whole process.
#[derive(Debug, Deserialize)]
pub struct State {
    open_requests: u64,
    body_bytes: u64,
    late_workers: Vec<usize>,
    backends: Vec<Backend>,
    pools: Vec<Pool>,
}

/// One backend.
#[derive(Debug, Deserialize)]
pub struct Backend {
    name: String,
    in_flight: u64,
    draining: u64,
    queued: u64,
    permits: Permits,
    pub crashes: u64,
}

#[derive(Debug, Deserialize)]
struct Permits {
    used: u64,
}

/// One pool.
#[derive(Debug, Deserialize)]
pub struct Pool {
    pub name: String,
    pub requests: u64,
    pub absorbed: u64,
    pub refused: u64,
    parked: u64,
    pub members: Vec<Member>,
}

/// One member of a pool.
#[derive(Debug, Deserialize)]
pub struct Member {
    pub backend: String,
    pub attempts: u64,
    pub served: u64,
    pub cancelled: u64,
    pub truncated: u64,
    pub cut: u64,
    /// Of the cut ones, those whose request has gone elsewhere.
    moved: u64,
    retried: u64,
    pub failures: BTreeMap<String, u64>,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl State {
    /// A backend.
    pub fn backend(&self, name: &str) -> &Backend {
        self.backends.iter().find(|backend| backend.name == name).expect("the backend is known")
    }

    /// A pool.
    pub fn pool(&self, name: &str) -> &Pool {
        self.pools.iter().find(|pool| pool.name == name).expect("the pool is known")
    }

    /// Requests of all pools.
    pub fn requests(&self) -> u64 {
        self.pools.iter().map(|pool| pool.requests).sum()
    }

    /// Whatever says that a request is not over, or not settled yet.
    pub fn unrest(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |is_left: bool, what: String| is_left.then(|| left.push(what));
        note(!self.late_workers.is_empty(), format!("workers that do not answer: {:?}", self.late_workers));
        note(self.open_requests > 0, format!("open requests: {}", self.open_requests));
        note(self.body_bytes > 0, format!("bytes of bodies: {}", self.body_bytes));
        for backend in &self.backends {
            let busy = backend.in_flight + backend.draining + backend.queued + backend.permits.used;
            note(busy > 0, format!("in flight, draining, queued or holding a permit: {backend:?}"));
        }
        for pool in &self.pools {
            note(pool.parked > 0, format!("parked in {}: {}", pool.name, pool.parked));
            let lost = pool.lost();
            note(lost.is_some(), lost.unwrap_or_default());
        }
        left
    }
}

impl Pool {
    /// A member by its backend.
    pub fn member(&self, backend: &str) -> &Member {
        self.members.iter().find(|member| member.backend == backend).expect("the member is known")
    }

    /// A sum over the members.
    pub fn sum(&self, count: impl Fn(&Member) -> u64) -> u64 {
        self.members.iter().map(count).sum()
    }

    /// Tokens of all members.
    pub fn tokens(&self) -> Usage {
        Usage { prompt: self.sum(|member| member.prompt_tokens), completion: self.sum(|member| member.completion_tokens) }
    }

    /// What does not add up: every request has one outcome, and so has every attempt.
    fn lost(&self) -> Option<String> {
        let ended =
            self.refused + self.sum(|member| member.served + member.cancelled + member.truncated + member.cut - member.moved);
        if self.requests != ended {
            return Some(format!("{} requests in {} and {ended} outcomes", self.requests, self.name));
        }
        let differs = |member: &&Member| member.attempts != member.outcomes();
        let member = self.members.iter().find(differs)?;
        Some(format!("{} attempts in {} and {} outcomes: {member:?}", member.attempts, self.name, member.outcomes()))
    }
}

impl Member {
    /// Outcomes of attempts. A truncated reply is among the failures, and so is a try that was followed by another one.
    fn outcomes(&self) -> u64 {
        self.served + self.cancelled + self.cut + self.failures.values().sum::<u64>() - self.retried
    }
}
