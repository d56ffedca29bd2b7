//! The upstream's own promises, seen by a bare client.

mod login;
mod requests;
mod socket;
mod streams;

use std::io::Read;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const RESPONSES: &str = "/backend-api/codex/responses";

const CHAT: &str = "/v1/chat/completions";

struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// Name (from the data's `type`) and data of each event.
    fn events(&self) -> Vec<(String, Value)> {
        events(&self.body)
    }
}

fn events(body: &[u8]) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(body).expect("text");
    let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let events = data
        .map(str::trim)
        .filter(|data| *data != "[DONE]")
        .map(|data| {
            let data: Value = serde_json::from_str(data).expect("an event's data is JSON");
            (data["type"].as_str().unwrap_or("chunk").to_owned(), data)
        });
    events.collect()
}

fn request(path: &str, token: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let body = body.into();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "upstream");
    request
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(body))
        .expect("a request")
}

async fn send(
    upstream: &Upstream,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    let stream = TcpStream::connect(upstream.address())
        .await
        .expect("connected");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

async fn ask(upstream: &Upstream, path: &str, body: Value) -> Answered {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let response = send(upstream, request(path, "at-ana", body))
        .await
        .expect("an answer");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Answered {
        status: head.status,
        headers: head.headers,
        body,
    }
}

async fn start() -> (Upstream, Account) {
    let upstream = Upstream::start().await;
    let ana = upstream.account("at-ana", "acct-ana");
    (upstream, ana)
}

fn turn() -> Value {
    json!({"model": "gpt-5.4", "stream": true, "input": []})
}

/// All bytes that a bare client gets.
async fn raw_answer(upstream: &Upstream) -> Vec<u8> {
    let mut stream = TcpStream::connect(upstream.address())
        .await
        .expect("connected");
    let body = turn().to_string();
    let head = format!(
        "POST {RESPONSES} HTTP/1.1\r\nhost: upstream\r\nauthorization: Bearer at-ana\r\ncontent-length: {}\r\n\r\n",
        body.len(),
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .expect("written");
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

/// What can be decoded of a stream that may be unfinished.
fn decoded(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
    let mut reader: Box<dyn Read + '_> = match encoding {
        Encoding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
        Encoding::Deflate => Box::new(flate2::read::ZlibDecoder::new(bytes)),
        Encoding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).expect("a decoder")),
        Encoding::Brotli => Box::new(brotli::Decompressor::new(bytes, 4096)),
    };
    let mut out = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = reader.read(&mut piece) {
        out.extend_from_slice(&piece[..read]);
    }
    out
}
