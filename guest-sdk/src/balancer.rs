//! Balancers: choosing the pool member that serves a request.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::request::Request;

/// An outage of the home up to this long is temporary: the session keeps its home.
const TEMPORARY_OUTAGE_MINUTES: f64 = 10.0;

/// Chooses which credential serves a request.
pub trait Balancer: Sized + 'static {
    /// The policy's configuration. Use [`NoConfig`](crate::NoConfig) for a policy that takes none.
    type Config: DeserializeOwned + JsonSchema;

    /// The strings of a request that the policy needs, by their names in the contract. Each costs a
    /// copy per call.
    const STRINGS: &'static [&'static str] = &[];

    /// Creates the policy from its configuration. `weights` holds the default weight of each plan
    /// (10 for `pro`, 1 for others), which the policy may change.
    ///
    /// # Errors
    /// Returns a message for the operator if the configuration is invalid.
    fn new(config: Self::Config, weights: &mut Weights) -> Result<Self, String>;

    /// Chooses the candidate that serves `request`.
    fn pick(&self, request: &Request, candidates: &Candidates) -> Decision;
}

/// The relative capacity of each plan.
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
    /// Returns an error if the weight is not a finite number above 0.
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

/// What a balancer decides for one request: a member, or none with a reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub(crate) member: Option<usize>,
    pub(crate) move_home: bool,
    pub(crate) reason: String,
}

impl Decision {
    /// Creates the decision that no member can serve the request. `reason` is logged.
    pub fn none(reason: impl Into<String>) -> Self {
        Self {
            member: None,
            move_home: false,
            reason: reason.into(),
        }
    }

    /// Returns the index of the chosen member, if there is one.
    pub fn member(&self) -> Option<usize> {
        self.member
    }

    /// Returns `true` if the chosen member becomes the session's home.
    pub fn moves_home(&self) -> bool {
        self.move_home
    }
}

/// The columns for which this SDK has an accessor, in the order of [`TableColumn`].
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
enum TableColumn {
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

/// A pool's members and the position of each known column in the table.
#[derive(Debug, Clone, Default)]
pub struct PoolLayout {
    members: Vec<PoolMember>,
    width: usize,
    /// A column that the host does not supply has a position past the end of every row.
    places: [usize; COLUMNS.len()],
}

#[derive(Debug, Clone)]
struct PoolMember {
    tag: String,
    plan: String,
    weight: f64,
}

impl PoolLayout {
    pub(crate) fn new(
        columns: &[String],
        members: Vec<(String, String)>,
        weights: &Weights,
    ) -> Self {
        let members = members
            .into_iter()
            .map(|(tag, plan)| PoolMember {
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

/// The members of a pool with their figures at the time of a request.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    pool: &'a PoolLayout,
    table: &'a [f64],
    home: Option<usize>,
}

impl<'a> Candidates<'a> {
    /// # Errors
    /// Returns an error if the table's size does not match the pool, which is a violation of the
    /// contract by the host.
    pub(crate) fn new(pool: &'a PoolLayout, table: &'a [f64], home: i32) -> Result<Self, String> {
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

    /// Returns the number of members, usable or not.
    pub fn len(&self) -> usize {
        self.pool.members.len()
    }

    /// Returns `true` if the pool has no member.
    pub fn is_empty(&self) -> bool {
        self.pool.members.is_empty()
    }

    /// Returns the member at `index`, in the order of the configuration.
    ///
    /// # Panics
    /// Panics if `index` is out of bounds.
    pub fn at(&self, index: usize) -> Candidate<'a> {
        assert!(
            index < self.len(),
            "candidate {index} is out of bounds: the pool has {} members",
            self.len()
        );
        let row = &self.table[index * self.pool.width..][..self.pool.width];
        Candidate {
            index,
            row,
            pool: self.pool,
        }
    }

    /// Iterates over all members, in the order of the configuration.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Candidate<'a>> + use<'a> {
        let this = *self;
        (0..this.len()).map(move |index| this.at(index))
    }

    /// Iterates over the members that may be chosen.
    pub fn usable(&self) -> impl DoubleEndedIterator<Item = Candidate<'a>> + use<'a> {
        self.iter().filter(Candidate::usable)
    }

    /// Returns the home of the request's session.
    pub fn home(&self) -> Option<Candidate<'a>> {
        self.home.map(|index| self.at(index))
    }

    /// Returns the member that issued the response the request continues. Other members may not
    /// know that response.
    pub fn continues(&self) -> Option<Candidate<'a>> {
        self.iter().find(Candidate::continues)
    }

    /// Decides as a sticky strategy does: the issuer of the previous response if it is usable, else
    /// the session's home if it is usable, else the candidate that `choose` returns. The home moves
    /// to that candidate unless the home's outage is temporary.
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
    pool: &'a PoolLayout,
}

impl<'a> Candidate<'a> {
    /// Returns the member's index in the pool.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns the member's tag in the configuration.
    pub fn tag(&self) -> &'a str {
        &self.pool.members[self.index].tag
    }

    /// Returns the member's subscription plan, or an empty string while it is unknown.
    pub fn plan(&self) -> &'a str {
        &self.pool.members[self.index].plan
    }

    /// Returns the weight of the member's capacity: the weight it reports (another gateway does),
    /// else its plan's weight.
    pub fn weight(&self) -> f64 {
        let own = self
            .known(TableColumn::OwnWeight)
            .filter(|weight| *weight > 0.0);
        own.unwrap_or(self.pool.members[self.index].weight)
    }

    /// Returns `true` if the member may be chosen.
    pub fn usable(&self) -> bool {
        self.known(TableColumn::Usable) == Some(1.0)
    }

    /// Returns the used part of the 5-hour window, in percent.
    pub fn five_hour_used(&self) -> f64 {
        self.known(TableColumn::FiveHourUsed).unwrap_or(0.0)
    }

    /// Returns the percentage of the 5-hour window at which the credential pauses.
    pub fn five_hour_cap(&self) -> f64 {
        self.known(TableColumn::FiveHourCap).unwrap_or(100.0)
    }

    /// Returns the minutes until the 5-hour window resets, if known.
    pub fn five_hour_reset(&self) -> Option<f64> {
        self.known(TableColumn::FiveHourReset)
            .filter(|minutes| *minutes >= 0.0)
    }

    /// Returns the used part of the weekly window, in percent.
    pub fn weekly_used(&self) -> f64 {
        self.known(TableColumn::WeeklyUsed).unwrap_or(0.0)
    }

    /// Returns the percentage of the weekly window at which the credential pauses.
    pub fn weekly_cap(&self) -> f64 {
        self.known(TableColumn::WeeklyCap).unwrap_or(100.0)
    }

    /// Returns the minutes until the weekly window resets, if known.
    pub fn weekly_reset(&self) -> Option<f64> {
        self.known(TableColumn::WeeklyReset)
            .filter(|minutes| *minutes >= 0.0)
    }

    /// Returns the minutes for which the member remains rate-limited after a 429, or 0 if it is
    /// not.
    pub fn limited(&self) -> f64 {
        self.known(TableColumn::Limited).unwrap_or(0.0)
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> f64 {
        self.known(TableColumn::InFlight).unwrap_or(0.0)
    }

    /// Returns the number of failed attempts within the last five minutes.
    pub fn recent_failures(&self) -> f64 {
        self.known(TableColumn::RecentFailures).unwrap_or(0.0)
    }

    /// Returns the moving average of the time to the response head in milliseconds, if known.
    pub fn recent_latency(&self) -> Option<f64> {
        self.known(TableColumn::RecentLatency)
            .filter(|latency| *latency >= 0.0)
    }

    /// Returns `true` if the member issued the response that the request continues.
    pub fn continues(&self) -> bool {
        self.known(TableColumn::Continues) == Some(1.0)
    }

    /// Returns `true` if the member is rate-limited, or a window is at its cap, for more than ten
    /// minutes. A shorter outage is temporary. A full window whose reset is unknown counts as a
    /// long outage.
    pub fn out_for_long(&self) -> bool {
        let (five_hour, weekly) = (self.five_hour_reset(), self.weekly_reset());
        self.limited() > TEMPORARY_OUTAGE_MINUTES
            || is_full_for_long(self.five_hour_used(), self.five_hour_cap(), five_hour)
            || is_full_for_long(self.weekly_used(), self.weekly_cap(), weekly)
    }

    /// Creates the decision that the member serves this request and the session's home stays where
    /// it is.
    pub fn serve(&self) -> Decision {
        Decision {
            member: Some(self.index),
            move_home: false,
            reason: String::new(),
        }
    }

    /// Creates the decision that the member serves this request and becomes the session's home.
    pub fn adopt(&self) -> Decision {
        Decision {
            move_home: true,
            ..self.serve()
        }
    }

    fn known(&self, column: TableColumn) -> Option<f64> {
        self.row.get(self.pool.places[column as usize]).copied()
    }
}

fn is_full_for_long(used: f64, cap: f64, reset: Option<f64>) -> bool {
    used >= cap && reset.is_none_or(|minutes| minutes > TEMPORARY_OUTAGE_MINUTES)
}
