//! The situations in which policies are compared.

use super::world::{Event, Member, Span};

/// One situation.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) members: Vec<Member>,
    pub(crate) workers: usize,
    /// Requests per second.
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    /// A member that ails for a while, if leaving it and returning to it is measured.
    pub(crate) ailing: Option<Ailing>,
    /// Whether the members have equal distributions throughout.
    pub(crate) equal: bool,
    /// Whether `cargo test` runs it.
    pub(crate) brief: bool,
}

/// Who ails, from when to when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ailing {
    pub(crate) member: usize,
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Whether it must be left within the bar: it hangs or is ten times slower.
    pub(crate) must_leave: bool,
}

fn member(median: f64) -> Member {
    Member { median, sigma: 0.4, capacity: 250.0, stream: 2.0, drift: None, script: Vec::new() }
}

fn equal(count: usize) -> Vec<Member> {
    vec![member(0.5); count]
}

fn distinct(medians: &[f64]) -> Vec<Member> {
    medians.iter().map(|median| member(*median)).collect()
}

fn with(mut members: Vec<Member>, leaf: usize, spans: &[(f64, f64, Event)]) -> Vec<Member> {
    members[leaf].script.extend(spans.iter().map(|(from, to, event)| Span { from: *from, to: *to, event: *event }));
    members
}

fn flapping(members: Vec<Member>, leaf: usize) -> Vec<Member> {
    let spans: Vec<_> = (0..12).map(|turn| f64::from(turn) * 10.0 + 10.0).map(|at| (at, at + 4.0, Event::Refuses)).collect();
    with(members, leaf, &spans)
}

fn drifting(count: usize, period: f64) -> Vec<Member> {
    let drift = |n: usize| Some((period, 0.7, n as f64 / count as f64));
    (0..count).map(|n| Member { drift: drift(n), ..member(0.5) }).collect()
}

/// Ordinary load is 100 requests/s over three members: each a third busy. High load doubles its members' times.
pub(crate) fn all() -> Vec<Scenario> {
    let usual = |name, members| Scenario {
        name,
        members,
        workers: 4,
        rate: 100.0,
        seconds: 120.0,
        ailing: None,
        equal: false,
        brief: false,
    };
    let ails = |from: f64, to: f64, must_leave| Some(Ailing { member: 0, from, to, must_leave });
    let limited = |wait| with(equal(3), 0, &[(20.0, 32.0, Event::Limited(wait)), (60.0, 80.0, Event::Limited(wait))]);
    let brown = Event::Brown { slow: 3.0, failing: 0.3 };
    let long = |member: Member| Member { stream: 20.0, capacity: 600.0, ..member };
    vec![
        Scenario { equal: true, brief: true, ..usual("equal, 3 members", equal(3)) },
        Scenario { equal: true, rate: 60.0, ..usual("equal, 2 members", equal(2)) },
        Scenario { equal: true, rate: 250.0, ..usual("equal, 8 members", equal(8)) },
        Scenario { equal: true, workers: 1, ..usual("equal, 1 worker", equal(3)) },
        Scenario { equal: true, workers: 16, ..usual("equal, 16 workers", equal(3)) },
        Scenario { equal: true, rate: 3.0, seconds: 900.0, ..usual("equal, low load", equal(3)) },
        Scenario { equal: true, rate: 220.0, ..usual("equal, high load", equal(3)) },
        Scenario { brief: true, ..usual("distinct speeds", distinct(&[0.4, 0.6, 1.0])) },
        Scenario { rate: 3.0, seconds: 900.0, ..usual("distinct, low load", distinct(&[0.4, 0.6, 1.0])) },
        Scenario { rate: 180.0, brief: true, ..usual("distinct, high load", distinct(&[0.4, 0.6, 1.0])) },
        Scenario { rate: 60.0, ..usual("distinct, 2 members", distinct(&[0.4, 0.6])) },
        Scenario {
            rate: 200.0,
            workers: 16,
            ..usual("distinct, 8 members, 16 workers", distinct(&[0.3, 0.4, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5]))
        },
        Scenario { rate: 3.0, seconds: 7_200.0, ..usual("drift over hours", drifting(3, 7_200.0)) },
        Scenario {
            ailing: ails(30.0, 60.0, false),
            brief: true,
            ..usual("brown-outs", with(equal(3), 0, &[(30.0, 60.0, brown), (90.0, 100.0, brown)]))
        },
        usual("429 storm, Retry-After", limited(Some(10.0))),
        usual("429 storm, no Retry-After", limited(None)),
        Scenario {
            ailing: ails(30.0, 75.0, true),
            brief: true,
            ..usual("ten times slower, returns", with(equal(3), 0, &[(30.0, 75.0, Event::Slow(10.0))]))
        },
        Scenario { rate: 60.0, ..usual("ten times slower for good", with(equal(3), 0, &[(0.0, 1e9, Event::Slow(10.0))])) },
        Scenario {
            rate: 60.0,
            ..usual(
                "two swap speeds",
                with(with(equal(2), 0, &[(0.0, 60.0, Event::Slow(3.0))]), 1, &[(60.0, 1e9, Event::Slow(3.0))]),
            )
        },
        Scenario {
            seconds: 180.0,
            ailing: ails(30.0, 75.0, true),
            brief: true,
            ..usual("hangs, returns", with(equal(3), 0, &[(30.0, 75.0, Event::Hangs)]))
        },
        Scenario {
            seconds: 180.0,
            workers: 16,
            ailing: ails(30.0, 75.0, true),
            ..usual("hangs, 16 workers", with(equal(3), 0, &[(30.0, 75.0, Event::Hangs)]))
        },
        Scenario {
            ailing: ails(30.0, 60.0, false),
            brief: true,
            ..usual("dies, returns", with(equal(3), 0, &[(30.0, 60.0, Event::Refuses)]))
        },
        Scenario { brief: true, ..usual("flapping", flapping(equal(3), 0)) },
        Scenario { equal: true, rate: 40.0, seconds: 180.0, ..usual("long streams", equal(3).into_iter().map(long).collect()) },
        Scenario {
            rate: 40.0,
            seconds: 180.0,
            ..usual("long streams, distinct", distinct(&[0.4, 0.6, 1.0]).into_iter().map(long).collect())
        },
    ]
}
