//! Bad files, and the whole report of what is wrong with each.

use super::*;

#[test]
fn unknown_keys_suggest_the_one_that_was_meant() {
    insta::assert_snapshot!(report(
        "[agnet]\n[agent]\nlisen = \"x\"\n[proxy]\nport = 3\n[apps.shop]\nrepo = \"https://h/x\"\nreplica = 3\n[apps.shop.helth]\n"
    ), @r#"
    deploy.toml:1:2: unknown key "agnet", did you mean "agent"?
        the file takes: agent, proxy, runtime, notify, apps
    deploy.toml:3:1: unknown key "lisen", did you mean "listen"?
        agent takes: listen, data_dir, public_url, reconcile, min_free
    deploy.toml:5:1: unknown key "port"
        proxy takes: http, https, certificates, acme, redirect_http, hsts, self_signed, trusted_proxies, limits, access_log
    deploy.toml:8:1: unknown key "replica", did you mean "instances"?
        apps.shop takes: repo, branch, allow_local, credential, submodules, webhook, canary_of, share, domains, maintenance, build, env, services, port, instances, health, route, command, memory, cpus, stop_grace, drain, volumes, static, release, rollout, deadline, keep_releases
    deploy.toml:9:12: unknown key "helth", did you mean "health"?
        apps.shop takes: repo, branch, allow_local, credential, submodules, webhook, canary_of, share, domains, maintenance, build, env, services, port, instances, health, route, command, memory, cpus, stop_grace, drain, volumes, static, release, rollout, deadline, keep_releases
    "#);
}

#[test]
fn what_a_later_version_may_know_is_told_apart_from_the_unknown() {
    insta::assert_snapshot!(report(&format!(
        r#"
[runtime]
kind = "swarm"
[[notify]]
kind = "slack"
url = {{ env = "S" }}
[[notify]]
kind = "discord"
url = {{ env = "DISCORD_WEBHOOK_URL" }}
events = ["instance_down"]
{}
compose = "compose.yaml"
env = {{ A = {{ secret = "NAME" }} }}
autoscale = {{ min = 2 }}
[apps.shop.accessories.db]
image = "postgres"
"#,
        app("")
    )), @r#"
    deploy.toml:3:8: runtime.kind = "swarm" is not supported by this version
        write kind = "docker" or leave it out
    deploy.toml:5:8: notify[0].kind = "slack" is not supported by this version
        write kind = "discord" or remove this [[notify]]
    deploy.toml:10:11: notify[1].events[0] = "instance_down" is not supported by this version
        remove it from the list
    deploy.toml:15:1: apps.shop.compose is not supported by this version
        remove it, and describe the services under [apps.NAME.services]
    deploy.toml:16:15: apps.shop.env.A.secret is not supported by this version
        write { env = "NAME" } or { file = "PATH" }
    deploy.toml:17:1: apps.shop.autoscale is not supported by this version
        remove it and set instances
    deploy.toml:18:12: apps.shop.accessories is not supported by this version
        run databases beside longshore, and name their address in env
    "#);
}

#[test]
fn canaries_that_make_no_sense() {
    let rollouts = |name: &str, keys: &str| {
        format!("[apps.{name}]\nrepo = \"https://h/x\"\nwebhook = {{ secret = {{ env = \"S\" }} }}\n{keys}\n")
    };
    let routed = |name: &str, rollout: &str| {
        rollouts(name, &format!("domains = [\"{name}.test\"]\nport = 80\n[apps.{name}.rollout]\n{rollout}"))
    };
    let file = [
        routed("a", "strategy = \"canary\"\norder = \"stop_first\"\nsteps = [50, 10]\npause = 5"),
        routed("b", "steps = [10]\nanalysis = false"),
        routed("c", "strategy = \"canary\"\nsteps = [100]\nanalysis = \"yes\""),
        routed("d", "strategy = \"canry\"\nsteps = [0]\nstep = 3"),
        routed("e", "strategy = \"canary\"\nsteps = [1, 5, 20]\npause = \"20m\""),
        rollouts("f", "[apps.f.rollout]\nstrategy = \"canary\""),
    ];
    insta::assert_snapshot!(report(&file.concat()), @r#"
    deploy.toml:7:12: apps.a.rollout.strategy = "canary" runs new instances beside the old ones, and order = "stop_first" forbids that
        remove order, or write strategy = "rolling"
    deploy.toml:9:14: apps.a.rollout.steps[1] must grow, and 10 does not after 50
        write each share once, the smallest first
    deploy.toml:10:9: apps.a.rollout.pause is a duration and needs quotes and a unit, got 5
        write pause = "5s" for 5 seconds; it must be 1s to 1d
    deploy.toml:17:9: apps.b.rollout.steps does nothing in a rolling rollout
        write strategy = "canary", or remove it
    deploy.toml:18:12: apps.b.rollout.analysis does nothing in a rolling rollout
        write strategy = "canary", or remove it
    deploy.toml:26:9: apps.c.rollout.steps has no share below 100: nothing would be tried first
        write steps = [10, 50]
    deploy.toml:27:12: apps.c.rollout.analysis must be true or false, got the text "yes"
        write analysis = true or analysis = false, without quotes
    deploy.toml:34:12: apps.d.rollout.strategy must be "rolling" or "canary", got "canry"
        did you mean "canary"?
    deploy.toml:35:10: apps.d.rollout.steps[0] must be 1 to 100 (percent), got 0
        write steps[0] = 1 or another number in that range
    deploy.toml:36:1: unknown key "step", did you mean "steps"?
        apps.d.rollout takes: strategy, order, watch, steps, pause, analysis
    deploy.toml:37:7: apps.e: rollout.pause, 3 times, and rollout.watch (61m) does not fit into the deadline of a whole deployment (1h)
        raise deadline, or lower rollout.pause, 3 times, and rollout.watch
    deploy.toml:50:12: apps.f.rollout.strategy = "canary" shares requests, and no domain of the app leads to a service with a port
        set domains and port, or write strategy = "rolling"
    "#);
}

#[test]
fn permanent_canaries_that_make_no_sense() {
    let head = |name: &str, keys: &str| {
        format!("[apps.{name}]\nrepo = \"https://h/x\"\nwebhook = {{ secret = {{ env = \"S\" }} }}\n{keys}\n")
    };
    let canary = |name: &str, of: &str, keys: &str| {
        head(name, &format!("canary_of = \"{of}\"\nport = 80\nhealth = {{ path = \"/\" }}\n{keys}"))
    };
    let file = [
        head("shop", "domains = [\"shop.test\"]\nport = 80\nhealth = { path = \"/\" }"),
        head("worker", "share = \"1/2\""),
        canary("a", "shpo", "share = \"0/3\""),
        canary("b", "b", "share = \"1/101\""),
        canary(
            "c",
            "shop",
            "share = 0.3\ndomains = [\"c.test\"]\nmaintenance = true\nroute = { domains = [\"d.test\"] }",
        ),
        canary("d", "shop", "rollout = { strategy = \"canary\" }"),
        canary("e", "d", ""),
        canary("f", "worker", ""),
        head("h", "domains = [\"h.test\"]\nport = 80\nhealth = { path = \"/\" }"),
        head(
            "g",
            "canary_of = \"h\"\n[apps.g.services.api]\nport = 1\nhealth = { tcp = true }\nroute = { path = \"/api\" }",
        ),
    ];
    insta::assert_snapshot!(report(&file.concat()), @r#"
    deploy.toml:10:9: apps.worker.share does nothing without canary_of
        add canary_of = "APP", or remove it
    deploy.toml:14:13: apps.a.canary_of: there is no app "shpo"
        did you mean "shop"?
    deploy.toml:17:9: apps.a.share must be between 1/100 and 99/100, in whole numbers up to 100, got "0/3"
        write share = "1/3" for one of three requests
    deploy.toml:21:13: apps.b.canary_of is the app itself
        name the app that is production
    deploy.toml:24:9: apps.b.share must be between 1/100 and 99/100, in whole numbers up to 100, got "1/101"
        write share = "1/3" for one of three requests
    deploy.toml:31:9: apps.c.share must be a fraction in quotes
        write share = "1/3" for one of three requests
    deploy.toml:32:11: apps.c.domains is of no use in a canary: it answers where the other app does
        remove it
    deploy.toml:33:15: apps.c.maintenance is of no use in a canary: it answers where the other app does
        remove it
    deploy.toml:34:22: apps.c.canary_of: a canary has no domains of its own, in its routes neither
        remove domains from the route
    deploy.toml:38:13: apps.d.canary_of: shop has a canary already, c
        an app has one canary at most
    deploy.toml:41:24: apps.d.rollout.strategy = "canary": this app is a canary already
        write strategy = "rolling", or remove it
    deploy.toml:45:13: apps.e.canary_of: d is a canary itself
        name the app that is production
    deploy.toml:52:13: apps.f.canary_of: no domain of worker leads to a service with a port, so there is nothing to share
        set domains and port in [apps.worker]
    deploy.toml:65:13: apps.g.canary_of: h has no service api whose requests g could share
        give it the name of one of h's, or remove its route
    "#);
}

#[test]
fn numbers_and_names_outside_their_range() {
    insta::assert_snapshot!(report(&app(
        r#"
keep_releases = 0
[apps.shop.services.a]
instances = 65
[apps.shop.services.b]
instances = -1
[apps.shop.services.c]
instances = "3"
[apps.shop.services.d]
port = 70000
cpus = 0
memory = 512
[apps.shop.services.e]
memory = "3MiB"
cpus = nan
port = 0
[apps.shop.services.My_Service]
[apps."a..b"]
repo = "https://h/x"
[apps.-x]
repo = "https://h/x"
"#
    )), @r#"
    deploy.toml:5:17: apps.shop.keep_releases must be 1 to 100, got 0
        write keep_releases = 1 or another number in that range
    deploy.toml:7:13: apps.shop.services.a.instances must be 1 to 64 (0 switches the service off), got 65
        write instances = 1 or another number in that range
    deploy.toml:9:13: apps.shop.services.b.instances must be 1 to 64 (0 switches the service off), got -1
        write instances = 1 or another number in that range
    deploy.toml:11:13: apps.shop.services.c.instances must be 1 to 64 (0 switches the service off), got the text "3"
        write a whole number without quotes, as in instances = 3
    deploy.toml:13:8: apps.shop.services.d.port must be 1 to 65535, got 70000
        write port = 1 or another number in that range
    deploy.toml:14:8: apps.shop.services.d.cpus must be 0.01 to 1024, got 0
        write a number without quotes, as in cpus = 0.5
    deploy.toml:15:10: apps.shop.services.d.memory is a size and needs quotes and a unit, got 512
        write memory = "512MiB"; the minimum is 6MiB
    deploy.toml:17:10: apps.shop.services.e.memory must be at least 6MiB, got "3MiB"
        write a larger size
    deploy.toml:18:8: apps.shop.services.e.cpus must be 0.01 to 1024, got nan
        write a number without quotes, as in cpus = 0.5
    deploy.toml:19:8: apps.shop.services.e.port must be 1 to 65535, got 0
        write port = 1 or another number in that range
    deploy.toml:20:21: service name "My_Service" must be 1 to 40 lower-case letters, digits or hyphens, with a letter or digit at both ends
        write "my-service"
    deploy.toml:21:7: app name "a..b" must be 1 to 40 lower-case letters, digits or hyphens, with a letter or digit at both ends
        write "a-b"
    deploy.toml:23:7: app name "-x" must be 1 to 40 lower-case letters, digits or hyphens, with a letter or digit at both ends
        write "x"
    "#);
}

#[test]
fn addresses_of_repositories() {
    insta::assert_snapshot!(report(
        r#"
[apps.a]
repo = "--upload-pack=x"
[apps.b]
repo = "ext::sh -c id"
[apps.c]
repo = "file:///etc"
[apps.d]
repo = "https://user:sEnTiNeL@git.example/x"
[apps.e]
repo = "ssh://-oProxyCommand=x/y"
[apps.f]
repo = "http://git.example/x"
[apps.g]
repo = "/srv/git/x"
[apps.h]
repo = "example/shop"
[apps.i]
[apps.j]
repo = "git@git.example:x"
"#
    ), @r#"
    deploy.toml:3:8: apps.a.repo: the repository's address "--upload-pack=x" begins with a hyphen and would be taken for an option
        write https://HOST/PATH, ssh://git@HOST/PATH or git@HOST:PATH
    deploy.toml:5:8: apps.b.repo: the repository's address "ext::sh -c id" has a scheme that is not allowed; use https or ssh
        write https://HOST/PATH, ssh://git@HOST/PATH or git@HOST:PATH
    deploy.toml:7:8: apps.c.repo: the repository's address "file:///etc" has a scheme that is not allowed (file)
        write the absolute path itself, with allow_local = true
    deploy.toml:9:8: apps.d.repo: the repository's address "https://…@git.example/x" holds credentials, which are refused in an address
        write credential = { token = { env = "NAME" } } in the app
    deploy.toml:11:8: apps.e.repo: the repository's address "ssh://-oProxyCommand=x/y" has no valid host
        write https://HOST/PATH, ssh://git@HOST/PATH or git@HOST:PATH
    deploy.toml:13:8: apps.f.repo: the repository's address "http://git.example/x" is not encrypted
        write https:// in place of http://
    deploy.toml:15:8: apps.g.repo: the repository's address "/srv/git/x" is a path on this machine
        set allow_local = true for the app if that is meant, or write https://HOST/PATH
    deploy.toml:17:8: apps.h.repo: the repository's address "example/shop" is no https, ssh or scp form address
        write https://github.com/example/shop.git
    deploy.toml:18:7: apps.i needs repo
        write repo = "https://HOST/PATH"
    deploy.toml:20:8: apps.j.repo is an ssh address and needs a key and the server's host keys
        write credential = { ssh_key = "PATH", known_hosts = "PATH" }
    "#);
}

#[test]
fn branches() {
    insta::assert_snapshot!(report(
        r#"
[apps.a]
repo = "https://h/x"
branch = "refs/heads/main"
[apps.b]
repo = "https://h/x"
branch = "a..b"
[apps.c]
repo = "https://h/x"
branch = "*"
[apps.d]
repo = "https://h/x"
branch = ""
"#
    ), @r#"
    deploy.toml:4:10: apps.a.branch: "refs/heads/main" is a full ref
        write the branch's short name, "main"
    deploy.toml:7:10: apps.b.branch: "a..b" is no valid branch name
        write one branch's short name, such as "main"
    deploy.toml:10:10: apps.c.branch: "*" is no valid branch name
        write one branch's short name, such as "main"
    deploy.toml:13:10: apps.d.branch: "" is no valid branch name
        write one branch's short name, such as "main"
    "#);
    assert_eq!(config(&app("branch = \"a;$(id)&|<script>@everyone\"")).apps.len(), 1);
}

#[test]
fn secrets_that_are_none() {
    insta::assert_snapshot!(report(
        r#"
[apps.a]
repo = "https://h/x"
webhook = { provider = "github", secret = "sEnTiNeL" }
[apps.b]
repo = "https://h/x"
webhook = { provider = "gitlab", secret = { env = "UNSET" } }
[apps.c]
repo = "https://h/x"
webhook = { secret = { env = "SHORT" } }
[apps.d]
repo = "https://h/x"
webhook = { secret = { env = "EMPTY" } }
[apps.e]
repo = "https://h/x"
webhook = { secret = { env = "sEnTiNeL!" } }
[apps.f]
repo = "https://h/x"
webhook = { secret = { file = "none" } }
[apps.g]
repo = "https://h/x"
webhook = { secret = { env = "A", file = "b" } }
[apps.h]
repo = "https://h/x"
webhook = {}
"#
    ), @r#"
    deploy.toml:4:43: apps.a.webhook.secret: a secret is never written in the file itself (the value is not shown here)
        write { env = "NAME" } or { file = "PATH" }
    deploy.toml:7:24: apps.b.webhook.provider = "gitlab" is not supported by this version
        use the post-receive hook, or write provider = "github"
    deploy.toml:7:34: apps.b.webhook.secret: the environment variable UNSET is not set
        set UNSET in the environment that longshore is started with
    deploy.toml:10:13: apps.c.webhook.secret: the environment variable SHORT holds 5 bytes, and a webhook's secret needs at least 16
        make one with: openssl rand -hex 32
    deploy.toml:13:13: apps.d.webhook.secret: the environment variable EMPTY is empty
        set EMPTY in the environment that longshore is started with
    deploy.toml:16:30: apps.e.webhook.secret.env must be the name of an environment variable (what is written is not shown here)
        write { env = "NAME" } or { file = "PATH" }
    deploy.toml:19:13: apps.f.webhook.secret: the secret file /srv/longshore/none cannot be read: No such file or directory (os error 2)
        put the secret there, or name the file where it is
    deploy.toml:22:13: apps.g.webhook.secret must name exactly one place for the secret
        write { env = "NAME" } or { file = "PATH" }
    deploy.toml:25:1: apps.h.webhook needs secret
        write webhook = { provider = "github", secret = { env = "NAME" } }
    "#);
}

#[test]
fn a_secret_file_that_everybody_can_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hook"), "sixteen bytes and more\n").unwrap();
    std::fs::set_permissions(dir.path().join("hook"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = "[apps.a]\nrepo = \"https://h/x\"\nwebhook = { secret = { file = \"hook\" } }";
    let problems = parse_in(text, "deploy.toml", dir.path(), &environment).unwrap_err();
    insta::assert_snapshot!(problems.to_string().replace(&dir.path().display().to_string(), "DIR"), @"
    deploy.toml:3:13: apps.a.webhook.secret: the secret file DIR/hook has mode 0644: everybody on this machine can use it
        chmod 600 DIR/hook
    ");
}

#[test]
fn credentials() {
    let dir = tempfile::tempdir().unwrap();
    for (name, mode) in [("open", 0o644), ("key", 0o600), ("hosts", 0o644)] {
        std::fs::write(dir.path().join(name), "x").unwrap();
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let text = r#"
[apps.a]
repo = "git@h:x"
credential = { token = { env = "T" } }
[apps.b]
repo = "https://h/x"
credential = { ssh_key = "key", known_hosts = "hosts" }
[apps.c]
repo = "git@h:x"
credential = { ssh_key = "key" }
[apps.d]
repo = "git@h:x"
credential = { ssh_key = "open", known_hosts = "none" }
[apps.e]
repo = "https://h/x"
credential = { token = { env = "TWO_LINES" }, username = "a:b" }
[apps.f]
repo = "https://h/x"
credential = { username = "a" }
"#;
    let problems = parse_in(text, "deploy.toml", dir.path(), &environment).unwrap_err();
    let shown = problems.to_string();
    assert!(!shown.contains(SENTINEL), "{shown}");
    insta::assert_snapshot!(shown.replace(&dir.path().display().to_string(), "DIR"), @r#"
    deploy.toml:4:1: apps.a.credential: a token works only with an https address
        write credential = { ssh_key = "PATH", known_hosts = "PATH" }
    deploy.toml:7:1: apps.b.credential: an ssh key works only with an ssh address
        write credential = { token = { env = "NAME" } }
    deploy.toml:10:26: apps.c.credential.ssh_key needs known_hosts beside it: without the server's keys anybody could pose as it
        write known_hosts = "PATH"; ssh-keyscan HOST prints the keys, compare them with the server's own list
    deploy.toml:13:26: apps.d.credential.ssh_key: DIR/open has mode 0644: others on this machine can use it
        chmod 600 DIR/open
    deploy.toml:13:48: apps.d.credential.known_hosts: DIR/none cannot be read: No such file or directory (os error 2)
        name a file that is there
    deploy.toml:16:16: apps.e.credential.token: the environment variable TWO_LINES holds a space or a control character
        a token is one line of letters, digits and signs
    deploy.toml:16:58: apps.e.credential.username: "a:b" is no user name
        leave it out for "x-access-token"
    deploy.toml:19:1: apps.f.credential has neither a token nor an ssh key
        write credential = { token = { env = "NAME" } }, or write credential = { ssh_key = "PATH", known_hosts = "PATH" }
    deploy.toml:19:27: apps.f.credential.username goes with a token
        write an ssh address's user in repo, as in git@HOST:PATH
    "#);
    let good = "[apps.a]\nrepo = \"git@h:x\"\ncredential = { ssh_key = \"key\", known_hosts = \"hosts\" }";
    let config = parse_in(good, "deploy.toml", dir.path(), &environment).unwrap();
    assert!(matches!(&config.apps.values().next().unwrap().credential, Credential::SshKey { .. }));
}

#[test]
fn a_head_may_have_as_much_as_the_proxy_keeps_of_one() {
    insta::assert_snapshot!(report("[proxy.limits]\nmax_header_size = \"1GiB\"\n"), @r#"
    deploy.toml:2:19: proxy.limits.max_header_size must be at most 16MiB, got "1GiB"
        write a smaller size
    "#);
    assert!(report("[proxy.limits]\nmax_header_size = \"7KiB\"\n").contains("must be at least 8KiB, got \"7KiB\""));
    for (size, bytes) in [("16MiB", 16 << 20), ("8KiB", 8 << 10)] {
        let text = format!("{}[proxy.limits]\nmax_header_size = \"{size}\"\n", app(""));
        assert_eq!(config(&text).proxy.limits.max_header_size, bytes);
    }
}

#[test]
fn what_tls_needs() {
    let text = "[proxy]\nhsts = \"1d\"\nself_signed = true\ncertificates = []\ntrusted_proxies = [\"10/8\", 3]\n\
                access_log = { path = \"\", max_size = \"1KiB\", keep = 0 }\n";
    insta::assert_snapshot!(report(text), @r#"
    deploy.toml:2:8: proxy.hsts is of no use without proxy.https
        add https = "0.0.0.0:443", or remove it
    deploy.toml:3:15: proxy.self_signed is of no use without proxy.https
        add https = "0.0.0.0:443", or remove it
    deploy.toml:4:16: proxy.certificates is of no use without proxy.https
        add https = "0.0.0.0:443", or remove it
    deploy.toml:5:20: proxy.trusted_proxies[0] must be a network, got "10/8"
        write an address and the length of its prefix, such as "10.0.0.0/8", or one address
    deploy.toml:5:28: proxy.trusted_proxies[1] must be text in quotes, got 3
        put quotes around it
    deploy.toml:6:23: proxy.access_log.path is empty
        write the file's path
    deploy.toml:6:38: proxy.access_log.max_size must be at least 64KiB, got "1KiB"
        write a larger size
    deploy.toml:6:53: proxy.access_log.keep must be 1 to 100, got 0
        write keep = 1 or another number in that range
    "#);
    let text = "[proxy]\nhttp = \"0.0.0.0:80\"\nhttps = \"127.0.0.1:80\"\nhsts = \"1h\"\n\
                certificates = [{ cert = \"a\" }, \"b\"]\n";
    insta::assert_snapshot!(report(text), @r#"
    deploy.toml:2:8: proxy.http (0.0.0.0:80) and proxy.https (127.0.0.1:80) cannot both be listened on
        give the two different ports
    deploy.toml:4:8: proxy.hsts must be 0s, or 1d to 730d, got "1h"
        write a duration in that range
    deploy.toml:5:17: proxy.certificates[0] needs key
        write { cert = "PATH", key = "PATH" }
    deploy.toml:5:33: proxy.certificates[1] must be a table, got text
        write { cert = "PATH", key = "PATH" }
    "#);
}

#[test]
fn what_ordering_certificates_needs() {
    let acme = |keys: &str| report(&format!("[proxy]\nhttps = \"0.0.0.0:443\"\nacme = {keys}\n"));
    insta::assert_snapshot!(acme("true"), @r#"
    deploy.toml:3:8: proxy.acme must be a table, got true or false
        write acme = { email = "ops@example.com" }
    "#);
    insta::assert_snapshot!(acme("{ directory_url = \"http://ca.example/dir\", challenge = \"dns-01\", mail = 1 }"), @r#"
    deploy.toml:3:1: proxy.acme needs email
        write acme = { email = "ops@example.com" }
    deploy.toml:3:26: proxy.acme.directory_url must be an https address, got "http://ca.example/dir"
        write https://HOST/PATH as the certificate authority says it, or leave it out for Let's Encrypt
    deploy.toml:3:63: proxy.acme.challenge must be "http-01" or "tls-alpn-01", got "dns-01"
        write "http-01" or "tls-alpn-01"
    deploy.toml:3:73: unknown key "mail", did you mean "email"?
        proxy.acme takes: email, directory_url, challenge, ca_file
    "#);
    insta::assert_snapshot!(
        acme("{ email = \"mailto:ops\", directory_url = \"https://me:pw@ca.example\", ca_file = \"~/ca.pem\" }"), @r#"
    deploy.toml:3:18: proxy.acme.email must be an e-mail address, got "mailto:ops"
        write the address that the certificate authority may write to, such as "ops@example.com"
    deploy.toml:3:48: proxy.acme.directory_url holds credentials
        write https://HOST/PATH as the certificate authority says it, or leave it out for Let's Encrypt
    deploy.toml:3:86: proxy.acme.ca_file: ~ is not expanded
        write the absolute path
    "#);
    insta::assert_snapshot!(report("[proxy]\nacme = { email = \"ops@example.com\" }\n"), @r#"
    deploy.toml:2:1: proxy.acme is of no use without proxy.https
        add https = "0.0.0.0:443", or remove it
    "#);
}

#[test]
fn listeners() {
    insta::assert_snapshot!(report("[agent]\nlisten = \"127.0.0.1:80\"\n"), @"
    deploy.toml:2:10: proxy.http (0.0.0.0:80) and agent.listen (127.0.0.1:80) cannot both be listened on
        give the two different ports
    ");
    insta::assert_snapshot!(report("[agent]\nlisten = \"127.0.0.1:9\"\n[proxy]\nhttp = \"127.0.0.1:9\"\n"), @"
    deploy.toml:4:8: proxy.http (127.0.0.1:9) and agent.listen (127.0.0.1:9) cannot both be listened on
        give the two different ports
    ");
    insta::assert_snapshot!(report(
        "[agent]\nlisten = \":9000\"\npublic_url = \"deploy.example\"\nreconcile = \"10ms\"\n[proxy]\nhttp = 80\n"
    ), @r#"
    deploy.toml:2:10: agent.listen must be IP:PORT, got ":9000"
        write "127.0.0.1:9000" for this machine only, "0.0.0.0:9000" for everybody
    deploy.toml:3:14: agent.public_url must be an http or https address, got "deploy.example"
        write https://HOST, such as "https://deploy.example.com"
    deploy.toml:4:13: agent.reconcile must be 0s, or 1s to 1d, got "10ms"
        write a duration in that range
    deploy.toml:6:8: proxy.http must be IP:PORT in quotes
        write an IP address and a port in quotes, such as "127.0.0.1:9000" or "[::]:80"
    "#);
    insta::assert_snapshot!(report("[agent]\nlisten = \"127.0.0.1:70000\"\n[proxy]\nhttp = \"70000\"\n"), @r#"
    deploy.toml:2:10: agent.listen must be IP:PORT, got "127.0.0.1:70000"
        70000 is no port: ports are 1 to 65535
    deploy.toml:4:8: proxy.http must be IP:PORT, got "70000"
        70000 is no port: ports are 1 to 65535
    "#);
    let free =
        "[agent]\nlisten = \"127.0.0.1:0\"\nreconcile = \"0s\"\nmin_free = \"0B\"\n[proxy]\nhttp = \"127.0.0.1:0\"\n";
    assert_eq!(config(free).agent.min_free, 0);
    assert_eq!(config(free).agent.reconcile, None);
}

#[test]
fn one_domain_leads_to_one_app() {
    insta::assert_snapshot!(report(
        r#"
[apps.web]
repo = "https://h/x"
port = 1
domains = ["example.com", "http://x.example:80/", "*.com"]
[apps.api]
repo = "https://h/x"
port = 1
domains = ["Example.COM"]
"#
    ), @r#"
    deploy.toml:5:27: apps.web.domains[1]: "http://x.example:80/" has a scheme
        write only the host name, such as "x.example"
    deploy.toml:5:51: apps.web.domains[2]: "*.com" is no wildcard that can be served
        write "*.example.com" for every name with one more label, or the whole name
    deploy.toml:9:12: web and api both claim example.com (lines 5 and 9)
        a domain leads to one app; remove it from one of them
    "#);
}

#[test]
fn a_path_of_a_domain_leads_to_one_service() {
    insta::assert_snapshot!(report(
        r#"
[apps.shop]
repo = "https://h/x"
domains = ["shop.example"]
[apps.shop.services.web]
port = 1
[apps.shop.services.api]
port = 2
route = { path = "/api/", strip = true }
[apps.shop.services.old]
port = 3
route = { domains = ["shop.example", "old.example"], path = "/api" }
[apps.shop.services.bad]
port = 4
route = { path = "api", strip = true, balance = "fair", stiky = true }
[apps.shop.services.worker]
route = { path = "/jobs" }
[apps.full]
repo = "https://h/w"
port = 1
domains = ["full.example"]
route = { max_requests = 0, queue_wait = "1h" }
[apps.other]
repo = "https://h/y"
[apps.other.services.web]
port = 1
route = { domains = ["old.example"], path = "/other" }
[apps.bare]
repo = "https://h/z"
port = 1
route = { sticky = true }
[apps.more]
repo = "https://h/v"
port = 1
domains = ["twice.example", "Twice.example"]
route = { path = "/x", queue = "x", queue_wait = "2s" }
"#
    ), @r#"
    deploy.toml:12:22: shop names shop.example/api twice (lines 9 and 12)
        each path of a domain leads to one service; remove one, or give it another path
    deploy.toml:15:18: apps.shop.services.bad.route.path: "api" does not begin with /
        write the beginning of a path as it is sent, such as "/api"
    deploy.toml:15:49: apps.shop.services.bad.route.balance must be "least_connections" or "round_robin", got "fair"
        write "least_connections" or "round_robin"
    deploy.toml:15:57: unknown key "stiky", did you mean "sticky"?
        apps.shop.services.bad.route takes: domains, path, strip, balance, sticky, protocol, max_requests, queue, queue_wait
    deploy.toml:17:1: apps.shop.services.worker.route leads to a service without a port
        set port, or remove route
    deploy.toml:22:26: apps.full.route.max_requests must be a number from 1 to 100000, got 0
        write max_requests = 1 or another number in that range
    deploy.toml:22:42: apps.full.route.queue_wait is of no use without a queue
        add queue = 100, or remove it
    deploy.toml:22:42: apps.full.route.queue_wait must be 100ms to 5m, got "1h"
        write a duration in that range
    deploy.toml:27:22: shop and other both claim old.example (lines 12 and 27)
        a domain leads to one app; remove it from one of them
    deploy.toml:31:1: apps.bare has no domains for this route
        write domains = ["shop.example.com"] for the app or in the route
    deploy.toml:35:29: apps.more.domains[1]: twice.example is there twice
        remove one
    deploy.toml:36:32: apps.more.route.queue must be a number from 0 to 100000, got the text "x"
        write a whole number without quotes, as in queue = 3
    "#);
}

#[test]
fn static_files_that_cannot_be_served() {
    insta::assert_snapshot!(report(
        r#"
[apps.shop]
repo = "https://h/x"
webhook = { secret = { env = "S" } }
domains = ["shop.example"]
[apps.shop.services.web]
port = 1
volumes = ["media:/media", "/srv/x:/x"]
[apps.shop.services.web.static]
"/" = "dist"
"static" = "static"
"/a" = "../etc"
"/a/" = "."
"/b" = { volume = "medai" }
"/h" = { volume = "/srv/x" }
"/c" = { path = "../x" }
"/d" = { volume = "media", sub = "x" }
"/e" = 3
"/f" = "f"
"/f/" = "g"
[apps.shop.services.api]
port = 2
route = { path = "/api" }
static = { "/static" = "static", "/api/static" = "static" }
[apps.shop.services.worker]
static = { "/w" = "w" }
"#
    ), @r#"
    deploy.toml:10:1: apps.shop.services.web.static."/": nothing would be left for the service: what is not among the files is not found
        write a prefix, such as "/static"
    deploy.toml:11:1: apps.shop.services.web.static.static: "static" does not begin with /
        write the beginning of a path as it is sent, such as "/api"
    deploy.toml:12:8: apps.shop.services.web.static."/a": "../etc" is no directory
        write a directory of the image, such as "staticfiles" or "/app/staticfiles"
    deploy.toml:13:9: apps.shop.services.web.static."/a/": "." would be everything that the image or its working directory has
        write a directory of the image, such as "staticfiles" or "/app/staticfiles"
    deploy.toml:14:19: apps.shop.services.web.static."/b".volume: the service mounts no volume "medai"
        did you mean "media"?
    deploy.toml:15:19: apps.shop.services.web.static."/h".volume: "/srv/x" is a directory of the host, and only named volumes can be served
        mount a volume, "NAME:/path" in its volumes, and write volume = "NAME"
    deploy.toml:16:1: apps.shop.services.web.static."/c" needs volume
        write volume = "NAME"
    deploy.toml:16:17: apps.shop.services.web.static."/c".path: "../x" is no directory
        write a directory of the volume, such as "public"
    deploy.toml:17:28: unknown key "sub"
        apps.shop.services.web.static."/d" takes: volume, path
    deploy.toml:18:8: apps.shop.services.web.static."/e" must be a table, got a number
        write a directory of the image in quotes, or { volume = "NAME" }
    deploy.toml:20:1: apps.shop.services.web.static: /f is there twice
        a slash at the end makes no difference; remove one
    deploy.toml:24:12: apps.shop.services.api.static."/static": /static does not lie in /api, the path that leads to this service
        write "/api/static", or move it to the service that answers /static
    deploy.toml:26:1: apps.shop.services.worker.static belongs to a service without a port, to which no request leads
        set port, or remove static
    "#);
}

#[test]
fn domains_lead_to_one_service() {
    insta::assert_snapshot!(report(&app("domains = [\"a.example\"]\n")), @"
    deploy.toml:4:11: apps.shop.domains lead to no service: none has a port
        set port for the service that answers them
    ");
    insta::assert_snapshot!(report(&app(
        "domains = [\"a.example\"]\n[apps.shop.services.one]\nport = 1\n[apps.shop.services.two]\nport = 2\n"
    )), @r#"
    deploy.toml:4:11: apps.shop.domains could lead to one or two
        name the service that answers them "web", or write route = { path = "/…" } for each
    "#);
    insta::assert_snapshot!(report(&app("port = 1\n[apps.shop.services.web]\n")), @"
    deploy.toml:4:1: apps.shop.port belongs to one service, and this app has apps.shop.services
        move it to [apps.shop.services.web], or drop the services table
    ");
    insta::assert_snapshot!(report(&app("services = {}\n")), @"
    deploy.toml:4:1: apps.shop.services names no service
        write [apps.NAME.services.SERVICE] for each service
    ");
}

#[test]
fn builds_stay_inside_the_repository() {
    insta::assert_snapshot!(report(&app(
        r#"
[apps.shop.build]
dockerfile = "../Dockerfile"
context = "/srv"
builder = "classic"
args = { TOKEN = { env = "S" }, "1X" = "a", N = 5 }
secrets = { "a b" = { env = "UNSET" }, ok = { env = "S" } }
[apps.shop.services.web]
build = { timeout = "5m", dockerfile = "." }
"#
    )), @r#"
    deploy.toml:6:14: apps.shop.build.dockerfile: "../Dockerfile" leads outside the repository with ".."
        write a path relative to the repository's top, such as "docker/Dockerfile"
    deploy.toml:7:11: apps.shop.build.context: "/srv" is absolute, and so outside the repository
        write a path relative to the repository's top, such as "docker/Dockerfile"
    deploy.toml:9:10: apps.shop.build.args.TOKEN is a secret, and build arguments stay readable in the image
        write it under build.secrets and use RUN --mount=type=secret,id=NAME
    deploy.toml:9:33: "1X" is no name of an environment variable
        letters, digits and _ make a name, with no digit first
    deploy.toml:9:49: apps.shop.build.args.N must be text in quotes (what is written is not shown here)
        write N = "text"
    deploy.toml:10:13: apps.shop.build.secrets."a b": "a b" cannot name a secret's id
        letters, digits, _, . and - make a secret's id, with a letter or digit first
    deploy.toml:10:13: apps.shop.build.secrets."a b": the environment variable UNSET is not set
        set UNSET in the environment that longshore is started with
    deploy.toml:11:21: apps.shop.services.web: the classic builder knows no build secrets
        write builder = "buildkit", or remove build.secrets
    deploy.toml:12:21: apps.shop.services.web.build.timeout is set for all services of an app together
        move it to [apps.NAME.build]
    deploy.toml:12:40: apps.shop.services.web.build.dockerfile names a directory
        write the Dockerfile's path inside the repository
    "#);
}

#[test]
fn health_and_its_times() {
    insta::assert_snapshot!(report(&app(
        r#"
[apps.shop.services.a]
port = 1
health = { path = "healthz", tcp = true, interval = "0s" }
[apps.shop.services.b]
health = { path = "/x" }
[apps.shop.services.c]
port = 1
health = { path = "/x", timeout = "90s", successes = 61 }
[apps.shop.services.d]
health = { stable_for = "2m" }
[apps.shop.services.e]
health = { command = [], start_deadline = "2h" }
[apps.shop.services.f]
health = { command = ["true"], stable_for = "1s", failures = 0 }
[apps.shop.services.g]
health = "/healthz"
"#
    )), @r#"
    deploy.toml:1:7: apps.shop: start_deadline of e (2h) does not fit into the deadline of a whole deployment (1h)
        raise deadline, or lower start_deadline of e
    deploy.toml:7:19: apps.shop.services.a.health.path must begin with /, got "healthz"
        write "/healthz"
    deploy.toml:7:36: apps.shop.services.a.health.tcp is a second check beside the first
        keep one of path, tcp and command
    deploy.toml:7:53: apps.shop.services.a.health.interval must be 10ms to 10m, got "0s"
        write a duration in that range
    deploy.toml:9:19: apps.shop.services.b.health.path asks a port, and the service has none
        set port, or write health = { command = ["…"] }
    deploy.toml:12:1: apps.shop.services.c.health: 61 successes at an interval of 1s do not fit into start_deadline (1m)
        raise start_deadline, or lower successes or interval
    deploy.toml:12:35: apps.shop.services.c.health.timeout (90s) is longer than start_deadline (1m)
        one check must fit into the time that an instance has to become ready
    deploy.toml:14:25: apps.shop.services.d.health.stable_for (2m) does not fit into start_deadline (1m)
        raise start_deadline or lower stable_for
    deploy.toml:16:22: apps.shop.services.e.health.command names no program
        write command = ["program", "argument"]; there is no shell that would split it
    deploy.toml:18:45: apps.shop.services.f.health.stable_for has no meaning beside path, tcp or command
        remove it
    deploy.toml:18:62: apps.shop.services.f.health.failures must be 1 to 100, got 0
        write failures = 1 or another number in that range
    deploy.toml:20:10: apps.shop.services.g.health must be a table, got text
        write health = { path = "/healthz" }
    "#);
}

#[test]
fn durations() {
    insta::assert_snapshot!(report(&app(
        r#"
deadline = "30s"
[apps.shop.build]
timeout = "5 mins"
[apps.shop.release]
command = "python manage.py migrate"
timeout = "5"
service = "wbe"
[apps.shop.rollout]
watch = 60
order = "stop_frist"
[apps.shop.services.web]
stop_grace = "-1s"
drain = { requests = "1e9s", streams = "2d" }
"#
    )), @r#"
    deploy.toml:5:12: apps.shop: rollout.watch (1m) does not fit into the deadline of a whole deployment (30s)
        raise deadline, or lower rollout.watch
    deploy.toml:7:11: apps.shop.build.timeout is not a duration, got "5 mins"
        write "5m"; it must be 1s to 1d
    deploy.toml:9:11: apps.shop.release.command must be a list of arguments, got one text
        write command = ["program", "argument"]; there is no shell that would split it
    deploy.toml:10:11: apps.shop.release.timeout is a duration and needs a unit, got "5"
        write "5s" for 5 seconds or "5m" for 5 minutes; it must be 1s to 1d
    deploy.toml:11:11: apps.shop.release.service: the app has no service "wbe"
        its services: web
    deploy.toml:13:9: apps.shop.rollout.watch is a duration and needs quotes and a unit, got 60
        write watch = "60s" for 60 seconds; it must be 0s, or 1ms to 1d
    deploy.toml:14:9: apps.shop.rollout.order must be "start_first" or "stop_first", got "stop_frist"
        did you mean "stop_first"?
    deploy.toml:16:14: apps.shop.services.web.stop_grace cannot be negative, got "-1s"
        write a duration such as "500ms", "30s" or "5m"; it must be 1ms to 1h
    deploy.toml:17:22: apps.shop.services.web.drain.requests is not a duration, got "1e9s"
        the units are ms, s, m, h and d, as in "30s"; it must be 1ms to 1h
    deploy.toml:17:40: apps.shop.services.web.drain.streams must be 0s, or 1ms to 1d, got "2d"
        write a duration in that range
    "#);
}

#[test]
fn mounts_that_give_the_host_away() {
    insta::assert_snapshot!(report(&app(
        r#"volumes = [
  "/var/run/docker.sock:/var/run/docker.sock",
  "/:/host",
  "/etc:/etc:ro",
  "/var/lib/docker:/d",
  "/var/lib/longshore/mirrors:/m",
  "media",
  "./x:/x",
  "ok:/d",
]
"#
    )), @r#"
    deploy.toml:5:3: apps.shop.volumes[0]: /run/docker.sock is the container engine's socket; mounting it gives root on the host and is refused
        mount a directory made for the app, such as /srv/APP, or a named volume
    deploy.toml:6:3: apps.shop.volumes[1]: / contains /etc; mounting it gives root on the host and is refused
        mount a directory made for the app, such as /srv/APP, or a named volume
    deploy.toml:7:3: apps.shop.volumes[2]: /etc belongs to the host alone; mounting it gives root on the host and is refused
        mount a directory made for the app, such as /srv/APP, or a named volume
    deploy.toml:8:3: apps.shop.volumes[3]: /var/lib/docker belongs to the host alone; mounting it gives root on the host and is refused
        mount a directory made for the app, such as /srv/APP, or a named volume
    deploy.toml:9:3: apps.shop.volumes[4]: /var/lib/longshore/mirrors lies in /var/lib/longshore; mounting it gives root on the host and is refused
        mount a directory made for the app, such as /srv/APP, or a named volume
    deploy.toml:10:3: apps.shop.volumes[5]: "media" is no volume
        write "NAME:/path" for a volume or "/host/path:/path:ro" for a directory of the host
    deploy.toml:11:3: apps.shop.volumes[6]: "./x:/x" names a relative host path
        write the absolute path, or a volume's name without slashes
    deploy.toml:12:3: apps.shop.volumes[7]: /d is mounted twice
        give each volume a path of its own
    "#);
}

#[test]
fn environments() {
    insta::assert_snapshot!(report(&app(
        r#"
[apps.shop.env]
"MY-VAR" = "x"
PORT = 8000
A = { env = "UNSET" }
B = { value = "sEnTiNeL" }
"#
    )), @r#"
    deploy.toml:6:1: "MY-VAR" is no name of an environment variable
        letters, digits and _ make a name, with no digit first
    deploy.toml:7:8: apps.shop.env.PORT must be text in quotes (what is written is not shown here)
        write PORT = "text", PORT = { env = "NAME" } or PORT = { file = "PATH" }
    deploy.toml:8:1: apps.shop.env.A: the environment variable UNSET is not set
        set UNSET in the environment that longshore is started with
    deploy.toml:9:1: apps.shop.env.B must name exactly one place for the secret
        write { env = "NAME" } or { file = "PATH" }
    deploy.toml:9:7: unknown key "value"
        apps.shop.env.B takes: env, file
    "#);
}

#[test]
fn addresses_of_notices() {
    insta::assert_snapshot!(report(
        r#"
[[notify]]
kind = "discord"
url = "https://discord.com/api/webhooks/1/sEnTiNeL"
[[notify]]
kind = "discord"
url = { env = "OTHER_URL" }
[[notify]]
kind = "discord"
url = { env = "LOCAL_URL" }
events = ["suceeded", "failed", "failed"]
[[notify]]
events = []
"#
    ), @r#"
    deploy.toml:4:7: notify[0].url: a secret is never written in the file itself (the value is not shown here)
        write { env = "NAME" } or { file = "PATH" }
    deploy.toml:7:1: notify[1].url: the environment variable OTHER_URL does not lead to one of Discord's hosts (its value is not shown here)
        it must be https://discord.com/api/webhooks/ID/TOKEN, as Discord's channel settings show it
    deploy.toml:10:1: notify[2].url: the environment variable LOCAL_URL holds an address on this machine (its value is not shown here)
        set allow_local = true if a stand-in on this machine is meant
    deploy.toml:11:11: notify[2].events[0] must be one of "started", "succeeded", "failed", "rolled_back", "superseded", "cancelled", "engine_down", "engine_up", "canary_down", "canary_up", "certificate_failed", "certificate_issued", got "suceeded"
        did you mean "succeeded"?
    deploy.toml:11:33: notify[2].events[2] is in the list twice
        remove one of them
    deploy.toml:12:1: notify[3] needs kind
        write kind = "discord"
    deploy.toml:12:1: notify[3] needs url
        write url = { env = "DISCORD_WEBHOOK_URL" }
    deploy.toml:13:10: notify[3].events names no event: nothing would ever be told
        write events = ["succeeded", "failed", "rolled_back"], or leave it out for all
    "#);
    insta::assert_snapshot!(report("[notify]\nkind = \"discord\"\n"), @"
    deploy.toml:1:2: notify must be a list of tables
        write [[notify]] with two brackets on each side
    ");
    let local = config("[[notify]]\nkind = \"discord\"\nurl = { env = \"LOCAL_URL\" }\nallow_local = true\n");
    assert_eq!(local.notify[0].events, NoticeKind::ALL);
}

#[test]
fn tables_that_are_none() {
    insta::assert_snapshot!(report("agent = 1\nproxy = \"x\"\nnotify = 2\nruntime = []\n[apps]\nshop = \"x\"\n"), @"
    deploy.toml:1:9: agent must be a table, got a number
        write [agent] on a line of its own
    deploy.toml:2:9: proxy must be a table, got text
        write [proxy] on a line of its own
    deploy.toml:3:10: notify must be a list, got a number
        write [[notify]] on a line of its own
    deploy.toml:4:11: runtime must be a table, got a list
        write [runtime] on a line of its own
    deploy.toml:6:8: apps.shop must be a table, got text
        write [apps.NAME] on a line of its own
    ");
    insta::assert_snapshot!(report(&app("env = 1\nservices = 1\nrollout = 1\nhealth = 1\ndrain = 1\nvolumes = \"a:/b\"\n")), @r#"
    deploy.toml:4:7: apps.shop.env must be a table, got a number
        write env = { NAME = "text" }
    deploy.toml:5:12: apps.shop.services must be a table, got a number
        write [apps.NAME.services.SERVICE] for each service
    deploy.toml:6:11: apps.shop.rollout must be a table, got a number
        write rollout = { watch = "60s" }
    deploy.toml:7:1: apps.shop.health belongs to one service, and this app has apps.shop.services
        move it to [apps.shop.services.web], or drop the services table
    deploy.toml:8:1: apps.shop.drain belongs to one service, and this app has apps.shop.services
        move it to [apps.shop.services.web], or drop the services table
    deploy.toml:9:1: apps.shop.volumes belongs to one service, and this app has apps.shop.services
        move it to [apps.shop.services.web], or drop the services table
    "#);
}

/// A file that is being written may be read at any moment, and an agent without apps stops all that runs.
#[test]
fn a_file_that_says_nothing_is_not_one_without_apps() {
    for text in ["", "\n\n", "# [apps.shop]\n"] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(report(text), @r"
            deploy.toml: has no settings at all: it may be half written
                write it whole; to let every app go, leave a table such as [agent] in it
            ");
        }
    }
    assert!(config("[agent]\n").apps.is_empty());
}
