//! What the laboratory prints, and the bars that it holds the gateway to.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use super::figures::{Figures, Interval, mean, ratio};
use super::{OURS, Results};

/// Ratios above which a percentile counts as a loss, if the whole interval lies there.
const LOSS_P95: f64 = 1.05;
const LOSS_P99: f64 = 1.10;
/// How near the oracle, in at least half of the scenarios.
const NEAR_ORACLE: f64 = 1.25;
/// Seconds to leave an ailing member, in the mean over the seeds, and to return to a recovered one, with every seed.
const LEAVE_WITHIN: f64 = 2.0;
const RETURN_WITHIN: f64 = 3.0;
/// Most that a member among equals may carry, in equal shares.
const CROWD: f64 = 2.0;
/// Requests per second below which that is shown and not judged: with so few the pool keeps to the member that seems to be
/// the fastest, since sharing them evenly costs more where one really is.
const CROWD_RATE: f64 = 10.0;

/// Prints every scenario's table.
pub(crate) fn print(results: &[Results]) {
    for Results { scenario, policies } in results {
        println!(
            "\n## {}: {} members, {} workers, {} requests/s, {} s",
            scenario.name,
            scenario.members.len(),
            scenario.workers,
            scenario.rate,
            scenario.seconds
        );
        println!(
            "{:<14} {:>7} {:>7} {:>7} {:>7} {:>9} {:>6} {:>6} {:>6}  shares, %",
            "policy", "p50", "p95", "p99", "failed", "absorbed", "left", "back", "crowd"
        );
        for (name, figures) in policies {
            let of = |value: fn(&Figures) -> f64| mean(figures.iter().map(value));
            let time = |value: fn(&Figures) -> Option<f64>| {
                let times: Option<Vec<f64>> = figures.iter().map(value).collect();
                times.map_or_else(|| "-".to_owned(), |times| seconds(mean(times.into_iter())))
            };
            let share = |leaf: usize| mean(figures.iter().map(|figures| figures.shares[leaf] * 100.0));
            let shares: Vec<String> = (0..scenario.members.len()).map(|leaf| format!("{:.1}", share(leaf))).collect();
            println!(
                "{name:<14} {:>7.3} {:>7.3} {:>7.3} {:>7.1} {:>9.1} {:>6} {:>6} {:>6.2}  {}",
                of(|figures| figures.p50),
                of(|figures| figures.p95),
                of(|figures| figures.p99),
                of(|figures| f64::from(figures.failed)),
                of(|figures| f64::from(figures.absorbed)),
                time(|figures| figures.left),
                time(|figures| figures.returned),
                of(|figures| figures.crowd),
                shares.join(" ")
            );
        }
    }
}

fn seconds(time: f64) -> String {
    if time.is_finite() { format!("{time:.1}") } else { "never".to_owned() }
}

/// Compares the gateway with everybody, prints the verdicts if asked to, and says which bars do not hold.
pub(crate) fn verdict(results: &[Results], is_shown: bool) -> Vec<String> {
    let mut broken = Vec::new();
    let mut near = 0;
    let mut lines = Vec::new();
    for Results { scenario, policies } in results {
        let Some((_, ours)) = policies.iter().find(|(name, _)| *name == OURS) else { continue };
        let against = |theirs: &[Figures], value: fn(&Figures) -> f64| {
            let list = |figures: &[Figures]| figures.iter().map(value).collect::<Vec<_>>();
            ratio(&list(ours), &list(theirs))
        };
        let mut best95: Option<(&str, Interval)> = None;
        let mut best99: Option<(&str, Interval)> = None;
        let mut oracle = f64::NAN;
        for (name, theirs) in policies.iter().filter(|(name, _)| *name != OURS) {
            let (p95, p99) = (against(theirs, |figures| figures.p95), against(theirs, |figures| figures.p99));
            if *name == "oracle" {
                oracle = p95.mean;
                continue;
            }
            for (value, limit, percentile) in [(p95, LOSS_P95, "p95"), (p99, LOSS_P99, "p99")] {
                if value.low > limit {
                    let Interval { mean, low, high } = value;
                    broken.push(format!("{}: {percentile} {mean:.3} x {name} ({low:.3} - {high:.3})", scenario.name));
                }
            }
            if best95.is_none_or(|(_, best)| p95.mean > best.mean) {
                best95 = Some((name, p95));
            }
            if best99.is_none_or(|(_, best)| p99.mean > best.mean) {
                best99 = Some((name, p99));
            }
        }
        near += usize::from(oracle <= NEAR_ORACLE);
        let crowd = ours.iter().map(|figures| figures.crowd).fold(0.0, f64::max);
        if scenario.equal && scenario.rate >= CROWD_RATE && crowd > CROWD {
            broken.push(format!("{}: a member carried {crowd:.2} equal shares for a second", scenario.name));
        }
        let lost: u32 = ours.iter().map(|figures| figures.lost).sum();
        if lost > 0 {
            broken.push(format!("{}: {lost} requests failed that a member could have served", scenario.name));
        }
        let mut times = ["-".to_owned(), "-".to_owned()];
        if let Some(ailing) = &scenario.ailing {
            let left = mean(ours.iter().filter_map(|figures| figures.left));
            let returned = mean(ours.iter().filter_map(|figures| figures.returned));
            let worst = |value: fn(&Figures) -> Option<f64>| ours.iter().filter_map(value).fold(0.0, f64::max);
            times = [
                format!("{} ({})", seconds(left), seconds(worst(|figures| figures.left))),
                format!("{} ({})", seconds(returned), seconds(worst(|figures| figures.returned))),
            ];
            if ailing.must_leave && left > LEAVE_WITHIN {
                broken.push(format!("{}: the ailing member was left after {} s", scenario.name, seconds(left)));
            }
            let latest = worst(|figures| figures.returned);
            if latest > RETURN_WITHIN {
                broken.push(format!("{}: the recovered member had its share after {} s", scenario.name, seconds(latest)));
            }
        }
        let show = |best: Option<(&str, Interval)>| {
            best.map_or_else(String::new, |(name, value)| {
                format!("{:.3} ({:.3} - {:.3}) {name}", value.mean, value.low, value.high)
            })
        };
        let evenness = if scenario.equal { format!("{crowd:.2}") } else { "-".to_owned() };
        lines.push(format!(
            "| {} | {} | {} | {oracle:.2} | {evenness} | {lost} | {} | {} |",
            scenario.name,
            show(best95),
            show(best99),
            times[0],
            times[1]
        ));
    }
    if near * 2 < results.len() {
        broken.push(format!("within {NEAR_ORACLE} of the oracle's p95 in only {near} of {} scenarios", results.len()));
    }
    if is_shown {
        println!(
            "\n| scenario | p95 to the best rival | p99 to the best rival | p95 to the oracle | most carried | lost | left, s (worst) | back, s (worst) |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        lines.iter().for_each(|line| println!("{line}"));
        println!(
            "\nwithin {NEAR_ORACLE} of the oracle's p95 in {near} of {} scenarios; bars that do not hold: {}",
            results.len(),
            broken.len()
        );
        broken.iter().for_each(|line| println!("- {line}"));
    }
    broken
}
