//! The table's faults sent to the binary: what a client sees of each, and what the books say, compared with what is due.
//!
//! Every case has a pool and backends of its own and sends one request, so that no case can touch another.

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::timeout;

use crate::books::State;
use crate::client::{Connection, Ending, Question, Usage};
use crate::process::{Gateway, PATIENCE};
use crate::table::{Due, RESTARTS, Row, TABLE, Wait};

/// The event that brings the first word: the role comes before it.
const FIRST_CONTENT: u64 = 1;
/// Words that a stream brings before it fails after first content.
const WORDS_BEFORE: u64 = 2;
/// Cases at once.
const AT_ONCE: usize = 16;

/// What is asked for, and when a stream fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Whole,
    Before,
    After,
}

/// One request of the table.
struct Case {
    row: &'static Row,
    form: Form,
    /// Whether a healthy member stands behind the faulty one.
    has_second: bool,
    /// Name of the pool.
    pool: String,
}

/// What a client sees of a case.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    ending: Result<Ending, String>,
    backend: Option<String>,
    tries: Option<u32>,
}

/// What the pool's books say of a case.
#[derive(Debug, PartialEq, Eq)]
struct Booked {
    requests: u64,
    absorbed: u64,
    refused: u64,
    /// Attempts, served replies and failures by class of the faulty member, then of the healthy one.
    members: Vec<(u64, u64, BTreeMap<String, u64>)>,
    truncated: u64,
    crashes: u64,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (number, row) in TABLE.iter().enumerate() {
        for form in [Form::Whole, Form::Before, Form::After] {
            for has_second in [false, true] {
                if form != Form::After || row.after.is_some() {
                    let pool = format!("{number}-{form:?}-{}", if has_second { "first" } else { "alone" }).to_lowercase();
                    cases.push(Case { row, form, has_second, pool });
                }
            }
        }
    }
    cases
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?}, {})", self.row.title, self.form, if self.has_second { "first of two" } else { "only member" })
    }
}

impl Case {
    fn faulty(&self) -> String {
        format!("{}-faulty", self.pool)
    }

    fn healthy(&self) -> String {
        format!("{}-healthy", self.pool)
    }

    /// Its pool and backends as entries of the configuration.
    fn yaml(&self) -> String {
        let Row { fault, once, .. } = self.row;
        let event = if self.form == Form::After { FIRST_CONTENT + WORDS_BEFORE } else { FIRST_CONTENT };
        let when = if *once { "requests: [1]" } else { "probability: 1" };
        // Short only where it is waited for: a busy machine makes no case fail.
        let is_silent = fault.contains("slow-head") || fault.contains("stall");
        let (timeout, idle) = match self.form {
            Form::Whole | Form::Before if is_silent => ("400ms", "60s"),
            Form::After if is_silent => ("60s", "400ms"),
            Form::Whole | Form::Before | Form::After => ("60s", "60s"),
        };
        let pace = "firstToken: 2ms, tokensPerSecond: 1000";
        let (pool, faulty, healthy) = (&self.pool, self.faulty(), self.healthy());
        let mut members = format!("{{ name: {faulty}, weight: 1 }}");
        let mut entries = format!(
            "  - {{ name: {faulty}, type: simulated, config: {{ {pace}, maxRetries: 1, restarts: {RESTARTS}, timeout: {timeout}, \
             timeouts: {{ idle: {idle} }}, faults: [{{ {fault}, event: {event}, {when} }}] }} }}\n"
        );
        if self.has_second {
            // A weight of zero: only when nothing else is left.
            members.push_str(&format!(", {{ name: {healthy}, weight: 0 }}"));
            entries.push_str(&format!("  - {{ name: {healthy}, type: simulated, config: {{ {pace} }} }}\n"));
        }
        format!("  - {{ name: {pool}, type: pool, strategy: weighted, fallback: true, backends: [{members}] }}\n{entries}")
    }

    fn due(&self) -> Due {
        if self.has_second { self.row.first } else { self.row.alone }
    }

    /// What the client is due to see; of what it sees, it matters only where any `Retry-After` will do.
    fn expected(&self, seen: &Seen) -> Seen {
        if let (Form::After, Some(code)) = (self.form, self.row.after) {
            let ending = Ending::Broken { code: code.to_owned(), words: WORDS_BEFORE };
            return Seen { ending: Ok(ending), backend: Some(self.faulty()), tries: Some(1) };
        }
        match self.due() {
            Due::Error { status, code, tries, wait: due, is_final } => {
                let retry_after = match due {
                    Wait::No => None,
                    Wait::Seconds(seconds) => Some(seconds),
                    Wait::Some => match seen.ending {
                        Ok(Ending::Refused { retry_after: Some(wait), .. }) if wait > 0 => Some(wait),
                        _ => Some(1),
                    },
                };
                let ending = Ending::Refused { status, code: code.to_owned(), retry_after, is_final };
                Seen { ending: Ok(ending), backend: tries.map(|_| self.faulty()), tries }
            }
            Due::Reply { healthy, tries } => {
                let ending = if self.form == Form::Whole { Ending::Whole } else { Ending::Done };
                let backend = if healthy { self.healthy() } else { self.faulty() };
                Seen { ending: Ok(ending), backend: Some(backend), tries: Some(tries) }
            }
        }
    }

    /// What the books are due to say.
    fn expected_books(&self) -> Booked {
        let failures = |count: u64, class: &str| (count > 0).then(|| (class.to_owned(), count)).into_iter().collect();
        let [whole, before, after] = self.row.class;
        if self.form == Form::After {
            let members =
                [(1, 0, failures(1, after)), (0, 0, BTreeMap::new())].into_iter().take(1 + usize::from(self.has_second));
            let crashes = u64::from(after == "crashed");
            return Booked { requests: 1, absorbed: 0, refused: 0, members: members.collect(), truncated: 1, crashes };
        }
        let (by_faulty, by_healthy, tries) = match self.due() {
            Due::Error { .. } => (0, 0, 0),
            Due::Reply { healthy, tries } => (u64::from(!healthy), u64::from(healthy), tries),
        };
        let class = if self.form == Form::Whole { whole } else { before };
        let counted = self.row.counted;
        // What fails before it is an attempt leaves no trace among them.
        let attempts = u64::from(counted > 0 || by_faulty > 0);
        let mut members = vec![(attempts, by_faulty, failures(counted, class))];
        if self.has_second {
            members.push((by_healthy, by_healthy, BTreeMap::new()));
        }
        let served = by_faulty + by_healthy;
        let crashes = self.row.crashes[usize::from(self.has_second)];
        Booked { requests: 1, absorbed: u64::from(tries > 1), refused: 1 - served, members, truncated: 0, crashes }
    }

    /// What the books say.
    fn booked(&self, state: &State) -> Booked {
        let pool = state.pool(&self.pool);
        let mut names = vec![self.faulty()];
        names.extend(self.has_second.then(|| self.healthy()));
        let member = |name: &String| {
            let member = pool.member(name);
            (member.attempts, member.served, member.failures.clone())
        };
        Booked {
            requests: pool.requests,
            absorbed: pool.absorbed,
            refused: pool.refused,
            members: names.iter().map(member).collect(),
            truncated: pool.sum(|member| member.truncated),
            crashes: state.backend(&self.faulty()).crashes,
        }
    }

    /// What is wrong in the books: outcomes, classes, or the tokens of a reply that reported this usage.
    fn amiss(&self, state: &State, seen: &Seen, usage: Usage) -> Option<String> {
        let (booked, due) = (self.booked(state), self.expected_books());
        if booked != due {
            return Some(format!("{self}\n  booked {booked:?}\n  due    {due:?}"));
        }
        let tokens = state.pool(&self.pool).tokens();
        let is_settled = match &seen.ending {
            Ok(Ending::Whole | Ending::Done) => tokens == usage,
            // Nothing was reported, so they are estimated; the event of the role may count as one.
            Ok(Ending::Broken { words, .. }) => tokens.prompt > 0 && (*words..=words + 1).contains(&tokens.completion),
            Ok(Ending::Refused { .. }) | Err(_) => true,
        };
        (!is_settled).then(|| format!("{self}\n  tokens {tokens:?}\n  usage  {usage:?}"))
    }

    /// Sends the one request.
    async fn run(&self, gateway: &Gateway) -> (Seen, Usage) {
        let question = Question { model: &self.pool, text: "one two three", stream: self.form != Form::Whole };
        let asking = async { Connection::open(gateway.address).await?.ask(&question).await };
        let reply = timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(HUNG.to_owned()));
        let header = |name: &str| reply.as_ref().ok()?.header(name).map(str::to_owned);
        let backend = header("x-stagedoor-backend");
        let tries = header("x-stagedoor-attempts").and_then(|tries| tries.parse().ok());
        match reply.and_then(|reply| question.ending(&reply)) {
            Ok((ending, usage)) => (Seen { ending: Ok(ending), backend, tries }, usage),
            Err(wrong) => (Seen { ending: Err(wrong), backend, tries }, Usage::default()),
        }
    }
}

const HUNG: &str = "it hangs";

#[tokio::test]
async fn every_fault_ends_for_the_client_and_in_the_books_as_the_table_says() {
    let cases = cases();
    let mut yaml = "server: { port: 0, workers: 2 }\ntelemetry: { accessLog: false }\nbackends:\n".to_owned();
    yaml.extend(cases.iter().map(Case::yaml));
    let mut gateway = Gateway::start(&yaml);
    let running = stream::iter(&cases)
        .map(|case| (case, &gateway))
        .map(|(case, gateway)| async move { (case, case.run(gateway).await) })
        .buffer_unordered(AT_ONCE);
    let seen: Vec<(&Case, (Seen, Usage))> = running.collect().await;
    assert_eq!(gateway.ended(), None, "no panic ends the process");

    // Every request has one outcome in its pool, every attempt one at its member, and nothing is held any more.
    let (state, mut wrong) = gateway
        .settled_state(|state| {
            let cases = seen.iter().filter_map(|(case, (seen, usage))| case.amiss(state, seen, *usage));
            state.unrest().into_iter().chain(cases).collect()
        })
        .await;
    for (case, (seen, _)) in &seen {
        let expected = case.expected(seen);
        if *seen != expected {
            wrong.push(format!("{case}\n  sees {seen:?}\n  due  {expected:?}"));
        }
    }
    let ended = |is: fn(&Result<Ending, String>) -> bool| seen.iter().filter(|(_, (seen, _))| is(&seen.ending)).count();
    println!(
        "{} faults, {} cases: {} served, {} refused, {} streams broken off with an error event, {} that hang",
        TABLE.len(),
        cases.len(),
        ended(|ending| matches!(ending, Ok(Ending::Whole | Ending::Done))),
        ended(|ending| matches!(ending, Ok(Ending::Refused { .. }))),
        ended(|ending| matches!(ending, Ok(Ending::Broken { .. }))),
        ended(|ending| ending.as_ref().is_err_and(|wrong| wrong == HUNG)),
    );
    assert!(wrong.is_empty(), "{} things wrong in {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(state.requests(), cases.len() as u64, "each case is one request of one pool");
}
