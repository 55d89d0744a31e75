//! The soak: many clients, a mixture of faults, restarts under them, and memory that stays where it is. `scripts/soak`
//! runs it for longer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::books::{Pool, State};
use crate::client::{Connection, Ending, Question, Usage, WORDS};
use crate::process::Gateway;

/// How long it runs where `SOAK_SECONDS` does not say.
const SECONDS: u64 = 45;
/// From here on memory has to be flatter.
const LONG: u64 = 300;
/// Clients, each with one request at a time.
const CLIENTS: u64 = 32;
/// What the mix of requests is drawn from.
const SEED: u64 = 20_261_124;
/// Longest wait for the end of a reply: beyond every limit of the configuration together.
const HANG: Duration = Duration::from_secs(60);
/// Time between two restarts.
const RESTART_EVERY: Duration = Duration::from_secs(2);
/// Time between two looks at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A pool of three, each with the same mixture of faults. A number of a request that draws one status draws the other too, so that the
/// second is left with the rest of its share.
fn configuration() -> String {
    let faults = "{ kind: status, status: 429, retryAfter: 50ms, probability: 0.008 }, { kind: status, status: 500, probability: 0.016 }, \
                  { kind: reset, probability: 0.008 }, { kind: cut, event: 5, probability: 0.008 }, \
                  { kind: stall, event: 4, probability: 0.005 }, { kind: malformed, event: 6, probability: 0.008 }, \
                  { kind: error-event, event: 3, probability: 0.008 }, { kind: panic-handler, probability: 0.005 }, \
                  { kind: panic-task, probability: 0.005 }, { kind: panic-body, event: 4, probability: 0.005 }";
    let backend = |(seed, name)| {
        format!(
            "  - {{ name: {name}, type: simulated, config: {{ firstToken: 10ms, tokensPerSecond: 300, jitter: 0.5, seed: {seed}, \
             maxRetries: 1, restarts: 10000, timeout: 2s, timeouts: {{ idle: 1s }}, faults: [{faults}] }} }}\n"
        )
    };
    let backends: String = ["a", "b", "c"].into_iter().enumerate().map(backend).collect();
    format!(
        "server: {{ port: 0, workers: 2 }}\ntelemetry: {{ accessLog: false }}\nbackends:\n\
         \x20 - {{ name: soaked, type: pool, deadline: 20s, backends: [{{ name: a }}, {{ name: b }}, {{ name: c }}] }}\n{backends}"
    )
}

/// What the clients saw.
#[derive(Default)]
struct Tally {
    /// Replies that were whole and streams with `[DONE]`.
    complete: u64,
    /// Streams broken off with an error event, by its code.
    broken: BTreeMap<String, u64>,
    /// Requests answered with an error, by status and code.
    refused: BTreeMap<String, u64>,
    /// Streams that their client left.
    left: u64,
    /// Tokens that complete replies reported.
    completion_tokens: u64,
    /// Whatever breaks a promise.
    wrong: Vec<String>,
}

impl Tally {
    fn requests(&self) -> u64 {
        self.complete + self.broken.values().sum::<u64>() + self.refused.values().sum::<u64>() + self.left
    }

    fn note(&mut self, ending: Ending, usage: Usage) {
        match ending {
            Ending::Whole | Ending::Done => {
                self.complete += 1;
                self.completion_tokens += usage.completion;
            }
            Ending::Broken { code, .. } => *self.broken.entry(code).or_default() += 1,
            Ending::Refused { status, code, .. } => *self.refused.entry(format!("{status} {code}")).or_default() += 1,
        }
    }
}

/// Asks one question after another until then: whole replies and streams, and now and then one that it leaves.
async fn ask_until(until: Instant, gateway: &Gateway, number: u64, tally: &RefCell<Tally>) {
    let mut draw = fastrand::Rng::with_seed(SEED + number);
    let mut kept = None;
    while Instant::now() < until {
        let text = format!("client {number} asks about {}", draw.u32(..));
        let question = Question { model: "soaked", text: &text, stream: draw.f32() < 0.55 };
        let leaves_after = (question.stream && draw.f32() < 0.2).then(|| draw.usize(2..WORDS));
        let asking = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(gateway.address).await?,
            };
            connection.send("POST", "/v1/chat/completions", &question.body()).await?;
            let mut reply = connection.head().await?;
            while connection.piece(&mut reply).await? {
                if reply.status == 200 && leaves_after.is_some_and(|events| reply.events() >= events) {
                    return Ok(None);
                }
            }
            kept = Some(connection);
            question.ending(&reply).map(Some)
        };
        let ended = timeout(HANG, asking).await.unwrap_or_else(|_| Err("it hangs".to_owned()));
        let mut tally = tally.borrow_mut();
        match ended {
            Ok(Some((ending, usage))) => tally.note(ending, usage),
            Ok(None) => tally.left += 1,
            Err(wrong) => tally.wrong.push(format!("{text}: {wrong}")),
        }
    }
}

/// Restarts one backend after the other until then; every third time what it carries is cut soon.
async fn restart_until(until: Instant, gateway: &Gateway) -> u64 {
    let mut ticks = interval(RESTART_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut restarts = 0;
    loop {
        ticks.tick().await;
        if Instant::now() >= until {
            return restarts;
        }
        let name = ["a", "b"][usize::from(restarts % 2 == 1)];
        let options = if restarts % 3 == 2 { "?deadline=20ms" } else { "" };
        let reply = gateway.send("POST", &format!("/admin/api/backends/{name}/restart{options}")).await;
        assert_eq!(reply.status, 202, "{}", reply.text());
        restarts += 1;
    }
}

/// Memory over time, in seconds and KiB.
struct Memory(Vec<(f64, f64)>);

impl Memory {
    /// Looks at it from one moment to another.
    async fn watch(from: Instant, until: Instant, gateway: &Gateway) -> Self {
        tokio::time::sleep_until(from).await;
        let mut ticks = interval(LOOK_EVERY);
        let mut looks = Vec::new();
        while Instant::now() < until {
            ticks.tick().await;
            looks.push((from.elapsed().as_secs_f64(), gateway.resident()));
        }
        Self(looks)
    }

    /// The median of the first fifth, and of the last.
    fn ends(&self) -> (f64, f64) {
        let fifth = self.0.len() / 5;
        let median = |looks: &[(f64, f64)]| {
            let mut sizes: Vec<f64> = looks.iter().map(|(_, size)| *size).collect();
            sizes.sort_by(f64::total_cmp);
            sizes[sizes.len() / 2]
        };
        (median(&self.0[..=fifth]), median(&self.0[self.0.len() - fifth - 1..]))
    }

    /// KiB per second by least squares.
    fn slope(&self) -> f64 {
        let count = self.0.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| self.0.iter().map(of).sum::<f64>() / count;
        let (at, size) = (mean(|look| look.0), mean(|look| look.1));
        let together: f64 = self.0.iter().map(|look| (look.0 - at) * (look.1 - size)).sum();
        together / self.0.iter().map(|look| (look.0 - at).powi(2)).sum::<f64>()
    }

    /// Seconds between the first look and the last.
    fn span(&self) -> f64 {
        self.0.last().map_or(0.0, |last| last.0 - self.0[0].0)
    }
}

/// The figures, one a line.
fn report(seconds: u64, tally: &Tally, restarts: u64, state: &State, memory: &Memory) -> String {
    let pool = state.pool("soaked");
    let mut failures: BTreeMap<&str, u64> = BTreeMap::new();
    for (class, count) in pool.members.iter().flat_map(|member| &member.failures) {
        *failures.entry(class).or_default() += count;
    }
    let crashes: u64 = pool.members.iter().map(|member| state.backend(&member.backend).crashes).sum();
    let (start, end) = memory.ends();
    let mut text = String::new();
    let mut line = |name: &str, figure: String| {
        let _ = writeln!(text, "{name:<34}{figure:>14}");
    };
    line("seconds", seconds.to_string());
    line("requests", tally.requests().to_string());
    line("complete", tally.complete.to_string());
    line("left by the client", tally.left.to_string());
    tally.broken.iter().for_each(|(code, count)| line(&format!("error event {code}"), count.to_string()));
    tally.refused.iter().for_each(|(code, count)| line(&format!("refused {code}"), count.to_string()));
    line("broken promises", tally.wrong.len().to_string());
    line("absorbed", pool.absorbed.to_string());
    failures.iter().for_each(|(class, count)| line(&format!("failed {class}"), count.to_string()));
    line("crashes", crashes.to_string());
    line("restarts by the operator", restarts.to_string());
    line("memory at first, KiB", format!("{start:.0}"));
    line("memory at last, KiB", format!("{end:.0}"));
    line("memory per second, KiB", format!("{:.2}", memory.slope()));
    text
}

/// What the books and the clients do not agree on.
fn disagreements(tally: &Tally, state: &State) -> Vec<String> {
    let pool = state.pool("soaked");
    let Pool { requests, refused, .. } = *pool;
    let (served, cut) = (pool.sum(|member| member.served), pool.sum(|member| member.cut));
    let truncated = pool.sum(|member| member.truncated);
    let broken: u64 = tally.broken.values().sum();
    let errors: u64 = tally.refused.values().sum();
    let mut found = state.unrest();
    let mut check = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    check(requests == tally.requests(), format!("{requests} requests in the pool, {} at the clients", tally.requests()));
    check(state.requests() == requests, "requests in pools that nobody asked".to_owned());
    // What a client left may have ended in any way before the gateway knew.
    check(
        (tally.complete..=tally.complete + tally.left).contains(&served),
        format!("{served} served, {} complete", tally.complete),
    );
    check(
        errors >= refused && errors <= refused + cut,
        format!("{refused} refused and {cut} cut, {errors} errors at the clients"),
    );
    check(broken <= truncated + cut, format!("{truncated} truncated and {cut} cut, {broken} error events at the clients"));
    let tokens = pool.tokens().completion;
    check(tokens >= tally.completion_tokens, format!("{tokens} tokens, {} reported to clients", tally.completion_tokens));
    found
}

#[tokio::test]
async fn under_mixed_faults_and_restarts_each_request_ends_once_and_memory_stays_flat() {
    let seconds = std::env::var_os("SOAK_SECONDS").map_or(SECONDS, |text| text.to_str().unwrap().parse().unwrap());
    let mut gateway = Gateway::start(&configuration());
    let tally = RefCell::default();
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    // What grows to its working size does so in the first third.
    let warm = start + Duration::from_secs(seconds) / 3;
    let clients = join_all((0..CLIENTS).map(|number| ask_until(until, &gateway, number, &tally)));
    let (_, restarts, memory) = tokio::join!(clients, restart_until(until, &gateway), Memory::watch(warm, until, &gateway));
    assert_eq!(gateway.ended(), None, "no panic ends the process");
    let tally = tally.into_inner();
    let (state, wrong) = gateway.settled_state(|state| disagreements(&tally, state)).await;
    println!("{}", report(seconds, &tally, restarts, &state, &memory));

    assert!(tally.wrong.is_empty(), "{} broken promises: {:#?}", tally.wrong.len(), &tally.wrong[..tally.wrong.len().min(5)]);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(state.backend("c").crashes > 0 && tally.complete > 0, "it was a soak");
    let (first, last) = memory.ends();
    let spare = 8.0 * 1024.0;
    assert!(last <= first * 1.25 + spare, "memory grew from {first} KiB to {last} KiB");
    // Over a longer time the same growth is a smaller slope.
    let growth = memory.slope() * memory.span();
    let allowed = if seconds < LONG { 0.25 } else { 0.1 };
    assert!(growth <= first * allowed + spare, "memory grows by {growth} KiB within {} seconds", memory.span());
}
