//! The figures of a running gateway's policies: as JSON, and as a table with the limit of each
//! median.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use super::spread::Spread;

/// The limit of a reload in milliseconds.
const RELOAD_AIM_MS: f64 = 150.0;
/// The limit of what cached policies add to a start, in milliseconds.
const POLICIES_AIM_MS: f64 = 15.0;
/// The limit of the ratio of request times (p99) during reloads to those without.
const RELOADS_RATIO_AIM: f64 = 1.5;
/// The limit of the delay of a request by a guest that loops, in milliseconds.
const HOSTILE_AIM_MS: f64 = 10.0;

/// The results of the live measure.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// The time of each reload, from the rename of the component's file until it serves.
    pub serving: Vec<Duration>,
    /// Requests without reloads and during them, round by round.
    pub reloads: Vec<Pair>,
    /// Requests alone and beside a guest that loops, round by round.
    pub hostile: Vec<Pair>,
    /// Memory before and after, in bytes, and the reloads in between.
    pub memory: Option<(u64, u64, usize)>,
    /// The times from the start of the process to its readiness, with the policies' code cached.
    pub starts: Vec<Duration>,
    /// The share of the policies and their engine in these times.
    pub policies: Vec<Duration>,
}

/// The times of the same requests without and with a disturbance.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Without the disturbance, in ascending order.
    pub without: Vec<Duration>,
    /// With the disturbance, in ascending order.
    pub with: Vec<Duration>,
}

/// Returns the quantile `part` of the sorted `times`; 1 for the longest.
fn quantile(times: &[Duration], part: f64) -> Duration {
    let place = (times.len() as f64 * part).ceil() as usize;
    times
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

impl Figures {
    /// Returns the figures as JSON: times in milliseconds, memory in bytes.
    pub fn json(&self) -> Value {
        let times = |times: &[Duration]| times.iter().map(|time| ms(*time)).collect::<Vec<_>>();
        let pairs = |pairs: &[Pair]| {
            let told = |times: &[Duration]| json!({"p99": ms(quantile(times, 0.99)), "max": ms(quantile(times, 1.0))});
            let pair =
                |pair: &Pair| json!({"without": told(&pair.without), "with": told(&pair.with)});
            pairs.iter().map(pair).collect::<Vec<_>>()
        };
        json!({
            "serving_ms": times(&self.serving),
            "starts_ms": times(&self.starts),
            "starts_policies_ms": times(&self.policies),
            "requests_reloads_ms": pairs(&self.reloads),
            "requests_hostile_ms": pairs(&self.hostile),
            "memory": self.memory.map(|(before, after, reloads)| {
                json!({"before": before, "after": after, "reloads": reloads})
            }),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "Policies on a running gateway, ms{:>31}{:>22}",
            "median", "min - max"
        )?;
        self.write_times(out)?;
        self.write_reloads(out)?;
        self.write_hostile(out)?;
        self.write_memory(out)
    }
}

impl Figures {
    fn write_times(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = |times: &[Duration]| times.iter().map(|time| ms(*time)).collect::<Vec<_>>();
        let serving = Spread::of(&times(&self.serving));
        write_row(
            out,
            "a new component, file change to serving",
            serving,
            Some((RELOAD_AIM_MS, "")),
        )?;
        let starts = Spread::of(&times(&self.starts));
        let policies = Spread::of(&times(&self.policies));
        write_row(out, "start to readiness, all code cached", starts, None)?;
        write_row(
            out,
            "of which policies",
            policies,
            Some((POLICIES_AIM_MS, "")),
        )
    }

    fn write_reloads(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p99 = |times: &[Duration]| ms(quantile(times, 0.99));
        write_row(
            out,
            "request, p99, without reloads",
            spread_of(&self.reloads, &|pair| p99(&pair.without)),
            None,
        )?;
        write_row(
            out,
            "request, p99, during reloads",
            spread_of(&self.reloads, &|pair| p99(&pair.with)),
            None,
        )?;
        let ratio = spread_of(&self.reloads, &|pair| p99(&pair.with) / p99(&pair.without));
        write_row(
            out,
            "ratio of the two",
            ratio,
            Some((RELOADS_RATIO_AIM, " x")),
        )
    }

    fn write_hostile(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = |times: &[Duration]| ms(quantile(times, 1.0));
        write_row(
            out,
            "longest request, alone",
            spread_of(&self.hostile, &|pair| longest(&pair.without)),
            None,
        )?;
        write_row(
            out,
            "longest request, beside a guest that loops",
            spread_of(&self.hostile, &|pair| longest(&pair.with)),
            None,
        )?;
        let delay = spread_of(&self.hostile, &|pair| {
            longest(&pair.with) - longest(&pair.without)
        });
        write_row(
            out,
            "difference of the two",
            delay,
            Some((HOSTILE_AIM_MS, "")),
        )
    }

    fn write_memory(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((before, after, reloads)) = self.memory else {
            return Ok(());
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let each = (after as f64 - before as f64) / 1024.0 / reloads as f64;
        let (before, after) = (mib(before), mib(after));
        writeln!(
            out,
            "  memory before {reloads} reloads {before:.1} MiB, after {after:.1} MiB: {each:.2} KiB each"
        )
    }
}

/// Returns the spread of a figure of the rounds.
fn spread_of(pairs: &[Pair], figure: &dyn Fn(&Pair) -> f64) -> Spread {
    Spread::of(&pairs.iter().map(figure).collect::<Vec<_>>())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Writes a row of the table, with the limit of its median.
fn write_row(
    out: &mut fmt::Formatter<'_>,
    name: &str,
    spread: Spread,
    aim: Option<(f64, &str)>,
) -> fmt::Result {
    let Spread { median, min, max } = spread;
    let range = format!("{min:.2} - {max:.2}");
    write!(out, "  {name:<48}{median:>13.2}{range:>22}")?;
    match aim {
        Some((most, unit)) => {
            let verdict = if median <= most { "met" } else { "missed" };
            writeln!(out, "   limit: {most}{unit}, {verdict}")
        }
        None => writeln!(out),
    }
}
