//! Single calls, timed by the CPU time of their thread, and printed beside their limits.
//!
//! Time that the machine spends on other processes does not count; their effect on its caches does,
//! so that a figure is the median of many samples, printed with the minimum.

use std::{env, fmt, time::Duration};

/// The shortest sample, far above the cost of reading the clock.
const SAMPLE: Duration = Duration::from_millis(5);
const SAMPLES: usize = 41;
/// The time before the first sample.
const WARM_UP: Duration = Duration::from_millis(50);

/// The unit of a figure, and its limit.
#[derive(Clone, Copy, Debug)]
pub enum Figure {
    /// A time in microseconds per call.
    PerCall {
        /// The largest acceptable value.
        aim_us: Option<f64>,
    },
    /// The throughput of a call, in GB (10^9 bytes) per second.
    Throughput {
        /// The bytes that one call reads.
        bytes: usize,
        /// The smallest acceptable value.
        aim_gb_per_s: Option<f64>,
    },
}

/// Times what the command line selects: everything, or the figures whose names contain one of its
/// words.
#[derive(Debug)]
pub struct Timer {
    words: Vec<String>,
}

impl Timer {
    /// Reads the command line and prints the head of the table.
    pub fn from_command_line() -> Self {
        // Cargo adds `--bench`.
        let words = env::args()
            .skip(1)
            .filter(|word| !word.starts_with('-'))
            .collect();
        println!(
            "{:<32}{:>10}{:>10}",
            "CPU time of the calling thread", "median", "best"
        );
        Self { words }
    }

    /// Calls `work` often and prints its figure.
    ///
    /// # Panics
    /// Panics if the thread's CPU time cannot be read.
    pub fn time(&self, name: &str, figure: Figure, mut work: impl FnMut()) {
        if !self.words.is_empty() && !self.words.iter().any(|word| name.contains(word.as_str())) {
            return;
        }
        let calls = calls_of_a_sample(&mut work);
        let mut samples: Vec<f64> = (0..SAMPLES)
            .map(|_| seconds_a_call(calls, &mut work))
            .collect();
        samples.sort_by(f64::total_cmp);
        println!(
            "{name:<32}{}",
            Told {
                figure,
                median_s: samples[SAMPLES / 2],
                least_s: samples[0]
            }
        );
    }
}

/// Returns how many calls fill a sample, and warms up the code.
fn calls_of_a_sample(work: &mut impl FnMut()) -> u32 {
    let mut calls = 1;
    let began = thread_cpu_time();
    loop {
        let seconds = seconds_a_call(calls, work);
        let enough = (SAMPLE.as_secs_f64() / seconds).ceil();
        if thread_cpu_time() - began >= WARM_UP {
            return enough.clamp(1.0, f64::from(u32::MAX)) as u32;
        }
        calls = (calls * 2).min(1 << 24);
    }
}

fn seconds_a_call(calls: u32, work: &mut impl FnMut()) -> f64 {
    let began = thread_cpu_time();
    (0..calls).for_each(|_| work());
    (thread_cpu_time() - began).as_secs_f64() / f64::from(calls)
}

fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(code, 0, "Linux has a clock for each thread");
    // Less than a second, and not negative: a thread's time never is.
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

/// Formats a figure beside its limit.
struct Told {
    figure: Figure,
    median_s: f64,
    least_s: f64,
}

impl fmt::Display for Told {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median_s, least_s) = (self.median_s, self.least_s);
        let (unit, bound, median, best, aim, is_met) = match self.figure {
            Figure::PerCall { aim_us } => {
                let median = median_s * 1e6;
                (
                    "us",
                    "at most",
                    median,
                    least_s * 1e6,
                    aim_us,
                    aim_us.is_some_and(|aim| median <= aim),
                )
            }
            Figure::Throughput {
                bytes,
                aim_gb_per_s,
            } => {
                let speed = |seconds: f64| bytes as f64 / seconds / 1e9;
                let median = speed(median_s);
                let is_met = aim_gb_per_s.is_some_and(|aim| median >= aim);
                (
                    "GB/s",
                    "at least",
                    median,
                    speed(least_s),
                    aim_gb_per_s,
                    is_met,
                )
            }
        };
        write!(out, "{median:>10.3}{best:>10.3} {unit}")?;
        match aim {
            Some(aim) => write!(
                out,
                "   aim: {bound} {aim}, {}",
                if is_met { "met" } else { "missed" }
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Told};

    #[test]
    fn a_figure_is_printed_beside_its_target() {
        let told = |figure| {
            Told {
                figure,
                median_s: 1e-6,
                least_s: 0.5e-6,
            }
            .to_string()
        };
        let check = |figure, expected: &str| assert_eq!(told(figure).trim_start(), expected);
        check(Figure::PerCall { aim_us: None }, "1.000     0.500 us");
        check(
            Figure::PerCall { aim_us: Some(0.6) },
            "1.000     0.500 us   aim: at most 0.6, missed",
        );
        check(
            Figure::PerCall { aim_us: Some(1.5) },
            "1.000     0.500 us   aim: at most 1.5, met",
        );
        let throughput = Figure::Throughput {
            bytes: 2000,
            aim_gb_per_s: Some(1.0),
        };
        check(throughput, "2.000     4.000 GB/s   aim: at least 1, met");
    }
}
