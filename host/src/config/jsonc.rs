//! Reads JSON with comments and trailing commas. It knows nothing of what the configuration means.
//! Apart from these extensions the text must be strict JSON; an error names the place and what was
//! expected there, and never quotes the text, which may contain secrets.

use std::borrow::Cow;
use std::fmt;

use jsonc_parser::errors::{ParseError, ParseErrorKind};
use jsonc_parser::tokens::Token;
use jsonc_parser::{
    ParseOptions, ParseStringErrorKind, Scanner, ScannerOptions, parse_to_serde_value,
};
use serde_json::Value;

use crate::values::limits::CONFIG_DEPTH;

const OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: false,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

const SCANNER_OPTIONS: ScannerOptions = ScannerOptions {
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// A text that is not JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SyntaxError {
    /// There is no value in it.
    Empty { found: &'static str },
    /// The first mistake. Lines and columns count from 1.
    At {
        line: usize,
        column: usize,
        expected: String,
    },
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty { found } => write!(f, "expected a JSON object, found {found}"),
            Self::At {
                line,
                column,
                expected,
            } => write!(f, "line {line} column {column}: {expected}"),
        }
    }
}

/// Reads `text`, which may begin with a byte order mark. Comments begin with `//` or `#`, or are
/// between `/*` and `*/`. If an object has a key twice, the last one counts.
pub(super) fn parse(text: &str) -> Result<Value, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(SyntaxError::Empty {
            found: "an empty file",
        });
    }
    let text = blank_hash_comments(text);
    check_tokens(&text)?;
    parse_to_serde_value(&text, &OPTIONS).map_err(|error| syntax_error(&error))
}

/// Replaces comments that begin with `#` by spaces: sing-box reads them, `jsonc-parser` does not.
/// The lines and columns of everything else stay the same.
fn blank_hash_comments(text: &str) -> Cow<'_, str> {
    if !text.contains('#') {
        return Cow::Borrowed(text);
    }
    let mut blanked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(['"', '/', '#']) {
        let (before, from_start) = rest.split_at(start);
        let length = match &from_start.as_bytes()[..2.min(from_start.len())] {
            [b'"', ..] => string_length(from_start),
            b"//" => line_length(from_start),
            b"/*" => from_start[2..]
                .find("*/")
                .map_or(from_start.len(), |end| end + 4),
            [b'#', ..] => line_length(from_start),
            _ => 1,
        };
        blanked.push_str(before);
        let (item, after) = from_start.split_at(length);
        if item.starts_with('#') {
            blanked.extend(item.chars().map(|_| ' '));
        } else {
            blanked.push_str(item);
        }
        rest = after;
    }
    blanked.push_str(rest);
    Cow::Owned(blanked)
}

/// The length of the string at the beginning of `text`, with its quotes. Without a closing quote it
/// is all of `text`.
fn string_length(text: &str) -> usize {
    let mut escaped = true;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

fn line_length(text: &str) -> usize {
    text.find(['\n', '\r']).unwrap_or(text.len())
}

/// Checks what the parser does not: how deep the text is nested, so that neither parser nor
/// validation overflows its stack, and that no string contains a control character, such as the
/// line break after a forgotten quote. It stops at what is not a token, which the parser reports.
fn check_tokens(text: &str) -> Result<(), SyntaxError> {
    let mut scanner = Scanner::new(text, &SCANNER_OPTIONS);
    let mut depth = 0_usize;
    let mut has_value = false;
    loop {
        let Ok(token) = scanner.scan() else {
            return Ok(());
        };
        let start = scanner.token_start();
        match token {
            None if has_value => return Ok(()),
            None => {
                return Err(SyntaxError::Empty {
                    found: "only comments",
                });
            }
            Some(Token::CommentLine(_) | Token::CommentBlock(_)) => continue,
            Some(Token::OpenBrace | Token::OpenBracket) => depth += 1,
            Some(Token::CloseBrace | Token::CloseBracket) => depth = depth.saturating_sub(1),
            Some(Token::String(_)) => check_string(text, start, scanner.token_end())?,
            Some(
                Token::Comma
                | Token::Colon
                | Token::Boolean(_)
                | Token::Number(_)
                | Token::Null
                | Token::Word(_),
            ) => {}
        }
        has_value = true;
        if depth > CONFIG_DEPTH {
            let expected = format!("expected at most {CONFIG_DEPTH} levels of nesting, found more");
            return Err(error_at(text, start, expected));
        }
    }
}

fn check_string(text: &str, start: usize, end: usize) -> Result<(), SyntaxError> {
    let control = text[start..end].find(|c: char| c < ' ');
    control.map_or(Ok(()), |offset| {
        let expected = "expected a closing quote, found a control character";
        Err(error_at(text, start + offset, expected.to_owned()))
    })
}

fn error_at(text: &str, offset: usize, expected: String) -> SyntaxError {
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    SyntaxError::At {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        expected,
    }
}

fn syntax_error(error: &ParseError) -> SyntaxError {
    SyntaxError::At {
        line: error.line_display(),
        column: error.column_display(),
        expected: expectation(error.kind()).to_owned(),
    }
}

/// What was expected, in our words: the parser's own text may quote the file.
fn expectation(kind: &ParseErrorKind) -> &'static str {
    match kind {
        ParseErrorKind::ExpectedComma => "expected a comma or the end of the list or object",
        ParseErrorKind::ExpectedColonAfterObjectKey => "expected a colon after the key",
        ParseErrorKind::ExpectedObjectValue => "expected a value after the colon",
        ParseErrorKind::ExpectedStringObjectProperty | ParseErrorKind::UnexpectedTokenInObject => {
            "expected a key in double quotes or the end of the object"
        }
        ParseErrorKind::SingleQuotedStringsNotAllowed => {
            "expected double quotes, found a single quote"
        }
        ParseErrorKind::String(ParseStringErrorKind::UnterminatedStringLiteral) => {
            "expected a closing quote, found the end of the file"
        }
        ParseErrorKind::String(_) => "expected a string with valid escapes",
        ParseErrorKind::MultipleRootJsonValues => {
            "expected the end of the file after the JSON object, found more"
        }
        ParseErrorKind::UnterminatedArray => "expected the end of the list, found the end of the file",
        ParseErrorKind::UnterminatedObject => {
            "expected the end of the object, found the end of the file"
        }
        ParseErrorKind::UnterminatedCommentBlock => {
            "expected the end of the comment, found the end of the file"
        }
        ParseErrorKind::BareDecimalPointNumbersNotAllowed
        | ParseErrorKind::ExpectedDigit
        | ParseErrorKind::ExpectedDigitFollowingNegativeSign
        | ParseErrorKind::ExpectedPlusMinusOrDigitInNumberLiteral
        | ParseErrorKind::HexadecimalNumbersNotAllowed
        | ParseErrorKind::NonFiniteNumbersNotAllowed
        | ParseErrorKind::UnaryPlusNumbersNotAllowed
        // The parser uses this kind only for numbers out of range.
        | ParseErrorKind::Custom(_) => "expected a number in the form of JSON",
        ParseErrorKind::NestingDepthExceeded => "expected fewer levels of nesting",
        ParseErrorKind::CommentsNotAllowed
        | ParseErrorKind::TrailingCommasNotAllowed
        | ParseErrorKind::UnexpectedCloseBrace
        | ParseErrorKind::UnexpectedCloseBracket
        | ParseErrorKind::UnexpectedColon
        | ParseErrorKind::UnexpectedComma
        | ParseErrorKind::UnexpectedToken
        | ParseErrorKind::UnexpectedWord => "expected a JSON value, found something else",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        let error = parse(text).expect_err("the text is not JSON");
        assert_eq!(error.to_string(), expected, "{text:.60?}");
    }

    #[test]
    fn comments_and_trailing_commas_are_read() {
        let text = "\u{feff}# one \"\n{ // two\n \"a#\": \"\\\"#//\", /* # */ \"b\": [1, 2,], # three é\n}";
        assert_eq!(parse(text), Ok(json!({ "a#": "\"#//", "b": [1, 2] })));
    }

    #[test]
    fn of_two_equal_keys_the_last_counts() {
        assert_eq!(parse(r#"{"a": 1, "a": 2}"#), Ok(json!({ "a": 2 })));
    }

    #[test]
    fn other_extensions_of_json_are_errors() {
        for text in [
            "{a: 1}",
            "{'a': 1}",
            "[1 2]",
            "[0x1]",
            "[+1]",
            "[.5]",
            "[5.]",
            "[NaN]",
            "[1e400]",
            r#"["\x41"]"#,
            "[,]",
            "[1,,2]",
            "[tru]",
            "{\"a\": 1}{}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_names_its_place_and_what_was_expected() {
        check_error("", "expected a JSON object, found an empty file");
        check_error(" // x\n#y", "expected a JSON object, found only comments");
        check_error(
            "{\n  # ä\n  \"a\" 1}",
            "line 3 column 7: expected a colon after the key",
        );
        check_error(
            "{\"a\": \"secret\n\"}",
            "line 1 column 14: expected a closing quote, found a control character",
        );
        check_error(
            "{\"a\": 1 /* x",
            "line 1 column 9: expected the end of the comment, found the end of the file",
        );
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_stack_overflow() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(CONFIG_DEPTH)).is_ok());
        for text in [nested(CONFIG_DEPTH + 1), "[".repeat(100_000)] {
            check_error(
                &text,
                "line 1 column 129: expected at most 128 levels of nesting, found more",
            );
        }
        check_error(
            &"{\"a\":".repeat(100_000),
            "line 1 column 641: expected at most 128 levels of nesting, found more",
        );
    }

    #[test]
    fn no_error_quotes_the_text() {
        for text in [
            "secret",
            "{secret: 1}",
            "{\"a\": secret}",
            "{\"a\": \"secret",
            "{\"a\": \"secret\\q\"}",
            "{\"a\": \"\\uD800secret\"}",
            "[\"secret\" \"secret\"]",
            "/* secret",
            "{} secret",
        ] {
            let error = parse(text).expect_err("the text is not JSON");
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{error:?}"
            );
        }
    }
}
