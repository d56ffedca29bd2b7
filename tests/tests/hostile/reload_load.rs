//! Repeated reloads under load: no request fails, each is priced by a generation that was current
//! when it began, and the memory of old generations is released.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tollgate_tests::upstream::Reply;
use tollgate_tests::{
    Client, Conduct, OWN, Program, Rig, ask_socket, marked_pricer, policy, rows, turn,
};

/// Reloads under load. `TOLLGATE_RELOADS=10000` runs more, a minute or longer in a debug build.
const RELOADS: usize = 5000;
/// Reloads after which memory is compared.
const RELOADS_FOR_MEMORY: usize = 1000;
/// Components that are loaded in turn: as many as stay compiled in memory.
const COMPONENTS: usize = 12;
/// Clients that send requests concurrently.
const CLIENTS: usize = 4;
/// How much a process may grow, in KiB: allocators keep some of the memory that was freed.
const GROWTH_KIB_MAX: u64 = 24 * 1024;

fn reloads() -> usize {
    std::env::var("TOLLGATE_RELOADS").map_or(RELOADS, |count| {
        count.parse().expect("TOLLGATE_RELOADS is a number")
    })
}

fn components() -> Vec<Vec<u8>> {
    (1..=COMPONENTS as u64)
        .map(|nanousd| marked_pricer(nanousd, Conduct::Fine))
        .collect()
}

/// Replaces the policy's file by `component` and reloads it. When this returns, it is the current
/// generation.
async fn reload(rig: &Rig, component: &[u8]) {
    rig.replace_own(component);
    // The watcher may have seen the change first and loaded this component or the one before it:
    // both are fine.
    let answer = ask_socket(&rig.socket(), Method::POST, "/api/policies/own/reload").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

/// The time span in which a component may be the current one.
#[derive(Clone, Copy)]
struct GenerationPeriod {
    nanousd: i64,
    from: Instant,
    until: Option<Instant>,
}

/// A request: its id, when it was sent, and when the head of its response arrived.
struct TimedRequest {
    request_id: String,
    sent: Instant,
    answered: Instant,
}

async fn ask_until(client: Client, number: usize, over: Arc<AtomicBool>) -> Vec<TimedRequest> {
    let mut asked = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let stream = client.start_turn(&turn(&format!("session {number}"))).await;
        let answered = Instant::now();
        let answer = stream.finish().await;
        assert!(
            answer.status == StatusCode::OK && answer.whole,
            "{}: {}",
            answer.status,
            answer.text()
        );
        asked.push(TimedRequest {
            request_id: answer.request_id(),
            sent,
            answered,
        });
    }
    asked
}

/// Replaces the component again and again, the first of which is in use since `begun`. Returns when
/// each price was in use.
async fn reload_all(rig: &Rig, begun: Instant) -> Vec<GenerationPeriod> {
    let mut periods = vec![GenerationPeriod {
        nanousd: 1,
        from: begun,
        until: None,
    }];
    let components = components();
    for number in 1..=reloads() {
        let component = number % COMPONENTS;
        periods.push(GenerationPeriod {
            nanousd: component as i64 + 1,
            from: Instant::now(),
            until: None,
        });
        reload(rig, &components[component]).await;
        let before = periods.len() - 2;
        periods[before].until = Some(Instant::now());
    }
    periods
}

/// What the rows of all requests say.
struct FoundPrices {
    /// The components by the price that they set.
    digests: BTreeMap<i64, BTreeSet<String>>,
    /// Requests during which not all prices were in use.
    outlived: usize,
}

/// Checks that each request has a price that was in use between its begin and its head.
fn check_prices(rig: &Rig, periods: &[GenerationPeriod], asked: &[TimedRequest]) -> FoundPrices {
    let rows = rows(&rig.ledger());
    let by_id: BTreeMap<&str, _> = rows
        .iter()
        .map(|row| (row.text("request_id").expect("a name"), row))
        .collect();
    let mut digests: BTreeMap<i64, BTreeSet<String>> = BTreeMap::new();
    let mut outlived = 0;
    for TimedRequest {
        request_id,
        sent,
        answered,
    } in asked
    {
        let row = by_id.get(request_id.as_str()).expect("a request has a row");
        let cost = row
            .number("cost_nanousd")
            .unwrap_or_else(|| panic!("unpriced: {row:?}"));
        let by = row.text("priced_by").expect("who priced it").to_owned();
        digests.entry(cost).or_default().insert(by);
        let could_serve = |period: &&GenerationPeriod| {
            period.from <= *answered && period.until.is_none_or(|until| until >= *sent)
        };
        let possible: Vec<i64> = periods
            .iter()
            .filter(could_serve)
            .map(|period| period.nanousd)
            .collect();
        assert!(
            possible.contains(&cost),
            "{request_id} costs {cost}, and could cost {possible:?}"
        );
        outlived += usize::from(possible.len() < COMPONENTS);
    }
    FoundPrices { digests, outlived }
}

impl FoundPrices {
    /// Checks that each price is that of one component, and that requests and reloads overlapped.
    fn check(&self, requests: usize) {
        let Self { digests, outlived } = self;
        assert!(
            outlived * 2 > requests,
            "requests saw all prices go by before their heads: the test shows nothing"
        );
        assert!(
            digests.len() > COMPONENTS / 2,
            "the test shows nothing: {digests:?}"
        );
        for (cost, by) in digests {
            assert_eq!(
                by.len(),
                1,
                "price {cost} and its component belong together: {by:?}"
            );
        }
        let all: BTreeSet<_> = digests.values().flatten().collect();
        assert_eq!(all.len(), digests.len(), "two prices of one component");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_during_reloads_and_each_is_priced_by_a_generation_that_it_could_begin_with()
 {
    let mut rig = Rig::new().await;
    let alice = rig.start_priced(serde_json::json!({})).await;
    // The response ends some reloads after it began.
    rig.account("a").always(
        Reply::ok()
            .deltas(4)
            .pause_between(Duration::from_millis(8)),
    );
    let over = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(ask_until(alice.clone(), number, Arc::clone(&over))))
        .collect();
    let periods = reload_all(&rig, begun).await;
    let took = begun.elapsed();
    over.store(true, Ordering::Relaxed);
    let mut asked = Vec::new();
    for client in clients {
        asked.extend(client.await.expect("no request fails"));
    }
    let last = rig.policy(OWN).await;
    rig.stop().await;

    let found = check_prices(&rig, &periods, &asked);
    let rate = periods.len() as f64 / took.as_secs_f64();
    println!(
        "{} reloads in {took:?}, {rate:.0} a second; {} requests",
        periods.len() - 1,
        asked.len()
    );
    found.check(asked.len());
    assert!(
        last["generation"].as_u64() >= Some(reloads() as u64),
        "{last:#}"
    );
    assert_eq!(last["faults"], serde_json::json!({}), "{last:#}");
}

/// The resident memory of a process, in KiB.
fn resident_kib(program: &Program) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.id())).expect("Linux tells");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a line");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn the_memory_of_a_replaced_generation_is_released() {
    let rig = Rig::new().await;
    let components = components();
    rig.write("own.wasm", &components[0]);
    let program = rig.spawn(&rig.priced()).await;
    let client = program.client().token("token-alice");
    let reload_and_ask = async |count: usize| {
        for number in 1..=count {
            reload(&rig, &components[number % COMPONENTS]).await;
            if number % 10 == 0 {
                assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
            }
        }
    };
    // As many as are kept compiled, and the buffers of everything else.
    reload_and_ask(COMPONENTS * 8).await;
    let before = (resident_kib(&program), policy(&rig.socket(), OWN).await);
    let begun = Instant::now();
    reload_and_ask(RELOADS_FOR_MEMORY).await;
    let took = begun.elapsed();
    let after = (resident_kib(&program), policy(&rig.socket(), OWN).await);
    println!(
        "{RELOADS_FOR_MEMORY} reloads in {took:?}: {} KiB before, {} KiB after",
        before.0, after.0
    );
    assert!(
        after.0 < before.0 + GROWTH_KIB_MAX,
        "{} KiB before, {} KiB after",
        before.0,
        after.0
    );
    // The current generation and the one to roll back to, with an instance for each thread that
    // called them.
    for (_, policy) in [&before, &after] {
        let (instances, memory) = (
            policy["instances"].as_u64(),
            policy["memory_bytes"].as_u64(),
        );
        assert!(instances <= Some(8), "{policy:#}");
        assert!(
            memory <= instances.map(|count| count * 2 * 1024 * 1024),
            "{policy:#}"
        );
    }
    program.kill();
}
