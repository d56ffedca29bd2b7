//! The program, run as a benchmark runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ends the program if a test fails before it has ended.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_prints_its_port_answers_and_stops_on_sigterm() {
    let port_file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("port-{}", std::process::id()));
    let child = Command::new(env!("CARGO_BIN_EXE_scripted-upstream"))
        .args([
            "--account",
            "at:acct:12:30:pro",
            "--deltas",
            "2",
            "--delay-per-delta",
            "1",
            "--port-file",
        ])
        .arg(&port_file)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut running = Running(child);
    let mut lines = BufReader::new(running.0.stdout.take().expect("a pipe")).lines();
    let first = lines.next().expect("a line").expect("text");
    let port: u16 = std::fs::read_to_string(&port_file)
        .expect("the port file")
        .trim()
        .parse()
        .expect("a port");
    std::fs::remove_file(&port_file).expect("removed");
    assert_eq!(
        first,
        format!("chatgpt http://127.0.0.1:{port}/backend-api")
    );

    let answer = ask(port);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("x-codex-primary-used-percent: 12\r\n"),
        "{answer}"
    );
    assert_eq!(
        answer.matches("event: response.output_text.delta").count(),
        2,
        "{answer}"
    );
    assert!(answer.contains("event: response.completed"), "{answer}");

    let killed = Command::new("kill")
        .arg(running.0.id().to_string())
        .status()
        .expect("kill ran");
    assert!(killed.success());
    assert!(
        running.0.wait().expect("waited").success(),
        "exit code 0 after SIGTERM"
    );
}

fn ask(port: u16) -> String {
    let body = r#"{"model":"gpt-5.4","stream":true}"#;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    write!(
        stream,
        "POST /v1/responses HTTP/1.1\r\nhost: upstream\r\nauthorization: Bearer at\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len(),
    )
    .expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
