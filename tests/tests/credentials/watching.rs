//! Watching: a change of an auth.json takes effect soon, except the changes that the gateway makes
//! itself.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::{AuthVersion, Program, Rig, WatchedFileScene, oauth_file, replace_file, turn};

/// A change takes effect within this time even on a slow machine, before the ten seconds after
/// which the gateway rereads files. The time that it took is printed; it should be less than a
/// second.
const SOON: Duration = Duration::from_secs(6);

fn replace(path: &Path, text: &str) {
    replace_file(path, text);
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("the folder can be written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_appears_is_loaded_whether_or_not_its_folder_existed() {
    for place in ["a.json", "home/a.json", "home/of/other/a.json"] {
        let rig = Rig::new().await;
        let path = rig.path(place);
        let mut scene = WatchedFileScene::new(rig, &path).await;
        scene.is_unavailable("cannot read").await;
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders can be made");
        let version = scene.version();
        write(&path, &version.text);
        scene.uses(&version).await;
        scene.rig.stop().await;
    }
}

/// The folders of a path, none of which exists at first.
const DEPTH: usize = 12;

/// How many paths are created, one per credential: the moment between a look and a watch is short.
const WAYS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn folders_created_during_the_search_for_them_are_not_missed() {
    let mut rig = Rig::new().await;
    let folder = |way: usize, depth: usize| rig.path(&format!("home{way}{}", "/of".repeat(depth)));
    let file = |way: usize| folder(way, DEPTH - 1).join("a.json");
    let credential = |way: usize| json!({ "tag": format!("c{way}"), "credential_path": file(way) });
    let config =
        rig.config(json!({ "credentials": (0..WAYS).map(credential).collect::<Vec<_>>() }));
    let folders = (0..DEPTH).flat_map(|depth| (0..WAYS).map(move |way| (way, depth)));
    let folders: Vec<PathBuf> = folders.map(|(way, depth)| folder(way, depth)).collect();
    let files: Vec<PathBuf> = (0..WAYS).map(file).collect();
    let text = AuthVersion::new(&rig, 0).text;
    rig.start(config).await;
    let making = tokio::task::spawn_blocking(move || {
        for folder in folders {
            fs::create_dir(folder).expect("a folder can be made");
            // Slow enough for several looks.
            std::thread::sleep(Duration::from_micros(20));
        }
        files.iter().for_each(|file| write(file, &text));
    });
    making.await.expect("no panic");
    for way in 0..WAYS {
        let is_so = |found: &Value| found["state"] == "ready";
        rig.wait_for_credential(&format!("c{way}"), SOON, "ready", is_so)
            .await;
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_in_place_or_is_replaced_is_reloaded() {
    let (mut scene, _) = WatchedFileScene::with_file().await;
    let path = scene.rig.credential_file("a");
    for put in [write, replace, replace, write] {
        let version = scene.version();
        put(&path, &version.text);
        scene.uses(&version).await;
    }
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_file_is_unavailable_until_it_returns() {
    let (mut scene, _) = WatchedFileScene::with_file().await;
    let path = scene.rig.credential_file("a");
    for put in [write, replace] {
        fs::remove_file(&path).expect("it can be removed");
        scene.is_unavailable("cannot read").await;
        let version = scene.version();
        put(&path, &version.text);
        scene.uses(&version).await;
    }
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_or_moved_folder_is_noticed_and_awaited() {
    let rig = Rig::new().await;
    let (home, other) = (rig.path("home"), rig.path("other"));
    let path = home.join("a.json");
    let mut scene = WatchedFileScene::new(rig, &path).await;
    let removals: [&dyn Fn(); 2] = [
        &|| fs::remove_dir_all(&home).expect("it can be removed"),
        &|| fs::rename(&home, &other).expect("it can be moved"),
    ];
    for remove in removals {
        fs::create_dir(&home).expect("a folder can be made");
        let version = scene.version();
        write(&path, &version.text);
        scene.uses(&version).await;
        remove();
        scene.is_unavailable("cannot read").await;
    }
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_is_unavailable_with_the_reason_until_it_is_repaired() {
    let (mut scene, first) = WatchedFileScene::with_file().await;
    let path = scene.rig.credential_file("a");
    let half = &first.text[..first.text.len() / 2];
    let large = first.text.clone() + &" ".repeat(10_000_000);
    let cases = [
        ("", "empty"),
        (half, "incomplete JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "tokens: missing"),
        (&large, "expected at most"),
    ];
    for (text, reason) in cases {
        write(&path, text);
        scene.is_unavailable(reason).await;
        let version = scene.version();
        write(&path, &version.text);
        scene.uses(&version).await;
    }
    scene.rig.stop().await;
}

/// Counts how often a file is opened by any process.
struct Opens(File);

impl Opens {
    fn of(path: &Path) -> Self {
        let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in it");
        // SAFETY: the path is a C string that outlives the call, and the descriptor is not used
        // elsewhere.
        unsafe {
            let descriptor = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
            assert!(descriptor >= 0, "files can be watched");
            assert!(
                libc::inotify_add_watch(descriptor, path.as_ptr(), libc::IN_OPEN) >= 0,
                "this one can"
            );
            Self(File::from_raw_fd(descriptor))
        }
    }

    /// Whether it was opened since the last call.
    fn was_opened(&mut self) -> bool {
        self.0.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0)
    }
}

/// How long after the last read a request makes the gateway read a missing file again.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// The most reads that the gateway does by itself during a test: one look, and some more while the
/// file may settle.
const OWN_LOOKS: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn requests_make_a_missing_file_be_read_again_at_most_every_two_seconds() {
    let rig = Rig::new().await;
    let path = rig.credential_file("a");
    write(&path, "{}");
    let mut scene = WatchedFileScene::new(rig, &path).await;
    scene.is_unavailable("tokens: missing").await;
    let mut opens = Opens::of(&path);
    let begun = Instant::now();
    let (mut requests, mut opened) = (0_u32, 0);
    while begun.elapsed() < READ_AGAIN * 2 {
        assert_eq!(
            scene.client.turn(&turn("one")).await.status,
            StatusCode::SERVICE_UNAVAILABLE
        );
        requests += 1;
        opened += u32::from(opens.was_opened());
    }
    let most = OWN_LOOKS + 1 + (begun.elapsed().as_secs() / READ_AGAIN.as_secs()) as u32;
    assert!(opened > 0, "the file was not read");
    assert!(
        opened <= most && most < requests,
        "{opened} times for {requests} requests in {:?}",
        begun.elapsed()
    );
    scene.rig.stop().await;
}

/// How long a file is half-written: shorter than the gateway waits for the rest.
const HALF_WRITTEN: Duration = Duration::from_millis(300);

/// After this it may count as broken.
const HALF_WRITTEN_MAX: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn a_half_written_file_does_not_replace_the_good_one() {
    let (mut scene, mut known) = WatchedFileScene::with_file().await;
    let path = scene.rig.credential_file("a");
    let begun = Instant::now();
    loop {
        let version = scene.version();
        let paused = write_in_halves(&scene.rig, &path, &version, &known).await;
        scene.uses(&version).await;
        known = version;
        // On a machine that was suspended meanwhile, this shows nothing.
        if paused < HALF_WRITTEN_MAX {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "this machine is too slow to write half a file in time"
        );
    }
    scene.rig.stop().await;
}

/// Writes a version with a pause in the middle, during which the known version must stay. Returns
/// how long that took.
async fn write_in_halves(
    rig: &Rig,
    path: &Path,
    version: &AuthVersion,
    known: &AuthVersion,
) -> Duration {
    let (begin, end) = version.text.as_bytes().split_at(version.text.len() / 2);
    let mut file = File::create(path).expect("it can be truncated");
    let begun = Instant::now();
    file.write_all(begin).expect("it can be written");
    let mut found = Vec::new();
    while begun.elapsed() < HALF_WRITTEN {
        found.push(rig.credential("a").await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    file.write_all(end).expect("it can be written");
    let paused = begun.elapsed();
    if paused < HALF_WRITTEN_MAX {
        for found in found {
            assert_eq!(
                (&found["state"], &found["refreshed_at"]),
                (&json!("ready"), &json!(known.refreshed_at_ms))
            );
        }
    }
    paused
}

// Links

/// Creates a folder with that auth.json, as a Kubernetes volume does for each of its versions.
fn volume(folder: &Path, name: &str, version: &AuthVersion) {
    fs::create_dir(folder.join(name)).expect("a folder can be made");
    write(&folder.join(name).join("a.json"), &version.text);
}

/// Changes the target of the link `link` atomically.
fn swap(folder: &Path, link: &str, target: &str) {
    let new = folder.join("..new");
    symlink(target, &new).expect("a link can be made");
    fs::rename(new, folder.join(link)).expect("a link can be renamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_link_is_swapped_is_reloaded_each_time() {
    let rig = Rig::new().await;
    let folder = rig.path("volume");
    fs::create_dir(&folder).expect("a folder can be made");
    let path = folder.join("a.json");
    let mut scene = WatchedFileScene::new(rig, &path).await;
    let first = scene.version();
    volume(&folder, "..0", &first);
    swap(&folder, "..data", "..0");
    swap(&folder, "a.json", "..data/a.json");
    scene.uses(&first).await;
    for number in 1..4 {
        let next = scene.version();
        let name = format!("..{number}");
        volume(&folder, &name, &next);
        swap(&folder, "..data", &name);
        fs::remove_dir_all(folder.join(format!("..{}", number - 1))).expect("it can be removed");
        scene.uses(&next).await;
        let changed = scene.version();
        replace_file(&folder.join(&name).join("a.json"), &changed.text);
        scene.uses(&changed).await;
    }
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_followed_when_its_target_changes_and_when_it_gets_another_target() {
    let rig = Rig::new().await;
    let path = rig.credential_file("a");
    let mut scene = WatchedFileScene::new(rig, &path).await;
    for name in ["one", "two"] {
        let version = scene.version();
        volume(scene.rig.folder(), name, &version);
        swap(scene.rig.folder(), "a.json", &format!("{name}/a.json"));
        scene.uses(&version).await;
        for put in [write, replace] {
            let version = scene.version();
            put(&scene.rig.path(name).join("a.json"), &version.text);
            scene.uses(&version).await;
        }
        fs::remove_file(scene.rig.path(name).join("a.json")).expect("it can be removed");
        scene.is_unavailable("cannot read").await;
    }
    scene.rig.stop().await;
}

// The gateway's own writes, and the cost of many files

/// Counts the lines of the log with `message`, and with `credential` if it is given.
fn lines(program: &Program, message: &str, credential: Option<&str>) -> usize {
    let log = program.log();
    let events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_one = |event: &Value| {
        event["message"] == message
            && credential.is_none_or(|credential| event["credential"] == credential)
    };
    events.filter(is_one).count()
}

async fn wait_for_lines(program: &Program, message: &str, credential: Option<&str>, count: usize) {
    let begun = Instant::now();
    while lines(program, message, credential) < count {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{message:?} of {credential:?}:\n{}",
            program.log()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writes_of_a_refresh_are_not_logged_as_changes() {
    let rig = Rig::new().await;
    let tags: Vec<String> = (0..8).map(|number| format!("c{number}")).collect();
    let mut credentials = vec![rig.oauth("other")];
    for tag in &tags {
        let (credential, login) = rig.login(tag);
        replace_file(&rig.credential_file(tag), login.renew_with(-60).to_string());
        credentials.push(credential);
    }
    let program = rig
        .spawn(&rig.config(json!({ "credentials": credentials })))
        .await;
    for tag in &tags {
        wait_for_lines(&program, "tokens refreshed", Some(tag), 1).await;
    }
    // Changes are logged in their order: those before this one are in the log.
    replace_file(
        &rig.credential_file("other"),
        oauth_file("access-other", "account-other").to_string(),
    );
    wait_for_lines(&program, "credential changed", Some("other"), 1).await;
    for tag in &tags {
        let file = rig.credential_file(tag);
        let text = fs::read_to_string(&file).expect("it can be read");
        replace_file(&file, format!("{text}\n"));
        wait_for_lines(&program, "credential changed", Some(tag), 1).await;
    }
    for tag in &tags {
        assert_eq!(
            lines(&program, "credential changed", Some(tag)),
            1,
            "{tag}:\n{}",
            program.log()
        );
        assert_eq!(
            lines(&program, "credential available", Some(tag)),
            0,
            "{tag}:\n{}",
            program.log()
        );
    }
    program.kill();
}

/// Returns how many threads the gateway has with `count` credentials, after all of their files were
/// read and changed.
async fn threads_with(count: usize) -> usize {
    let rig = Rig::new().await;
    let tags: Vec<String> = (0..count).map(|number| format!("c{number}")).collect();
    let credentials: Vec<Value> = tags.iter().map(|tag| rig.oauth(tag)).collect();
    let program = rig
        .spawn(&rig.config(json!({ "credentials": credentials })))
        .await;
    for tag in &tags {
        let text = fs::read_to_string(rig.credential_file(tag)).expect("it can be read");
        replace_file(&rig.credential_file(tag), format!("{text}\n"));
    }
    wait_for_lines(&program, "credential changed", None, count).await;
    let threads = fs::read_dir(format!("/proc/{}/task", program.id()))
        .expect("it runs")
        .count();
    program.kill();
    threads
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_credentials_do_not_cost_a_thread_each() {
    let (few, most) = (threads_with(1).await, threads_with(100).await);
    // Files are read by threads that are started when needed and stay for some seconds: that many
    // may exist.
    assert!(
        most < few + 60,
        "{few} threads for one credential, {most} for a hundred"
    );
}
