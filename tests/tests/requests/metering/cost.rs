//! What a response costs.

use serde_json::json;
use tollgate_tests::upstream::{Reply, Usage};
use tollgate_tests::{over_both, turn};

use super::{check_used, next_row, open_rig};

struct Priced {
    name: &'static str,
    reply: Reply,
    /// The requested model and tier.
    asked: (&'static str, Option<&'static str>),
    /// Nano-dollars and the context window.
    cost: (i64, i64),
}

over_both!(a_response_costs_what_its_model_tier_and_length_cost);
async fn a_response_costs_what_its_model_tier_and_length_cost() {
    // 1200 in, 800 of them cached, and 150 out.
    let usual = || Reply::ok();
    let of = |input: u64, cached: u64, output: u64| {
        Reply::ok().usage(Usage {
            input,
            cached,
            output,
            cache_write: 0,
            reasoning: 0,
        })
    };
    let case = |name, reply, model, tier, cost, window| Priced {
        name,
        reply,
        asked: (model, tier),
        cost: (cost, window),
    };
    let cases = [
        case("as listed", usual(), "gpt-5.4", None, 3_450_000, 272_000),
        case(
            "a dated name is its family's",
            usual(),
            "gpt-5.4-2026-03-05",
            None,
            3_450_000,
            272_000,
        ),
        case(
            "flex is half",
            usual(),
            "gpt-5.4",
            Some("flex"),
            1_725_000,
            272_000,
        ),
        case(
            "priority is double",
            usual(),
            "gpt-5.4",
            Some("priority"),
            6_900_000,
            272_000,
        ),
        case(
            "auto is default",
            usual(),
            "gpt-5.4",
            Some("auto"),
            3_450_000,
            272_000,
        ),
        case(
            "scale is default",
            usual(),
            "gpt-5.4",
            Some("scale"),
            3_450_000,
            272_000,
        ),
        case(
            "an unknown tier is default",
            usual(),
            "gpt-5.4",
            Some("platinum"),
            3_450_000,
            272_000,
        ),
        case(
            "up to 272,000",
            of(272_000, 0, 100),
            "gpt-5.4",
            None,
            681_500_000,
            272_000,
        ),
        case(
            "past it",
            of(272_001, 1, 100),
            "gpt-5.4",
            None,
            1_362_250_500,
            1_050_000,
        ),
        case(
            "past it without a long price",
            of(300_000, 0, 0),
            "gpt-5",
            None,
            375_000_000,
            272_000,
        ),
        case(
            "a longer name wins",
            usual(),
            "gpt-5.1-codex-mini-2026-01-01",
            None,
            420_000,
            272_000,
        ),
        case(
            "pro is another model",
            usual(),
            "gpt-5.4-pro",
            None,
            63_000_000,
            272_000,
        ),
        case(
            "gpt-4o",
            usual(),
            "gpt-4o-2024-08-06",
            None,
            3_500_000,
            272_000,
        ),
        case("o3-mini", usual(), "o3-mini", None, 1_540_000, 272_000),
        case(
            "the model that answered",
            usual().model("gpt-5-nano-2025-08-07"),
            "gpt-5.4",
            None,
            84_000,
            272_000,
        ),
        case(
            "the tier that was charged",
            usual().service_tier("default"),
            "gpt-5.4",
            Some("flex"),
            3_450_000,
            272_000,
        ),
    ];
    let (mut rig, client, account) = open_rig().await;
    for (place, case) in cases.into_iter().enumerate() {
        account.then(case.reply);
        let mut body = turn("one");
        body["model"] = json!(case.asked.0);
        if let Some(tier) = case.asked.1 {
            body["service_tier"] = json!(tier);
        }
        client.turn(&body).await;
        let row = next_row(&rig, place).await;
        let found = (row.number("cost_nanousd"), row.number("context_window"));
        assert_eq!(
            found,
            (Some(case.cost.0), Some(case.cost.1)),
            "{}",
            case.name
        );
        assert_eq!(row.text("unpriced_reason"), None, "{}", case.name);
    }
    rig.stop().await;
}

over_both!(an_unknown_model_is_unpriced_never_free);
async fn an_unknown_model_is_unpriced_never_free() {
    let (mut rig, client, _) = open_rig().await;
    for (place, model) in ["gpt-99", "gpt-99-2026-01-01", "unheard-of"]
        .into_iter()
        .enumerate()
    {
        let mut body = turn("one");
        body["model"] = json!(model);
        client.turn(&body).await;
        let row = next_row(&rig, place).await;
        assert_eq!(row.number("cost_nanousd"), None, "{model}");
        assert!(
            row.text("unpriced_reason")
                .is_some_and(|reason| reason.contains(model)),
            "{model}"
        );
        check_used(model, &row, Usage::default());
    }
    rig.stop().await;
}
