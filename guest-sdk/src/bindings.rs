//! The contract as Rust types, generated from `wit/`.
//!
//! A policy's world is composed of two parts, `lifecycle` and the interface of its kind, so that
//! the three worlds share the types of the former. The component exports what its parts export.

#![allow(missing_docs, unreachable_pub, clippy::all)]

pub mod lifecycle {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package tollgate:sdk; world lifecycle { import tollgate:policy/host@0.1.0; export tollgate:policy/lifecycle@0.1.0; }",
        world: "tollgate:sdk/lifecycle",
        pub_export_macro: true,
        export_macro_name: "export_lifecycle",
        generate_all,
    });
}

pub mod balancer {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package tollgate:sdk; world balancer { export tollgate:policy/balancer@0.1.0; }",
        world: "tollgate:sdk/balancer",
        pub_export_macro: true,
        export_macro_name: "export_balancer_part",
        with: { "tollgate:policy/types@0.1.0": crate::bindings::lifecycle::tollgate::policy::types },
    });
}

pub mod rewriter {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package tollgate:sdk; world rewriter { export tollgate:policy/rewriter@0.1.0; }",
        world: "tollgate:sdk/rewriter",
        pub_export_macro: true,
        export_macro_name: "export_rewriter_part",
        with: { "tollgate:policy/types@0.1.0": crate::bindings::lifecycle::tollgate::policy::types },
    });
}

pub mod pricer {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package tollgate:sdk; world pricer { export tollgate:policy/pricer@0.1.0; }",
        world: "tollgate:sdk/pricer",
        pub_export_macro: true,
        export_macro_name: "export_pricer_part",
        with: { "tollgate:policy/types@0.1.0": crate::bindings::lifecycle::tollgate::policy::types },
    });
}
