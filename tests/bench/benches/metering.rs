//! The throughput of metering a response.

use std::hint::black_box;

use http::{HeaderMap, HeaderValue};
use tollgate::meter::Meter;
use tollgate_bench::timing::{Figure, Timer};

const EVENTS: usize = 5000;
/// Deltas are most of a stream.
const DELTAS_AIM_GB_PER_S: f64 = 1.0;

fn headers(content_type: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static(content_type));
    headers
}

/// Returns deltas as Codex receives them, about 250 bytes each.
fn deltas() -> String {
    let delta = |number: usize| {
        format!(
            "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"sequence_number\":{number},\
             \"item_id\":\"msg_0199a0c49a527d10b0c95d1f0e5a2f11\",\"output_index\":0,\"content_index\":0,\
             \"delta\":\" word\",\"logprobs\":[],\"obfuscation\":\"aF3kLmN09\"}}\n\n"
        )
    };
    (0..EVENTS).map(delta).collect()
}

fn last() -> String {
    let output = "x".repeat(100_000);
    format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{\"id\":\"resp_1\",\"model\":\"gpt-5.4\",\
         \"output\":[{{\"content\":[{{\"text\":\"{output}\"}}]}}],\"usage\":{{\"input_tokens\":1,\"output_tokens\":2}}}}}}\n\n"
    )
}

fn chat() -> String {
    let chunk = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"gpt-4o\",\
                 \"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}],\"usage\":null}\n\n";
    chunk.repeat(EVENTS)
}

fn main() {
    let timer = Timer::from_command_line();
    let bodies = [
        ("deltas", deltas(), Some(DELTAS_AIM_GB_PER_S)),
        ("last-event", last(), None),
        ("chat-chunks", chat(), None),
    ];
    for (name, body, aim_gb_per_s) in bodies {
        for piece in [256, 4096, 65_536] {
            let figure = Figure::Throughput {
                bytes: body.len(),
                aim_gb_per_s,
            };
            timer.time(&format!("meter/{name}/{piece}"), figure, || {
                let mut meter = Meter::new(&headers("text/event-stream"), 1 << 30);
                for piece in body.as_bytes().chunks(piece) {
                    black_box(meter.feed(piece));
                }
                black_box(meter.metered());
            });
        }
    }
}
