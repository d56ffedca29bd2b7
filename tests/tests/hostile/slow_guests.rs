//! Slow guests: they run on policy threads, and no other request waits for them.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Client, Conduct, OWN, Rig, guest, marked_pricer, rows, turn, wait_for_rows};

/// A balancer that takes about two milliseconds for a pick, with a timeout that allows it.
fn slow_balancer() -> Value {
    let (path, config) = (guest("faulty-balancer"), json!({ "fault": "burn" }));
    json!({ "tag": OWN, "kind": "balancer", "path": path, "config": config, "timeout": "200ms" })
}

/// Two services: the first has the slow balancer, the second a shipped one.
async fn start(rig: &mut Rig, limits: Value) -> (Client, Client) {
    let mut config = rig.team(&["a", "b"], json!({ "strategy": OWN }));
    config["services"][0]["tag"] = json!("slow");
    let mut second = rig.team(&["c", "d"], json!({}))["services"][0].clone();
    second["tag"] = json!("quick");
    config["services"]
        .as_array_mut()
        .expect("a list")
        .push(second);
    config["policies"] = json!([slow_balancer()]);
    config["limits"] = limits;
    let slow = rig.start(config).await.token("token-alice");
    let quick = Client::new(rig.listening()[1]).token("token-alice");
    (slow, quick)
}

/// Turns on the quick service.
const QUICK_TURNS: usize = 200;

/// Returns the median duration of [`QUICK_TURNS`] sequential turns.
async fn median(client: &Client) -> Duration {
    let mut times = Vec::new();
    for number in 0..QUICK_TURNS {
        let begun = Instant::now();
        let answer = client.turn(&turn(&format!("quick {number}"))).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// Runs turns of `count` concurrent clients until `over` is set. Returns the number of turns.
async fn keep_asking(
    client: &Client,
    count: usize,
    over: &tokio::sync::watch::Receiver<bool>,
) -> usize {
    let ask = |number: usize| {
        let (client, over) = (client.clone(), over.clone());
        async move {
            let mut asked = 0;
            while !*over.borrow() {
                let answer = client.turn(&turn(&format!("slow {number} {asked}"))).await;
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
                asked += 1;
            }
            asked
        }
    };
    let asking: Vec<_> = (0..count).map(|number| tokio::spawn(ask(number))).collect();
    let mut asked = 0;
    for one in asking {
        asked += one.await.expect("no panic");
    }
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_balancer_is_detected_and_hardly_delays_other_requests() {
    let mut rig = Rig::new().await;
    let (slow, quick) = start(&mut rig, json!({})).await;
    assert_eq!(rig.policy(OWN).await["slow"], true);
    median(&quick).await;
    let alone = median(&quick).await;
    let (end, over) = tokio::sync::watch::channel(false);
    let asking = tokio::spawn(async move { keep_asking(&slow, 16, &over).await });
    rig.upstream.wait_for_turns(QUICK_TURNS * 2 + 50).await;
    let beside = median(&quick).await;
    end.send_replace(true);
    let asked = asking.await.expect("no panic");
    // Generous: 16 clients share the processors. If the picks ran on the threads that serve
    // requests, every request would wait for 16 of them, of at least two milliseconds each.
    println!("median alone {alone:?}, beside {asked} slow turns {beside:?}");
    assert!(
        beside < alone * 8 + Duration::from_millis(60),
        "alone {alone:?}, beside a slow guest {beside:?}"
    );
    let policy = rig.policy(OWN).await;
    assert!(policy["calls"].as_u64() >= Some(1), "{policy:#}");
    assert_eq!(
        policy["faults"],
        json!({}),
        "its own clients wait, and are served by it: {policy:#}"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_balancer_chooses_if_too_many_calls_wait_for_a_slow_one() {
    let mut rig = Rig::new().await;
    let (slow, _) = start(&mut rig, json!({ "policy_threads": 1, "policy_queue": 1 })).await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..60 {
        let slow = slow.clone();
        asking.spawn(async move { slow.turn(&turn(&format!("session {number}"))).await });
    }
    while let Some(answer) = asking.join_next().await {
        let answer = answer.expect("no panic");
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    let policy = rig.policy(OWN).await;
    assert!(
        policy["faults"]["unavailable"].as_u64() > Some(0),
        "{policy:#}"
    );
    assert_eq!(
        policy["state"], "serving",
        "a full queue is no fault of the guest's: {policy:#}"
    );
    rig.stop().await;
}

/// A gateway whose pricer takes about two milliseconds for a price.
async fn slow_pricer(rig: &mut Rig) -> Client {
    let client = pricer(rig, Conduct::Burns).await;
    assert_eq!(rig.policy(OWN).await["slow"], true);
    client
}

/// A gateway with a pricer of this conduct, with a timeout that allows it.
async fn pricer(rig: &mut Rig, conduct: Conduct) -> Client {
    rig.write("own.wasm", marked_pricer(5, conduct));
    let mut config = rig.priced();
    config["policies"][0]["timeout"] = json!("200ms");
    rig.start(config).await.token("token-alice")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_a_slow_price_is_committed_before_the_last_byte_reaches_the_client() {
    let mut rig = Rig::new().await;
    let client = slow_pricer(&mut rig).await;
    for (place, client) in [client.clone(), client.http2()]
        .into_iter()
        .cycle()
        .take(20)
        .enumerate()
    {
        let answer = client.turn(&turn("one")).await;
        assert!(answer.whole);
        let rows = rows(&rig.ledger());
        assert_eq!(
            rows.len(),
            place + 1,
            "the client has its whole answer, and its row is there"
        );
        assert_eq!(
            rows[place].number("cost_nanousd"),
            Some(5),
            "{:?}",
            rows[place]
        );
    }
    let mut socket = client.socket().await.expect("a socket");
    for place in 20..30 {
        socket.turn(&turn("one")).await;
        let rows = rows(&rig.ledger());
        assert_eq!(
            rows.len(),
            place + 1,
            "the client has the turn's last event, and its row is there"
        );
        assert_eq!(
            rows[place].number("cost_nanousd"),
            Some(5),
            "{:?}",
            rows[place]
        );
    }
    drop(socket);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_every_slow_price() {
    const STREAMS: usize = 40;
    let mut rig = Rig::new().await;
    let client = slow_pricer(&mut rig).await;
    let gate = Gate::new();
    rig.account("a")
        .always(Reply::ok().deltas(2).hold_after(2, &gate));
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        let client = client.clone();
        streams.spawn(async move { client.turn(&turn(&format!("session {number}"))).await });
    }
    gate.wait_until_reached_times(STREAMS).await;
    gate.open();
    rig.stop().await;
    while let Some(answer) = streams.join_next().await {
        assert!(answer.expect("no panic").whole);
    }
    let rows = wait_for_rows(&rig.ledger(), STREAMS).await;
    assert!(
        rows.iter().all(|row| row.number("cost_nanousd") == Some(5)),
        "{rows:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn if_too_many_prices_are_pending_a_row_is_unpriced_with_the_reason_and_not_lost() {
    const STREAMS: usize = 60;
    let mut rig = Rig::new().await;
    rig.write("own.wasm", marked_pricer(5, Conduct::Burns));
    let mut config = rig.priced();
    config["policies"][0]["timeout"] = json!("200ms");
    config["limits"] = json!({ "policy_threads": 1, "policy_queue": 1 });
    let client = rig.start(config).await.token("token-alice");
    let gate = Gate::new();
    rig.account("a")
        .always(Reply::ok().deltas(2).hold_after(2, &gate));
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        let client = client.clone();
        streams.spawn(async move { client.turn(&turn(&format!("session {number}"))).await });
    }
    gate.wait_until_reached_times(STREAMS).await;
    gate.open();
    while let Some(answer) = streams.join_next().await {
        assert!(answer.expect("no panic").whole);
    }
    let mut unpriced = 0;
    for row in wait_for_rows(&rig.ledger(), STREAMS).await {
        match row.number("cost_nanousd") {
            Some(cost) => assert_eq!(cost, 5),
            None => {
                let reason = row.text("unpriced_reason").expect("a reason");
                assert!(reason.contains("policy_queue"), "{reason}");
                unpriced += 1;
            }
        }
    }
    let policy = rig.policy(OWN).await;
    assert_eq!(
        policy["faults"]["unavailable"].as_u64().unwrap_or_default(),
        unpriced,
        "{policy:#}"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pricer_that_was_fast_in_its_trial_is_detected_as_slow_by_its_calls() {
    let mut rig = Rig::new().await;
    let client = pricer(&mut rig, Conduct::BurnsForRequests).await;
    assert_eq!(rig.policy(OWN).await["slow"], false);
    for _ in 0..40 {
        assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    }
    assert_eq!(rig.policy(OWN).await["slow"], true);
    assert!(
        rows(&rig.ledger())
            .iter()
            .all(|row| row.number("cost_nanousd") == Some(5))
    );
    rig.stop().await;
}
