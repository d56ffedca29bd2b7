use jiff::tz::TimeZone;

use super::json::week_name;
use super::*;
use crate::values::exchange::money::NanoUsd;

fn usage(user: Option<&'static str>, cost: u64) -> ResponseUsage<'static> {
    ResponseUsage {
        model: "gpt-5.4",
        service_tier: "auto",
        context_window: Some(272_000),
        week_start_unix: Some(1_767_225_600),
        user,
        requests: 1,
        input: 100,
        cached: 40,
        output: 10,
        cost: NanoUsd(cost),
    }
}

#[test]
fn the_file_has_the_shape_that_sing_box_writes() {
    let mut sums = UsageSums::default();
    sums.add(&usage(Some("alice"), 1_500_000_000));
    sums.add(&usage(None, 500_000_000));
    let json: serde_json::Value =
        serde_json::from_str(&sums.to_json_in(&TimeZone::UTC, Timestamp(0))).expect("JSON");
    let week = "2026-01-01 00:00:00 UTC+0";
    assert_eq!(
        json,
        serde_json::json!({
            "last_updated": "1970-01-01T00:00:00Z",
            "costs": {
                "total_usd": 2.0,
                "by_user": {"alice": 1.5},
                "by_week": {week: 2.0},
                "by_user_and_week": {"alice": {week: 1.5}},
            },
            "combinations": [{
                "model": "gpt-5.4", "service_tier": "default", "context_window": 272_000,
                "week_start_unix": 1_767_225_600,
                "total": {"request_count": 2, "input_tokens": 200, "output_tokens": 20, "cached_tokens": 80,
                    "cost_usd": 2.0},
                "by_user": {"alice": {"request_count": 1, "input_tokens": 100, "output_tokens": 10,
                    "cached_tokens": 40, "cost_usd": 1.5}},
            }],
        })
    );
}

#[test]
fn what_is_no_request_counts_with_its_tokens_and_cost() {
    let mut sums = UsageSums::default();
    sums.add(&usage(None, 2));
    sums.add(&ResponseUsage {
        requests: 0,
        ..usage(None, 3)
    });
    let (_, combined) = sums.combinations().iter().next().expect("a combination");
    let total = &combined.total;
    assert_eq!(
        (total.requests, total.input, total.output, total.cost),
        (1, 200, 20, NanoUsd(5))
    );
}

#[test]
fn a_week_is_named_by_its_local_start_and_the_zones_offset() {
    for (zone, name) in [
        ("UTC0", "2026-11-26 14:06:27 UTC+0"),
        ("IST-5:30", "2026-11-26 19:36:27 UTC+5:30"),
        ("CET-1", "2026-11-26 15:06:27 UTC+1"),
        ("EST5", "2026-11-26 09:06:27 UTC-5"),
        ("NST3:30", "2026-11-26 10:36:27 UTC-3:30"),
    ] {
        let zone = TimeZone::posix(zone).expect("a POSIX time zone");
        assert_eq!(week_name(1_795_701_987, &zone), name);
    }
}

/// Returns the requests, input and output tokens of the only combination of `file`.
#[track_caller]
fn parsed_total(file: &serde_json::Value) -> (u64, u64, u64) {
    let sums = UsageSums::parse(file.to_string().as_bytes()).expect("a usage file");
    let (_, combined) = sums.combinations().iter().next().expect("a combination");
    let total = &combined.total;
    (total.requests, total.input, total.output)
}

#[test]
fn files_of_every_age_are_read() {
    let total = |total: serde_json::Value| {
        serde_json::json!({
            "last_updated": "2025-11-26T19:36:27.5+05:30",
            "costs": {"total_usd": 1, "by_user": null, "by_week": {"2025-11-20 00:00:00 UTC+5:30": 1,
                "2025-11-20T00:00:00Z": 1}, "by_user_and_week": null},
            "combinations": [{"model": "gpt-5", "total": total, "by_user": null}],
        })
    };
    let old = serde_json::json!({"request_count": 2, "prompt_tokens": 30, "completion_tokens": 4});
    assert_eq!(parsed_total(&total(old)), (2, 30, 4));
    let new = serde_json::json!({"request_count": 2, "input_tokens": 50, "output_tokens": 6, "prompt_tokens": 1});
    assert_eq!(parsed_total(&total(new)), (2, 50, 6));
    let empty = UsageSums::parse(br#"{"combinations": null}"#).expect("a usage file");
    assert_eq!(empty, UsageSums::default());
    assert!(UsageSums::parse(b"{}").is_err(), "it may be any JSON file");
}

#[test]
fn a_file_read_back_is_the_same_to_the_nano_dollar() {
    let mut sums = UsageSums::default();
    for cost in [1, 333_333_333, 123_456_789_012] {
        sums.add(&usage(Some("alice"), cost));
    }
    assert_eq!(
        UsageSums::parse(sums.to_json(Timestamp(0)).as_bytes()).expect("its own text"),
        sums
    );
}

#[test]
fn a_broken_file_is_moved_aside() {
    let folder = std::env::temp_dir().join(format!("tollgate-usage-{}", uuid::Uuid::new_v4()));
    fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("usages.json");
    fs::write(&path, "{\"combinations\": 5}").expect("writes");
    let Ok(UsageFileContent::Broken { kept, .. }) = read(&path, Timestamp::from_unix(7)) else {
        panic!("not broken")
    };
    assert!(kept.to_string_lossy().ends_with("usages.json.broken-7"));
    assert_eq!(
        fs::read_to_string(kept).expect("kept"),
        "{\"combinations\": 5}"
    );
    assert!(matches!(
        read(&path, Timestamp(0)),
        Ok(UsageFileContent::Missing)
    ));
    fs::remove_dir_all(folder).expect("removes");
}
