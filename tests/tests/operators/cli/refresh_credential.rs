//! What the gateway runs to refresh a credential's tokens.

use super::*;

const COMMAND: &str = "refresh-credential";

#[test]
fn is_not_shown_in_help() {
    for args in [&["--help"][..], &["-h"], &["help"], &[]] {
        let said = tollgate(folder().path(), args);
        assert!(
            !(said.stdout + &said.stderr).contains("refresh"),
            "{args:?}"
        );
    }
}

#[test]
fn without_a_refresh_request_ends_with_1_and_a_message() {
    let canary = br#"{ "job": { "path": "auth.json", "due": "canary" }, "endpoint": "canary" }"#;
    let inputs: [&[u8]; 9] = [
        b"",
        b"canary\n",
        b"{}",
        b"[]",
        b"null",
        b"\"",
        canary,
        b"\xff\xfe",
        &[b'['; 1 << 20],
    ];
    for input in inputs {
        let folder = folder();
        let said = tollgate_given(folder.path(), &[COMMAND], input);
        let start: String = String::from_utf8_lossy(input).chars().take(40).collect();
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{start}");
        let is_one_line = said.stderr.starts_with("tollgate: standard input: ")
            && said.stderr.lines().count() == 1;
        assert!(
            is_one_line && !said.stderr.contains("canary"),
            "{start}: {}",
            said.stderr
        );
        let left = fs::read_dir(folder.path())
            .expect("the folder can be read")
            .count();
        assert_eq!(left, 0, "{start}: something was made");
    }
}
