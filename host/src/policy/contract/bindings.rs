//! Rust types of the contract, generated from `wit/`: one module per world. All worlds share the
//! types of the first.

#![allow(missing_docs, unreachable_pub, clippy::all)]

pub use balancer::tollgate::policy::{host, types};

pub(crate) mod balancer {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "balancer-policy",
    });
}

pub(crate) mod rewriter {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "rewriter-policy",
        with: {
            "tollgate:policy/host@0.1.0": crate::policy::contract::bindings::host,
            "tollgate:policy/types@0.1.0": crate::policy::contract::bindings::types,
        },
    });
}

pub(crate) mod pricer {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "pricer-policy",
        with: {
            "tollgate:policy/host@0.1.0": crate::policy::contract::bindings::host,
            "tollgate:policy/types@0.1.0": crate::policy::contract::bindings::types,
        },
    });
}
