//! Books: what all workers have counted, added up.

use crate::actors::ShardState;
use crate::actors::tally::RouteStats;
use crate::balance::MemberStats;
use crate::settings::Settings;
use crate::story::OutcomeCounts;

/// What was counted since the process started.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    /// By backend, over all pools.
    pub(crate) backends: Vec<MemberStats>,
    /// By pool and member: times that it was chosen, and had room.
    pub(crate) members: Vec<Vec<u64>>,
    /// By route + 1.
    pub(crate) routes: Vec<RouteStats>,
    /// Everything.
    pub(crate) gateway: GatewayCount,
}

/// What was counted of all requests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GatewayCount {
    /// How they have ended.
    pub(crate) outcomes: OutcomeCounts,
    /// Of the failed ones, those that the client is to mend.
    pub(crate) client_errors: u64,
    /// Of the cancelled ones, those that were left before any content had come.
    pub(crate) given_up: u64,
    /// Requests served although an earlier try had failed.
    pub(crate) absorbed: u64,
    /// Requests refused since there was no room.
    pub(crate) shed: u64,
}

impl GatewayCount {
    /// Requests that have ended, without those that clients left or were to mend.
    pub(crate) fn answered(&self) -> u64 {
        let [served, ..] = self.outcomes;
        served + self.failed()
    }

    /// Requests whose end is not their client's fault.
    pub(crate) fn failed(&self) -> u64 {
        let [_, failed, _, truncated, cut] = self.outcomes;
        (failed + truncated + cut).saturating_sub(self.client_errors)
    }
}

impl Books {
    /// Adds up what the workers have counted.
    pub(crate) fn of(settings: &Settings, shards: &[&ShardState]) -> Self {
        let mut backends = vec![MemberStats::default(); settings.backends.len()];
        let mut gateway = GatewayCount::default();
        let mut members = Vec::with_capacity(settings.pools.len());
        for plan in &settings.pools {
            let mut chosen = vec![0; plan.members.len()];
            for state in shards.iter().map(|shard| &shard.pools[plan.index]) {
                gateway.absorbed += state.absorbed;
                for ((stats, backend), chosen) in state.members.iter().zip(&plan.members).zip(&mut chosen) {
                    *chosen += stats.chosen.saturating_sub(stats.bounced);
                    if stats.chosen > 0 || stats.attempts > 0 {
                        backends[*backend].merge(stats);
                    }
                }
            }
            members.push(chosen);
        }
        let routes = routes(settings, shards);
        for route in &routes {
            for (sum, count) in gateway.outcomes.iter_mut().zip(route.outcomes) {
                *sum += count;
            }
            gateway.client_errors += route.client_errors;
            gateway.given_up += route.given_up;
            gateway.shed += route.classes.iter().filter(|(class, _)| *class == "saturated").map(|(_, count)| count).sum::<u64>();
        }
        Self { backends, members, routes, gateway }
    }
}

fn routes(settings: &Settings, shards: &[&ShardState]) -> Vec<RouteStats> {
    let mut routes = vec![RouteStats::default(); settings.routes.as_ref().map_or(0, Vec::len) + 1];
    for shard in shards {
        for (sum, route) in routes.iter_mut().zip(&shard.routes) {
            sum.merge(route);
        }
    }
    routes
}
