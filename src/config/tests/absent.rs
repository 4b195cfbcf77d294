//! Secrets that are not where the file says: what a start puts up with, and what nothing does.

use std::fs::Permissions;
use std::path::PathBuf;

use super::*;

/// Every place for a secret, each with a file of its own.
const EVERYWHERE: &str = r#"
[[notify]]
kind = "discord"
url = { file = "discord" }
[apps.shop]
repo = "https://h/shop"
credential = { token = { file = "token" } }
webhook = { secret = { file = "hook" } }
env = { DATABASE_URL = { file = "database" } }
build = { secrets = { npm = { file = "npm" } } }
[apps.blog]
repo = "git@h:blog"
credential = { ssh_key = "key", known_hosts = "hosts" }
webhook = { secret = { env = "S" } }
"#;

/// The files that it names, and the keys that name them.
const FILES: [(&str, &str); 7] = [
    ("discord", "notify[0].url"),
    ("token", "apps.shop.credential.token"),
    ("hook", "apps.shop.webhook.secret"),
    ("database", "apps.shop.env.DATABASE_URL"),
    ("npm", "apps.shop.build.secrets.npm"),
    ("key", "apps.blog.credential.ssh_key"),
    ("hosts", "apps.blog.credential.known_hosts"),
];

struct Dir(tempfile::TempDir);

impl Dir {
    fn with_every_file() -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        for (name, _) in FILES {
            dir.write(
                name,
                if name == "discord" { "https://discord.com/api/webhooks/1/x" } else { "sixteen.bytes.or.more" },
            );
        }
        dir
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
        std::fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self, text: &str) -> Result<Config, Problems> {
        validate::parse_to_start(text, "deploy.toml", self.0.path(), &environment)
    }

    fn check(&self, text: &str) -> Result<Config, Problems> {
        parse_in(text, "deploy.toml", self.0.path(), &environment)
    }
}

fn absent(config: &Config) -> Vec<&str> {
    config.absent.iter().map(|absent| absent.key.as_str()).collect()
}

#[test]
fn a_start_does_without_any_secret_that_is_not_there_and_says_which() {
    let dir = Dir::with_every_file();
    assert_eq!(absent(&dir.start(EVERYWHERE).unwrap()), [""; 0]);
    assert!(dir.check(EVERYWHERE).is_ok());
    for (name, key) in FILES {
        let content = std::fs::read_to_string(dir.path(name)).unwrap();
        std::fs::remove_file(dir.path(name)).unwrap();
        let config = dir.start(EVERYWHERE).unwrap();
        assert_eq!(absent(&config), [key]);
        let whose = config.absent.iter().next().unwrap().app().map(|app| app.to_string());
        assert_eq!(whose.as_deref(), key.strip_prefix("apps.").map(|rest| rest.split('.').next().unwrap()));
        // Nothing else is missing.
        let shop = &config.apps[&"shop".parse().unwrap()];
        assert_eq!(matches!(&config.notify[0].channel, Channel::Discord { url: Err(_), .. }), name == "discord");
        assert_eq!(matches!(shop.credential, Credential::Token { .. }), name != "token");
        assert_eq!(shop.webhook.as_ref().unwrap().secret.is_err(), name == "hook");
        assert_eq!(shop.services.values().next().unwrap().env.len(), 1);
        assert_eq!(shop.services.values().next().unwrap().build.secrets.len(), 1);
        // A check and a reload refuse it, as ever.
        let problems = dir.check(EVERYWHERE).unwrap_err().problems;
        assert!(problems.len() == 1 && problems[0].what.starts_with(key), "{problems:?}");
        dir.write(name, &content);
    }
}

#[test]
fn a_credential_that_is_absent_is_not_none() {
    let dir = Dir::with_every_file();
    for (name, app) in [("token", "shop"), ("key", "blog"), ("hosts", "blog")] {
        let content = std::fs::read_to_string(dir.path(name)).unwrap();
        std::fs::remove_file(dir.path(name)).unwrap();
        let config = dir.start(EVERYWHERE).unwrap();
        assert!(matches!(config.apps[&app.parse().unwrap()].credential, Credential::Absent(_)), "{name}");
        dir.write(name, &content);
    }
}

#[test]
fn what_is_there_and_cannot_be_used_is_absent() {
    let dir = Dir::with_every_file();
    for (content, mode, why) in
        [("", 0o600, "is empty"), ("short", 0o600, "holds 5 bytes"), ("sixteen.bytes.or.more", 0o644, "has mode 0644")]
    {
        dir.write("hook", content);
        std::fs::set_permissions(dir.path("hook"), Permissions::from_mode(mode)).unwrap();
        let config = dir.start(EVERYWHERE).unwrap();
        assert_eq!(absent(&config), ["apps.shop.webhook.secret"]);
        let said = config.apps[&"shop".parse().unwrap()].webhook.as_ref().unwrap().secret.as_ref().unwrap_err();
        assert!(said.to_string().contains(why), "{said}");
    }
}

#[test]
fn whatever_else_is_wrong_keeps_from_starting() {
    let dir = Dir::with_every_file();
    std::fs::remove_file(dir.path("hook")).unwrap();
    for wrong in [
        "[agent]\nlisten = 9000\n",
        "[apps.third]\nwebhook = { secret = \"written here\" }\n",
        "[apps.third]\nrepo = \"https://h/x\"\nwebhook = { secret = { env = \"no name\" } }\n",
        "[apps.third]\nrepo = \"https://h/x\"\nenv = { A = { file = \"~/a\" } }\n",
    ] {
        let problems = dir.start(&format!("{EVERYWHERE}{wrong}")).unwrap_err().problems;
        assert!(problems.len() > 1, "with what is absent: {problems:?}");
    }
}

#[test]
fn they_are_found_one_by_one_and_nothing_else_changes() {
    let dir = Dir::with_every_file();
    for name in ["hook", "database"] {
        std::fs::remove_file(dir.path(name)).unwrap();
    }
    let text = EVERYWHERE.replace("{ env = \"S\" }", "{ file = \"hook2\" }");
    dir.write("hook2", "sixteen.bytes.or.more");
    dir.write("deploy.toml", &text);
    let before = load_to_start(&dir.path("deploy.toml")).unwrap();
    assert_eq!(absent(&before), ["apps.shop.webhook.secret", "apps.shop.env.DATABASE_URL"]);
    // What somebody has begun to write since is not asked for.
    dir.write("deploy.toml", "[apps");
    assert_eq!(absent(&before.absent.look_again().unwrap()).len(), 2);
    dir.write("hook", "sixteen.bytes.or.more");
    let now = before.absent.look_again().unwrap();
    assert_eq!(absent(&now), ["apps.shop.env.DATABASE_URL"]);
    let secret = now.apps[&"shop".parse().unwrap()].webhook.as_ref().unwrap().secret.as_ref().unwrap();
    assert_eq!(secret.expose_secret(), "sixteen.bytes.or.more");
    dir.write("database", "postgres://db");
    assert!(now.absent.look_again().unwrap().absent.is_empty());
}

#[test]
fn a_start_does_without_a_page_of_maintenance_and_a_check_refuses_it() {
    let dir = Dir::with_every_file();
    let text = "[apps.shop]\nrepo = \"https://h/x\"\nport = 1\ndomains = [\"shop.test\"]\n\
                webhook = { secret = { env = \"S\" } }\nmaintenance = { page = \"page.html\" }\n";
    let config = dir.start(text).unwrap();
    assert_eq!(absent(&config), ["apps.shop.maintenance.page"]);
    assert!(config.absent.iter().all(Absent::is_page));
    let page = |config: &Config| config.apps[&"shop".parse().unwrap()].maintenance.clone().unwrap().page;
    assert_eq!(page(&config), None, "every request is still kept out");
    let problems = dir.check(text).unwrap_err().problems;
    assert!(problems[0].what.contains("page.html) cannot be read: No such file"), "{problems:?}");
    dir.write("page.html", "<h1>Back at noon</h1>");
    assert_eq!(page(&config.absent.look_again().unwrap()).as_deref(), Some("<h1>Back at noon</h1>"));
    let secrets = dir.start(&EVERYWHERE.replace("\"hook\"", "\"none\"")).unwrap();
    assert!(!secrets.absent.iter().any(Absent::is_page));
}

#[test]
fn what_was_read_stays_in_use_when_it_goes_and_what_is_read_later_does_not() {
    let dir = Dir::with_every_file();
    dir.write("deploy.toml", &EVERYWHERE.replace("{ env = \"S\" }", "{ file = \"hook\" }"));
    let mut config = load(&dir.path("deploy.toml")).unwrap();
    for (name, _) in FILES {
        std::fs::remove_file(dir.path(name)).unwrap();
    }
    // Also at the second look.
    for _ in 0..2 {
        config = config.absent.look_again().unwrap();
        let in_use = |key: &str| config.absent.iter().find(|absent| absent.key == key).map(|absent| absent.in_use);
        for (name, key) in FILES {
            assert_eq!(in_use(key), Some(["discord", "token", "hook"].contains(&name)), "{name}");
        }
        let shop = &config.apps[&"shop".parse().unwrap()];
        assert!(matches!(shop.credential, Credential::Token { .. }));
        assert!(shop.webhook.as_ref().unwrap().secret.is_ok());
    }
}

#[test]
fn only_what_a_deployment_needs_keeps_an_app_from_being_deployed() {
    let dir = Dir::with_every_file();
    let (shop, blog) = ("shop".parse().unwrap(), "blog".parse().unwrap());
    for (name, shop_is, blog_is) in [
        ("hook", false, false),
        ("discord", false, false),
        ("token", true, false),
        ("database", true, false),
        ("npm", true, false),
        ("key", false, true),
    ] {
        let content = std::fs::read_to_string(dir.path(name)).unwrap();
        std::fs::remove_file(dir.path(name)).unwrap();
        let config = dir.start(EVERYWHERE).unwrap();
        let kept = |app| config.absent.iter().any(|absent| absent.keeps_from_deploying(app));
        assert_eq!((kept(&shop), kept(&blog)), (shop_is, blog_is), "{name}");
        dir.write(name, &content);
    }
}
