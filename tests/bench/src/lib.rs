//! End-to-end cost of the gateway, beside two forwarders that do less.
//!
//! Tollgate's release binary, a bare hyper proxy of the same versions and nginx stand before one scripted
//! upstream in one run. What is told is each forwarder's **own** CPU time and memory, read from the kernel,
//! so that the cost of the load generator and of the upstream does not count. Rounds are interleaved
//! (A B C A B C) and ratios are taken round by round, so that a slow minute of the machine hits all three.
//!
//! The modules, in the order of a run: `settings` says what to do; `forwarder` starts the three as
//! `process`es; `upstream` answers them with the bytes of `answers`; `load` drives them; `rounds` orders
//! the measurements; `live` measures policies on a running gateway; `report` makes medians and ratios of them. `frames` is what both ends know of WebSockets;
//! `ready` is how a child tells its address.

pub mod answers;
pub mod forwarder;
pub mod frames;
pub mod live;
pub mod load;
pub mod process;
pub mod ready;
pub mod report;
pub mod rounds;
pub mod settings;
pub mod timing;
pub mod upstream;
