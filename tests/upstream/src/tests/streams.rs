//! Streams: their events, their spelling, their encodings, and where they break.

use http_body_util::BodyExt;
use serde_json::json;

use super::{CHAT, RESPONSES, ask, decoded, events, raw_answer, request, send, start, turn};
use crate::*;

#[tokio::test]
async fn an_unscripted_turn_is_a_well_formed_stream() {
    let (upstream, _ana) = start().await;
    let answered = ask(&upstream, RESPONSES, turn()).await;
    assert_eq!(answered.headers["content-type"], "text/event-stream");
    let events = answered.events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names, expected);
    let sequence: Vec<u64> = events
        .iter()
        .filter_map(|(_, data)| data["sequence_number"].as_u64())
        .collect();
    assert_eq!(sequence, Vec::from_iter(0..11));
    let response = &events[10].1["response"];
    assert_eq!(response["model"], "gpt-5.4");
    assert_eq!(response["service_tier"], "default");
    assert_eq!(response["id"], events[0].1["response"]["id"]);
    assert_eq!(
        response["usage"]["input_tokens_details"]["cached_tokens"],
        800
    );
    assert_eq!(response["usage"]["total_tokens"], 1350);
    assert_eq!(
        response["output"][0]["content"][0]["text"],
        "tick tick tick "
    );
}

#[tokio::test]
async fn without_stream_the_turn_is_one_object_with_a_unique_id() {
    let (upstream, _ana) = start().await;
    let body = json!({"model": "gpt-5.4", "service_tier": "priority"});
    let first = ask(&upstream, RESPONSES, body.clone()).await;
    let second = ask(&upstream, "/v1/responses", body).await;
    assert_eq!(
        first.headers["content-length"],
        first.body.len().to_string()
    );
    assert_eq!(first.json()["service_tier"], "priority");
    assert_ne!(first.json()["id"], second.json()["id"]);
    assert_eq!(first.json()["status"], "completed");
}

#[tokio::test]
async fn a_chat_stream_reports_usage_only_if_requested() {
    let (upstream, _ana) = start().await;
    let plain = ask(
        &upstream,
        CHAT,
        json!({"model": "gpt-4.1-mini", "stream": true}),
    )
    .await;
    assert!(plain.body.ends_with(b"data: [DONE]\n\n"));
    assert!(
        plain
            .events()
            .iter()
            .all(|(_, chunk)| chunk.get("usage").is_none())
    );
    let options =
        json!({"model": "gpt-4.1-mini", "stream": true, "stream_options": {"include_usage": true}});
    let told = ask(&upstream, CHAT, options).await;
    assert_eq!(
        told.events().last().expect("a chunk").1["usage"]["prompt_tokens"],
        1200
    );
    let whole = ask(&upstream, CHAT, json!({"model": "gpt-4.1-mini"})).await;
    assert_eq!(
        whole.json()["choices"][0]["message"]["content"],
        "tick tick tick "
    );
}

#[tokio::test]
async fn a_gate_holds_the_stream_until_it_opens() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.then(Reply::ok().hold_after(2, &gate));
    let response = send(&upstream, request(RESPONSES, "at-ana", turn().to_string()))
        .await
        .expect("a head");
    gate.wait_until_reached().await;
    let mut body = response.into_body();
    let mut seen = Vec::new();
    // The events before the first delta, and that delta.
    while events(&seen).len() < 5 {
        let frame = body.frame().await.expect("a frame").expect("no error");
        seen.extend_from_slice(frame.data_ref().expect("data"));
    }
    assert_eq!(events(&seen).len(), 5);
    gate.open();
    seen.extend_from_slice(&body.collect().await.expect("the rest").to_bytes());
    assert_eq!(events(&seen).len(), 11);
    assert_eq!(upstream.abandoned(), 0);
}

#[tokio::test]
async fn connections_break_where_the_script_says() {
    let (upstream, ana) = start().await;
    ana.then(Reply::close_before_head());
    assert_eq!(raw_answer(&upstream).await, b"");
    ana.then(Reply::close_before_head().by_reset());
    assert_eq!(raw_answer(&upstream).await, b"");
    ana.then(Reply::garbage("\x16\x03\x01 what?"));
    assert_eq!(raw_answer(&upstream).await, b"\x16\x03\x01 what?");
    ana.then(Reply::json(200, &json!({"a": "0123456789"})).close_after(4));
    let cut = raw_answer(&upstream).await;
    let text = String::from_utf8(cut).expect("text");
    assert!(
        text.contains("content-length: 18\r\n") && text.ends_with("\r\n\r\n{\"a\""),
        "{text}"
    );
    ana.then(Reply::ok().close_after(20));
    let text = String::from_utf8(raw_answer(&upstream).await).expect("text");
    assert!(
        text.ends_with("event: response.crea\r\n"),
        "a chunk and no last chunk: {text}"
    );
    assert_eq!(upstream.abandoned(), 0);
}

#[tokio::test]
async fn a_compressed_stream_can_be_decoded_part_by_part() {
    let (upstream, ana) = start().await;
    for encoding in [
        Encoding::Gzip,
        Encoding::Deflate,
        Encoding::Zstd,
        Encoding::Brotli,
    ] {
        ana.then(Reply::ok().encoded(encoding).chunks(&[1, 7]));
        let answered = ask(&upstream, RESPONSES, turn()).await;
        assert_eq!(answered.headers["content-encoding"], encoding.name());
        assert_eq!(
            events(&decoded(encoding, &answered.body)).len(),
            11,
            "{encoding:?}"
        );
        let gate = Gate::new();
        ana.then(Reply::ok().encoded(encoding).hold_after(3, &gate));
        let response = send(&upstream, request(RESPONSES, "at-ana", turn().to_string()))
            .await
            .expect("a head");
        let (mut body, mut seen) = (response.into_body(), Vec::new());
        while events(&decoded(encoding, &seen)).len() < 6 {
            seen.extend_from_slice(
                body.frame()
                    .await
                    .expect("a frame")
                    .expect("no error")
                    .data_ref()
                    .expect("data"),
            );
        }
        gate.open();
        seen.extend_from_slice(&body.collect().await.expect("the rest").to_bytes());
        assert_eq!(events(&decoded(encoding, &seen)).len(), 11, "{encoding:?}");
    }
}

#[tokio::test]
async fn streams_are_encoded_as_scripted() {
    let (upstream, ana) = start().await;
    ana.then(
        Reply::ok()
            .crlf()
            .comments()
            .without_space()
            .without_final_newline()
            .without_content_type(),
    );
    let answered = ask(&upstream, RESPONSES, turn()).await;
    assert!(!answered.headers.contains_key("content-type"));
    let text = std::str::from_utf8(&answered.body).expect("text");
    assert!(
        text.starts_with(":a comment\r\nevent:response.created\r\ndata:{"),
        "{text}"
    );
    assert!(text.ends_with("}}"), "{text}");
    assert_eq!(answered.events().len(), 11);
}

#[tokio::test]
async fn ends_and_figures_are_as_scripted() {
    let (upstream, ana) = start().await;
    let usage = Usage {
        input: 10,
        cached: 4,
        cache_write: 3,
        output: 2,
        reasoning: 1,
    };
    for (end, last) in [
        (End::Incomplete, "response.incomplete"),
        (End::Failed, "response.failed"),
        (End::Missing, "response.output_text.delta"),
    ] {
        ana.then(
            Reply::ok()
                .end(end)
                .usage(usage)
                .deltas(2)
                .delta_bytes(9)
                .model("gpt-5")
                .response_id("resp_x"),
        );
        let events = ask(&upstream, RESPONSES, turn()).await.events();
        let (name, data) = events.last().expect("an event");
        assert_eq!(name, last);
        if end != End::Missing {
            assert_eq!(
                data["response"]["usage"]["input_tokens_details"]["cache_write_tokens"],
                3
            );
            assert_eq!(
                (&data["response"]["id"], &data["response"]["model"]),
                (&json!("resp_x"), &json!("gpt-5"))
            );
        }
    }
    ana.then(Reply::ok().without_usage());
    assert!(ask(&upstream, RESPONSES, turn()).await.events()[5].1["response"]["usage"].is_null());
}
