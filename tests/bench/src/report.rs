//! The report: medians, spreads, and ratios per round, as a table or as JSON.

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

pub mod figures;
mod spread;

use crate::{
    answers::Shape,
    forwarder::Forwarder,
    rounds::{Sample, Series},
    settings::Settings,
};

use figures::Figures;
use spread::{Spread, median};

/// The limit of Tollgate's CPU time in a measure, relative to that of another forwarder.
#[derive(Debug)]
struct Aim {
    shape: Shape,
    base: Forwarder,
    ratio_max: f64,
    /// The unit of the measure.
    per: &'static str,
}

const AIMS: [Aim; 2] = [
    Aim {
        shape: Shape::Json,
        base: Forwarder::BareHyper,
        ratio_max: 1.25,
        per: "request",
    },
    Aim {
        shape: Shape::Socket,
        base: Forwarder::Nginx,
        ratio_max: 1.1,
        per: "message over a WebSocket",
    },
];

/// The figures of a run, with notes on how they were measured.
#[derive(Debug)]
pub struct Report {
    notes: Vec<String>,
    settings: Value,
    measures: Vec<ShapeReport>,
    live: Option<Figures>,
}

#[derive(Debug)]
struct ShapeReport {
    shape: Shape,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    forwarder: Forwarder,
    values: Spread,
    to_bare_hyper: Option<f64>,
    to_nginx: Option<f64>,
    reads_per_unit: f64,
    elapsed_s: f64,
    samples: Vec<f64>,
}

impl Report {
    /// Summarises `series`. `notes` are sentences that are printed with the figures.
    pub fn new(
        settings: &Settings,
        series: &[Series],
        live: Option<Figures>,
        notes: Vec<String>,
    ) -> Self {
        let measure = |&shape: &Shape| {
            let of_shape: Vec<&Series> = series
                .iter()
                .filter(|series| series.shape == shape)
                .collect();
            ShapeReport {
                shape,
                rows: of_shape
                    .iter()
                    .map(|series| row(series, &of_shape))
                    .collect(),
            }
        };
        let measures = settings.shapes.iter().map(measure).collect();
        Self {
            notes,
            settings: settings_json(settings),
            measures,
            live,
        }
    }

    /// Returns the figures as JSON.
    pub fn json(&self) -> Value {
        json!({
            "settings": self.settings,
            "aims": AIMS.iter().map(|aim| aim.json(self.ratio_of(aim))).collect::<Vec<_>>(),
            "measures": self.measures.iter().map(ShapeReport::json).collect::<Vec<_>>(),
            "live": self.live.as_ref().map(Figures::json),
            "notes": self.notes,
        })
    }

    /// `None` if it was not measured.
    fn ratio_of(&self, aim: &Aim) -> Option<f64> {
        let measure = self
            .measures
            .iter()
            .find(|measure| measure.shape == aim.shape)?;
        let row = measure
            .rows
            .iter()
            .find(|row| row.forwarder == Forwarder::Tollgate)?;
        match aim.base {
            Forwarder::BareHyper => row.to_bare_hyper,
            Forwarder::Nginx => row.to_nginx,
            Forwarder::Tollgate => None,
        }
    }
}

impl Aim {
    fn is_met_by(&self, ratio: f64) -> bool {
        ratio <= self.ratio_max
    }

    fn json(&self, ratio: Option<f64>) -> Value {
        json!({
            "measure": self.shape.name(),
            "base": self.base.name(),
            "ratio_max": self.ratio_max,
            "ratio": ratio,
            "met": ratio.map(|ratio| self.is_met_by(ratio)),
        })
    }
}

fn settings_json(settings: &Settings) -> Value {
    json!({
        "rounds": settings.rounds,
        "connections": settings.connections,
        "sockets": settings.sockets,
        "requests": settings.requests,
        "deltas": settings.streams.deltas,
        "burst": settings.streams.burst,
        "pace_us": settings.pace.as_micros() as u64,
        "idle_streams": settings.idle_streams,
        "idle_settle_ms": settings.idle_settle.as_millis() as u64,
        "tollgate": settings.tollgate,
        "tollgate_overrides": settings.tollgate_overrides,
    })
}

fn row(series: &Series, of_shape: &[&Series]) -> Row {
    let to = |forwarder| {
        let base = of_shape.iter().find(|base| base.forwarder == forwarder)?;
        ratio(&series.samples, &base.samples)
    };
    let samples: Vec<f64> = series.samples.iter().map(|sample| sample.value).collect();
    Row {
        forwarder: series.forwarder,
        values: Spread::of(&samples),
        to_bare_hyper: to(Forwarder::BareHyper),
        to_nginx: to(Forwarder::Nginx),
        reads_per_unit: median(series.samples.iter().map(|sample| sample.reads_per_unit)),
        elapsed_s: median(
            series
                .samples
                .iter()
                .map(|sample| sample.elapsed.as_secs_f64()),
        ),
        samples,
    }
}

/// Returns the median of the ratios of the rounds; `None` if a base is not above zero.
fn ratio(samples: &[Sample], base: &[Sample]) -> Option<f64> {
    let mut ratios = Vec::with_capacity(samples.len());
    for (sample, base) in samples.iter().zip(base) {
        if base.value <= 0.0 {
            return None;
        }
        ratios.push(sample.value / base.value);
    }
    (!ratios.is_empty()).then(|| median(ratios))
}

impl ShapeReport {
    fn title(&self) -> &'static str {
        match self.shape {
            Shape::Json => "CPU per small JSON request, us",
            Shape::Sse => "CPU per SSE event, one event a write, us",
            Shape::Burst => "CPU per SSE event, bursts of events in one write, us",
            Shape::Idle => "Memory per idle stream, KiB",
            Shape::Socket => "CPU per WebSocket message, one message a write, us",
            Shape::IdleSocket => "Memory per idle WebSocket, KiB",
        }
    }

    fn unit(&self) -> &'static str {
        match self.shape {
            Shape::Json => "us/request",
            Shape::Sse | Shape::Burst => "us/event",
            Shape::Idle => "KiB/stream",
            Shape::Socket => "us/message",
            Shape::IdleSocket => "KiB/socket",
        }
    }

    fn json(&self) -> Value {
        json!({
            "measure": self.shape.name(),
            "title": self.title(),
            "unit": self.unit(),
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    }

    fn write(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.title())?;
        write!(
            out,
            "  {:<12}{:>10}{:>22}{:>10}{:>10}",
            "", "median", "min - max", "x bare", "x nginx"
        )?;
        match self.shape {
            Shape::Sse | Shape::Burst => writeln!(out, "{:>14}", "reads/event")?,
            Shape::Socket => writeln!(out, "{:>14}", "reads/message")?,
            Shape::Json | Shape::Idle | Shape::IdleSocket => writeln!(out)?,
        }
        self.rows
            .iter()
            .try_for_each(|row| row.write(self.shape, out))
    }
}

impl Row {
    fn json(&self) -> Value {
        json!({
            "forwarder": self.forwarder.name(),
            "median": self.values.median,
            "min": self.values.min,
            "max": self.values.max,
            "ratio_to_bare_hyper": self.to_bare_hyper,
            "ratio_to_nginx": self.to_nginx,
            "client_reads_per_unit": self.reads_per_unit,
            "elapsed_s": self.elapsed_s,
            "samples": self.samples,
        })
    }

    fn write(&self, shape: Shape, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, min, max } = self.values;
        let range = format!("{min:.2} - {max:.2}");
        let (to_bare, to_nginx) = (times(self.to_bare_hyper), times(self.to_nginx));
        write!(
            out,
            "  {:<12}{median:>10.2}{range:>22}{to_bare:>10}{to_nginx:>10}",
            self.forwarder
        )?;
        match shape {
            Shape::Sse | Shape::Burst | Shape::Socket => {
                writeln!(out, "{:>14.2}", self.reads_per_unit)
            }
            Shape::Json | Shape::Idle | Shape::IdleSocket => writeln!(out),
        }
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut head = String::new();
        for key in [
            "rounds",
            "connections",
            "sockets",
            "requests",
            "deltas",
            "burst",
            "idle_streams",
        ] {
            let separator = if head.is_empty() { "" } else { ", " };
            write!(
                head,
                "{separator}{} {}",
                key.replace('_', " "),
                self.settings[key]
            )?;
        }
        writeln!(out, "{head}\n")?;
        for measure in &self.measures {
            measure.write(out)?;
            writeln!(out)?;
        }
        if let Some(live) = &self.live {
            writeln!(out, "{live}")?;
        }
        for aim in &AIMS {
            let Aim {
                base,
                ratio_max,
                per,
                ..
            } = aim;
            if let Some(ratio) = self.ratio_of(aim) {
                let verdict = if aim.is_met_by(ratio) {
                    "met"
                } else {
                    "missed"
                };
                writeln!(
                    out,
                    "limit: {ratio_max} x {base} per {per}: {ratio:.2}, {verdict}"
                )?;
            }
        }
        self.notes
            .iter()
            .try_for_each(|note| writeln!(out, "note: {note}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::ratio;
    use crate::rounds::Sample;

    fn samples(values: &[f64]) -> Vec<Sample> {
        let sample = |&value| Sample {
            value,
            reads_per_unit: 0.0,
            elapsed: Duration::ZERO,
        };
        values.iter().map(sample).collect()
    }

    #[test]
    fn a_slow_round_that_hits_both_leaves_the_ratio() {
        let gateway = samples(&[12.0, 120.0, 12.0]);
        let bare = samples(&[10.0, 100.0, 10.0]);
        assert!(ratio(&gateway, &bare).is_some_and(|ratio| (ratio - 1.2).abs() < 1e-9));
    }

    #[test]
    fn a_base_of_nothing_gives_no_ratio() {
        assert_eq!(ratio(&samples(&[1.0]), &samples(&[0.0])), None);
        assert_eq!(ratio(&samples(&[]), &samples(&[])), None);
    }
}
