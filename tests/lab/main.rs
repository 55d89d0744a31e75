//! The routing laboratory: the pool's own code against the rules of other gateways and balancers, in simulated worlds.
//!
//! Virtual time, seeded draws, no sockets and no actors: a run gives the same figures on every machine. `cargo test` runs a
//! few scenarios with few seeds and holds them to the bars; `scripts/lab` runs everything and prints it.

mod figures;
mod gateway;
mod policy;
mod report;
mod rivals;
mod scenarios;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use figures::Figures;
use policy::{Ours, Policy};
use rivals::{Rival, Rule};
use scenarios::Scenario;

/// Name of the gateway's own policy.
const OURS: &str = "stagedoor";

/// Every policy's figures in one scenario, by seed; the gateway's own first.
pub(crate) struct Results {
    pub(crate) scenario: Scenario,
    pub(crate) policies: Vec<(&'static str, Vec<Figures>)>,
}

/// Runs the scenarios with so many seeds, on as many threads as there are cores.
fn run(scenarios: Vec<Scenario>, seeds: u64) -> Vec<Results> {
    let clock = tokio::time::Instant::now().into_std();
    let jobs: Vec<(usize, u64)> = (0..scenarios.len()).flat_map(|place| (0..seeds).map(move |seed| (place, seed))).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((place, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    let figures = all_policies(&scenarios[place], seed, clock);
                    found.lock().expect("no run panics").push((place, seed, figures));
                }
            });
        }
    });
    let mut found = found.into_inner().expect("no run panics");
    found.sort_unstable_by_key(|(place, seed, _)| (*place, *seed));
    let mut found = found.into_iter().map(|(_, _, figures)| figures);
    let by_seed = |figures: Vec<Vec<Figures>>| {
        let names = std::iter::once(OURS).chain(Rule::ALL.iter().map(|rule| rule.word()));
        names.enumerate().map(|(policy, name)| (name, figures.iter().map(|seed| seed[policy].clone()).collect())).collect()
    };
    scenarios
        .into_iter()
        .map(|scenario| Results { scenario, policies: by_seed((0..seeds).filter_map(|_| found.next()).collect()) })
        .collect()
}

fn all_policies(scenario: &Scenario, seed: u64, clock: std::time::Instant) -> Vec<Figures> {
    let count = scenario.members.len();
    let nominal = || scenario.members.iter().map(|member| 1.0 / member.median).collect();
    let mut figures = Vec::new();
    let mut random = world::luck(seed, usize::MAX, 2, 0);
    let mut measure = |policy: &mut dyn Policy| {
        figures.push(Figures::of(scenario, gateway::run(scenario, policy, seed, clock)));
    };
    measure(&mut Ours::new(&vec![1.0; count], scenario.workers, &mut random));
    for rule in Rule::ALL {
        measure(&mut Rival::new(rule, nominal(), scenario.workers, &mut random));
    }
    figures
}

#[test]
fn the_gateway_holds_its_bars_in_the_laboratory() {
    let is_full = std::env::var_os("STAGEDOOR_LAB").is_some_and(|value| value == "full");
    let results = if is_full {
        run(scenarios::all(), 20)
    } else {
        run(scenarios::all().into_iter().filter(|scenario| scenario.brief).collect(), 5)
    };
    if is_full {
        report::print(&results);
    }
    let broken = report::verdict(&results, is_full);
    assert!(broken.is_empty(), "bars that do not hold:\n{}", broken.join("\n"));
}
