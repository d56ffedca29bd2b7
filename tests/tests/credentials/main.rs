//! Credentials: their files, refreshes, polls, limits and status.

mod checks;
mod external;
mod loops;
mod polling;
mod rate_limits;
mod refresh;
mod refreshing;
mod reverse;
mod reverse_peers;
mod shared_files;
mod status;
mod watching;
