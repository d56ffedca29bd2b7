//! Usage files: sums by model, tier, week and user, in the JSON that sing-box writes and its tools read.
//!
//! Owns the format and its arithmetic; refuses to know where rows come from. Money is kept in whole nano-dollars, and
//! is a fraction only in the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files::{parent_folder, replace};
use crate::values::clock::Timestamp;
use crate::values::hex::hex;
use crate::values::money::NanoUsd;

/// The context window of what was not priced.
const CONTEXT_WINDOW: u64 = 272_000;

/// A usage file past this size is taken for something else.
const FILE_BYTES: u64 = 64 * 1024 * 1024;

/// What is counted of one response.
#[derive(Debug, Clone)]
pub struct Usage<'a> {
    /// The model.
    pub model: &'a str,
    /// The service tier as upstream said it.
    pub service_tier: &'a str,
    /// The context window, where it was priced.
    pub context_window: Option<u64>,
    /// The start of the credential's week, in Unix seconds.
    pub week_start_unix: Option<u64>,
    /// The user.
    pub user: Option<&'a str>,
    /// Input tokens.
    pub input: u64,
    /// Of those, cached.
    pub cached: u64,
    /// Output tokens.
    pub output: u64,
    /// The cost.
    pub cost: NanoUsd,
}

/// The sums of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    combinations: BTreeMap<Combination, Combined>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Combination {
    model: String,
    service_tier: String,
    context_window: u64,
    week_start_unix: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Combined {
    total: Sum,
    by_user: BTreeMap<String, Sum>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sum {
    requests: u64,
    input: u64,
    output: u64,
    cached: u64,
    cost: NanoUsd,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.input += other.input;
        self.output += other.output;
        self.cached += other.cached;
        self.cost.0 += other.cost.0;
    }
}

impl Sums {
    /// Counts a response.
    pub fn add(&mut self, usage: &Usage<'_>) {
        let combination = Combination {
            model: usage.model.to_owned(),
            service_tier: tier(usage.service_tier).to_owned(),
            context_window: usage.context_window.unwrap_or(CONTEXT_WINDOW),
            week_start_unix: usage.week_start_unix.unwrap_or(0),
        };
        let sum = Sum {
            requests: 1,
            input: usage.input,
            output: usage.output,
            cached: usage.cached,
            cost: usage.cost,
        };
        let combined = self.combinations.entry(combination).or_default();
        combined.total.add(&sum);
        if let Some(user) = usage.user {
            combined
                .by_user
                .entry(user.to_owned())
                .or_default()
                .add(&sum);
        }
    }

    /// The file's text at `now`.
    pub fn to_json(&self, now: Timestamp) -> String {
        let mut costs = CostsJson::default();
        let mut all = Sum::default();
        for (combination, combined) in &self.combinations {
            let week = (combination.week_start_unix > 0)
                .then(|| Timestamp::from_unix(combination.week_start_unix).rfc3339());
            all.add(&combined.total);
            if let Some(week) = &week {
                *costs.by_week.entry(week.clone()).or_default() += combined.total.cost.0;
            }
            for (user, sum) in &combined.by_user {
                *costs.by_user.entry(user.clone()).or_default() += sum.cost.0;
                if let Some(week) = &week {
                    let weeks = costs.by_user_and_week.entry(user.clone()).or_default();
                    *weeks.entry(week.clone()).or_default() += sum.cost.0;
                }
            }
        }
        let file = FileJson {
            last_updated: now.rfc3339(),
            costs: CostsUsd {
                total_usd: all.cost.usd(),
                by_user: usd(&costs.by_user),
                by_week: usd(&costs.by_week),
                by_user_and_week: costs
                    .by_user_and_week
                    .iter()
                    .map(|(user, weeks)| (user.clone(), usd(weeks)))
                    .collect(),
            },
            combinations: self
                .combinations
                .iter()
                .map(CombinationJson::from)
                .collect(),
        };
        serde_json::to_string_pretty(&file)
            .unwrap_or_else(|error| unreachable!("maps with text keys: {error}"))
    }

    /// # Errors
    /// `text` is no usage file; says where.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let file: FileJson = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let mut sums = Self::default();
        for entry in file.combinations {
            let combination = Combination {
                model: entry.model,
                service_tier: tier(&entry.service_tier).to_owned(),
                context_window: if entry.context_window == 0 {
                    CONTEXT_WINDOW
                } else {
                    entry.context_window
                },
                week_start_unix: entry.week_start_unix,
            };
            let combined = sums.combinations.entry(combination).or_default();
            combined.total.add(&entry.total.sum()?);
            for (user, sum) in &entry.by_user {
                combined
                    .by_user
                    .entry(user.clone())
                    .or_default()
                    .add(&sum.sum()?);
            }
        }
        Ok(sums)
    }
}

/// The tier that a response counts under.
fn tier(named: &str) -> &str {
    match named {
        "flex" | "priority" => named,
        _ => "default",
    }
}

fn usd(nano: &BTreeMap<String, u64>) -> BTreeMap<String, f64> {
    nano.iter()
        .map(|(name, amount)| (name.clone(), NanoUsd(*amount).usd()))
        .collect()
}

#[derive(Default)]
struct CostsJson {
    by_user: BTreeMap<String, u64>,
    by_week: BTreeMap<String, u64>,
    by_user_and_week: BTreeMap<String, BTreeMap<String, u64>>,
}

#[derive(Serialize, Deserialize)]
struct FileJson {
    last_updated: String,
    #[serde(default)]
    costs: CostsUsd,
    combinations: Vec<CombinationJson>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct CostsUsd {
    total_usd: f64,
    by_user: BTreeMap<String, f64>,
    by_week: BTreeMap<String, f64>,
    by_user_and_week: BTreeMap<String, BTreeMap<String, f64>>,
}

#[derive(Serialize, Deserialize)]
struct CombinationJson {
    model: String,
    #[serde(default)]
    service_tier: String,
    #[serde(default)]
    context_window: u64,
    #[serde(default)]
    week_start_unix: u64,
    total: SumJson,
    #[serde(default)]
    by_user: BTreeMap<String, SumJson>,
}

#[derive(Serialize, Deserialize)]
struct SumJson {
    #[serde(default)]
    request_count: u64,
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
    #[serde(default)]
    cached_tokens: u64,
    #[serde(default)]
    cost_usd: f64,
}

impl SumJson {
    fn sum(&self) -> Result<Sum, String> {
        let cost =
            NanoUsd::from_usd(self.cost_usd).ok_or("cost_usd: expected an amount of 0 or more")?;
        Ok(Sum {
            requests: self.request_count,
            input: self.input_tokens,
            output: self.output_tokens,
            cached: self.cached_tokens,
            cost,
        })
    }
}

impl From<&Sum> for SumJson {
    fn from(sum: &Sum) -> Self {
        Self {
            request_count: sum.requests,
            input_tokens: sum.input,
            output_tokens: sum.output,
            cached_tokens: sum.cached,
            cost_usd: sum.cost.usd(),
        }
    }
}

impl From<(&Combination, &Combined)> for CombinationJson {
    fn from((combination, combined): (&Combination, &Combined)) -> Self {
        Self {
            model: combination.model.clone(),
            service_tier: combination.service_tier.clone(),
            context_window: combination.context_window,
            week_start_unix: combination.week_start_unix,
            total: SumJson::from(&combined.total),
            by_user: combined
                .by_user
                .iter()
                .map(|(user, sum)| (user.clone(), SumJson::from(sum)))
                .collect(),
        }
    }
}

/// What stands at a usage file's path.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Missing,
    /// A usage file, and its SHA-256.
    Sums(Box<Sums>, String),
    /// Something else, kept aside under this name.
    Broken {
        /// Where it is now.
        kept: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the usage file at `path`. What is none is moved aside, to `<path>.broken-<time>`.
///
/// # Errors
/// The file cannot be read, or not be moved.
pub fn read(path: &Path, now: Timestamp) -> io::Result<Found> {
    let bytes = match fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() > FILE_BYTES => {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(_) => fs::read(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(error),
    };
    match Sums::parse(&bytes) {
        Ok(sums) => Ok(Found::Sums(Box::new(sums), digest(&bytes))),
        Err(reason) => {
            let mut kept = path.as_os_str().to_owned();
            kept.push(format!(".broken-{}", now.unix()));
            let kept = PathBuf::from(kept);
            fs::rename(path, &kept)?;
            Ok(Found::Broken { kept, reason })
        }
    }
}

/// The SHA-256 of a file's bytes, in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Replaces the file at `path` by `text`: at any instant there is the old one or the new one.
///
/// # Errors
/// It cannot be written; the old one is as it was.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(parent_folder(path))?;
    replace(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(user: Option<&'static str>, cost: u64) -> Usage<'static> {
        Usage {
            model: "gpt-5.4",
            service_tier: "auto",
            context_window: Some(272_000),
            week_start_unix: Some(1_767_225_600),
            user,
            input: 100,
            cached: 40,
            output: 10,
            cost: NanoUsd(cost),
        }
    }

    #[test]
    fn the_file_has_the_shape_that_sing_box_writes() {
        let mut sums = Sums::default();
        sums.add(&usage(Some("alice"), 1_500_000_000));
        sums.add(&usage(None, 500_000_000));
        let json: serde_json::Value =
            serde_json::from_str(&sums.to_json(Timestamp(0))).expect("JSON");
        let week = "2026-01-01T00:00:00Z";
        assert_eq!(
            json,
            serde_json::json!({
                "last_updated": "1970-01-01T00:00:00Z",
                "costs": {
                    "total_usd": 2.0,
                    "by_user": {"alice": 1.5},
                    "by_week": {week: 2.0},
                    "by_user_and_week": {"alice": {week: 1.5}},
                },
                "combinations": [{
                    "model": "gpt-5.4", "service_tier": "default", "context_window": 272_000,
                    "week_start_unix": 1_767_225_600,
                    "total": {"request_count": 2, "input_tokens": 200, "output_tokens": 20, "cached_tokens": 80,
                        "cost_usd": 2.0},
                    "by_user": {"alice": {"request_count": 1, "input_tokens": 100, "output_tokens": 10,
                        "cached_tokens": 40, "cost_usd": 1.5}},
                }],
            })
        );
    }

    #[test]
    fn a_file_read_back_is_the_same_to_the_nano_dollar() {
        let mut sums = Sums::default();
        for cost in [1, 333_333_333, 123_456_789_012] {
            sums.add(&usage(Some("alice"), cost));
        }
        assert_eq!(
            Sums::parse(sums.to_json(Timestamp(0)).as_bytes()).expect("its own text"),
            sums
        );
    }

    #[test]
    fn a_broken_file_is_kept_aside() {
        let folder = std::env::temp_dir().join(format!("tollgate-usage-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("usages.json");
        fs::write(&path, "{\"combinations\": 5}").expect("writes");
        let Ok(Found::Broken { kept, .. }) = read(&path, Timestamp::from_unix(7)) else {
            panic!("not broken")
        };
        assert!(kept.to_string_lossy().ends_with("usages.json.broken-7"));
        assert_eq!(
            fs::read_to_string(kept).expect("kept"),
            "{\"combinations\": 5}"
        );
        assert!(matches!(read(&path, Timestamp(0)), Ok(Found::Missing)));
        fs::remove_dir_all(folder).expect("removes");
    }
}
