//! `tollgate config-schema`.

use super::*;

fn printed() -> Value {
    let said = tollgate(folder().path(), &["config-schema"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    serde_json::from_str(&said.stdout).expect("the schema is JSON")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn example(name: &str) -> Value {
    let text = fs::read_to_string(root().join("examples/configs").join(name))
        .expect("the example is there");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let mut text = lines.join("\n");
    // JSON has no trailing commas; the examples have each before a line that closes.
    while let Some(at) = trailing_comma(&text) {
        text.remove(at);
    }
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn trailing_comma(text: &str) -> Option<usize> {
    text.match_indices(',')
        .map(|(at, _)| at)
        .find(|at| text[at + 1..].trim_start().starts_with(['}', ']']))
}

#[test]
fn equals_the_committed_file() {
    let path = root().join("host/config.schema.json");
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let printed = tollgate(folder().path(), &["config-schema"]).stdout;
    assert!(
        kept == printed,
        "write it again: cargo run -p tollgate -- config-schema > host/config.schema.json"
    );
}

#[test]
fn is_a_json_schema_that_names_its_draft() {
    let schema = printed();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    jsonschema::meta::validate(&schema).expect("a JSON Schema");
    jsonschema::validator_for(&schema).expect("a JSON Schema that can be used");
}

#[test]
fn accepts_the_examples() {
    let validator = jsonschema::validator_for(&printed()).expect("a JSON Schema");
    for name in ["single.json", "users.json", "team.json", "full.jsonc"] {
        let problems: Vec<String> = validator
            .iter_errors(&example(name))
            .map(|error| error.to_string())
            .collect();
        assert!(problems.is_empty(), "{name}: {problems:?}");
    }
}

#[test]
fn refuses_what_the_gateway_refuses() {
    let validator = jsonschema::validator_for(&printed()).expect("a JSON Schema");
    let service = |fields: Value| json!({ "services": [fields] });
    for case in [
        json!([]),
        json!({ "servces": [] }),
        service(json!({ "type": "ocn" })),
        service(json!({ "type": "ocm", "listen_port": 70000 })),
        service(json!({ "type": "ocm", "credentials": [{ "tag": "a", "reserve_5h": 100 }] })),
        service(json!({ "type": "ocm", "users": [{ "name": "alice", "token": 5 }] })),
        json!({ "policies": [{ "tag": "p", "kind": "judge" }] }),
        json!({ "limits": { "drain_timeout": "30" } }),
    ] {
        assert!(!validator.is_valid(&case), "{case}");
    }
}

#[test]
fn describes_every_field() {
    let schema = printed();
    let forms = schema["$defs"].as_object().expect("forms").iter();
    let silent: Vec<String> = forms
        .filter_map(|(name, form)| Some((name, form["properties"].as_object()?)))
        .flat_map(|(name, fields)| {
            fields
                .iter()
                .map(move |(field, about)| (format!("{name}.{field}"), about))
        })
        .filter(|(_, about)| about["description"].as_str().is_none_or(str::is_empty))
        .map(|(name, _)| name)
        .collect();
    assert!(silent.is_empty(), "{silent:?}");
}
