//! The interfaces of WASI 0.2 that the toolchains of guests import, in an inert form: no files, no
//! sockets, no environment, no waiting.
//!
//! Invariant: clock and random numbers come from the call's arguments, and what a guest writes to
//! its standard streams stays in a bounded buffer.

use wasmtime::component::{
    ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType,
};
use wasmtime::{Result, StoreContextMut, bail};

use super::guest::GuestState;

/// The version under which the interfaces are defined. Imports of any 0.2 version match it.
const VERSION: &str = "0.2.6";

/// The bytes that an output stream accepts at any time.
const STREAM_ROOM_BYTES: u64 = 4096;

/// The most random bytes that a guest gets at once.
const RANDOM_BYTES_MAX: u64 = 64 * 1024;

// Host-side types of the resources. No handle refers to anything.
struct WasiInputStream;
struct WasiOutputStream;
struct WasiPollable;
struct WasiIoError;
struct WasiTerminalInput;
struct WasiTerminalOutput;

#[derive(ComponentType, Lower, Lift)]
#[component(variant)]
enum WasiStreamError {
    #[component(name = "last-operation-failed")]
    LastOperationFailed(Resource<WasiIoError>),
    #[component(name = "closed")]
    Closed,
}

#[derive(ComponentType, Lower, Lift)]
#[component(record)]
struct WasiDatetime {
    seconds: u64,
    nanoseconds: u32,
}

/// Defines the interfaces in `linker`.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>) -> Result<()> {
    add_errors_and_polling(linker)?;
    add_streams(linker)?;
    add_cli(linker)?;
    add_terminals(linker)?;
    add_clocks(linker)?;
    add_random(linker)
}

fn name(interface: &str) -> String {
    format!("wasi:{interface}@{VERSION}")
}

fn add_errors_and_polling(linker: &mut Linker<GuestState>) -> Result<()> {
    let mut error = linker.instance(&name("io/error"))?;
    error.resource("error", ResourceType::host::<WasiIoError>(), |_, _| Ok(()))?;
    error.func_wrap(
        "[method]error.to-debug-string",
        |_, (_,): (Resource<WasiIoError>,)| Ok((String::new(),)),
    )?;

    let mut poll = linker.instance(&name("io/poll"))?;
    poll.resource("pollable", ResourceType::host::<WasiPollable>(), |_, _| {
        Ok(())
    })?;
    poll.func_wrap(
        "[method]pollable.ready",
        |_, (_,): (Resource<WasiPollable>,)| Ok((true,)),
    )?;
    poll.func_wrap(
        "[method]pollable.block",
        |_, (_,): (Resource<WasiPollable>,)| Ok(()),
    )?;
    poll.func_wrap("poll", |_, (pollables,): (Vec<Resource<WasiPollable>>,)| {
        Ok(((0..pollables.len() as u32).collect::<Vec<u32>>(),))
    })?;
    Ok(())
}

fn add_streams(linker: &mut Linker<GuestState>) -> Result<()> {
    let mut streams = linker.instance(&name("io/streams"))?;
    streams.resource(
        "input-stream",
        ResourceType::host::<WasiInputStream>(),
        |_, _| Ok(()),
    )?;
    streams.resource(
        "output-stream",
        ResourceType::host::<WasiOutputStream>(),
        |_, _| Ok(()),
    )?;
    add_input_stream(&mut streams)?;
    add_output_stream(&mut streams)
}

/// Defines input streams: they are closed.
fn add_input_stream(streams: &mut LinkerInstance<'_, GuestState>) -> Result<()> {
    for read in ["read", "blocking-read"] {
        streams.func_wrap(
            &format!("[method]input-stream.{read}"),
            |_, (_, _): (Resource<WasiInputStream>, u64)| {
                Ok((Err::<Vec<u8>, _>(WasiStreamError::Closed),))
            },
        )?;
    }
    for skip in ["skip", "blocking-skip"] {
        streams.func_wrap(
            &format!("[method]input-stream.{skip}"),
            |_, (_, _): (Resource<WasiInputStream>, u64)| {
                Ok((Err::<u64, _>(WasiStreamError::Closed),))
            },
        )?;
    }
    streams.func_wrap(
        "[method]input-stream.subscribe",
        |_, (_,): (Resource<WasiInputStream>,)| Ok((Resource::<WasiPollable>::new_own(0),)),
    )?;
    Ok(())
}

/// Defines output streams: they keep what the guest writes as its output.
fn add_output_stream(streams: &mut LinkerInstance<'_, GuestState>) -> Result<()> {
    streams.func_wrap(
        "[method]output-stream.check-write",
        |_, (_,): (Resource<WasiOutputStream>,)| Ok((Ok::<_, WasiStreamError>(STREAM_ROOM_BYTES),)),
    )?;
    for write in ["write", "blocking-write-and-flush"] {
        streams.func_wrap(
            &format!("[method]output-stream.{write}"),
            |mut store: StoreContextMut<'_, GuestState>,
             (_, bytes): (Resource<WasiOutputStream>, Vec<u8>)| {
                store.data_mut().write_output(&bytes);
                Ok((Ok::<_, WasiStreamError>(()),))
            },
        )?;
    }
    for write in ["write-zeroes", "blocking-write-zeroes-and-flush"] {
        streams.func_wrap(
            &format!("[method]output-stream.{write}"),
            |_, (_, _): (Resource<WasiOutputStream>, u64)| Ok((Ok::<_, WasiStreamError>(()),)),
        )?;
    }
    for flush in ["flush", "blocking-flush"] {
        streams.func_wrap(
            &format!("[method]output-stream.{flush}"),
            |_, (_,): (Resource<WasiOutputStream>,)| Ok((Ok::<_, WasiStreamError>(()),)),
        )?;
    }
    streams.func_wrap(
        "[method]output-stream.subscribe",
        |_, (_,): (Resource<WasiOutputStream>,)| Ok((Resource::<WasiPollable>::new_own(0),)),
    )?;
    for splice in ["splice", "blocking-splice"] {
        streams.func_wrap(
            &format!("[method]output-stream.{splice}"),
            |_, (_, _, _): (Resource<WasiOutputStream>, Resource<WasiInputStream>, u64)| {
                Ok((Err::<u64, _>(WasiStreamError::Closed),))
            },
        )?;
    }
    Ok(())
}

fn add_cli(linker: &mut Linker<GuestState>) -> Result<()> {
    let mut environment = linker.instance(&name("cli/environment"))?;
    environment.func_wrap("get-environment", |_, (): ()| {
        Ok((Vec::<(String, String)>::new(),))
    })?;
    environment.func_wrap("get-arguments", |_, (): ()| Ok((Vec::<String>::new(),)))?;
    environment.func_wrap("initial-cwd", |_, (): ()| Ok((None::<String>,)))?;

    let mut exit = linker.instance(&name("cli/exit"))?;
    exit.func_wrap(
        "exit",
        |_, (_,): (std::result::Result<(), ()>,)| -> Result<()> { bail!("the guest called exit") },
    )?;

    linker
        .instance(&name("cli/stdin"))?
        .func_wrap("get-stdin", |_, (): ()| {
            Ok((Resource::<WasiInputStream>::new_own(0),))
        })?;
    for stream in ["stdout", "stderr"] {
        linker
            .instance(&name(&format!("cli/{stream}")))?
            .func_wrap(&format!("get-{stream}"), |_, (): ()| {
                Ok((Resource::<WasiOutputStream>::new_own(0),))
            })?;
    }
    Ok(())
}

fn add_terminals(linker: &mut Linker<GuestState>) -> Result<()> {
    let mut input = linker.instance(&name("cli/terminal-input"))?;
    input.resource(
        "terminal-input",
        ResourceType::host::<WasiTerminalInput>(),
        |_, _| Ok(()),
    )?;
    let mut output = linker.instance(&name("cli/terminal-output"))?;
    output.resource(
        "terminal-output",
        ResourceType::host::<WasiTerminalOutput>(),
        |_, _| Ok(()),
    )?;
    linker
        .instance(&name("cli/terminal-stdin"))?
        .func_wrap("get-terminal-stdin", |_, (): ()| {
            Ok((None::<Resource<WasiTerminalInput>>,))
        })?;
    for stream in ["stdout", "stderr"] {
        linker
            .instance(&name(&format!("cli/terminal-{stream}")))?
            .func_wrap(&format!("get-terminal-{stream}"), |_, (): ()| {
                Ok((None::<Resource<WasiTerminalOutput>>,))
            })?;
    }
    Ok(())
}

fn add_clocks(linker: &mut Linker<GuestState>) -> Result<()> {
    let mut monotonic = linker.instance(&name("clocks/monotonic-clock"))?;
    monotonic.func_wrap("now", |store: StoreContextMut<'_, GuestState>, (): ()| {
        Ok((store.data().now().0.saturating_mul(1_000_000),))
    })?;
    monotonic.func_wrap("resolution", |_, (): ()| Ok((1_000_000_u64,)))?;
    for subscribe in ["subscribe-instant", "subscribe-duration"] {
        monotonic.func_wrap(subscribe, |_, (_,): (u64,)| {
            Ok((Resource::<WasiPollable>::new_own(0),))
        })?;
    }
    let mut wall = linker.instance(&name("clocks/wall-clock"))?;
    wall.func_wrap("now", |store: StoreContextMut<'_, GuestState>, (): ()| {
        let now = store.data().now();
        let nanoseconds = (now.0 % 1000) as u32 * 1_000_000;
        Ok((WasiDatetime {
            seconds: now.unix(),
            nanoseconds,
        },))
    })?;
    wall.func_wrap("resolution", |_, (): ()| {
        Ok((WasiDatetime {
            seconds: 0,
            nanoseconds: 1_000_000,
        },))
    })
}

fn add_random(linker: &mut Linker<GuestState>) -> Result<()> {
    for (interface, prefix) in [("random/random", ""), ("random/insecure", "insecure-")] {
        let mut random = linker.instance(&name(interface))?;
        random.func_wrap(
            &format!("get-{prefix}random-bytes"),
            |mut store: StoreContextMut<'_, GuestState>, (length,): (u64,)| {
                if length > RANDOM_BYTES_MAX {
                    bail!("random: expected at most {RANDOM_BYTES_MAX} bytes, found {length}");
                }
                let guest = store.data_mut();
                Ok(((0..length)
                    .map(|_| guest.next_random() as u8)
                    .collect::<Vec<u8>>(),))
            },
        )?;
        random.func_wrap(
            &format!("get-{prefix}random-u64"),
            |mut store: StoreContextMut<'_, GuestState>, (): ()| {
                Ok((store.data_mut().next_random(),))
            },
        )?;
    }
    linker.instance(&name("random/insecure-seed"))?.func_wrap(
        "insecure-seed",
        |mut store: StoreContextMut<'_, GuestState>, (): ()| {
            let guest = store.data_mut();
            Ok(((guest.next_random(), guest.next_random()),))
        },
    )
}
