//! Properties that hold for every sequence of events. Headers and polls report the credentials'
//! windows, 429s reject requests, and the clock is set. A simple model follows the reports and says
//! which credentials a balancer may pick.

mod model;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate::config::{
    CredentialConfig, CredentialSource, POLICY_TIMEOUT, PolicyConfig, ShippedPolicy, UpstreamRoute,
    WindowCaps,
};
use tollgate::credentials::{Credential, StartedPoll, UpstreamIdentity, UsageReport};
use tollgate::policy::{
    BalancerChoice, BalancerGeneration, PolicyEngine, PolicyGeneration, PoolMembers, RequestFacts,
    load_standalone,
};
use tollgate::values::clock::Timestamp;
use tollgate::values::credential::candidate::BalancerCandidate;
use tollgate::values::credential::windows::WindowReading;
use tollgate_tests::oauth_file;

use model::{BEGIN, Event, Known, Message, Moment, REFUSED, Span, Told, caps, event};

// The reports that the gateway receives

impl Message {
    fn windows(&self) -> impl Iterator<Item = (Span, Told)> {
        let five_hour = self.five_hour.map(|told| (Span::FiveHour, told));
        five_hour
            .into_iter()
            .chain(self.weekly.map(|told| (Span::Weekly, told)))
    }

    /// Returns each window with its slot and its length in minutes.
    fn in_slots(&self) -> impl Iterator<Item = (&'static str, u32, Told)> {
        self.windows().map(|(span, told)| {
            let minutes = if span == Span::FiveHour { 300 } else { 10_080 };
            let slot = if (span == Span::FiveHour) == self.swapped {
                "secondary"
            } else {
                "primary"
            };
            (slot, minutes, told)
        })
    }

    fn as_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (slot, minutes, told) in self.in_slots() {
            let mut put = |field: &str, value: i64| {
                let name = HeaderName::try_from(format!("x-codex-{slot}-{field}")).expect("a name");
                headers.insert(name, HeaderValue::from(value));
            };
            put("used-percent", told.used.into());
            put("window-minutes", minutes.into());
            if let Some(resets_at) = told.resets_at {
                put("reset-at", resets_at);
            }
        }
        headers
    }

    fn as_usage(&self) -> Value {
        let windows = self.in_slots().map(|(slot, minutes, told)| {
            let window = json!({
                "used_percent": told.used,
                "limit_window_seconds": minutes * 60,
                "reset_at": told.resets_at,
            });
            (format!("{slot}_window"), window)
        });
        windows.collect()
    }
}

// The sequence of events

struct Member {
    credential: Credential,
    poll: Option<StartedPoll>,
    caps: (u8, u8),
    known: Known,
}

impl Member {
    fn new(place: usize, caps: (u8, u8)) -> Self {
        let config = CredentialConfig {
            tag: format!("credential-{place}"),
            source: CredentialSource::File(FOLDER.path().join("auth.json")),
            route: UpstreamRoute::Direct,
            usages_path: None,
            caps: WindowCaps {
                five_hour: caps.0.into(),
                weekly: caps.1.into(),
            },
            poll_interval: Some(Duration::from_secs(60)),
        };
        let credential = Credential::new(config);
        credential.load(millis(BEGIN)).expect("the file is there");
        Self {
            credential,
            poll: None,
            caps,
            known: Known::default(),
        }
    }

    fn presented(&self) -> Arc<UpstreamIdentity> {
        self.credential.identity().expect("the file is there")
    }

    /// Sets the clock to `now`, which may be earlier than before. A rejection does not last longer
    /// because of that.
    fn clock_shows(&mut self, now: Moment, before: Moment) {
        if now < before {
            self.known.refused_until = self.known.refused_until.map(|until| until - (before - now));
        }
        self.credential.candidate(millis(now));
    }

    fn hear(&mut self, message: &Message, now: Moment) {
        let at = millis(now);
        self.credential.observe(
            &self.presented(),
            &WindowReading::from_headers(&message.as_headers(), at),
            at,
        );
        self.known.hear(message, now);
        if message.windows().next().is_some() {
            self.known.overtaken = self.known.overtaken.map(|_| true);
        }
    }

    fn start_poll(&mut self) {
        self.poll = self.credential.start_poll();
        self.known.overtaken = Some(false);
    }

    fn poll_ends(&mut self, message: &Message, now: Moment) {
        let (Some(begun), Some(overtaken)) = (self.poll.take(), self.known.overtaken.take()) else {
            return;
        };
        let usage = message.as_usage();
        self.credential.record_poll(
            &begun,
            &UsageReport {
                reading: WindowReading::from_usage(&usage),
                plan: Some("plus".to_owned()),
                own_weight: None,
            },
            millis(now),
        );
        if overtaken {
            self.known.hear(message, now);
        } else {
            self.known.replace(message);
        }
    }

    fn refused(&mut self, ends_in: Option<i64>, now: Moment) {
        let told = ends_in.map(|seconds| now + seconds);
        self.credential
            .record_rate_limit(&self.presented(), told.map(millis), None, millis(now));
        self.known.refused_until = Some(told.filter(|until| *until > now).unwrap_or(now + REFUSED));
    }
}

struct Course {
    members: Vec<Member>,
    named: PoolMembers,
    now: Moment,
}

impl Course {
    fn new(caps: &[(u8, u8)]) -> Self {
        let members: Vec<Member> = caps
            .iter()
            .enumerate()
            .map(|(place, caps)| Member::new(place, *caps))
            .collect();
        let named = members
            .iter()
            .map(|member| (member.credential.tag().to_owned(), "plus".to_owned()))
            .collect();
        Self {
            members,
            named: PoolMembers::new(named),
            now: BEGIN,
        }
    }

    fn apply(&mut self, whom: Index, event: &Event) {
        let (now, count) = (self.now, self.members.len());
        let member = &mut self.members[whom.index(count)];
        match event {
            Event::Headers(message) => member.hear(message, now),
            Event::PollBegins => member.start_poll(),
            Event::PollEnds(message) => member.poll_ends(message, now),
            Event::Refused(ends_in) => member.refused(*ends_in, now),
            Event::Clock(seconds) => {
                self.now += seconds;
                let now = self.now;
                self.members
                    .iter_mut()
                    .for_each(|member| member.clock_shows(now, now - seconds));
            }
        }
    }

    /// Returns the credentials that the model allows to be picked.
    fn usable(&self) -> Vec<usize> {
        let usable = |place: &usize| {
            self.members[*place]
                .known
                .is_usable(self.members[*place].caps, self.now)
        };
        (0..self.members.len()).filter(usable).collect()
    }

    fn pick(&self, home: Option<usize>) -> BalancerChoice {
        let now = millis(self.now);
        let candidates: Vec<BalancerCandidate> = self
            .members
            .iter()
            .map(|member| member.credential.candidate(now))
            .collect();
        let facts = RequestFacts {
            now,
            ..RequestFacts::default()
        };
        BALANCER
            .pick_on_this_thread(&facts, &self.named, &candidates, home)
            .expect("the shipped policy does not fail")
    }

    /// Checks that a usable credential is picked if there is one, for a session with any home and
    /// without one.
    fn check(&self) -> Result<(), TestCaseError> {
        let usable = self.usable();
        for home in [None].into_iter().chain((0..self.members.len()).map(Some)) {
            let found = match self.pick(home) {
                BalancerChoice::Member { index, .. } => usable.contains(&index),
                BalancerChoice::NoMember { .. } => usable.is_empty(),
            };
            let known: Vec<_> = self
                .members
                .iter()
                .map(|member| (member.caps, &member.known))
                .collect();
            prop_assert!(
                found,
                "home {home:?}: {:?} of the usable {usable:?} at {}: {known:#?}",
                self.pick(home),
                self.now
            );
        }
        Ok(())
    }
}

fn millis(moment: Moment) -> Timestamp {
    Timestamp::from_unix(moment.try_into().expect("long after 1970"))
}

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = oauth_file("access", "account").to_string();
    std::fs::write(folder.path().join("auth.json"), file).expect("the folder can be written");
    folder
});

static BALANCER: LazyLock<Arc<BalancerGeneration>> = LazyLock::new(|| {
    const MEMORY: usize = 16 * 1024 * 1024;
    let engine = PolicyEngine::of_the_process(MEMORY).expect("an engine");
    let policy = PolicyConfig {
        // The properties do not depend on the load of the machine.
        timeout: POLICY_TIMEOUT.max(Duration::from_secs(10)),
        ..PolicyConfig::shipped(ShippedPolicy::LeastUsed, json!({}))
    };
    match load_standalone(&engine, &policy).expect("a shipped policy") {
        PolicyGeneration::Balancer(balancer) => balancer,
        other => panic!("expected a balancer, found {other:?}"),
    }
});

/// 256 sequences, or the number in `PROPTEST_CASES`. Failures are not stored in a file: add a named
/// test for each.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_usable_credential_is_picked_if_there_is_one_and_never_another(
        caps in proptest::collection::vec(caps(), 2..=5),
        events in proptest::collection::vec((any::<Index>(), event()), 1..60),
    ) {
        let mut course = Course::new(&caps);
        course.check()?;
        for (whom, event) in &events {
            course.apply(*whom, event);
            course.check()?;
        }
    }
}

// Two sequences with names

/// A credential that was rejected for ten minutes.
fn refused_for_ten_minutes() -> Member {
    let member = Member::new(0, (99, 99));
    assert!(member.credential.candidate(millis(BEGIN)).usable);
    member.credential.record_rate_limit(
        &member.presented(),
        Some(millis(BEGIN + 600)),
        None,
        millis(BEGIN),
    );
    member
}

#[test]
fn moving_the_clock_back_does_not_make_a_rejection_longer() {
    let member = refused_for_ten_minutes();
    let is_usable = |at: Moment| member.credential.candidate(millis(at)).usable;
    assert!(!is_usable(BEGIN + 100));
    // 500 seconds are left however the clock is set: it is moved back by an hour, and then by half
    // an hour.
    let mut now = BEGIN + 100;
    for back in [3600, 1800] {
        now -= back;
        assert!(!is_usable(now), "put back by {back} s, it is over at once");
    }
    assert!(!is_usable(now + 499));
    assert!(is_usable(now + 500));
}

#[test]
fn moving_the_clock_past_a_rejections_end_ends_it() {
    let member = refused_for_ten_minutes();
    assert!(!member.credential.candidate(millis(BEGIN + 599)).usable);
    assert!(member.credential.candidate(millis(BEGIN + 600)).usable);
}
