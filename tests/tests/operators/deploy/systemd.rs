//! The systemd unit and its user.

use std::fs;
use std::process::Command;

use tempfile::tempdir;
use tollgate_tests::binary;

use super::{check_grace_period, deploy};

/// Returns the values that the unit gives `key`, in the order of the file.
fn values(section: &str, key: &str) -> Vec<String> {
    let unit = deploy("tollgate.service");
    let (_, rest) = unit
        .split_once(&format!("\n[{section}]\n"))
        .unwrap_or_else(|| panic!("no section {section}"));
    rest.lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// Returns the value of a key of the service that has one.
#[track_caller]
fn value(key: &str) -> String {
    let mut values = values("Service", key);
    assert_eq!(values.len(), 1, "{key}: {values:?}");
    values.remove(0)
}

#[track_caller]
fn check_values(expected: &[(&str, &str)]) {
    for (key, expected) in expected {
        assert_eq!(value(key), *expected, "{key}");
    }
}

#[test]
fn systemd_understands_every_line_of_the_unit() {
    let folder = tempdir().expect("a folder");
    let unit = folder.path().join("tollgate.service");
    let text = deploy("tollgate.service")
        .replace("/usr/local/bin/tollgate", binary().to_str().expect("text"))
        .replace("Documentation=man:tollgate(1)\n", "")
        .replace("=tollgate\nGroup=tollgate\n", "=root\nGroup=root\n");
    fs::write(&unit, text).expect("a unit");
    let Ok(checked) = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
    else {
        eprintln!("systemd-analyze is not installed: the unit is not checked");
        return;
    };
    let said = String::from_utf8_lossy(&checked.stderr);
    let about_the_unit: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("tollgate.service"))
        .collect();
    assert!(about_the_unit.is_empty(), "{about_the_unit:#?}");
}

#[test]
fn the_service_manager_is_notified() {
    check_values(&[("Type", "notify"), ("NotifyAccess", "main")]);
    let watchdog: u64 = value("WatchdogSec").parse().expect("a number of seconds");
    assert!(watchdog >= 10, "a busy machine is no reason to end it");
}

#[test]
fn the_gateway_is_started_again_however_often_it_ends() {
    check_values(&[("Restart", "always")]);
    assert_eq!(values("Unit", "StartLimitIntervalSec"), ["0"]);
    let pause: u64 = value("RestartSec").parse().expect("a number of seconds");
    assert!(
        pause > 0,
        "a broken configuration takes the whole processor"
    );
}

#[test]
fn refreshes_and_requests_may_end_when_the_service_is_stopped() {
    check_values(&[("KillMode", "control-group")]);
    check_grace_period(&value("TimeoutStopSec"));
    assert!(values("Service", "KillSignal").is_empty());
}

#[test]
fn a_system_call_that_is_denied_is_an_error_and_not_the_end() {
    check_values(&[("SystemCallErrorNumber", "EPERM")]);
    assert_eq!(
        values("Service", "SystemCallFilter"),
        ["@system-service", "~@privileged"]
    );
}

#[test]
fn relative_paths_and_the_default_data_dir_are_in_the_state_folder() {
    let state = format!("/var/lib/{}", value("StateDirectory"));
    assert_eq!(value("WorkingDirectory"), state);
    let environment = value("Environment");
    let variables: Vec<&str> = environment.split(' ').collect();
    assert!(variables.contains(&format!("HOME={state}").as_str()));
    // Where the gateway adds its name.
    assert!(variables.contains(&"XDG_DATA_HOME=/var/lib"));
    assert!(state.ends_with("/tollgate"));
    check_values(&[("StateDirectoryMode", "0700"), ("UMask", "0077")]);
}

#[test]
fn the_service_has_a_user_without_rights() {
    let user = value("User");
    assert_eq!(value("Group"), user);
    let declared = deploy("tollgate.sysusers.conf");
    assert!(declared.contains(&format!("\nu {user} ")), "{declared}");
    check_values(&[
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateDevices", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ]);
    // Policies are compiled to machine code.
    assert!(values("Service", "MemoryDenyWriteExecute").is_empty());
}
