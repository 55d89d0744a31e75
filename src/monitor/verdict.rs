//! How each backend is and why, and what that means for the clients, in words.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::books::GatewayCount;
use super::report::{LATELY, RECENT, Sources, circuit, is_known, next_ask};
use super::state::{Condition, Level, Verdict};
use crate::actors::slots::SharedBackend;
use crate::actors::tally::RouteStats;
use crate::balance::{CircuitState, MemberStats, ModelSlot, Moment};
use crate::chat::FailureClass;
use crate::story::OutcomeCounts;
use crate::words::{grouped, in_a_row, several};

/// Clients see errors when more of their requests fail than this.
const FAILING: f64 = 0.01;
/// A backend of which more of its recent attempts fail than this ails.
const AILING: f64 = 0.2;
/// Clients are not served when more of them than this leave without any content, and at least so many.
const GIVEN_UP: (f64, u64) = (0.2, 3);
/// Fewer tries than this say nothing.
const FEW: u64 = 4;
/// A backend ails when so many tries in a row have failed.
const FAILED: u32 = 3;
/// Classes of failed requests that are the clients' to mend.
const CLIENTS: [&str; 5] = ["caller", "unauthenticated", "no_route", "model_unknown", "unsupported"];
/// A backend ails when so many clients in a row have left without any content.
const LEFT: u32 = 3;
/// It ails too when its requests wait, on average, longer than this many times what is expected, and at least so many
/// seconds; or so many where nothing is known yet.
const SILENT: (f64, f64, f64) = (3.0, 10.0, 30.0);
/// Tokens of a long answer.
const LONG: f64 = 4_000.0;

/// A backend's condition, why, and until when.
pub(super) struct Finding {
    pub(super) condition: Condition,
    pub(super) reason: String,
    pub(super) until: Option<f64>,
}

impl Sources<'_> {
    /// How every backend is.
    pub(super) fn findings(&self) -> Vec<Finding> {
        (0..self.shared.settings.backends.len()).map(|index| self.finding(index)).collect()
    }

    fn finding(&self, index: usize) -> Finding {
        let shared = &self.shared.backends[index];
        let now = self.now;
        let all = |word: &str| !self.shards.is_empty() && self.providers(index).all(|(_, provider)| provider.state == word);
        let found = |condition, reason: String, until| Finding { condition, reason, until };
        let next_start = || {
            let starts = self.providers(index).filter_map(|(_, provider)| provider.next_start_seconds);
            starts.min_by(f64::total_cmp)
        };
        let last_reason = || self.last_reason(index).unwrap_or_else(|| "it has not started yet".to_owned());
        if shared.drained.load(Ordering::Relaxed) {
            return found(Condition::Drained, "taken out by an operator".to_owned(), None);
        }
        if all("failed") {
            return found(Condition::Failed, last_reason(), next_start());
        }
        if all("backing-off") {
            return found(Condition::Starting, last_reason(), next_start());
        }
        let circuit = &shared.health.circuit;
        match circuit.state(now) {
            CircuitState::Open { until, class } => {
                let until = Some(until.since(now).as_secs_f64());
                // What has crashed too often tells more than its circuit.
                let words = match self.last_reason(index) {
                    Some(reason) if class == FailureClass::Crashed => reason,
                    _ => format!("circuit open: {}", in_a_row(class, circuit.streak())),
                };
                return found(Condition::Open, words, until);
            }
            CircuitState::HalfOpen { class, probing, .. } => {
                let who = if probing { "a request that is on its way" } else { "the next request" };
                let words = format!("its circuit was open: {}; {who} decides whether it answers again", class.in_words());
                return found(Condition::HalfOpen, words, None);
            }
            CircuitState::Closed => {}
        }
        self.closed(index, shared)
    }

    /// How a backend is whose own circuit is closed.
    fn closed(&self, index: usize, shared: &SharedBackend) -> Finding {
        let now = self.now;
        let found = |condition, reason: String, until| Finding { condition, reason, until };
        let asked: Vec<&ModelSlot> = shared.health.slots().filter(|slot| is_known(slot, now)).collect();
        let open: Vec<&ModelSlot> =
            asked.iter().copied().filter(|slot| slot.circuit.state(now) != CircuitState::Closed).collect();
        if let Some(first) = open.iter().min_by_key(|slot| next_ask(slot, now)) {
            let told = circuit(&first.circuit, now);
            let more = if open.len() > 1 { format!(" and {} more", open.len() - 1) } else { String::new() };
            let name = if first.is_rest() { "its models" } else { &first.model };
            let (class, deciding) = match first.circuit.state(now) {
                CircuitState::Closed => (None, ""),
                CircuitState::Open { class, .. } => (Some(class), ""),
                CircuitState::HalfOpen { class, probing: false, .. } => (Some(class), "; the next request decides"),
                CircuitState::HalfOpen { class, probing: true, .. } => (Some(class), "; a request that is on its way decides"),
            };
            let class = class.map_or_else(|| "unknown".to_owned(), FailureClass::in_words);
            let words = format!("circuit of {name}{more} {}: {class}{deciding}", told.state);
            // What takes none of the requests it gets is down.
            let condition = match told.until_seconds {
                _ if open.len() < asked.len() => Condition::Ailing,
                Some(_) => Condition::Open,
                None => Condition::HalfOpen,
            };
            return found(condition, words, told.until_seconds);
        }
        let stats = self.recent(index).0;
        if let Some(words) = self.many_fail(index) {
            return found(Condition::Ailing, words, None);
        }
        let recently = |at: Option<Moment>| at.is_some_and(|at| now.since(at) < RECENT);
        let (whole, failed) = shared.health.last();
        let streak = asked.iter().map(|slot| slot.circuit.streak()).max().unwrap_or(0);
        if streak >= FAILED && recently(failed) {
            return found(Condition::Ailing, format!("its last {streak} tries failed: {}", most_frequent(&stats)), None);
        }
        let left = shared.health.given_up();
        if left >= LEFT {
            let words = format!("the last {left} requests were given up, or overtaken by a hedge, before any content had come");
            return found(Condition::Ailing, words, None);
        }
        if let Some(waited) = silence(shared, now) {
            let words = format!("its requests have waited {waited:.0} s for an answer, on average");
            return found(Condition::Ailing, words, None);
        }
        let served = whole.max(shared.health.last_answer());
        let in_flight = shared.permits.used();
        let (_, least, _) = SILENT;
        if in_flight > 0
            && let Some(quiet) = served.map(|at| now.since(at).as_secs_f64())
            && quiet >= least
            && failed > served
        {
            let words = format!("it has not answered for {quiet:.0} s, and its last try failed");
            return found(Condition::Ailing, words, None);
        }
        if stats.truncated > 0 && recently(failed) && !recently(whole) {
            let words = format!("no reply came to its end lately: {}", most_frequent(&stats));
            found(Condition::Ailing, words, None)
        } else if recently(served) {
            found(Condition::Well, self.answers(index, shared), None)
        } else if recently(failed) {
            found(Condition::Ailing, "its last request failed, and none was served".to_owned(), None)
        } else if served.or(failed).is_none() && self.books.backends[index].attempts > 0 {
            let words = "nothing that was asked of it says yet how it is: it was left, cut, crashed, or the client's mistake";
            found(Condition::Unknown, words.to_owned(), None)
        } else if served.or(failed).is_none() && self.providers(index).any(|(_, provider)| provider.crashes > 0) {
            found(Condition::Ailing, self.last_reason(index).unwrap_or_default(), None)
        } else if in_flight > 0 {
            let words = format!("{} in flight, and no answer yet", several(u64::from(in_flight), "request"));
            found(Condition::Unknown, words, None)
        } else if served.or(failed).is_none() {
            found(Condition::Unknown, "nothing was asked of it yet".to_owned(), None)
        } else {
            found(Condition::Unknown, "nothing was asked of it for five minutes".to_owned(), None)
        }
    }

    /// What a backend does that is well.
    fn answers(&self, index: usize, shared: &SharedBackend) -> String {
        let used = shared.permits.used();
        if shared.permits.limit().is_none_or(|limit| used < limit) {
            return "answers".to_owned();
        }
        let queued: u64 = self.providers(index).map(|(_, provider)| provider.queued as u64).sum();
        format!(
            "answers, but has no room: {} in flight, as many as it may have, and {} waiting",
            grouped(used.into()),
            grouped(queued)
        )
    }

    /// What was counted of a backend within so long, and how long that is exactly.
    fn counted(&self, index: usize, span: Duration) -> (MemberStats, Duration) {
        let stats = &self.books.backends[index];
        match self.past.before(span, self.now) {
            Some((books, span)) => (stats.since(&books.backends[index]), span),
            None => (stats.clone(), Duration::ZERO),
        }
    }

    /// That too many tries of a backend fail, in words: of the last minute, or where there were few of the last five.
    fn many_fail(&self, index: usize) -> Option<String> {
        let (mut stats, mut span) = self.counted(index, LATELY);
        if tries(&stats) < FEW {
            (stats, span) = self.counted(index, RECENT);
        }
        let (tried, ill) = (tries(&stats), stats.ill_tries());
        (tried >= FEW && ill as f64 > tried as f64 * AILING)
            .then(|| format!("{} of {tried} tries failed {}: {}", grouped(ill), within(span), most_frequent(&stats)))
    }

    pub(super) fn last_reason(&self, index: usize) -> Option<String> {
        self.providers(index).find_map(|(_, provider)| provider.last_reason.clone())
    }

    /// What was counted of a backend in the last minutes, and over how long.
    pub(super) fn recent(&self, index: usize) -> (MemberStats, Duration) {
        self.counted(index, RECENT)
    }

    pub(super) fn verdict(&self, findings: &[Finding]) -> Verdict {
        let gateway = &self.books.gateway;
        let before = self.past.before(RECENT, self.now);
        let span = before.map_or(Duration::ZERO, |(_, span)| span);
        let since = before.map_or_else(GatewayCount::default, |(books, _)| books.gateway);
        let Tally { requests, failed, given_up } = Tally::between(&since, gateway);
        let absorbed = gateway.absorbed.saturating_sub(since.absorbed);
        let client_errors = gateway.client_errors.saturating_sub(since.client_errors);
        let lately = self.past.before(LATELY, self.now);
        let requests_per_second = lately.map_or(0.0, |(books, span)| {
            let all = |outcomes: &OutcomeCounts| outcomes.iter().sum::<u64>();
            let ended = all(&gateway.outcomes).saturating_sub(all(&books.gateway.outcomes));
            ended as f64 / span.as_secs_f64().max(1.0)
        });
        let error_rate = (requests > 0).then(|| failed as f64 / requests as f64);
        let down = findings.iter().filter(|finding| finding.condition.is_down()).count();
        let draining = self.shared.draining.load(Ordering::Relaxed);
        let latest = lately.map_or_else(Tally::default, |(books, _)| Tally::between(&books.gateway, gateway));
        let counts = Counts {
            all: Tally { requests, failed, given_up },
            latest,
            latest_span: lately.map_or(Duration::ZERO, |(_, span)| span),
            why: if failed > 0 { why(&self.books.routes, before.map(|(books, _)| &*books.routes)) } else { None },
            client_errors,
            absorbed,
            down,
            drained: findings.iter().filter(|finding| finding.condition == Condition::Drained).count(),
            backends: findings.len(),
        };
        let level = level(findings, &counts, draining);
        let open = self.shared.open_requests.load(Ordering::Relaxed);
        Verdict {
            level,
            words: words(level, &counts, span, open),
            backends_down: down,
            backends: findings.len(),
            window_seconds: span.as_secs_f64(),
            requests,
            failed,
            error_rate,
            given_up,
            client_errors,
            absorbed,
            requests_per_second,
        }
    }
}

/// What the clients have seen in some time.
#[derive(Clone, Copy, Default)]
struct Tally {
    requests: u64,
    failed: u64,
    given_up: u64,
}

impl Tally {
    fn between(before: &GatewayCount, now: &GatewayCount) -> Self {
        Self {
            requests: now.answered().saturating_sub(before.answered()),
            failed: now.failed().saturating_sub(before.failed()),
            given_up: now.given_up.saturating_sub(before.given_up),
        }
    }

    fn is_empty(&self) -> bool {
        self.requests + self.given_up == 0
    }

    fn see_errors(&self) -> bool {
        self.failed as f64 > self.requests as f64 * FAILING
    }

    fn give_up(&self) -> bool {
        let (share, least) = GIVEN_UP;
        self.given_up >= least && self.given_up as f64 > (self.requests + self.given_up) as f64 * share
    }
}

/// What the verdict's words are made of.
struct Counts {
    /// Of the last five minutes.
    all: Tally,
    /// Of the last minute or so.
    latest: Tally,
    latest_span: Duration,
    /// The most frequent class of the failures.
    why: Option<&'static str>,
    client_errors: u64,
    absorbed: u64,
    down: usize,
    drained: usize,
    backends: usize,
}

impl Counts {
    /// What says how it is now: the last minute, or where nothing was asked in it the last five.
    fn present(&self) -> &Tally {
        if self.latest.is_empty() { &self.all } else { &self.latest }
    }
}

/// The most frequent class of what has failed since, which is not the clients' to mend.
fn why(now: &[RouteStats], before: Option<&[RouteStats]>) -> Option<&'static str> {
    let mut sums: Vec<(&'static str, u64)> = Vec::new();
    let mut add = |class: &'static str, count: i64| {
        let known = sums.iter().position(|(known, _)| *known == class);
        let place = known.unwrap_or_else(|| {
            sums.push((class, 0));
            sums.len() - 1
        });
        sums[place].1 = sums[place].1.saturating_add_signed(count);
    };
    let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    now.iter().flat_map(|route| &route.classes).for_each(|(class, count)| add(class, signed(*count)));
    before.into_iter().flatten().flat_map(|route| &route.classes).for_each(|(class, count)| add(class, -signed(*count)));
    let ours = sums.into_iter().filter(|(class, count)| *count > 0 && !CLIENTS.contains(class));
    ours.max_by_key(|(_, count)| *count).map(|(class, _)| class)
}

/// A class of failed requests for people, with what may help.
fn advice(class: &str) -> String {
    let words = match class {
        "saturated" => "no room: backends or queues are full; see maxConcurrent and maxQueue, or add a backend",
        "no_backend" => "no backend could take them",
        "deadline" => "not served within their deadline",
        "cut" => "ended by an operator, a drain deadline or the shutdown",
        class => {
            let known = FailureClass::ALL.iter().find(|known| known.word() == class);
            return known.map_or_else(|| class.to_owned(), |known| known.in_words());
        }
    };
    format!("{words} ({class})")
}

/// A time that has passed, in words.
fn within(span: Duration) -> String {
    if span >= RECENT { "in 5 minutes".to_owned() } else { format!("in {} s", span.as_secs()) }
}

fn tries(stats: &MemberStats) -> u64 {
    stats.attempts + stats.retried
}

/// How long a backend's requests have waited for an answer on average, where that is too long.
fn silence(shared: &SharedBackend, now: Moment) -> Option<f64> {
    let (times, least, unknown) = SILENT;
    let kinds =
        |slot: &ModelSlot| [true, false].map(|stream| (slot.pulse.beat(stream, LONG, now), slot.pulse.usual(stream, LONG)));
    let beats = shared.health.slots().flat_map(kinds);
    // By its answers alone: what its failures add would excuse it.
    let bound = |usual: Option<f64>| usual.map_or(unknown, |seconds| (seconds * times).max(least));
    let late = beats.filter(|(beat, usual)| beat.waiting > 0 && beat.waited > bound(*usual));
    late.map(|(beat, _)| beat.waited).max_by(f64::total_cmp)
}

fn level(findings: &[Finding], counts: &Counts, draining: bool) -> Level {
    let is = |condition: Condition| findings.iter().any(|finding| finding.condition == condition);
    if findings.iter().all(|finding| finding.condition.is_down()) {
        return Level::Down;
    }
    let present = counts.present();
    if present.see_errors() || present.give_up() {
        return Level::Failing;
    }
    if draining {
        return Level::Draining;
    }
    let is_ill =
        |finding: &Finding| finding.condition.is_down() || matches!(finding.condition, Condition::Ailing | Condition::HalfOpen);
    let ails = findings.iter().any(is_ill);
    // Where nobody was asked, nobody knows.
    let is_known = counts.all.requests > 0 || is(Condition::Well);
    match (is_known, ails) {
        (false, _) => Level::Unknown,
        (true, true) => Level::Degraded,
        (true, false) => Level::Serving,
    }
}

fn words(level: Level, counts: &Counts, span: Duration, open: u64) -> String {
    let Counts { all: Tally { requests, failed, given_up }, client_errors, absorbed, down, backends, .. } = counts;
    let begin = match level {
        Level::Serving => "Clients are being served.".to_owned(),
        Level::Unknown if given_up + client_errors > 0 => {
            "Nobody was served lately: whether the backends answer is not known.".to_owned()
        }
        Level::Unknown => "Nothing was asked for lately: whether the backends answer is not known.".to_owned(),
        Level::Degraded if *down == 0 => "Clients are being served, but a backend ails.".to_owned(),
        Level::Degraded => "Clients are being served by the backends that are left.".to_owned(),
        Level::Draining => {
            let are = if open == 1 { "is" } else { "are" };
            format!("The gateway is about to end: {} {are} still open.", several(open, "request"))
        }
        Level::Failing if !counts.present().see_errors() => "Clients give up waiting.".to_owned(),
        Level::Failing => "Clients see errors.".to_owned(),
        Level::Down if counts.drained == *backends => "An operator has taken every backend out.".to_owned(),
        Level::Down => "Every backend is down.".to_owned(),
    };
    let down = match down {
        0 => String::new(),
        _ => format!(" {down} of {backends} backends {} down.", if *down == 1 { "is" } else { "are" }),
    };
    let (minutes, latest) = (within(span), &counts.latest);
    // An error of minutes ago is not one of now.
    let is_over = latest.failed == 0 && latest.requests > 0 && counts.latest_span < span;
    let over = if is_over {
        format!(", none of the {} {}", grouped(latest.requests), within(counts.latest_span))
    } else {
        String::new()
    };
    let errors = match (requests, failed) {
        (0, _) => String::new(),
        (_, 0) => format!(" {} {minutes}, none failed.", several(*requests, "request")),
        (_, failed) => format!(" {} of {} failed {minutes}{over}.", grouped(*failed), several(*requests, "request")),
    };
    let why = counts.why.map(|class| format!(" Most often: {}.", advice(class))).unwrap_or_default();
    let given_up = match given_up {
        0 => String::new(),
        _ => format!(" {} left before any content had come.", several(*given_up, "client")),
    };
    // What clients are to mend matters where it is much of all.
    let mistakes = match client_errors {
        _ if *client_errors * 20 <= *requests => String::new(),
        _ => format!(" {} refused for the clients to mend.", several(*client_errors, "request")),
    };
    let absorbed = match absorbed {
        0 => String::new(),
        _ => format!(" Retries and failover saved {}.", grouped(*absorbed)),
    };
    format!("{begin}{down}{errors}{why}{given_up}{mistakes}{absorbed}")
}

fn most_frequent(stats: &MemberStats) -> String {
    let ill = FailureClass::ALL.iter().zip(stats.failures).filter(|(class, _)| class.is_backends());
    let most = ill.max_by_key(|(_, count)| *count);
    most.map_or_else(|| "unknown".to_owned(), |(class, _)| class.in_words())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn counts() -> Counts {
        let all = Tally { requests: 12_345, failed: 0, given_up: 0 };
        Counts {
            all,
            latest: Tally { requests: 500, ..Tally::default() },
            latest_span: MINUTE,
            why: None,
            client_errors: 600,
            absorbed: 1_000,
            down: 1,
            drained: 0,
            backends: 4,
        }
    }

    #[test]
    fn the_verdict_says_what_its_counts_are() {
        assert_eq!(
            words(Level::Degraded, &counts(), RECENT, 0),
            "Clients are being served by the backends that are left. 1 of 4 backends is down. 12,345 requests in 5 minutes, \
             none failed. Retries and failover saved 1,000."
        );
    }

    #[test]
    fn what_is_over_is_told_as_over() {
        let all = Tally { requests: 2_382, failed: 122, given_up: 0 };
        let over = Counts { all, why: Some("socket"), absorbed: 0, down: 0, client_errors: 0, ..counts() };
        assert!(!over.present().see_errors() && over.all.see_errors());
        assert_eq!(
            words(Level::Serving, &over, RECENT, 0),
            "Clients are being served. 122 of 2,382 requests failed in 5 minutes, none of the 500 in 60 s. Most often: its \
             connections fail (socket)."
        );
        let quiet = Counts { latest: Tally::default(), ..over };
        assert!(quiet.present().see_errors(), "where nothing was asked since, nobody knows that it is over");
        let full = Counts { all, latest: all, why: Some("saturated"), absorbed: 0, down: 0, client_errors: 0, ..counts() };
        let told = words(Level::Failing, &full, RECENT, 0);
        assert!(
            told.ends_with(
                "Most often: no room: backends or queues are full; see maxConcurrent and maxQueue, or add a backend (saturated)."
            ),
            "{told}"
        );
    }

    #[test]
    fn the_most_frequent_class_is_that_of_the_last_minutes() {
        let stats = |classes: &[(&'static str, u64)]| RouteStats { classes: classes.to_vec(), ..RouteStats::default() };
        let before = [stats(&[("socket", 90), ("caller", 1)]), stats(&[("deadline", 1)])];
        let now = [stats(&[("socket", 91), ("caller", 40)]), stats(&[("deadline", 4), ("saturated", 2)])];
        assert_eq!(why(&now, Some(&before)), Some("deadline"));
        assert_eq!(why(&now, None), Some("socket"));
        assert_eq!(why(&before, Some(&before)), None);
    }

    #[test]
    fn clients_that_leave_or_are_to_mend_their_requests_are_told_of() {
        let all = Tally { requests: 20, failed: 0, given_up: 40 };
        let counts = Counts { all, latest: all, client_errors: 2, absorbed: 0, down: 0, backends: 1, ..counts() };
        assert!(counts.present().give_up() && !counts.present().see_errors());
        let told = words(Level::Failing, &counts, RECENT, 0);
        let expected = "Clients give up waiting. 20 requests in 5 minutes, none failed. 40 clients left before any content had \
                        come. 2 requests refused for the clients to mend.";
        assert_eq!(told, expected);
        assert!(!Tally { given_up: 4, ..all }.give_up(), "a few always leave");
    }
}
