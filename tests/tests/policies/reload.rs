//! A policy's file changes on a running gateway: requests that begin afterwards are priced by the
//! new component, and requests in flight by the component that they began with.

mod failures;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, Reply, SocketReply};
use tollgate_tests::{
    Client, Conduct, OWN, Rig, Row, ask_socket, binary, marked_pricer, over_both, rows, turn,
    wait_for_rows,
};

fn fine(nanousd: u64) -> Vec<u8> {
    marked_pricer(nanousd, Conduct::Fine)
}

/// Returns the cost of each row, in order.
async fn costs(rig: &Rig, count: usize) -> Vec<Option<i64>> {
    let rows = wait_for_rows(&rig.ledger(), count).await;
    rows.iter().map(|row| row.number("cost_nanousd")).collect()
}

fn cost_of(rows: &[Row], request_id: &str) -> Option<i64> {
    let row = rows
        .iter()
        .find(|row| row.text("request_id") == Some(request_id))
        .expect("the request has a row");
    row.number("cost_nanousd")
}

/// Returns the number of reloads of the policy with that outcome, from the metrics.
async fn count_reloads(address: std::net::SocketAddr, outcome: &str) -> u64 {
    let metrics = Client::new(address).get("/metrics").await.text();
    let is_it = |line: &&str| {
        line.starts_with("tollgate_policy_reloads")
            && line.contains("\"own\"")
            && line.contains(&format!("\"{outcome}\""))
    };
    let line = metrics
        .lines()
        .find(is_it)
        .unwrap_or_else(|| panic!("no such counter in {metrics}"));
    line.rsplit(' ')
        .next()
        .expect("a value")
        .parse::<f64>()
        .expect("a number") as u64
}

/// Checks that the component which `change` puts into `own.wasm` prices the next turn.
async fn check_used_from_the_next_request(
    way: &str,
    prepare: impl Fn(&Rig),
    change: impl AsyncFn(&Rig),
) {
    let mut rig = Rig::new().await;
    prepare(&rig);
    let config = rig.priced();
    let client = rig.start(config).await.token("token-alice");
    client.turn(&turn("before")).await;
    change(&rig).await;
    let policy = rig.wait_for_generation(OWN, 2).await;
    client.turn(&turn("after")).await;
    assert_eq!(costs(&rig, 2).await, [Some(1), Some(2)], "{way}");
    let found = (
        &policy["state"],
        &policy["last_reload"]["outcome"],
        &policy["generation_before"],
    );
    assert_eq!(found, (&json!("serving"), &json!("ok"), &json!(1)), "{way}");
    let rows = rows(&rig.ledger());
    let digest = policy["digest"].as_str().expect("a digest");
    assert!(
        rows[1]
            .text("priced_by")
            .is_some_and(|by| by.ends_with(digest)),
        "{way}: {:?}",
        rows[1]
    );
    rig.stop().await;
}

fn plain(rig: &Rig) {
    rig.write("own.wasm", fine(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_renamed_into_place_is_used_from_the_next_request_on() {
    check_used_from_the_next_request("rename", plain, async |rig| rig.replace_own(&fine(2))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_written_in_place_is_used_from_the_next_request_on() {
    check_used_from_the_next_request("in place", plain, async |rig| {
        drop(rig.write("own.wasm", fine(2)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_and_recreated_file_is_used_from_the_next_request_on() {
    let again = async |rig: &Rig| {
        fs::remove_file(rig.path("own.wasm")).expect("a file can be removed");
        rig.write("own.wasm", fine(2));
    };
    check_used_from_the_next_request("deleted", plain, again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_swapped_as_by_containers_is_used_from_the_next_request_on() {
    // own.wasm -> ..data/own.wasm, ..data -> VERSION: one rename of a link changes every file of a
    // mounted volume.
    let prepare = |rig: &Rig| {
        for (version, nanousd) in [("v1", 1), ("v2", 2)] {
            fs::create_dir(rig.path(version)).expect("a folder can be made");
            rig.write(&format!("{version}/own.wasm"), fine(nanousd));
        }
        symlink("v1", rig.path("..data")).expect("a link can be made");
        symlink("..data/own.wasm", rig.path("own.wasm")).expect("a link can be made");
    };
    let swap = async |rig: &Rig| {
        symlink("v2", rig.path("..data_tmp")).expect("a link can be made");
        fs::rename(rig.path("..data_tmp"), rig.path("..data")).expect("a link can be renamed");
    };
    check_used_from_the_next_request("links", prepare, swap).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_written_file_is_retried_and_not_reported() {
    let mut rig = Rig::new().await;
    rig.write("own.wasm", fine(1));
    let mut config = rig.priced();
    config["admin"] = json!({ "listen_port": 0 });
    let client = rig.start(config).await.token("token-alice");
    let whole = fine(2);
    let (half, rest) = whole.split_at(whole.len() / 2);
    rig.write("own.wasm", half);
    rig.wait_for_policy(OWN, "a look at the half", |policy| {
        !policy["loading"].is_null()
    })
    .await;
    // The pause of the writer: long enough for the file to be read, and shorter than all reads
    // together.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut file = fs::File::options()
        .append(true)
        .open(rig.path("own.wasm"))
        .expect("the file is there");
    std::io::Write::write_all(&mut file, rest).expect("it can be written");
    drop(file);
    rig.wait_for_generation(OWN, 2).await;
    client.turn(&turn("after")).await;
    assert_eq!(costs(&rig, 1).await, [Some(2)]);
    let admin = rig.admin().address();
    assert_eq!(
        (
            count_reloads(admin, "ok").await,
            count_reloads(admin, "failed").await
        ),
        (1, 0)
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_replaced_by_the_same_bytes_creates_no_generation() {
    let mut rig = Rig::new().await;
    rig.start_priced(json!({})).await;
    rig.replace_own(&fine(1));
    rig.replace_own(&fine(1));
    let is_price_2 = |policy: &Value| policy["last_reload"]["outcome"] == "ok";
    rig.replace_own(&fine(2));
    let policy = rig.wait_for_policy(OWN, "a reload", is_price_2).await;
    assert_eq!(policy["generation"], 2, "{policy:#}");
    rig.stop().await;
}

over_both!(a_stream_is_priced_by_the_generation_that_it_began_with);
async fn a_stream_is_priced_by_the_generation_that_it_began_with() {
    let mut rig = Rig::new().await;
    let client = rig.start_priced(json!({})).await;
    let gate = Gate::new();
    rig.account("a")
        .then(Reply::ok().deltas(3).hold_after(2, &gate));
    let mut stream = client.start_turn(&turn("long")).await;
    let named = stream.headers["x-tollgate-request-id"]
        .to_str()
        .expect("a readable field")
        .to_owned();
    stream.until("output_text.delta").await;
    rig.replace_own(&fine(2));
    rig.wait_for_generation(OWN, 2).await;
    let next = client.turn(&turn("next")).await.request_id();
    // Even if its generation is two generations old.
    rig.replace_own(&fine(3));
    rig.wait_for_generation(OWN, 3).await;
    gate.open();
    assert!(stream.finish().await.whole);
    let rows = wait_for_rows(&rig.ledger(), 2).await;
    assert_eq!(
        (cost_of(&rows, &named), cost_of(&rows, &next)),
        (Some(1), Some(2))
    );
    let policy = rig.policy(OWN).await;
    assert_eq!(policy["generation"], 3, "{policy:#}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_turn_in_flight_is_priced_by_the_old_generation_and_the_next_by_the_new() {
    for http2 in [false, true] {
        let mut rig = Rig::new().await;
        let client = rig.start_priced(json!({})).await;
        let client = if http2 { client.http2() } else { client };
        let gate = Gate::new();
        rig.account("a")
            .then_socket(SocketReply::begun().hold(&gate).completed());
        let mut socket = client.socket().await.expect("a socket");
        socket.create(&turn("one")).await;
        gate.wait_until_reached().await;
        rig.replace_own(&fine(2));
        rig.wait_for_generation(OWN, 2).await;
        gate.open();
        socket.rest_of_turn().await;
        socket.turn(&turn("one")).await;
        drop(socket);
        assert_eq!(costs(&rig, 2).await, [Some(1), Some(2)], "http2: {http2}");
        rig.stop().await;
    }
}

async fn change(rig: &Rig, what: &str) -> String {
    let answer = rig.change_policy(OWN, what).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_reloads_and_rolls_back_over_the_socket() {
    let mut rig = Rig::new().await;
    let client = rig.start_priced(json!({})).await;
    let refused = rig.change_policy(OWN, "rollback").await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(
        refused.text().contains("no earlier generation"),
        "{}",
        refused.text()
    );
    rig.replace_own(&fine(2));
    rig.wait_for_generation(OWN, 2).await;
    client.turn(&turn("new")).await;
    // Back, and forth again.
    for (generation, before, session) in [(1, 2, "old"), (2, 1, "new again")] {
        change(&rig, "rollback").await;
        let policy = rig.policy(OWN).await;
        let found = (
            &policy["generation"],
            &policy["generation_before"],
            &policy["last_reload"]["outcome"],
        );
        assert_eq!(
            found,
            (&json!(generation), &json!(before), &json!("rolled_back"))
        );
        client.turn(&turn(session)).await;
    }
    assert_eq!(costs(&rig, 3).await, [Some(2), Some(1), Some(2)]);
    // An operator's reload happens even if the file is unchanged.
    let done = change(&rig, "reload").await;
    assert!(done.contains("reloaded: generation 3"), "{done}");
    let unknown = rig.change_policy("unknown", "reload").await;
    let error = unknown.json()["error"].to_string();
    assert!(
        error.contains("policy \\\"unknown\\\": expected the tag of a policy"),
        "{error}"
    );
    let get = ask_socket(&rig.socket(), Method::GET, "/api/policies/own/reload").await;
    assert_eq!(get.status, StatusCode::NOT_FOUND);
    rig.stop().await;
}

/// Runs `tollgate policy` with the rig's configuration.
async fn run(rig: &Rig, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command
        .arg("policy")
        .args(arguments)
        .arg("-c")
        .arg(rig.path("config.json"));
    tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("no panic")
        .expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_reloads_and_rolls_back_and_lists_on_the_command_line() {
    let rig = Rig::new().await;
    rig.write("own.wasm", fine(1));
    let program = rig.spawn(&rig.priced()).await;
    let client = program.client().token("token-alice");
    client.turn(&turn("old")).await;
    let reloaded = stdout(&run(&rig, &["reload", OWN]).await);
    assert!(
        reloaded.contains("reloaded: generation 2 (marked-pricer 0.1.0)"),
        "{reloaded}"
    );
    rig.replace_own(&fine(2));
    rig.wait_for_generation(OWN, 3).await;
    client.turn(&turn("new")).await;
    let back = stdout(&run(&rig, &["rollback", OWN]).await);
    assert!(back.contains("rolled back to generation 2"), "{back}");
    client.turn(&turn("old again")).await;
    assert_eq!(costs(&rig, 3).await, [Some(1), Some(2), Some(1)]);
    let listed = stdout(&run(&rig, &["list"]).await);
    let line = listed
        .lines()
        .find(|line| line.starts_with(OWN))
        .unwrap_or_else(|| panic!("{OWN} is not in {listed}"));
    for word in ["pricer", "marked-pricer 0.1.0", "serving", "rolled back"] {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    let listed: Value =
        serde_json::from_str(&stdout(&run(&rig, &["list", "--json"]).await)).expect("JSON");
    let own = listed["policies"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|policy| policy["tag"] == OWN);
    assert_eq!(own.expect("it is there")["generation"], 2);
    rig.write("own.wasm", "nonsense");
    let failed = run(&rig, &["reload", OWN]).await;
    let words = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success() && words.contains(OWN), "{words}");
    program.kill();
}
