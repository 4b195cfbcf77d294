use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::*;
use crate::config::Webhook;
use crate::model::{DeploymentId, ReleaseNumber, Status, Trigger};
use crate::store::{Admission, Finish};
use crate::trigger::keep_alive::SIGN;
use crate::trigger::testing::{SECRET, Server, app, config, shop};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/post-receive");

fn moved() -> String {
    format!("{} {} refs/heads/main\n", "a".repeat(40), "b".repeat(40))
}

/// Runs git as a person without any configuration.
async fn git_in(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "init.defaultBranch=main"])
        .arg("-C")
        .arg(dir)
        .args(args)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {text}");
    text
}

async fn bare() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    git_in(dir.path(), &["init", "--quiet", "--bare", "."]).await;
    dir
}

fn settings(url: &str, app: &str, secret: &str) -> HookSettings {
    HookSettings { url: url.into(), app: app.parse().unwrap(), secret: secret.into() }
}

fn url(server: &Server) -> String {
    format!("http://{}", server.addr)
}

/// Runs the hook as git does: in the repository, with GIT_DIR, the lines on its standard input. Always exits 0.
async fn run_hook(shell: &[&str], repository: &Path, path: Option<&Path>, stdin: &str) -> String {
    let mut command = Command::new(shell[0]);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let mut child = command
        .args(&shell[1..])
        .arg(SCRIPT)
        .current_dir(repository)
        .env("GIT_DIR", ".")
        .env("HOME", repository)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

/// A server on which each deployment is over at once: two lines of log, then release v1.
async fn quick_server(apps: Vec<config::App>) -> Server {
    Server::with_submit(apps, |store| {
        Box::new(move |new| {
            let store = store.clone();
            Box::pin(async move {
                let admission = store.admit(new).await?;
                if let Admission::Queued { id, .. } = admission {
                    store.post_log(id, 1, "curl: (7) is said by the build".into());
                    store.post_log(id, 2, "  {\"detail\":\"too\"} \\n $HOME `id` %s".into());
                    store.set_release(id, ReleaseNumber(1)).await?;
                    let ended = Finish { status: Status::Succeeded, reason: None, superseded_by: None, hold: false };
                    store.finish(id, ended).await?;
                }
                Ok(admission)
            })
        })
    })
    .await
}

#[tokio::test]
async fn a_git_push_shows_the_deployment() {
    let server = quick_server(vec![shop()]).await;
    let (origin, work) = (bare().await, tempfile::tempdir().unwrap());
    install(origin.path(), &settings(&url(&server), "shop", SECRET), false).unwrap();
    git_in(work.path(), &["init", "--quiet", "."]).await;
    git_in(work.path(), &["commit", "--quiet", "--allow-empty", "-m", "One"]).await;
    let commit = git_in(work.path(), &["rev-parse", "HEAD"]).await.trim().to_owned();
    let origin = origin.path().to_str().unwrap();
    let said =
        git_in(work.path(), &["push", origin, "HEAD:refs/heads/main", "HEAD:refs/heads/next", "HEAD:refs/tags/v1"])
            .await;

    let remote: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("remote: ")).map(str::trim_end).collect();
    assert_eq!(
        remote,
        [
            "longshore: ignored: branch next: only branch main is deployed",
            "longshore: ignored: tag v1: only branch main is deployed",
            &format!("longshore: queued main at {} as deployment #1", &commit[..7]),
            "curl: (7) is said by the build",
            "  {\"detail\":\"too\"} \\n $HOME `id` %s",
            "longshore: succeeded v1",
        ]
    );
    let record = server.store.deployment(DeploymentId(1)).await.unwrap().unwrap();
    assert_eq!((record.trigger, record.commit.unwrap().as_str()), (Trigger::PostReceive, commit.as_str()));
    git_in(Path::new(origin), &["config", "receive.denyDeleteCurrent", "ignore"]).await;
    let deleted = git_in(work.path(), &["push", origin, "--delete", "main"]).await;
    assert!(deleted.contains("longshore: ignored: branch main was deleted"), "{deleted}");
}

/// The shells of this machine that may be a git server's /bin/sh.
async fn shells() -> Vec<Vec<&'static str>> {
    let mut there = Vec::new();
    for shell in [vec!["sh"], vec!["dash"], vec!["bash", "--posix"], vec!["busybox", "sh"]] {
        let probe = Command::new(shell[0]).args(&shell[1..]).args(["-c", ":"]).status().await;
        if probe.is_ok_and(|status| status.success()) {
            there.push(shell);
        }
    }
    assert!(!there.is_empty());
    there
}

#[tokio::test]
async fn whatever_the_secret_is_the_signature_fits_in_every_shell() {
    let secrets = [
        "666666\\\\\\\\\\\\".to_owned(), // the bytes that become NUL in the inner and the outer key
        "\"quotes' $HOME `id` %s \\n \\0101 ; # x".to_owned(),
        "größe ☃ 0123456789".to_owned(),
        "x".repeat(63),
        "y".repeat(64),
        "z6\\".repeat(30),
        "  blanks at both ends  ".to_owned(),
    ];
    let apps: Vec<config::App> = secrets
        .iter()
        .enumerate()
        .map(|(index, secret)| {
            let mut app = app(&format!("a{index}"), RepoUrl::Local("/srv/git/x".into()));
            app.webhook = Some(Webhook { provider: config::Provider::GitHub, secret: Ok(secret.as_str().into()) });
            app
        })
        .collect();
    let server = quick_server(apps).await;
    let origin = bare().await;
    for shell in shells().await {
        for (index, secret) in secrets.iter().enumerate() {
            install(origin.path(), &settings(&format!("{}/", url(&server)), &format!("a{index}"), secret), false)
                .unwrap();
            let said = run_hook(&shell, origin.path(), None, &moved()).await;
            assert!(said.ends_with("longshore: succeeded v1\n"), "{shell:?} {secret:?}: {said}");
        }
    }
}

/// A directory to put in PATH with the tools a git server has.
fn tools(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        let path = std::env::var("PATH").unwrap();
        let real = path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists()).unwrap();
        symlink(real, dir.path().join(name)).unwrap();
    }
    dir
}

const TOOLS: [&str; 10] = ["sh", "git", "cat", "od", "tr", "sed", "mktemp", "rm", "curl", "openssl"];

#[tokio::test]
async fn no_other_program_sees_the_secret() {
    let server = quick_server(vec![shop()]).await;
    let origin = bare().await;
    install(origin.path(), &settings(&url(&server), "shop", SECRET), false).unwrap();
    // Each tool notes how it was called, then is itself.
    let (real, spies) = (tools(&TOOLS), tempfile::tempdir().unwrap());
    let seen = spies.path().join("seen");
    for name in TOOLS {
        let real = real.path().join(name);
        let script = format!(
            "#!{sh}\n{{ printf '%s\\n' {name} \"$@\"; export -p; }} >>{seen}\nexec {real} \"$@\"\n",
            sh = std::fs::canonicalize("/bin/sh").unwrap().display(),
            seen = seen.display(),
            real = real.display()
        );
        write(&spies.path().join(name), &script, 0o755, Owner::of(origin.path()).unwrap()).unwrap();
    }
    let said = run_hook(&["/bin/sh"], origin.path(), Some(spies.path()), &moved()).await;
    assert!(said.ends_with("longshore: succeeded v1\n"), "{said}");

    let seen = fs::read_to_string(&seen).unwrap();
    assert!(seen.contains("openssl\ndgst\n-sha256") && seen.contains("curl\n-q\n"), "{seen}");
    let signature = crate::trigger::testing::sign(SECRET, moved().as_bytes());
    for secret in [SECRET, &hex::encode(SECRET), signature.trim_start_matches("sha256=")] {
        assert!(!seen.contains(secret), "{seen}");
    }
    assert!(
        !seen
            .split(
                "curl
-q
"
            )
            .nth(1)
            .unwrap()
            .contains("GIT_DIR"),
        "{seen}"
    );
}

#[tokio::test]
async fn whatever_is_wrong_is_one_clear_line() {
    let server = quick_server(vec![shop()]).await;
    let origin = bare().await;
    let repository = origin.path();
    let hook = async |stdin: &str| run_hook(&["sh"], repository, None, stdin).await;
    let one_line = |said: &str, words: &str| {
        assert!(said.starts_with("longshore: nothing was deployed: ") && said.contains(words), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    one_line(&hook(&moved()).await, "git config longshore.url is not set");
    git_in(repository, &["config", "longshore.url", &url(&server)]).await;
    one_line(&hook(&moved()).await, "git config longshore.app is not set");
    git_in(repository, &["config", "longshore.app", "shop"]).await;
    one_line(&hook(&moved()).await, "git config longshore.secret is not set");
    git_in(repository, &["config", "longshore.secret", "another secret"]).await;
    one_line(&hook(&moved()).await, "refused the signature (401): compare longshore.app and longshore.secret");
    git_in(repository, &["config", "longshore.secret", SECRET]).await;
    assert!(hook(&moved()).await.ends_with("longshore: succeeded v1\n"));

    let zero = "0".repeat(40);
    let tried = hook(&format!("{zero} {zero} refs/heads/test\n")).await;
    assert_eq!(tried, "longshore: ignored: branch test: only branch main is deployed\n", "as `hook install` advises");
    one_line(&hook("").await, "there are no ref lines");
    assert!(hook(moved().trim_end()).await.ends_with("longshore: succeeded v1\n"), "without the last line end");
    one_line(&hook("a b\n").await, "answered 400: line 1: expected `OLD NEW REF`, got 2 fields: 'a b'");
    for (missing, words) in [("curl", "curl is not installed"), ("openssl", "openssl is not installed")] {
        let kept: Vec<&str> = TOOLS.into_iter().filter(|name| *name != missing).collect();
        let path = tools(&kept);
        one_line(&run_hook(&["/bin/sh"], repository, Some(path.path()), &moved()).await, words);
    }

    git_in(repository, &["config", "longshore.url", &format!("{}/elsewhere", url(&server))]).await;
    one_line(&hook(&moved()).await, "answered 404");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    git_in(repository, &["config", "longshore.url", &format!("http://{closed}")]).await;
    let down = hook(&moved()).await;
    assert!(down.starts_with("longshore: nobody answers at ") && down.lines().count() == 1, "{down}");
    assert!(down.contains("is the agent running?") && down.contains("it finds the push at its start"), "{down}");
    git_in(repository, &["config", "longshore.url", "file:///etc/passwd"]).await;
    one_line(&hook(&moved()).await, "cannot be asked");
}

#[tokio::test]
async fn an_agent_that_goes_away_midway_is_said() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let half = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\nlongshore: queued\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let origin = bare().await;
    install(origin.path(), &settings(&format!("http://{address}"), "shop", SECRET), false).unwrap();
    let said = run_hook(&["sh"], origin.path(), None, &moved()).await;
    half.await.unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "longshore: queued");
    assert!(lines[1].starts_with("longshore: the connection to the agent broke off"), "{said}");
}

/// Says `first`, then one line of blanks a second, and ends after `seconds`.
async fn seldom_heard(listener: tokio::net::TcpListener, first: &str, seconds: u32) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(format!("{head}{}", chunk(first)).as_bytes()).await.unwrap();
    for _ in 0..seconds {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        stream.write_all(chunk(SIGN).as_bytes()).await.unwrap();
    }
    let last = chunk("\nlongshore: succeeded v1\n") + &chunk("");
    stream.write_all(last.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_has_nothing_to_tell_is_waited_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let agent = tokio::spawn(seldom_heard(listener, "longshore: queued\n", 6));
    let origin = bare().await;
    install(origin.path(), &settings(&format!("http://{address}"), "shop", SECRET), false).unwrap();
    git_in(origin.path(), &["config", "longshore.silence", "3"]).await;
    let said = run_hook(&["sh"], origin.path(), None, &moved()).await;
    agent.await.unwrap();
    assert_eq!(said, "longshore: queued\n\nlongshore: succeeded v1\n", "and the pusher does not see how it is known");
}

#[tokio::test]
async fn an_agent_that_says_nothing_is_not_waited_for() {
    for (said_before, told) in [
        ("", ["does not answer: if it has not taken the push, it finds it by itself later", "longshore status shop"]),
        ("longshore: queued\n", ["has said nothing for 2 s and is not waited for", "longshore status shop"]),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let agent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            if !said_before.is_empty() {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let answer = format!("{head}{:x}\r\n{said_before}\r\n", said_before.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let origin = bare().await;
        install(origin.path(), &settings(&format!("http://{address}"), "shop", SECRET), false).unwrap();
        git_in(origin.path(), &["config", "longshore.silence", "2"]).await;
        let said = run_hook(&["sh"], origin.path(), None, &moved()).await;
        agent.abort();
        let last = said.strip_prefix(said_before).unwrap();
        assert!(told.iter().all(|part| last.contains(part)), "{said}");
        assert!(last.lines().count() == 1 && !last.contains("nothing was deployed"), "{said}");
    }
}

#[tokio::test]
async fn it_is_not_said_that_nothing_was_deployed_when_that_is_not_known() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mute = tokio::spawn(async move { drop(listener.accept().await.unwrap()) });
    let origin = bare().await;
    install(origin.path(), &settings(&format!("http://{address}"), "shop", SECRET), false).unwrap();
    let said = run_hook(&["sh"], origin.path(), None, &moved()).await;
    mute.await.unwrap();
    assert!(said.contains("broke off before it answered") && !said.contains("nothing was deployed"), "{said}");
}

#[test]
fn the_command_line_is_sound() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: HookInstall,
    }
    <Cli as clap::CommandFactory>::command().debug_assert();
    let cli = <Cli as clap::Parser>::parse_from(["install", "/srv/git/shop.git", "--app", "shop", "--force"]);
    assert_eq!((cli.args.app.unwrap().as_str(), cli.args.force), ("shop", true));
    assert!(<Cli as clap::Parser>::try_parse_from(["install", "/srv/git/shop.git", "--app", "My_App"]).is_err());
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn installing_writes_a_hook_and_private_settings() {
    let awkward = "back\\slash \"quoted\" # ; 'x'";
    for kind in ["bare", "work tree"] {
        let dir = if kind == "bare" { bare().await } else { tempfile::tempdir().unwrap() };
        if kind != "bare" {
            git_in(dir.path(), &["init", "--quiet", "."]).await;
        }
        git_in(dir.path(), &["config", "longshore.secret", "set by hand before"]).await;
        for _ in 0..2 {
            let done = install(dir.path(), &settings("https://deploy.example.com", "shop", awkward), false).unwrap();
            assert_eq!((mode(&done.hook), mode(&done.settings), done.backup), (0o755, 0o600, None));
            assert!(done.hook.is_absolute() && done.hook.ends_with("hooks/post-receive"));
            for path in [&done.hook, &done.settings] {
                assert!(!path.display().to_string().contains("/./"), "{}", path.display());
            }
        }
        for (key, value) in [("url", "https://deploy.example.com"), ("app", "shop"), ("secret", awkward)] {
            assert_eq!(
                git_in(dir.path(), &["config", "--get-all", &format!("longshore.{key}")]).await,
                format!("{value}\n")
            );
        }
        let includes = git_in(dir.path(), &["config", "--get-all", "include.path"]).await;
        assert_eq!(includes, "longshore.conf\n", "once, however often it is installed");
    }
}

#[tokio::test]
async fn a_hook_of_somebody_else_is_not_lost() {
    let origin = bare().await;
    let hook = origin.path().join("hooks/post-receive");
    fs::create_dir_all(origin.path().join("hooks")).unwrap();
    let wanted = settings("https://deploy.example.com", "shop", SECRET);
    for (theirs, kept) in
        [("echo one", "post-receive.before-longshore"), ("echo two", "post-receive.before-longshore.1")]
    {
        fs::write(&hook, theirs).unwrap();
        let refused = install(origin.path(), &wanted, false).unwrap_err().to_string();
        assert!(refused.contains("is there already") && refused.contains("--force"), "{refused}");
        assert_eq!(fs::read_to_string(&hook).unwrap(), theirs);
        let backup = install(origin.path(), &wanted, true).unwrap().backup.unwrap();
        assert!(backup.ends_with(kept));
        assert_eq!(fs::read_to_string(backup).unwrap(), theirs);
        assert_eq!(fs::read_to_string(&hook).unwrap(), HOOK);
    }
}

#[tokio::test]
async fn git_says_where_hooks_are_and_who_shares_the_repository() {
    let origin = bare().await;
    git_in(origin.path(), &["config", "core.hooksPath", "our-hooks"]).await;
    git_in(origin.path(), &["config", "core.sharedRepository", "group"]).await;
    let done = install(origin.path(), &settings("https://deploy.example.com", "shop", SECRET), false).unwrap();
    assert!(done.hook.ends_with("our-hooks/post-receive"), "{done:?}");
    assert_eq!(mode(&done.settings), 0o640, "each member of the group runs the hook");

    let nowhere = tempfile::tempdir().unwrap();
    let refused = install(nowhere.path(), &settings("https://x", "shop", SECRET), false).unwrap_err().to_string();
    assert!(refused.contains("not a git repository"), "{refused}");
    for (url, secret, words) in [
        ("deploy.example.com", SECRET, "must begin with https://"),
        ("https://x y", SECRET, "has blanks"),
        ("https://x", "", "is empty"),
        ("https://x", "a\nb", "line ends"),
    ] {
        let refused = install(origin.path(), &settings(url, "shop", secret), false).unwrap_err().to_string();
        assert!(refused.contains(words) && !refused.contains("a\nb"), "{refused}");
    }
}

#[tokio::test]
async fn what_is_left_out_comes_from_the_configuration() {
    let origin = bare().await;
    let mut other = shop();
    other.name = "other".parse().unwrap();
    other.webhook = None;
    let here = app("here", RepoUrl::Local(origin.path().to_path_buf()));
    let all = config([shop(), other, here]);
    let args = |name: Option<&str>, url: Option<&str>| HookInstall {
        repository: origin.path().to_path_buf(),
        app: name.map(|name| name.parse().unwrap()),
        url: url.map(str::to_owned),
        secret_stdin: false,
        force: false,
    };
    let found = settings_from(&args(None, None), &all).unwrap();
    assert_eq!((found.app.as_str(), found.url.as_str()), ("here", "http://127.0.0.1:9000"));
    assert_eq!(found.secret.expose_secret(), SECRET);
    let mut public = config([shop()]);
    public.agent.public_url = Some("https://deploy.example.com".into());
    let only = settings_from(&args(None, None), &public).unwrap();
    assert_eq!((only.app.as_str(), only.url.as_str()), ("shop", "https://deploy.example.com"));
    assert_eq!(settings_from(&args(Some("shop"), Some("https://x")), &all).unwrap().url, "https://x");

    let refusals: BTreeMap<&str, String> = [
        ("nosuch", settings_from(&args(Some("nosuch"), None), &all)),
        ("other", settings_from(&args(Some("other"), None), &all)),
        ("several", settings_from(&args(None, None), &config([shop(), app("two", RepoUrl::Local("/x".into()))]))),
    ]
    .map(|(name, result)| (name, result.unwrap_err().to_string()))
    .into();
    assert_eq!(refusals["nosuch"], "there is no app nosuch; there are: here, other, shop");
    assert!(refusals["other"].contains("takes no webhooks"));
    assert!(refusals["several"].contains("--app NAME") && refusals["several"].contains("shop, two"));
}

#[tokio::test]
async fn another_apps_absent_secret_keeps_no_hook_from_being_installed() {
    let (origin, dir) = (bare().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("deploy.toml");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    std::fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let app = |name: &str, file: &str| {
        format!("[apps.{name}]\nrepo = \"https://h/{name}\"\nwebhook = {{ secret = {{ file = \"{file}\" }} }}\n")
    };
    std::fs::write(&path, app("shop", "secret") + &app("blog", "none")).unwrap();
    let install = |name: &str| {
        let args = HookInstall {
            repository: origin.path().to_path_buf(),
            app: Some(name.parse().unwrap()),
            url: None,
            secret_stdin: false,
            force: false,
        };
        run(&args, &path)
    };
    install("shop").unwrap();
    let refused = install("blog").unwrap_err();
    let problems = refused.downcast_ref::<Problems>().unwrap();
    assert!(problems.problems[0].what.starts_with("apps.blog.webhook.secret: the secret file"), "{problems}");
    assert_eq!(problems.problems.len(), 1);
    assert!(problems.to_string().starts_with(&path.display().to_string()), "{problems}");
}
