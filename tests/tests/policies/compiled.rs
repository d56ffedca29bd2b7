//! Compiled code in `data_dir/compiled`: it is used if it is what this gateway wrote. Otherwise the
//! component is compiled again, and the gateway behaves the same.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::{Rig, component, tollgate, turn};

/// A gateway ends within this.
const SOON: Duration = Duration::from_secs(20);

/// A user that is not this one.
const ANOTHER: u32 = 65_534;

fn config(rig: &Rig) -> Value {
    let mut config = rig.team(&["a"], json!({ "strategy": "mine" }));
    config["policies"] =
        json!([{ "tag": "mine", "kind": "balancer", "path": component("round-robin") }]);
    config["log"] = json!({ "level": "debug" });
    config
}

fn folder(rig: &Rig) -> PathBuf {
    rig.path("data").join("compiled")
}

/// Starts the gateway, has it serve, and stops it. Returns its log.
async fn run(rig: &Rig, config: &Value) -> String {
    let _ = fs::remove_file(rig.path("gateway.log"));
    let program = rig.spawn(config).await;
    let answer = program
        .client()
        .token("token-alice")
        .turn(&turn("one"))
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let log = program.log();
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait(SOON).await.code(), Some(0));
    log
}

/// The files in the folder of compiled code, with their inodes: code that was compiled again has
/// another.
fn inodes(rig: &Rig) -> BTreeMap<PathBuf, u64> {
    let entries = fs::read_dir(folder(rig))
        .expect("it is there")
        .map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| {
            (
                path.clone(),
                fs::symlink_metadata(path).expect("it is there").ino(),
            )
        })
        .collect()
}

fn bytes(rig: &Rig) -> u64 {
    inodes(rig)
        .into_keys()
        .map(|path| fs::metadata(path).expect("it is there").len())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compiled_component_is_private_to_its_user_and_reused() {
    let rig = Rig::new().await;
    let config = config(&rig);
    run(&rig, &config).await;
    let mode = |path: &Path| {
        fs::symlink_metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(mode(&folder(&rig)), 0o700);
    let first = inodes(&rig);
    assert!(first.len() >= 3, "{first:?}");
    for path in first.keys() {
        assert_eq!(mode(path), 0o600, "{}", path.display());
    }
    let log = run(&rig, &config).await;
    assert_eq!(inodes(&rig), first, "nothing was compiled again");
    assert!(!log.contains("compiled code not used"), "{log}");
    // Another configuration needs another component, and the rest as before.
    let mut other = config.clone();
    other["policies"][0]["path"] = json!(component("fallback"));
    run(&rig, &other).await;
    let second = inodes(&rig);
    assert_eq!(second.len(), first.len() + 1);
    assert!(
        first
            .iter()
            .all(|(path, inode)| second.get(path) == Some(inode))
    );
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("it is there");
    edit(&mut bytes);
    fs::write(path, bytes).expect("it can be written");
}

/// Makes a node of the kind instead of a file. A socket's path is longer than may be bound.
fn make_node(path: &Path, kind: libc::mode_t) {
    fs::remove_file(path).expect("it is there");
    let name =
        CString::new(path.to_str().expect("temporary folders have plain names")).expect("no NUL");
    // SAFETY: the path is a C string that lives longer than the call.
    assert_eq!(
        unsafe { libc::mknod(name.as_ptr(), kind | 0o600, 0) },
        0,
        "{}",
        std::io::Error::last_os_error()
    );
}

/// Gives a file or folder to another user. Only root can: for others, everybody may write to it.
fn give_away(path: &Path) {
    if let Err(error) = chown(path, Some(ANOTHER), None) {
        println!("skipped: a file cannot be given away here: {error}");
        allow(path, 0o777);
    }
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode can be changed");
}

/// What may have become of a file.
const ODD: [(&str, fn(&Path)); 16] = [
    ("a bit of the code is another", |path| {
        edit(path, |bytes| *bytes.last_mut().expect("not empty") ^= 1)
    }),
    ("a bit in its middle is another", |path| {
        edit(path, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x80;
        });
    }),
    ("a bit of its digest is another", |path| {
        edit(path, |bytes| bytes[8] ^= 1)
    }),
    ("it is of another kind", |path| {
        edit(path, |bytes| bytes[0] = b'X')
    }),
    ("it is of another version", |path| {
        edit(path, |bytes| bytes[7] = b'2')
    }),
    ("it is cut off", |path| {
        edit(path, |bytes| bytes.truncate(bytes.len() / 2))
    }),
    ("it is cut off in its head", |path| {
        edit(path, |bytes| bytes.truncate(20))
    }),
    ("it is empty", |path| edit(path, Vec::clear)),
    ("something stands behind it", |path| {
        edit(path, |bytes| bytes.push(0))
    }),
    ("it is another user's", give_away),
    ("its group may write it", |path| allow(path, 0o660)),
    ("everybody may write it", |path| allow(path, 0o602)),
    ("it is a link to what it was", |path| {
        let moved = path.with_extension("moved");
        fs::rename(path, &moved).expect("it can be renamed");
        symlink(moved, path).expect("a link can be made");
    }),
    ("it is a link to nowhere", |path| {
        fs::remove_file(path).expect("it is there");
        symlink("/nowhere/at/all", path).expect("a link can be made");
    }),
    ("it is a FIFO", |path| make_node(path, libc::S_IFIFO)),
    ("it is a socket", |path| make_node(path, libc::S_IFSOCK)),
];

#[tokio::test(flavor = "multi_thread")]
async fn unexpected_file_is_not_used_and_its_component_compiled_again() {
    let rig = Rig::new().await;
    let config = config(&rig);
    run(&rig, &config).await;
    let good = inodes(&rig);
    let contents: BTreeMap<PathBuf, Vec<u8>> = good
        .keys()
        .map(|path| (path.clone(), fs::read(path).expect("it is there")))
        .collect();
    for (what, make) in ODD {
        good.keys().for_each(|path| make(path));
        let log = run(&rig, &config).await;
        for path in good.keys() {
            let meta = fs::symlink_metadata(path).expect("it is there again");
            assert!(
                meta.is_file() && meta.mode() & 0o7777 == 0o600,
                "{what}: {meta:?}"
            );
            assert_eq!(
                meta.uid(),
                fs::metadata(rig.folder()).expect("a folder").uid(),
                "{what}"
            );
            assert!(
                fs::read(path).expect("it is there") == contents[path],
                "{what}: it is what it was"
            );
        }
        assert_eq!(
            log.matches("compiled code not used").count(),
            good.len(),
            "{what}: {log}"
        );
        // The files that a case moved aside are removed.
        for path in inodes(&rig)
            .into_keys()
            .filter(|path| !good.contains_key(path))
        {
            fs::remove_file(path).expect("it can be removed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folder_in_the_place_of_a_file_does_not_stop_the_gateway() {
    let rig = Rig::new().await;
    let config = config(&rig);
    run(&rig, &config).await;
    for path in inodes(&rig).into_keys() {
        fs::remove_file(&path).expect("it is there");
        fs::create_dir_all(path.join("not-empty")).expect("a folder can be made");
    }
    run(&rig, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_others_could_write_is_not_used() {
    let spoil: [(&str, fn(&Path)); 5] = [
        ("its group may write there", |folder| allow(folder, 0o770)),
        ("everybody may write there", |folder| allow(folder, 0o1777)),
        ("it is another user's", give_away),
        ("it is a link", |folder| {
            let moved = folder.with_extension("moved");
            fs::rename(folder, &moved).expect("it can be renamed");
            symlink(moved, folder).expect("a link can be made");
        }),
        ("it is a file", |folder| {
            fs::remove_dir_all(folder).expect("it can be removed");
            fs::write(folder, b"").expect("the folder can be written");
        }),
    ];
    for (what, spoil) in spoil {
        let rig = Rig::new().await;
        let config = config(&rig);
        run(&rig, &config).await;
        // A file that would be replaced if the folder were used.
        if let Some(path) = inodes(&rig).into_keys().next() {
            fs::remove_file(path).expect("it is there");
        }
        let before = inodes(&rig);
        spoil(&folder(&rig));
        let log = run(&rig, &config).await;
        assert!(
            log.contains("compiled policies are not stored"),
            "{what}: {log}"
        );
        if folder(&rig).is_dir() {
            assert_eq!(inodes(&rig), before, "{what}: nothing is written there");
        }
    }
}

// Bounds

#[tokio::test(flavor = "multi_thread")]
async fn the_most_recently_used_components_are_kept_within_the_limit() {
    let rig = Rig::new().await;
    let mut config = config(&rig);
    run(&rig, &config).await;
    let whole = bytes(&rig);
    fs::remove_dir_all(folder(&rig)).expect("it can be removed");
    let bound = whole * 2 / 3;
    config["limits"] = json!({ "policy_cache_bytes": bound });
    for name in ["round-robin", "fallback", "random", "least-used"] {
        config["policies"][0]["path"] = json!(component(name));
        run(&rig, &config).await;
        let found = bytes(&rig);
        assert!(
            found > 0 && found <= bound,
            "{name}: {found} of {bound} bytes"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_bound_holds_from_the_next_start_on() {
    let rig = Rig::new().await;
    let mut config = config(&rig);
    run(&rig, &config).await;
    let bound = bytes(&rig) / 2;
    config["limits"] = json!({ "policy_cache_bytes": bound });
    run(&rig, &config).await;
    let found = bytes(&rig);
    assert!(found <= bound, "{found} of {bound} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn components_compiled_by_a_reload_are_cached_too() {
    let rig = Rig::new().await;
    let mut config = config(&rig);
    config["policies"][0]["path"] = json!(rig.path("own.wasm"));
    let load = |name: &str| rig.write("own.wasm", fs::read(component(name)).expect("it is built"));
    load("round-robin");
    let program = rig.spawn(&config).await;
    let before = inodes(&rig).len();
    load("fallback");
    rig.wait_for_generation("mine", 2).await;
    // Requests use it before it is stored.
    let kept = tokio::time::timeout(SOON, async {
        while inodes(&rig).len() == before {
            tokio::task::yield_now().await;
        }
    });
    kept.await.expect("it is kept");
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_0_caches_nothing() {
    let rig = Rig::new().await;
    let mut config = config(&rig);
    config["limits"] = json!({ "policy_cache_bytes": 0 });
    run(&rig, &config).await;
    assert!(!folder(&rig).exists());
}

// A check

/// What is in `folder` and below it.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("it is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(everything(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

fn check_leaves_nothing(rig: &Rig, config: &Value) {
    let file = rig.write("config.json", config.to_string());
    let before = everything(rig.folder());
    let said = tollgate(["check", "-c", &file]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(everything(rig.folder()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_leaves_nothing_behind() {
    let rig = Rig::new().await;
    check_leaves_nothing(&rig, &config(&rig));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_a_record_leaves_nothing_behind() {
    let rig = Rig::new().await;
    let mut config = config(&rig);
    config["policies"][0]["record"] = json!(rig.path("record.jsonl"));
    check_leaves_nothing(&rig, &config);
}
