//! Metrics: what is counted, as a page in Prometheus's text format 0.0.4, which every scraper takes without negotiation.
//!
//! The numbers are kept elsewhere and only told here, so no registry is between them: one would be filled anew for each
//! page. The values of labels are names of the configuration or words of closed lists, never what a client sent. Pools of
//! one, which every backend has, are told once they have had requests; histograms once anything is in them.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use super::books::Books;
use super::state::{Backend, Pool, State};
use crate::actors::ShardState;
use crate::actors::tally::RouteStats;
use crate::balance::{Histogram, MemberStats};
use crate::chat::FailureClass;
use crate::settings::{self, Settings};
use crate::story::Outcome;
use crate::telemetry;

/// The route of requests that no configured one took.
const NO_ROUTE: &str = "none";
/// Upper bound of the first bucket in seconds; the others are its doublings, up to a quarter of an hour.
const FIRST_BUCKET: f64 = 0.001_6;

/// What a page is made of.
pub(super) struct Sources<'a> {
    pub(super) settings: &'a Settings,
    pub(super) state: &'a State,
    /// What each worker has said last.
    pub(super) shards: &'a [&'a ShardState],
    pub(super) books: &'a Books,
}

/// A family of one series for each subject: its name, its help, and where its value is found.
type Row<T, V> = (&'static str, &'static str, fn(&T) -> V);

/// What was counted of one backend in one pool.
struct Share<'a> {
    labels: [(&'static str, &'a str); 2],
    weight: Option<f64>,
    stats: MemberStats,
}

impl Sources<'_> {
    /// The page.
    pub(super) fn page(&self) -> String {
        let mut page = Page(String::new());
        self.process(&mut page);
        self.routes(&mut page);
        let pools: Vec<_> = self.settings.pools.iter().zip(&self.state.pools).filter(|(_, pool)| is_told(pool)).collect();
        of_pools(&mut page, &pools);
        let shares: Vec<Share<'_>> = pools.iter().flat_map(|(plan, pool)| self.shares(plan, pool)).collect();
        of_attempts(&mut page, &shares);
        self.backends(&mut page);
        page.0
    }

    fn process(&self, page: &mut Page) {
        let state = self.state;
        page.gauge("stagedoor_build_info", "The gateway's version.").put(&[("version", state.version)], 1);
        page.gauge("stagedoor_config_info", "SHA-256 of the configuration, before variables are put in.")
            .put(&[("sha256", &state.configuration.sha256)], 1);
        page.gauge("stagedoor_verdict", "1 for the present answer to whether clients are being served.")
            .put(&[("level", state.verdict.level.word())], 1);
        page.gauge("stagedoor_draining", "1 while the process is about to end.").put(&[], u8::from(state.draining));
        page.gauge("stagedoor_workers", "Workers that have told what they have counted.").put(&[], state.workers.len());
        page.gauge("stagedoor_late_workers", "Workers that did not answer in time: what is told of them is old.")
            .put(&[], state.late_workers.len());
        page.gauge("stagedoor_open_requests", "Requests between their head and the end of their answer.")
            .put(&[], state.open_requests);
        page.gauge("stagedoor_connections", "Open client connections.").put(&[], state.connections);
        page.gauge("stagedoor_body_bytes", "Bytes of request bodies that are held.").put(&[], state.body_bytes);
        page.gauge("stagedoor_body_limit_bytes", "Most bytes of request bodies that may be held.")
            .put(&[], state.body_limit_bytes);
        page.counter("stagedoor_shed_total", "Requests refused since there was no room for them.")
            .put(&[], self.books.gateway.shed);
        page.counter("stagedoor_log_lines_lost_total", "Log lines lost since whoever reads them is too slow.")
            .put(&[], telemetry::lost_lines());
        if let Some(memory) = state.memory_bytes {
            page.gauge("process_resident_memory_bytes", "Resident memory of the process.").put(&[], memory);
        }
        page.gauge("process_start_time_seconds", "Unix time at which the process started.").put(&[], state.started_at);
    }

    fn routes(&self, page: &mut Page) {
        let names = self.settings.routes.iter().flatten().map(|route| &*route.name);
        // A configured route may have the same name as what has none.
        let mut routes: Vec<(&str, RouteStats)> = Vec::new();
        for (name, stats) in std::iter::once(NO_ROUTE).chain(names).zip(&self.books.routes) {
            match routes.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => sum.merge(stats),
                None => routes.push((name, stats.clone())),
            }
        }
        let mut family = page.counter("stagedoor_requests_total", "Requests that have ended, by how.");
        for (route, stats) in &routes {
            for (outcome, count) in Outcome::ALL.map(Outcome::word).iter().zip(stats.outcomes) {
                family.put(&[("route", route), ("outcome", outcome)], count);
            }
        }
        let mut family = page.counter("stagedoor_request_failures_total", "Failed and truncated requests by class.");
        for (route, stats) in &routes {
            for (class, count) in &stats.classes {
                family.put(&[("route", route), ("class", class)], *count);
            }
        }
        let mut family = page.counter("stagedoor_client_errors_total", "Failed requests that the client is to mend.");
        for (route, stats) in &routes {
            family.put(&[("route", route)], stats.client_errors);
        }
        let help = "Cancelled requests whose client left before any content had come.";
        let mut family = page.counter("stagedoor_given_up_total", help);
        for (route, stats) in &routes {
            family.put(&[("route", route)], stats.given_up);
        }
        let mut family = page.histogram("stagedoor_request_duration_seconds", "Whole time of the requests that were served.");
        for (route, stats) in &routes {
            family.buckets(&[("route", route)], &stats.duration);
        }
        let help = "From the request to the first content of its answer.";
        let mut family = page.histogram("stagedoor_time_to_first_content_seconds", help);
        for (route, stats) in &routes {
            family.buckets(&[("route", route)], &stats.first_content);
        }
    }

    /// What was counted of each backend of a pool, which may have it in more than one place.
    fn shares<'a>(&self, plan: &settings::Pool, pool: &'a Pool) -> Vec<Share<'a>> {
        let mut shares: BTreeMap<usize, Share<'a>> = BTreeMap::new();
        for (place, (backend, member)) in plan.members.iter().zip(&pool.members).enumerate() {
            let labels = [("pool", pool.name.as_str()), ("backend", member.backend.as_str())];
            let share = shares.entry(*backend).or_insert_with(|| Share { labels, weight: None, stats: MemberStats::default() });
            if let Some(weight) = member.weight.filter(|_| !plan.implicit) {
                *share.weight.get_or_insert_default() += weight;
            }
            for shard in self.shards {
                share.stats.merge(&shard.pools[plan.index].members[place]);
            }
        }
        shares.into_values().collect()
    }

    fn backends(&self, page: &mut Page) {
        let backends = &self.state.backends;
        let mut family = page.gauge("stagedoor_backend_up", "1 where the backend takes requests now.");
        for backend in backends {
            family.put(&[("backend", &backend.name)], u8::from(!backend.condition.is_down()));
        }
        let mut family = page.gauge("stagedoor_backend_condition", "1 for the backend's present condition.");
        for backend in backends {
            family.put(&[("backend", &backend.name), ("condition", backend.condition.word())], 1);
        }
        let told: [Row<Backend, u64>; 7] = [
            ("stagedoor_in_flight", "Attempts that the backend's present providers carry.", |backend| backend.in_flight),
            ("stagedoor_backend_draining", "Attempts that replaced providers still carry.", |backend| backend.draining),
            ("stagedoor_queued", "Requests that wait for a permit of the backend.", |backend| backend.queued),
            ("stagedoor_permits_used", "Permits of the backend that are taken.", |backend| u64::from(backend.permits.used)),
            ("stagedoor_backend_connections", "Open connections to the backend.", |backend| backend.connections),
            ("stagedoor_generation", "Present incarnation of the backend's providers.", |backend| {
                u64::from(backend.generation.unwrap_or(0))
            }),
            ("stagedoor_circuit_state", "The backend's own circuit: 0 closed, 1 half-open, 2 open.", |backend| {
                circuit(backend.circuit.state)
            }),
        ];
        for (name, help, value) in told {
            let mut family = page.gauge(name, help);
            for backend in backends {
                family.put(&[("backend", &backend.name)], value(backend));
            }
        }
        let mut family = page.gauge("stagedoor_permits_limit", "Permits of the backend, where it has a limit.");
        for backend in backends {
            if let Some(limit) = backend.permits.limit {
                family.put(&[("backend", &backend.name)], limit);
            }
        }
        let help = "Circuits of models that have been asked for or are not closed: 0 closed, 1 half-open, 2 open.";
        let mut family = page.gauge("stagedoor_model_circuit_state", help);
        for backend in backends {
            for model in &backend.models {
                family.put(&[("backend", &backend.name), ("model", &model.model)], circuit(model.circuit.state));
            }
        }
        let counted: [Row<Backend, u64>; 3] = [
            (
                "stagedoor_circuit_openings_total",
                "Times that a circuit of the backend or of its models has opened or failed its probe.",
                |backend| backend.circuit_openings,
            ),
            ("stagedoor_restarts_total", "Restarts of the backend; one by an operator counts once for all workers.", |backend| {
                backend.restarts
            }),
            ("stagedoor_crashes_total", "Panics that ended a provider of the backend.", |backend| backend.crashes),
        ];
        for (name, help, value) in counted {
            let mut family = page.counter(name, help);
            for backend in backends {
                family.put(&[("backend", &backend.name)], value(backend));
            }
        }
        self.headroom(page);
        let help = "Pauses between the pieces of a stream, as they came from the backend.";
        let mut family = page.histogram("stagedoor_inter_chunk_gap_seconds", help);
        for (index, backend) in backends.iter().enumerate() {
            let mut gaps = Histogram::default();
            self.shards.iter().for_each(|shard| gaps.merge(&shard.providers[index].gaps));
            family.buckets(&[("backend", &backend.name)], &gaps);
        }
    }

    /// What providers have said of their limits.
    fn headroom(&self, page: &mut Page) {
        let said = || self.state.backends.iter().filter_map(|backend| Some((backend.name.as_str(), backend.headroom.as_ref()?)));
        let mut put = |name, help, of: fn(&super::state::HeadroomState) -> [Option<u64>; 2]| {
            let mut family = page.gauge(name, help);
            for (backend, said) in said() {
                for (kind, value) in ["requests", "tokens"].iter().zip(of(said)) {
                    if let Some(value) = value {
                        family.put(&[("backend", backend), ("kind", kind)], value);
                    }
                }
            }
        };
        let help = "What the provider said last that it may still be asked.";
        put("stagedoor_rate_limit_remaining", help, |said| [said.requests_left, said.tokens_left]);
        let help = "What the provider said last that it may be asked in all.";
        put("stagedoor_rate_limit_ceiling", help, |said| [said.requests_limit, said.tokens_limit]);
    }
}

/// Whether anything is worth telling of a pool.
fn is_told(pool: &Pool) -> bool {
    !pool.implicit || pool.requests > 0
}

fn of_pools(page: &mut Page, pools: &[(&std::sync::Arc<settings::Pool>, &Pool)]) {
    let help =
        "Requests of the pool that have ended, by how; in pools of one also an operator's test prompts and standby checks.";
    let mut family = page.counter("stagedoor_pool_requests_total", help);
    for (_, pool) in pools {
        for (outcome, count) in Outcome::ALL.map(Outcome::word).iter().zip(<[u64; 5]>::from(pool.outcomes)) {
            family.put(&[("pool", &pool.name), ("outcome", outcome)], count);
        }
    }
    let counted: [Row<Pool, Option<u64>>; 5] = [
        ("stagedoor_absorbed_total", "Requests served although an earlier try had failed.", |pool| Some(pool.absorbed)),
        ("stagedoor_refused_total", "Requests that the pool answered with an error.", |pool| Some(pool.refused)),
        ("stagedoor_pool_restarts_total", "Restarts of the pool after a panic.", |pool| Some(pool.restarts)),
        ("stagedoor_hedges_total", "Requests that a second member was asked for as well.", |pool| {
            Some(pool.hedges.as_ref()?.started)
        }),
        ("stagedoor_hedges_won_total", "Requests that the second member answered first.", |pool| Some(pool.hedges.as_ref()?.won)),
    ];
    for (name, help, value) in counted {
        let mut family = page.counter(name, help);
        for (_, pool) in pools {
            if let Some(value) = value(pool) {
                family.put(&[("pool", &pool.name)], value);
            }
        }
    }
    let help = "Requests of conversations: kept with their member, moved from it, new.";
    let mut family = page.counter("stagedoor_conversations_total", help);
    for (_, pool) in pools {
        if let Some(told) = &pool.conversations {
            for (kind, count) in [("kept", told.kept), ("moved", told.moved), ("new", told.new)] {
                family.put(&[("pool", &pool.name), ("kind", kind)], count);
            }
        }
    }
    let mut family = page.gauge("stagedoor_parked", "Requests that wait for a member of the pool to start.");
    for (_, pool) in pools {
        family.put(&[("pool", &pool.name)], pool.parked);
    }
}

fn of_attempts(page: &mut Page, shares: &[Share<'_>]) {
    let mut family = page.gauge("stagedoor_weight", "Present weight of the backend in a configured pool.");
    for Share { labels, weight, .. } in shares {
        if let Some(weight) = weight {
            family.put(labels, weight);
        }
    }
    let mut family = page.counter(
        "stagedoor_attempts_total",
        "Attempts that have ended, by how: each time the pool gave a request to the backend.",
    );
    for Share { labels: [pool, backend], stats, .. } in shares {
        let counts = [stats.served, stats.failed(), stats.cancelled, stats.truncated, stats.cut];
        for (outcome, count) in Outcome::ALL.map(Outcome::word).iter().zip(counts) {
            family.put(&[*pool, *backend, ("outcome", outcome)], count);
        }
    }
    let help = "Tries that failed and streams that broke, by class; an attempt may have more than one try.";
    let mut family = page.counter("stagedoor_attempt_failures_total", help);
    for Share { labels: [pool, backend], stats, .. } in shares {
        for (class, count) in FailureClass::ALL.iter().zip(stats.failures).filter(|(_, count)| *count > 0) {
            family.put(&[*pool, *backend, ("class", class.word())], count);
        }
    }
    let counted: [Row<MemberStats, u64>; 2] = [
        ("stagedoor_retried_total", "Tries that failed and were followed by another one within the attempt.", |stats| {
            stats.retried
        }),
        ("stagedoor_bounced_total", "Requests given back untried, since every permit of the backend was taken.", |stats| {
            stats.bounced
        }),
    ];
    for (name, help, value) in counted {
        let mut family = page.counter(name, help);
        for Share { labels, stats, .. } in shares {
            family.put(labels, value(stats));
        }
    }
    let help = "Tokens, reported or estimated; `cached` ones are part of `prompt`.";
    let mut family = page.counter("stagedoor_tokens_total", help);
    for Share { labels: [pool, backend], stats, .. } in shares {
        let counts = [("prompt", stats.prompt_tokens), ("completion", stats.completion_tokens), ("cached", stats.cached_tokens)];
        for (kind, count) in counts {
            family.put(&[*pool, *backend, ("kind", kind)], count);
        }
    }
    let mut family = page.histogram("stagedoor_attempt_first_content_seconds", "From a try's start to its first content.");
    for Share { labels, stats, .. } in shares {
        family.buckets(labels, &stats.first_content);
    }
    let help = "Time of whole attempts, whatever became of them.";
    let mut family = page.histogram("stagedoor_attempt_duration_seconds", help);
    for Share { labels, stats, .. } in shares {
        family.buckets(labels, &stats.duration);
    }
}

fn circuit(state: &str) -> u64 {
    match state {
        "closed" => 0,
        "half-open" => 1,
        _ => 2,
    }
}

/// Text that grows family by family.
struct Page(String);

impl Page {
    fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "histogram", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }
}

/// The series of one name.
struct Family<'p> {
    text: &'p mut String,
    name: &'static str,
}

impl Family<'_> {
    fn put(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.sample("", labels, value);
    }

    /// A histogram as buckets, sum and count.
    fn buckets(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        if histogram.total() == 0 {
            return;
        }
        let told =
            histogram.doublings().filter(|(bound, _)| *bound >= FIRST_BUCKET).map(|(bound, below)| (bound.to_string(), below));
        for (bound, below) in told.chain([("+Inf".to_owned(), histogram.total())]) {
            self.sample("_bucket", &[labels, &[("le", &bound)]].concat(), below);
        }
        self.sample("_sum", labels, histogram.sum().as_secs_f64());
        self.sample("_count", labels, histogram.total());
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (place, (name, value)) in labels.iter().enumerate() {
            self.text.push_str(if place == 0 { "{" } else { "," });
            self.text.push_str(name);
            self.text.push_str("=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_is_told_as_cumulative_buckets_that_end_with_all_of_it() {
        let mut histogram = Histogram::default();
        for millis in [1, 2, 300, 2_000_000] {
            histogram.add(Duration::from_millis(millis));
        }
        let mut page = Page(String::new());
        page.histogram("x_seconds", "X.").buckets(&[("route", "a\"b\\c\nd")], &histogram);
        let lines: Vec<&str> = page.0.lines().collect();
        assert_eq!(lines[..2], ["# HELP x_seconds X.", "# TYPE x_seconds histogram"]);
        assert_eq!(lines[2], r#"x_seconds_bucket{route="a\"b\\c\nd",le="0.0016"} 1"#);
        assert_eq!(lines[3], r#"x_seconds_bucket{route="a\"b\\c\nd",le="0.0032"} 2"#);
        let last = &lines[lines.len() - 4..];
        assert_eq!(last[0], r#"x_seconds_bucket{route="a\"b\\c\nd",le="838.8608"} 3"#);
        assert_eq!(last[1], r#"x_seconds_bucket{route="a\"b\\c\nd",le="+Inf"} 4"#);
        assert_eq!(last[2], r#"x_seconds_sum{route="a\"b\\c\nd"} 2000.303"#);
        assert_eq!(last[3], r#"x_seconds_count{route="a\"b\\c\nd"} 4"#);
    }

    #[test]
    fn an_empty_histogram_is_not_told() {
        let mut page = Page(String::new());
        page.histogram("x_seconds", "X.").buckets(&[], &Histogram::default());
        assert_eq!(page.0.lines().count(), 2);
        page.gauge("y", "Y.").put(&[], 1.5);
        assert_eq!(page.0.lines().last(), Some("y 1.5"));
    }
}
