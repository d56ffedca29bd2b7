//! The allocations of metering: none for events that carry no usage.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use http::{HeaderMap, HeaderValue};
use tollgate::meter::Meter;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; the count is a plain cell of
// the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() -> u64 {
    COUNT.with(Cell::get)
}

#[track_caller]
fn check(event: &str) {
    let mut headers = HeaderMap::new();
    headers.insert(
        "content-type",
        HeaderValue::from_static("text/event-stream"),
    );
    let mut meter = Meter::new(&headers, 1 << 30);
    // The first event may name the response, which is stored.
    meter.feed(event.as_bytes());
    let before = count();
    for _ in 0..1000 {
        for piece in event.as_bytes().chunks(17) {
            meter.feed(piece);
        }
    }
    assert_eq!(count() - before, 0);
}

#[test]
fn an_event_without_usage_costs_no_allocation() {
    check(
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\\\"b\"}\n\n",
    );
    check(
        "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"x\"}}],\"usage\":null}\r\n\r\n",
    );
    check(": a comment\n\n");
    check(&format!(
        "data: {{\"type\":\"response.output_item.done\",\"item\":\"{}\"}}\n\n",
        "x".repeat(100_000)
    ));
}
