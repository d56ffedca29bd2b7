//! The image and the compose file.

use super::{check_grace_period, deploy, file};

/// The user of the image.
const USER: &str = "65532:65532";

/// Returns what follows `name` on each line that begins with it, without regard to indentation.
fn values<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix(name))
        .map(str::trim)
        .collect()
}

/// Returns the patterns of an ignore file.
fn patterns(text: &str) -> Vec<&str> {
    let is_pattern = |line: &&str| !line.is_empty() && !line.starts_with('#');
    text.lines().filter(is_pattern).collect()
}

/// Returns the pattern of a `.dockerignore` that ignores what one of the `.gitignore` in `folder`
/// does.
fn as_docker_pattern(folder: &str, pattern: &str) -> String {
    match pattern.strip_prefix('/') {
        Some(anchored) => format!("{folder}{anchored}"),
        None => format!("{folder}**/{pattern}"),
    }
}

#[test]
fn what_git_ignores_is_not_in_the_build_context() {
    let ignored = file(".dockerignore");
    let ignored = patterns(&ignored);
    assert!(ignored.contains(&".git"));
    for folder in ["", "fuzz/"] {
        for pattern in patterns(&file(&format!("{folder}.gitignore"))) {
            let expected = as_docker_pattern(folder, pattern);
            assert!(ignored.contains(&expected.as_str()), "{expected}");
        }
    }
}

#[test]
fn git_ignores_the_folder_that_compose_mounts_as_the_configuration() {
    let compose = deploy("compose.yaml");
    let mounts = values(&compose, "- ./");
    assert_eq!(mounts, ["config:/etc/tollgate:ro"]);
    assert!(patterns(&file(".gitignore")).contains(&"/deploy/config"));
}

#[test]
fn the_image_runs_as_a_user_who_owns_only_data() {
    let text = deploy("Dockerfile");
    let (_, image) = text.split_once("\nFROM scratch\n").expect("the image");
    assert_eq!(
        values(image, "COPY "),
        [
            "--from=build /rootfs /".to_owned(),
            format!("--from=build --chown={USER} /owned /"),
        ]
    );
    let owned: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("/owned/"))
        .collect();
    assert_eq!(owned.len(), 1, "{owned:?}");
    assert!(owned[0].contains("install -d -m 0700 /owned/data"));
    assert_eq!(values(image, "USER "), [USER]);
    assert_eq!(values(image, "VOLUME "), ["/data"]);
    assert_eq!(values(image, "WORKDIR "), ["/data"]);
    assert_eq!(values(image, "ENV "), ["XDG_DATA_HOME=/data HOME=/data"]);
    assert_eq!(values(image, "STOPSIGNAL "), ["SIGTERM"]);
}

#[test]
fn the_image_has_authorities_and_time_zones() {
    let text = deploy("Dockerfile");
    let packages = values(&text, "RUN apk add ");
    for (package, path) in [
        (
            "ca-certificates",
            "/rootfs/etc/ssl/certs/ca-certificates.crt",
        ),
        ("tzdata", "cp -a /usr/share/zoneinfo /rootfs/usr/share/"),
    ] {
        assert!(packages[0].contains(package), "{package}");
        assert!(text.contains(path), "{path}");
    }
}

#[test]
fn compose_mounts_what_the_image_reads_and_writes() {
    let image = deploy("Dockerfile");
    assert!(values(&image, "CMD ")[0].contains("/etc/tollgate/config.json"));
    let compose = deploy("compose.yaml");
    assert_eq!(
        values(&compose, "- data:"),
        values(&image, "VOLUME "),
        "the volume is mounted elsewhere"
    );
    assert_eq!(values(&compose, "data: "), ["{ name: tollgate-data }"]);
    assert_eq!(values(&compose, "dockerfile: "), ["deploy/Dockerfile"]);
    assert_eq!(values(&compose, "context: "), [".."]);
}

#[test]
fn compose_publishes_the_port_of_the_image_to_this_machine_only() {
    let port = deploy("Dockerfile");
    let port = values(&port, "EXPOSE ")[0];
    let compose = deploy("compose.yaml");
    assert_eq!(
        values(&compose, "- \""),
        [format!("127.0.0.1:{port}:{port}\"")]
    );
}

#[test]
fn compose_gives_the_container_no_rights_and_time_to_end() {
    let compose = deploy("compose.yaml");
    for (name, expected) in [
        ("read_only: ", "true"),
        ("cap_drop: ", "[ALL]"),
        ("security_opt: ", "[\"no-new-privileges:true\"]"),
        ("restart: ", "unless-stopped"),
    ] {
        assert_eq!(values(&compose, name), [expected], "{name}");
    }
    let period = values(&compose, "stop_grace_period: ");
    check_grace_period(period[0].strip_suffix('s').expect("seconds"));
    // With an init process, the gateway is not the first, and its upgrade ends the container.
    assert!(values(&compose, "init: ").is_empty());
}
