//! Records that cannot be written.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tollgate_tests::{Mounted, Rig, make_fifo, wait_for_rows};

use super::{ALICE, config, turns};

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_no_file_is_named_at_the_start() {
    for (what, make) in [
        ("a FIFO", make_fifo as fn(&Path)),
        ("a folder", |path| {
            fs::create_dir(path).expect("a folder can be made")
        }),
        ("a socket", |path| {
            drop(std::os::unix::net::UnixListener::bind(path).expect("it binds"))
        }),
        ("a link to nowhere", |path| {
            std::os::unix::fs::symlink("/nowhere/at/all", path).expect("a link can be made")
        }),
        ("a device", |path| {
            std::os::unix::fs::symlink("/dev/null", path).expect("a link can be made")
        }),
    ] {
        let mut rig = Rig::new().await;
        let config = config(&rig);
        make(&rig.path("prices.jsonl"));
        let error = rig
            .try_start(config)
            .await
            .err()
            .unwrap_or_else(|| panic!("{what}: it starts"))
            .to_string();
        for named in ["policies[2]", "prices.jsonl"] {
            assert!(error.contains(named), "{what}: {named} is not in {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_calls_and_no_request() {
    let mut rig = Rig::new().await;
    let Some(disk) = Mounted::new(&rig.path("disk"), 256 * 1024) else {
        return;
    };
    let mut config = config(&rig);
    let record = rig.path("disk/record");
    config["policies"][2]["record"] = json!(record);
    let filler = disk.fill();
    let client = rig.start(config).await.token(ALICE);
    turns(&client, 40).await;
    assert_eq!(wait_for_rows(&rig.ledger(), 40).await.len(), 40);
    fs::remove_file(filler).expect("it is there");
    turns(&client, 5).await;
    rig.stop().await;
    let text = fs::read_to_string(&record).expect("it is there");
    let whole = text
        .lines()
        .filter(|line| serde_json::from_str::<Value>(line).is_ok())
        .count();
    assert!(
        whole >= 5 && text.ends_with('\n'),
        "{whole} of {} lines are whole",
        text.lines().count()
    );
}
