//! The end-to-end cost of the gateway, compared with two forwarders that do less.
//!
//! Tollgate's release binary, a bare hyper proxy of the same versions and nginx run in front of the
//! same upstream. The report has the CPU time and memory of each forwarder **alone**, read from the
//! kernel, so that the cost of the load generator and of upstream does not count. Rounds are
//! interleaved (A B C A B C) and ratios are taken per round, so that a slow minute of the machine
//! affects all three.
//!
//! The modules, in the order of a run: `settings` has the plan; `forwarder` starts the three as
//! `process`es; `upstream` answers them with the bytes of `answers`; `load` sends requests;
//! `rounds` orders the measurements; `live` measures policies on a running gateway; `report`
//! computes medians and ratios. Both ends use `frames` for WebSockets, and a child announces its
//! address through `ready`.

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
