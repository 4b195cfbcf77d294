//! Whole files: what is read from them, and what holds for any text.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::Strategy;
use secrecy::ExposeSecret;

use super::*;

mod absent;
mod reports;

const EXAMPLE: &str = include_str!("../../deploy.toml.example");

/// Occurs in every secret below, so that it must occur in no message.
const SENTINEL: &str = "sEnTiNeL";

fn environment(name: &str) -> Option<OsString> {
    let value = match name {
        "UNSET" | "DOCKER_HOST" => return None,
        "SHORT" => "short".to_owned(),
        "EMPTY" => String::new(),
        "DISCORD_WEBHOOK_URL" => format!("https://discord.com/api/webhooks/12345/{SENTINEL}"),
        "LOCAL_URL" => format!("http://127.0.0.1:4000/{SENTINEL}"),
        "OTHER_URL" => format!("https://evil.example/api/webhooks/1/{SENTINEL}"),
        "TWO_LINES" => format!("{SENTINEL}\n{SENTINEL}"),
        _ => format!("{SENTINEL}-{SENTINEL}-{SENTINEL}"),
    };
    Some(OsString::from(value))
}

fn read(text: &str) -> Result<Config, Problems> {
    parse_in(text, "deploy.toml", Path::new("/srv/longshore"), &environment)
}

fn config(text: &str) -> Config {
    read(text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn report(text: &str) -> String {
    match read(text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(problems) => {
            let report = problems.to_string();
            assert!(!format!("{report}{problems:?}").contains(SENTINEL), "{report}");
            report
        }
    }
}

/// An app with everything that keeps it free of problems and warnings, with `keys` added.
fn app(keys: &str) -> String {
    format!("[apps.shop]\nrepo = \"https://git.example/shop.git\"\nwebhook = {{ secret = {{ env = \"S\" }} }}\n{keys}")
}

fn service<'c>(config: &'c Config, app: &str, service: &str) -> &'c Service {
    let app = config.apps.iter().find(|(name, _)| name.as_str() == app).unwrap().1;
    app.services.iter().find(|(name, _)| name.as_str() == service).unwrap().1
}

#[test]
fn the_example_is_valid_and_means_what_its_comments_say() {
    let config = config(EXAMPLE);
    assert_eq!(config.warnings, []);
    assert_eq!(config.apps.len(), 3);
    let shop = &config.apps[&"shop".parse().unwrap()];
    assert_eq!(routed_service(shop.services.values()).unwrap().name.as_str(), "web");
    let web = service(&config, "shop", "web");
    assert_eq!((web.port, web.instances, web.memory, web.cpu_millis), (Some(8000), 2, Some(512 << 20), Some(500)));
    assert_eq!(web.build.target.as_deref(), Some("web"));
    assert_eq!(web.build.args["RUST_LOG"], "info");
    assert_eq!(web.env.keys().collect::<Vec<_>>(), ["DATABASE_URL", "DJANGO_SETTINGS_MODULE", "WEB_CONCURRENCY"]);
    assert_eq!(web.env["DATABASE_URL"], EnvValue::Secret(SecretRef::Env("SHOP_DATABASE_URL".into())));
    let worker = service(&config, "shop", "worker");
    assert_eq!(worker.build.target.as_deref(), Some("runtime"));
    assert_eq!(worker.health.check, HealthCheck::Unset { stable_for: Duration::from_secs(10) });
    assert_eq!(service(&config, "blog", "web").port, Some(3000));
    let canary = CanaryPolicy { steps: vec![10, 50], pause: Duration::from_secs(60), analysis: true };
    let next = config.apps[&"shop-next".parse().unwrap()].canary_of.clone().unwrap();
    assert_eq!((next.app.as_str(), next.share.to_string().as_str()), ("shop", "1/3"));
    let blog = &config.apps[&"blog".parse().unwrap()];
    assert_eq!(blog.rollout.strategy, super::Strategy::Canary(canary));
}

#[test]
fn a_canarys_last_step_goes_without_saying() {
    let rollout = |keys: &str| {
        let text = app(&format!("domains = [\"x.test\"]\nport = 80\nrollout = {{ strategy = \"canary\", {keys} }}\n"));
        let config = config(&text);
        let app = config.apps.values().next().unwrap();
        match app.rollout.strategy.clone() {
            super::Strategy::Canary(canary) => canary,
            super::Strategy::Rolling => panic!("{text}"),
        }
    };
    let written = rollout("steps = [5, 25, 100], pause = \"5m\", analysis = false");
    assert_eq!(written, CanaryPolicy { steps: vec![5, 25], pause: Duration::from_secs(300), analysis: false });
    let defaults = rollout("watch = \"10s\"");
    assert_eq!(defaults, CanaryPolicy { steps: vec![10, 50], pause: Duration::from_secs(60), analysis: true });
    // A release that an earlier version made says nothing of a strategy.
    let kept: RolloutPolicy = serde_json::from_str(r#"{"order":"start_first","watch":{"secs":60,"nanos":0}}"#).unwrap();
    assert_eq!(kept.strategy, super::Strategy::Rolling);
}

#[test]
fn a_permanent_canary_shares_what_its_production_has() {
    let file = |share: &str| {
        format!(
            "[apps.shop]\nrepo = \"https://h/x\"\ndomains = [\"shop.test\"]\n\
             [apps.shop.services.site]\nport = 80\n\
             [apps.shop.services.api]\nport = 81\nroute = {{ path = \"/api\" }}\n\
             [apps.next]\nrepo = \"https://h/x\"\nbranch = \"next\"\ncanary_of = \"shop\"\n{share}\n\
             [apps.next.services.web]\nport = 80\n\
             [apps.next.services.api]\nport = 81\nroute = {{ path = \"/api\" }}\n\
             [apps.next.services.worker]\ncommand = [\"work\"]\n"
        )
    };
    let config = config(&file("share = \"3/4\""));
    let [next, shop] = ["next", "shop"].map(|name| &config.apps[&name.parse().unwrap()]);
    let of = next.canary_of.as_ref().unwrap();
    assert_eq!((of.app.as_str(), of.share), ("shop", super::Fraction { part: 3, of: 4 }));
    let counterparts = next.services.values().map(|service| Some(next.counterpart(service, shop)?.name.to_string()));
    assert_eq!(counterparts.collect::<Vec<_>>(), [Some("api".into()), Some("site".into()), None], "api, web, worker");
    let unwritten = read(&file("")).unwrap().apps[&next.name].canary_of.clone().unwrap();
    assert_eq!(unwritten.share.to_string(), "1/3");
}

#[test]
fn the_example_names_every_default_as_it_is() {
    let with_defaults = config(&app("port = 8000\nhealth = { path = \"/\" }\n"));
    let example = config(EXAMPLE);
    let [written, unwritten] = [&example, &with_defaults].map(|config| &config.apps[&"shop".parse().unwrap()]);
    assert_eq!(with_defaults.agent, AgentConfig { public_url: None, ..example.agent.clone() });
    let front = example.proxy.clone();
    let directory = front.acme.as_ref().map(|acme| acme.directory_url.as_str());
    let by_default = config("[proxy]\nhttps = \"[::]:443\"\nacme = { email = \"ops@example.com\" }\n").proxy.acme;
    assert_eq!(directory, by_default.as_ref().map(|acme| acme.directory_url.as_str()));
    assert_eq!(front.acme, by_default);
    let plain = ProxyConfig {
        https: None,
        certificates: Vec::new(),
        acme: None,
        hsts: None,
        trusted_proxies: Vec::new(),
        access_log: None,
        limits: ProxyLimits { connections: None, max_body_size: None, ..front.limits },
        ..front
    };
    assert_eq!((&with_defaults.proxy, &with_defaults.runtime), (&plain, &example.runtime));
    assert_eq!((&written.branch, written.submodules), (&unwritten.branch, unwritten.submodules));
    assert_eq!((written.keep_releases, written.deadline), (unwritten.keep_releases, unwritten.deadline));
    assert_eq!((written.build_timeout, &written.rollout), (unwritten.build_timeout, &unwritten.rollout));
    let [written, unwritten] = [&example, &with_defaults].map(|config| service(config, "shop", "web"));
    assert_eq!((written.stop_grace, written.drain), (unwritten.stop_grace, unwritten.drain));
    let check = unwritten.health.check.clone();
    assert_eq!(HealthPolicy { check, ..written.health.clone() }, unwritten.health);
    assert_eq!(
        (&written.build.dockerfile, &written.build.context),
        (&unwritten.build.dockerfile, &unwritten.build.context)
    );
    assert_eq!(written.build.builder, unwritten.build.builder);
}

#[test]
fn the_proxys_settings_are_read_without_the_rest_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deploy.toml");
    let front = "[proxy]\nhttps = \"[::]:443\"\nhsts = \"180d\"\ntrusted_proxies = [\"10.0.0.0/8\", \"192.0.2.1\"]\n\
                 certificates = [{ cert = \"a.pem\", key = \"/k\" }]\n";
    std::fs::write(&path, format!("{front}[apps.shop]\nwebhook = {{ secret = {{ env = \"NOT_SET\" }} }}\n")).unwrap();
    let proxy = super::load_proxy(&path).unwrap();
    assert_eq!((proxy.hsts, proxy.redirect_http), (Some(Duration::from_secs(180 * 86_400)), true));
    let files = CertificateFiles { cert: dir.path().join("a.pem"), key: "/k".into() };
    assert_eq!(proxy.certificates, [files]);
    assert_eq!(proxy.trusted_proxies.len(), 2);
    std::fs::write(&path, "[proxy]\nhsts = 3\n").unwrap();
    assert_eq!(super::load_proxy(&path).unwrap_err().problems.len(), 2);
}

#[test]
fn static_files_are_read_and_kept_with_a_release() {
    let text = "domains = [\"x.test\"]\nport = 80\nvolumes = [\"media:/media\"]\n\
                static = { \"/static/\" = \"./staticfiles\", \"/media\" = { volume = \"media\", path = \"/pub/\" } }\n";
    let config = config(&app(text));
    let web = service(&config, "shop", "web");
    let expected = [
        ("/media", FilesSource::Volume { name: "media".to_owned(), path: "pub".to_owned() }),
        ("/static", FilesSource::Image("staticfiles".to_owned())),
    ];
    let read: Vec<_> = web.static_files.iter().map(|(prefix, source)| (prefix.as_str(), source.clone())).collect();
    assert_eq!(read, expected);
    let kept: super::Service = serde_json::from_str(&serde_json::to_string(web).unwrap()).unwrap();
    assert_eq!(kept.static_files, web.static_files);
}

#[test]
fn an_empty_table_is_an_agent_without_apps() {
    let config = config("[agent]");
    assert_eq!(config.agent.listen.to_string(), "127.0.0.1:9000");
    assert_eq!(config.agent.data_dir, Path::new("/var/lib/longshore"));
    assert_eq!(config.proxy.http.to_string(), "0.0.0.0:80");
    assert_eq!(config.runtime.docker_host, "unix:///var/run/docker.sock");
    assert!(config.apps.is_empty() && config.warnings.is_empty());
}

#[test]
fn the_engine_is_found_through_the_environment() {
    let with = |value: &'static str, text: &str| {
        parse_in(text, "deploy.toml", Path::new("/"), &move |name: &str| {
            (name == "DOCKER_HOST").then(|| OsString::from(value))
        })
    };
    assert_eq!(with("tcp://127.0.0.1:2375", "[agent]").unwrap().runtime.docker_host, "tcp://127.0.0.1:2375");
    assert_eq!(with("", "[agent]").unwrap().runtime.docker_host, "unix:///var/run/docker.sock");
    let written = "[runtime]\ndocker_host = \"unix:///run/d.sock\"";
    assert_eq!(with("ssh://x", written).unwrap().runtime.docker_host, "unix:///run/d.sock");
    insta::assert_snapshot!(with("ssh://x", "[agent]").unwrap_err(), @r#"
    deploy.toml: the environment variable DOCKER_HOST = "ssh://…" is not supported by this version
        mend it, or write docker_host under [runtime]
    "#);
}

#[test]
fn a_one_service_app_is_its_web_service() {
    let config = config(&app("domains = [\"Shop.example\"]\nport = 80\ncommand = [\"serve\"]\nhealth.tcp = true\n"));
    let web = service(&config, "shop", "web");
    assert_eq!((web.port, web.instances), (Some(80), 1));
    assert_eq!(web.command.as_deref(), Some(&["serve".to_owned()][..]));
    assert_eq!(web.health.check, HealthCheck::Tcp);
    assert_eq!(config.apps.values().next().unwrap().domains, ["shop.example"]);
    assert_eq!(config.warnings, []);
}

#[test]
fn a_services_own_build_and_env_go_on_top() {
    let config = config(&app(r#"
        build = { context = "src", dockerfile = "A", args = { X = "1", Y = "1" } }
        env = { A = "app", B = "app" }
        [apps.shop.services.one]
        build = { dockerfile = "B", args = { Y = "2" } }
        env = { B = "own", C = { env = "S" } }
        [apps.shop.services.two]
        "#));
    let one = service(&config, "shop", "one");
    assert_eq!((one.build.context.as_str(), one.build.dockerfile.as_str()), ("src", "B"));
    assert_eq!(one.build.args, BTreeMap::from([("X".into(), "1".into()), ("Y".into(), "2".into())]));
    assert_eq!(one.env["A"], EnvValue::Literal("app".into()));
    assert_eq!(one.env["B"], EnvValue::Literal("own".into()));
    assert_eq!(one.env["C"], EnvValue::Secret(SecretRef::Env("S".into())));
    let two = service(&config, "shop", "two");
    assert_eq!((two.build.dockerfile.as_str(), two.env.len()), ("A", 2));
}

#[test]
fn what_the_file_leaves_open_fits_a_short_start_deadline() {
    let config = config(&app("[apps.shop.services.a]\nhealth = { start_deadline = \"1s\" }\n"));
    let health = &service(&config, "shop", "a").health;
    assert_eq!(health.check, HealthCheck::Unset { stable_for: Duration::from_millis(500) });
    assert_eq!((health.timeout, health.interval), (Duration::from_secs(1), Duration::from_millis(250)));
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deploy.toml");
    std::fs::write(dir.path().join("hook"), "sixteen bytes and more\n").unwrap();
    std::fs::set_permissions(dir.path().join("hook"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let text =
        "[agent]\ndata_dir = \"data\"\n[apps.a]\nrepo = \"https://h/x\"\nwebhook = { secret = { file = \"hook\" } }";
    std::fs::write(&path, text).unwrap();
    let config = load(&path).unwrap();
    assert_eq!(config.agent.data_dir, dir.path().join("data"));
    let secret = config.apps.values().next().unwrap().webhook.as_ref().unwrap().secret.as_ref().unwrap();
    assert_eq!(secret.expose_secret(), "sixteen bytes and more");
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let missing = load(&dir.path().join("deploy.toml")).unwrap_err();
    let shown = missing.to_string().replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(shown, @"
    DIR/deploy.toml: there is no configuration at DIR/deploy.toml
        copy deploy.toml.example there and adapt it, or name another file with --config PATH
    ");
    let path = dir.path().join("binary.toml");
    std::fs::write(&path, b"[agent]\nlisten = \"\xff\"").unwrap();
    let problem = load(&path).unwrap_err().problems.remove(0);
    assert_eq!((problem.line, problem.column), (2, 11));
    assert!(load(dir.path()).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn warnings_are_few_and_useful() {
    let text = r#"
[runtime]
docker_host = "tcp://10.0.0.5:2375"
[apps.shop]
repo = "https://h/x"
port = 8000
env = { DB_PASSWORD = "x" }
"#;
    let shown: Vec<String> = config(text).warnings.iter().map(|w| w.render("deploy.toml", "warning: ")).collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    deploy.toml:3:1: warning: runtime.docker_host = "tcp://10.0.0.5:2375" is neither encrypted nor authenticated
        whoever reaches that address is root on its host; prefer unix:///var/run/docker.sock
    deploy.toml:4:7: warning: apps.shop has no webhook: a push is noticed only by the check every 5m
        write webhook = { provider = "github", secret = { env = "NAME" } }
    deploy.toml:4:7: warning: apps.shop: port 8000 has no health check, so an instance that answers errors goes live
        write health = { path = "/healthz" }; an image's own HEALTHCHECK is used where it has one
    deploy.toml:4:7: warning: apps.shop has no domains: no request reaches its service web
        write domains = ["shop.example.com"]
    deploy.toml:7:9: warning: apps.shop.env.DB_PASSWORD looks like a secret and is written in the file itself
        write DB_PASSWORD = { env = "DB_PASSWORD" } or { file = "PATH" }
    "#);
}

#[test]
fn no_secret_is_ever_shown() {
    let config =
        config(&format!("{EXAMPLE}\n[apps.third]\nrepo = \"https://h/x\"\nenv = {{ A = {{ env = \"S\" }} }}\n"));
    assert!(!format!("{config:?}").contains(SENTINEL));
    let secret = &config.apps[&"shop".parse().unwrap()].webhook.as_ref().unwrap().secret.as_ref().unwrap();
    assert!(secret.expose_secret().contains(SENTINEL), "the test would see it");
}

#[test]
fn a_secret_written_where_none_belongs_is_not_shown() {
    let literal = format!("\"https://user:{SENTINEL}@h/x\"");
    let keys = [
        "repo",
        "webhook",
        "webhook.secret",
        "webhook.secret.env",
        "credential",
        "credential.token",
        "domains",
        "env",
        "env.A.env",
        "build",
        "build.args",
        "build.secrets",
        "build.secrets.a",
        "build.context",
        "health",
        "health.command",
        "command",
        "release",
        "release.command",
        "services",
        "services.a",
        "services.a.env",
        "volumes",
        "drain",
        "rollout",
    ];
    for key in keys {
        let (repo, key) = if key == "repo" { ("", key) } else { ("repo = \"https://h/x\"\n", key) };
        let shown = report(&format!("[apps.shop]\n{repo}{key} = {literal}\n"));
        assert!(shown.contains("apps.shop"), "{shown}");
    }
    for text in [
        "notify = X",
        "apps = X",
        "[[notify]]\nkind = \"discord\"\nurl = X",
        "agent.public_url = X",
        "runtime.docker_host = X",
    ] {
        report(&text.replace('X', &literal));
    }
    // No TOML any more.
    for text in ["[apps.a]\nwebhook = { secret = X", "[apps.a.env]\nA = X X", "[[notify]]\nurl = X\nurl = X"] {
        report(&text.replace('X', &literal));
    }
}

/// Every place of a problem lies inside the text (or one past its end).
fn check_places(text: &str) -> Result<(), TestCaseError> {
    let lines: Vec<&str> = text.split('\n').collect();
    let (problems, warnings) = match read(text) {
        Ok(config) => (Vec::new(), config.warnings),
        Err(problems) => (problems.problems, Vec::new()),
    };
    for problem in problems.iter().chain(&warnings) {
        if problem.what.starts_with("has no settings") {
            prop_assert!(text.parse::<toml::Table>().is_ok_and(|table| table.is_empty()), "{:?}", text);
            continue;
        }
        prop_assert!((1..=lines.len()).contains(&problem.line), "{:?} in {:?}", problem, text);
        let width = lines[problem.line - 1].chars().count();
        prop_assert!((1..=width + 1).contains(&problem.column), "{:?} in {:?}", problem, text);
        prop_assert!(!problem.what.contains('\n'), "{:?}", problem);
        prop_assert!(!format!("{problem:?}").contains(SENTINEL), "{:?}", problem);
    }
    Ok(())
}

/// The example with a few of its lines dropped, repeated, moved or overwritten.
fn damaged_example() -> impl Strategy<Value = String> {
    let values = prop::sample::select(vec![
        "0",
        "-1",
        "1e9",
        "nan",
        "\"\"",
        "\"x\"",
        "true",
        "[]",
        "[1]",
        "{}",
        "{ env = \"UNSET\" }",
        "1979-05-27",
        "\"5\"",
        "[\"a\", 1]",
        "\"ü\\u0000\"",
        "{ a = { b = 1 } }",
        "[[",
        "'",
        "\"\"\"",
    ]);
    prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), values, 0..4u8), 1..6).prop_map(
        |changes| {
            let mut lines: Vec<String> = EXAMPLE.lines().map(str::to_owned).collect();
            for (at, other, value, kind) in changes {
                let (at, other) = (at.index(lines.len()), other.index(lines.len()));
                match kind {
                    0 => drop(lines.remove(at)),
                    1 => lines.insert(other, lines[at].clone()),
                    2 => lines.swap(at, other),
                    _ => lines[at] = format!("{}= {value}", lines[at].split('=').next().unwrap_or_default()),
                }
            }
            lines.join("\n")
        },
    )
}

/// A service's keys as text, and what they mean.
fn a_service() -> impl Strategy<Value = (String, u16, u32, u64, u64, u64)> {
    (1..=u16::MAX, 0..=64u32, 6..100_000u64, 1..100_000u64, 1..3_600_000u64).prop_map(
        |(port, instances, memory, cpus, grace)| {
            let cpus = cpus.max(10);
            let text = format!(
                "port = {port}\ninstances = {instances}\nmemory = \"{memory}MiB\"\ncpus = {}.{:03}\nstop_grace = \"{grace}ms\"\n",
                cpus / 1000,
                cpus % 1000
            );
            (text, port, instances, memory << 20, cpus, grace)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics_and_every_place_is_in_it(text in "\\PC{0,60}|([a-z.\\[\\]= \"'{},0-9\n#]{0,80})") {
        check_places(&text)?;
    }

    #[test]
    fn no_damaged_file_panics_and_every_place_is_in_it(text in damaged_example()) {
        check_places(&text)?;
    }

    #[test]
    fn what_is_written_is_what_is_read(
        services in prop::collection::btree_map("[a-z][a-z0-9]{0,8}", a_service(), 1..5),
        branch in "[a-z][a-z0-9/]{0,10}[a-z]",
        keep in 1..=100u32,
    ) {
        let tables: String = services
            .iter()
            .map(|(name, (text, ..))| format!("[apps.shop.services.{name}]\n{text}"))
            .collect();
        prop_assume!(!branch.contains("//"));
        let text = app(&format!("branch = \"{branch}\"\nkeep_releases = {keep}\n{tables}"));
        let config = match read(&text) {
            Ok(config) => config,
            Err(problems) => return Err(TestCaseError::fail(problems.to_string())),
        };
        let app = config.apps.values().next().unwrap();
        prop_assert_eq!((&app.branch, app.keep_releases), (&branch, keep));
        let names: BTreeSet<&str> = app.services.keys().map(|name| name.as_str()).collect();
        prop_assert_eq!(names, services.keys().map(String::as_str).collect());
        for service in app.services.values() {
            let (_, port, instances, memory, cpus, grace) = &services[service.name.as_str()];
            prop_assert_eq!((service.port, service.instances), (Some(*port), *instances));
            prop_assert_eq!((service.memory, service.cpu_millis), (Some(*memory), Some(*cpus)));
            prop_assert_eq!(service.stop_grace, Duration::from_millis(*grace));
        }
    }
}
