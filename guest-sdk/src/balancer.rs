//! Balancers: which member of a pool serves a request.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::request::Request;

/// A session leaves its home for good where upstream refuses that one for longer than this.
const LONG_REFUSAL_MINUTES: f64 = 10.0;

/// Chooses which credential serves a request.
pub trait Balancer: Sized + 'static {
    /// What the operator may configure; [`NoConfig`](crate::NoConfig) for nothing.
    type Config: DeserializeOwned + JsonSchema;

    /// Which strings of a request the policy wants to see, by their names in the contract. Each costs a copy.
    const STRINGS: &'static [&'static str] = &[];

    /// Takes the configuration. `weights` holds the weight of each plan (`pro` 10, others 1) for the policy to change.
    ///
    /// # Errors
    /// A text that tells the operator what is wrong.
    fn new(config: Self::Config, weights: &mut Weights) -> Result<Self, String>;

    /// Chooses among `candidates`.
    fn pick(&self, request: &Request, candidates: &Candidates) -> Decision;
}

/// How much a plan's capacity counts, relative to the others.
#[derive(Debug, Clone)]
pub struct Weights {
    by_plan: HashMap<String, f64>,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            by_plan: HashMap::from([("pro".to_owned(), 10.0)]),
        }
    }
}

impl Weights {
    /// Sets the weight of `plan`.
    ///
    /// # Errors
    /// The weight is not a finite number above 0.
    pub fn set(&mut self, plan: &str, weight: f64) -> Result<(), String> {
        if !(weight.is_finite() && weight > 0.0) {
            return Err(format!(
                "plan_weights.{plan}: expected a number above 0, found {weight}"
            ));
        }
        self.by_plan.insert(plan.to_ascii_lowercase(), weight);
        Ok(())
    }

    fn of(&self, plan: &str) -> f64 {
        self.by_plan
            .get(&plan.to_ascii_lowercase())
            .copied()
            .unwrap_or(1.0)
    }
}

/// What a balancer decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub(crate) member: Option<usize>,
    pub(crate) move_home: bool,
    pub(crate) reason: String,
}

impl Decision {
    /// No member can serve the request; `reason` goes to the log.
    pub fn none(reason: impl Into<String>) -> Self {
        Self {
            member: None,
            move_home: false,
            reason: reason.into(),
        }
    }

    /// The chosen member's index.
    pub fn member(&self) -> Option<usize> {
        self.member
    }

    /// Whether the session lives on that member from now on.
    pub fn moves_home(&self) -> bool {
        self.move_home
    }
}

/// The columns that this SDK has an accessor for, in the order of [`Column`].
const COLUMNS: [&str; 13] = [
    "usable",
    "five-hour-used",
    "five-hour-cap",
    "five-hour-reset",
    "weekly-used",
    "weekly-cap",
    "weekly-reset",
    "limited",
    "in-flight",
    "recent-failures",
    "recent-latency",
    "continues",
    "own-weight",
];

#[derive(Clone, Copy)]
enum Column {
    Usable,
    FiveHourUsed,
    FiveHourCap,
    FiveHourReset,
    WeeklyUsed,
    WeeklyCap,
    WeeklyReset,
    Limited,
    InFlight,
    RecentFailures,
    RecentLatency,
    Continues,
    OwnWeight,
}

/// A pool's members and where each known column stands in the table.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    members: Vec<Member>,
    width: usize,
    /// Past the end of any row where the host does not tell the column.
    places: [usize; COLUMNS.len()],
}

#[derive(Debug, Clone)]
struct Member {
    tag: String,
    plan: String,
    weight: f64,
}

impl Pool {
    pub(crate) fn new(
        columns: &[String],
        members: Vec<(String, String)>,
        weights: &Weights,
    ) -> Self {
        let members = members
            .into_iter()
            .map(|(tag, plan)| Member {
                weight: weights.of(&plan),
                tag,
                plan,
            })
            .collect();
        let place = |name| {
            columns
                .iter()
                .position(|column| column == name)
                .unwrap_or(usize::MAX)
        };
        let places = COLUMNS.map(place);
        Self {
            members,
            width: columns.len(),
            places,
        }
    }

    pub(crate) fn weights(&self) -> Vec<f64> {
        self.members.iter().map(|member| member.weight).collect()
    }

    pub(crate) fn column_names() -> Vec<String> {
        COLUMNS.map(str::to_owned).to_vec()
    }
}

/// The members of a pool as they stand at the moment of a request.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    pool: &'a Pool,
    table: &'a [f64],
    home: Option<usize>,
}

impl<'a> Candidates<'a> {
    /// # Errors
    /// The table's size is not that of the pool: the host broke the contract.
    pub(crate) fn new(pool: &'a Pool, table: &'a [f64], home: i32) -> Result<Self, String> {
        let expected = pool.members.len() * pool.width;
        if table.len() != expected {
            return Err(format!(
                "table: expected {expected} numbers, found {}",
                table.len()
            ));
        }
        let home = usize::try_from(home)
            .ok()
            .filter(|home| *home < pool.members.len());
        Ok(Self { pool, table, home })
    }

    /// How many members the pool has, usable or not.
    pub fn len(&self) -> usize {
        self.pool.members.len()
    }

    /// Whether the pool has no member.
    pub fn is_empty(&self) -> bool {
        self.pool.members.is_empty()
    }

    /// The member at `index`, in the order of the configuration.
    ///
    /// # Panics
    /// There is no such member.
    pub fn at(&self, index: usize) -> Candidate<'a> {
        assert!(
            index < self.len(),
            "candidate {index}: the pool has {}",
            self.len()
        );
        let row = &self.table[index * self.pool.width..][..self.pool.width];
        Candidate {
            index,
            row,
            pool: self.pool,
        }
    }

    /// All members, in the order of the configuration.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Candidate<'a>> + use<'a> {
        let this = *self;
        (0..this.len()).map(move |index| this.at(index))
    }

    /// The members that may be chosen.
    pub fn usable(&self) -> impl DoubleEndedIterator<Item = Candidate<'a>> + use<'a> {
        self.iter().filter(Candidate::usable)
    }

    /// The member that the request's session lives on.
    pub fn home(&self) -> Option<Candidate<'a>> {
        self.home.map(|index| self.at(index))
    }

    /// The member that made the response which the request continues. Another one may not know that response.
    pub fn continues(&self) -> Option<Candidate<'a>> {
        self.iter().find(Candidate::continues)
    }

    /// Chooses as sticky sessions are expected to: the member that made the previous response, else the session's
    /// home, while they are usable; else what `choose` says. The home moves there unless its own outage is short.
    pub fn sticky(&self, choose: impl FnOnce() -> Option<Candidate<'a>>) -> Decision {
        let bound = self
            .continues()
            .filter(Candidate::usable)
            .or_else(|| self.home().filter(Candidate::usable));
        if let Some(candidate) = bound {
            return if self.home.is_none() {
                candidate.adopt()
            } else {
                candidate.serve()
            };
        }
        let Some(candidate) = choose() else {
            return Decision::none("no credential is usable");
        };
        match self.home() {
            Some(home) if !home.out_for_long() => candidate.serve(),
            _ => candidate.adopt(),
        }
    }
}

/// One member of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    index: usize,
    row: &'a [f64],
    pool: &'a Pool,
}

impl<'a> Candidate<'a> {
    /// Its place in the pool.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its tag in the configuration.
    pub fn tag(&self) -> &'a str {
        &self.pool.members[self.index].tag
    }

    /// Its subscription plan; empty while unknown.
    pub fn plan(&self) -> &'a str {
        &self.pool.members[self.index].plan
    }

    /// How much its capacity counts: what it tells itself, as a gateway does, or else its plan's weight.
    pub fn weight(&self) -> f64 {
        let own = self.known(Column::OwnWeight).filter(|weight| *weight > 0.0);
        own.unwrap_or(self.pool.members[self.index].weight)
    }

    /// Whether it may be chosen.
    pub fn usable(&self) -> bool {
        self.known(Column::Usable) == Some(1.0)
    }

    /// Used part of the 5-hour window, in percent.
    pub fn five_hour_used(&self) -> f64 {
        self.known(Column::FiveHourUsed).unwrap_or(0.0)
    }

    /// At how many percent of the 5-hour window the credential pauses.
    pub fn five_hour_cap(&self) -> f64 {
        self.known(Column::FiveHourCap).unwrap_or(100.0)
    }

    /// Minutes until the 5-hour window starts anew, where known.
    pub fn five_hour_reset(&self) -> Option<f64> {
        self.known(Column::FiveHourReset)
            .filter(|minutes| *minutes >= 0.0)
    }

    /// Used part of the weekly window, in percent.
    pub fn weekly_used(&self) -> f64 {
        self.known(Column::WeeklyUsed).unwrap_or(0.0)
    }

    /// At how many percent of the weekly window the credential pauses.
    pub fn weekly_cap(&self) -> f64 {
        self.known(Column::WeeklyCap).unwrap_or(100.0)
    }

    /// Minutes until the weekly window starts anew, where known.
    pub fn weekly_reset(&self) -> Option<f64> {
        self.known(Column::WeeklyReset)
            .filter(|minutes| *minutes >= 0.0)
    }

    /// Minutes for which upstream refuses it after a 429; 0 where it does not.
    pub fn limited(&self) -> f64 {
        self.known(Column::Limited).unwrap_or(0.0)
    }

    /// Requests under way.
    pub fn in_flight(&self) -> f64 {
        self.known(Column::InFlight).unwrap_or(0.0)
    }

    /// Failed attempts within the last five minutes.
    pub fn recent_failures(&self) -> f64 {
        self.known(Column::RecentFailures).unwrap_or(0.0)
    }

    /// Milliseconds to the response head, a moving average, where known.
    pub fn recent_latency(&self) -> Option<f64> {
        self.known(Column::RecentLatency)
            .filter(|latency| *latency >= 0.0)
    }

    /// Whether it made the response that the request continues.
    pub fn continues(&self) -> bool {
        self.known(Column::Continues) == Some(1.0)
    }

    /// Whether it is over a cap or refused for more than ten minutes, and not just out for a moment.
    pub fn out_for_long(&self) -> bool {
        self.limited() > LONG_REFUSAL_MINUTES
            || self.five_hour_used() >= self.five_hour_cap()
            || self.weekly_used() >= self.weekly_cap()
    }

    /// The decision that it serves this request, and the session's home stays where it is.
    pub fn serve(&self) -> Decision {
        Decision {
            member: Some(self.index),
            move_home: false,
            reason: String::new(),
        }
    }

    /// The decision that it serves this request and is the session's home from now on.
    pub fn adopt(&self) -> Decision {
        Decision {
            move_home: true,
            ..self.serve()
        }
    }

    fn known(&self, column: Column) -> Option<f64> {
        self.row.get(self.pool.places[column as usize]).copied()
    }
}
