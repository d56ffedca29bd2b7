//! The Helm chart: what its templates say and which values they use.

use std::collections::BTreeSet;

use super::{check_grace_period, deploy};

const TEMPLATES: [&str; 5] = [
    "NOTES.txt",
    "claim.yaml",
    "deployment.yaml",
    "secret.yaml",
    "service.yaml",
];

fn template(name: &str) -> String {
    deploy(&format!("helm/tollgate/templates/{name}"))
}

/// Returns the paths of the values that the chart declares, such as `image.tag`.
fn declared() -> BTreeSet<String> {
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut paths = BTreeSet::new();
    for line in deploy("helm/tollgate/values.yaml").lines() {
        let text = line.trim_start();
        let Some((key, _)) = text.split_once(':') else {
            continue;
        };
        if text.starts_with(['#', '-']) {
            continue;
        }
        let indent = line.len() - text.len();
        above.retain(|(outer, _)| *outer < indent);
        let path = match above.last() {
            Some((_, outer)) => format!("{outer}.{key}"),
            None => key.to_owned(),
        };
        paths.insert(path.clone());
        above.push((indent, path));
    }
    paths
}

/// Returns the paths of the values that the templates use.
fn used() -> BTreeSet<String> {
    let is_of_path = |letter: char| letter.is_ascii_alphanumeric() || letter == '.';
    let mut paths = BTreeSet::new();
    for name in TEMPLATES {
        let text = template(name);
        for rest in text.split(".Values.").skip(1) {
            let end = rest.find(|letter: char| !is_of_path(letter));
            paths.insert(rest[..end.unwrap_or(rest.len())].to_owned());
        }
    }
    paths
}

/// Whether `path` leads to `whole` or to a part of it.
fn is_part_of(path: &str, whole: &str) -> bool {
    let rest = path.strip_prefix(whole);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Returns the value of `key` on the first line that has it, quoted as it is there.
#[track_caller]
fn value(text: &str, key: &str) -> String {
    let prefix = format!("{key}: ");
    let found = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(&prefix));
    let value = found.unwrap_or_else(|| panic!("no {key}"));
    value.split("  #").next().unwrap_or(value).to_owned()
}

#[track_caller]
fn number(text: &str, key: &str) -> u64 {
    value(text, key).parse().expect("a number")
}

#[test]
fn the_templates_use_every_value_and_no_other() {
    let (declared, used) = (declared(), used());
    let unknown: Vec<&String> = used.difference(&declared).collect();
    assert!(unknown.is_empty(), "not in values.yaml: {unknown:?}");
    let is_used = |path: &String| {
        used.iter()
            .any(|used| is_part_of(path, used) || is_part_of(used, path))
    };
    let unused: Vec<&String> = declared.iter().filter(|path| !is_used(path)).collect();
    assert!(unused.is_empty(), "in no template: {unused:?}");
}

#[test]
fn uninstalling_the_chart_keeps_the_volume() {
    let claim = template("claim.yaml");
    let (metadata, _) = claim.split_once("\nspec:").expect("a specification");
    assert_eq!(
        value(metadata, "annotations"),
        "{ helm.sh/resource-policy: keep }"
    );
}

#[test]
fn the_chart_chooses_no_image_and_no_token() {
    let values = deploy("helm/tollgate/values.yaml");
    assert_eq!(value(&values, "repository"), "\"\"");
    assert_eq!(value(&values, "services"), "[]");
    let image = value(&template("deployment.yaml"), "image");
    assert!(image.contains("required \"image.repository is"), "{image}");
    let secret = template("secret.yaml");
    let (condition, _) = secret.split_once("{{- fail ").expect("a failure");
    assert!(
        condition.ends_with("{{- if not .Values.config.services }}\n"),
        "{condition}"
    );
}

#[test]
fn a_service_may_have_another_port_than_its_container() {
    let range = "{{- range .Values.service.ports }}\n";
    let (service, deployment) = (template("service.yaml"), template("deployment.yaml"));
    for (text, line) in [
        (
            &service,
            "- { name: {{ .name }}, port: {{ .port }}, targetPort: {{ .name }} }\n",
        ),
        (
            &deployment,
            "- { name: {{ .name }}, containerPort: {{ .targetPort }} }\n",
        ),
    ] {
        let (_, ports) = text.split_once(range).expect("the ports");
        assert!(ports.trim_start().starts_with(line), "{ports}");
    }
}

#[test]
fn certificates_can_be_mounted() {
    let deployment = template("deployment.yaml");
    for (list, lists) in [
        ("\n          volumeMounts:\n", "extraVolumeMounts"),
        ("\n      volumes:\n", "extraVolumes"),
    ] {
        let (_, rest) = deployment.split_once(list).expect(list);
        let with = format!("{{{{- with .Values.{lists} }}}}\n");
        let (before, after) = rest.split_once(&with).expect(lists);
        assert!(after.trim_start().starts_with("{{- toYaml . | nindent "));
        let indent = list.len() - list.trim_start().len() - 1;
        let is_in_list = |line: &str| line.len() - line.trim_start().len() > indent;
        assert!(before.lines().all(is_in_list), "{lists} is elsewhere");
    }
}

#[test]
fn a_slow_start_is_not_killed() {
    let deployment = template("deployment.yaml");
    let probe = |name: &str| {
        let (_, rest) = deployment
            .split_once(&format!("{name}Probe:\n"))
            .unwrap_or_else(|| panic!("no {name} probe"));
        let lines: Vec<&str> = rest
            .lines()
            .take_while(|line| line.starts_with("            "))
            .collect();
        lines.join("\n")
    };
    let startup = probe("startup");
    assert!(value(&startup, "exec").contains("health, --live,"));
    let seconds = number(&startup, "periodSeconds") * number(&startup, "failureThreshold");
    assert!(seconds >= 300, "{seconds} seconds for the start");
    for name in ["startup", "readiness", "liveness"] {
        // Each runs a new process, on a busy machine.
        assert!(number(&probe(name), "timeoutSeconds") >= 5, "{name}");
    }
}

#[test]
fn a_pod_has_time_to_end() {
    let values = deploy("helm/tollgate/values.yaml");
    check_grace_period(&value(&values, "terminationGracePeriodSeconds"));
}

#[test]
fn a_mount_of_the_volume_changes_no_modes() {
    let deployment = template("deployment.yaml");
    assert_eq!(
        value(&deployment, "fsGroupChangePolicy"),
        "OnRootMismatch",
        "modes of files become wider with each start"
    );
    let readme = deploy("README.md");
    let (_, login) = readme.split_once("kubectl run login").expect("a login pod");
    let (login, _) = login.split_once("```").expect("its end");
    assert!(login.contains("\"runAsUser\": 65532"), "{login}");
    assert!(!login.contains("fsGroup"), "{login}");
}
