//! `--help`: the texts of every command.

use super::*;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/help")
}

#[track_caller]
fn check(name: &str, args: &[&str]) {
    let said = tollgate(folder().path(), args);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let path = cases().join(name);
    if std::env::var_os("UPDATE_CASES").is_some() {
        fs::write(&path, &said.stdout).expect("the case can be written");
    }
    let expected =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(said.stdout, expected, "{}", path.display());
}

/// The commands that the help of `args` names, without `help`.
fn commands(args: &[&str]) -> Vec<String> {
    let said = tollgate(folder().path(), args);
    let list = said
        .stdout
        .split("Commands:\n")
        .nth(1)
        .expect("commands are listed");
    let names = list
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn of_the_program_is_as_expected() {
    check("tollgate.txt", &["--help"]);
    check("tollgate.txt", &["help"]);
}

#[test]
fn of_every_command_is_as_expected() {
    let commands = commands(&["--help"]);
    for wanted in [
        "run",
        "check",
        "status",
        "usage",
        "policy",
        "explain",
        "version",
        "config-schema",
        "health",
        "completions",
        "man",
    ] {
        assert!(
            commands.contains(&wanted.to_owned()),
            "{wanted} is not among {commands:?}"
        );
    }
    for name in commands {
        check(&format!("{name}.txt"), &[&name, "--help"]);
        check(&format!("{name}.txt"), &["help", &name]);
    }
}

#[test]
fn of_every_policy_command_is_as_expected() {
    for name in commands(&["policy", "--help"]) {
        check(&format!("policy-{name}.txt"), &["policy", &name, "--help"]);
        check(&format!("policy-{name}.txt"), &["policy", "help", &name]);
    }
}

#[test]
fn fits_a_page_of_100_columns() {
    for entry in fs::read_dir(cases()).expect("the cases are there") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a case can be read");
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{}",
            path.display()
        );
    }
}
