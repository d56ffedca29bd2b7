//! The contract as Rust, generated from `wit/`. One module a world; the shared types are those of the first.

#![allow(missing_docs, unreachable_pub, clippy::all)]

pub(super) mod balancer {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "balancer-policy",
    });
}

pub(super) mod rewriter {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "rewriter-policy",
        with: {
            "tollgate:policy/host@0.1.0": crate::policy::bindings::balancer::tollgate::policy::host,
            "tollgate:policy/types@0.1.0": crate::policy::bindings::balancer::tollgate::policy::types,
        },
    });
}

pub(super) mod pricer {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "pricer-policy",
        with: {
            "tollgate:policy/host@0.1.0": crate::policy::bindings::balancer::tollgate::policy::host,
            "tollgate:policy/types@0.1.0": crate::policy::bindings::balancer::tollgate::policy::types,
        },
    });
}
