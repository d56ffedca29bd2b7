//! What a response costs.

use serde_json::json;
use tollgate_tests::upstream::{Reply, Usage};
use tollgate_tests::{over_both, turn};

use super::{check_used, next_row, open_rig};

#[derive(Clone)]
struct Priced {
    name: &'static str,
    reply: Reply,
    /// The requested model and tier.
    asked: (&'static str, Option<&'static str>),
    /// Nano-dollars and the context window.
    cost: (i64, i64),
}

impl Priced {
    fn new(
        name: &'static str,
        reply: Reply,
        model: &'static str,
        tier: Option<&'static str>,
        cost: i64,
        window: i64,
    ) -> Self {
        Self {
            name,
            reply,
            asked: (model, tier),
            cost: (cost, window),
        }
    }
}

fn with_usage(input: u64, cached: u64, output: u64) -> Reply {
    Reply::ok().usage(Usage {
        input,
        cached,
        output,
        cache_write: 0,
        reasoning: 0,
    })
}

/// Prices by model. The usual response has 1200 tokens in, 800 of them cached, and 150 out.
fn by_name() -> Vec<Priced> {
    vec![
        Priced::new(
            "as listed",
            Reply::ok(),
            "gpt-5.4",
            None,
            3_450_000,
            272_000,
        ),
        Priced::new(
            "a dated name is its family's",
            Reply::ok(),
            "gpt-5.4-2026-03-05",
            None,
            3_450_000,
            272_000,
        ),
        Priced::new(
            "a longer name wins",
            Reply::ok(),
            "gpt-5.1-codex-mini-2026-01-01",
            None,
            420_000,
            272_000,
        ),
        Priced::new(
            "pro is another model",
            Reply::ok(),
            "gpt-5.4-pro",
            None,
            63_000_000,
            272_000,
        ),
        Priced::new(
            "gpt-4o",
            Reply::ok(),
            "gpt-4o-2024-08-06",
            None,
            3_500_000,
            272_000,
        ),
        Priced::new("o3-mini", Reply::ok(), "o3-mini", None, 1_540_000, 272_000),
        Priced::new(
            "the model that answered",
            Reply::ok().model("gpt-5-nano-2025-08-07"),
            "gpt-5.4",
            None,
            84_000,
            272_000,
        ),
    ]
}

fn by_tier() -> Vec<Priced> {
    vec![
        Priced::new(
            "flex is half",
            Reply::ok(),
            "gpt-5.4",
            Some("flex"),
            1_725_000,
            272_000,
        ),
        Priced::new(
            "priority is double",
            Reply::ok(),
            "gpt-5.4",
            Some("priority"),
            6_900_000,
            272_000,
        ),
        Priced::new(
            "auto is default",
            Reply::ok(),
            "gpt-5.4",
            Some("auto"),
            3_450_000,
            272_000,
        ),
        Priced::new(
            "scale is default",
            Reply::ok(),
            "gpt-5.4",
            Some("scale"),
            3_450_000,
            272_000,
        ),
        Priced::new(
            "an unknown tier is default",
            Reply::ok(),
            "gpt-5.4",
            Some("platinum"),
            3_450_000,
            272_000,
        ),
        Priced::new(
            "the tier that was charged",
            Reply::ok().service_tier("default"),
            "gpt-5.4",
            Some("flex"),
            3_450_000,
            272_000,
        ),
    ]
}

fn by_length() -> Vec<Priced> {
    vec![
        Priced::new(
            "up to 272,000",
            with_usage(272_000, 0, 100),
            "gpt-5.4",
            None,
            681_500_000,
            272_000,
        ),
        Priced::new(
            "past it",
            with_usage(272_001, 1, 100),
            "gpt-5.4",
            None,
            1_362_250_500,
            1_050_000,
        ),
        Priced::new(
            "past it without a long price",
            with_usage(300_000, 0, 0),
            "gpt-5",
            None,
            375_000_000,
            272_000,
        ),
    ]
}

over_both!(a_response_costs_what_its_model_tier_and_length_cost);
async fn a_response_costs_what_its_model_tier_and_length_cost() {
    let cases = [by_name(), by_tier(), by_length()].concat();
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
