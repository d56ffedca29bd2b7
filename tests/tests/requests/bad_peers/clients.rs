//! Bad clients over HTTP/1.

mod bodies;
mod connections;
mod heads;

use std::time::Duration;

/// How long after its limit something may happen on a machine that is busy.
const LATE: Duration = Duration::from_secs(5);

/// A turn of so many bytes.
fn body_of(bytes: usize) -> String {
    let around = r#"{"model":"gpt-5.4","stream":true,"filler":""}"#.len();
    format!(
        r#"{{"model":"gpt-5.4","stream":true,"filler":"{}"}}"#,
        "f".repeat(bytes - around)
    )
}

fn chunked(body: &str) -> String {
    let chunks = body.as_bytes().chunks(9_999);
    let framed: String = chunks
        .map(|chunk| {
            format!(
                "{:x}\r\n{}\r\n",
                chunk.len(),
                String::from_utf8_lossy(chunk)
            )
        })
        .collect();
    let head = "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n";
    format!("{head}{framed}0\r\n\r\n")
}
