//! The tokens of a login, made and written as OpenAI and Codex do. Knows nothing of which are
//! accepted. Invariant: no two tokens made by a process are equal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::accounts::account::Account;

const DAY_SECONDS: u64 = 24 * 60 * 60;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// The tokens of one sign-in or refresh.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) id_token: String,
    pub(crate) access_token: String,
    pub(crate) refresh_token: String,
}

impl Tokens {
    /// Creates new ones whose access token expires at this Unix second.
    pub(crate) fn new(account: &Account, expires_at: i64) -> Self {
        Tokens {
            id_token: jwt(claims(account)),
            access_token: access_token(account, expires_at),
            refresh_token: format!("rt-{}-{}", account.id(), next_number()),
        }
    }

    /// Returns auth.json as Codex writes it, refreshed just now.
    pub(crate) fn auth_json(&self, account: &Account) -> Value {
        json!({
            "OPENAI_API_KEY": null,
            "tokens": {
                "id_token": self.id_token,
                "access_token": self.access_token,
                "refresh_token": self.refresh_token,
                "account_id": account.id(),
            },
            "last_refresh": rfc3339_now(),
        })
    }
}

/// Creates an access token that expires at this Unix second.
pub(crate) fn access_token(account: &Account, expires_at: i64) -> String {
    let mut claims = claims(account);
    claims["exp"] = json!(expires_at);
    jwt(claims)
}

/// The claims that both JWTs have about their owner, and a unique number.
fn claims(account: &Account) -> Value {
    json!({
        "jti": next_number(),
        "email": format!("{}@example.com", account.id()),
        "https://api.openai.com/auth": {
            "chatgpt_plan_type": account.standing().plan,
            "chatgpt_account_id": account.id(),
        },
    })
}

fn next_number() -> u64 {
    NEXT_NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Encodes a token in the form of a JWT; its signature is just a word.
fn jwt(claims: Value) -> String {
    [
        r#"{"alg":"none","typ":"JWT"}"#,
        &claims.to_string(),
        "scripted",
    ]
    .map(base64url)
    .join(".")
}

/// RFC 4648, section 5, without padding.
fn base64url(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut encoded = String::new();
    for group in text.as_bytes().chunks(3) {
        let mut bytes = [0; 4];
        bytes[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bytes);
        let letters =
            [18, 12, 6, 0].map(|shift| char::from(LETTERS[(bits >> shift & 63) as usize]));
        encoded.extend(&letters[..=group.len()]);
    }
    encoded
}

/// Returns the current time, with nanoseconds and `Z`.
fn rfc3339_now() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    let (year, month, day) = date(now.as_secs() / DAY_SECONDS);
    let second = now.as_secs() % DAY_SECONDS;
    let (hour, minute, second, nanos) = (
        second / 3600,
        second / 60 % 60,
        second % 60,
        now.subsec_nanos(),
    );
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month and day of a day counted from 1970-01-01: `civil_from_days` of Howard Hinnant's
/// "chrono-Compatible Low-Level Date Algorithms", whose years begin in March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_that_of_the_rfc() {
        let encoded = ["", "f", "fo", "foo", "foob", "fooba", "foobar", "~~?"].map(base64url);
        assert_eq!(
            encoded,
            [
                "", "Zg", "Zm8", "Zm9v", "Zm9vYg", "Zm9vYmE", "Zm9vYmFy", "fn4_"
            ]
        );
    }

    #[test]
    fn days_have_their_dates() {
        for (day, expected) in [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_453, (2025, 12, 31)),
            (20_454, (2026, 1, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(day), expected, "day {day}");
        }
    }
}
