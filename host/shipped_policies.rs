// The policies that the binary contains: variant, name of the crate in `policies/`, kind.
//
// This is the only list of them. The build script, `config/shipped.rs` and
// `policy/generation/shipped.rs` include it, each with its own `shipped_policies!`.
shipped_policies! {
    LeastUsed "least-used" Balancer,
    RoundRobin "round-robin" Balancer,
    Random "random" Balancer,
    Fallback "fallback" Balancer,
    StandardHeaders "standard-headers" Rewriter,
    OpenaiPricing "openai-pricing" Pricer,
}
