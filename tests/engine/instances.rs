//! What a user gets from the Docker runtime.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use longshore::config::{Mount, MountSource};
use longshore::runtime::docker::Docker;
use longshore::runtime::{Exited, Happened, InstanceSpec, RunState, Runtime, RuntimeError};
use secrecy::SecretString;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::support::{Agent, PATIENCE, SOCKET, eventually, with_agent};

fn name(agent: &Agent, spec: &InstanceSpec) -> String {
    format!("longshore.{}.{}.{}", agent.id(), spec.app, spec.id)
}

#[test]
fn starting_and_stopping_twice_is_doing_it_once() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let spec = agent.spec(&image, 1, &["sleep", "x"]);
        let (first, second) = tokio::join!(agent.docker.start(&spec), agent.docker.start(&spec));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(first.state == RunState::Running && first.address.is_some() && first.started_at.is_some(), "{first:?}");
        assert_eq!(first.address, second.address);
        let listed = agent.docker.list(Some(&agent.app)).await.unwrap();
        assert_eq!(listed, [agent.docker.inspect(&spec.id).await.unwrap().unwrap()]);
        assert_eq!((listed[0].slot, listed[0].release.0, listed[0].settings.as_str()), (1, 7, "digest"));
        assert_eq!(agent.docker.list(Some(&"other".parse().unwrap())).await.unwrap(), []);

        agent.docker.stop(&spec.id, Duration::from_secs(5)).await.unwrap();
        agent.docker.stop(&spec.id, Duration::from_secs(5)).await.unwrap();
        assert_eq!(agent.docker.inspect(&spec.id).await.unwrap(), None);
        agent.docker.remove_network(&agent.app).await.unwrap();
        agent.docker.remove_network(&agent.app).await.unwrap();
        let left = agent.objects().await;
        assert!(left.iter().all(|name| name.starts_with("longshore-")), "only the image is left: {left:?}");
    });
}

#[test]
fn a_restart_is_of_the_very_container_and_starts_one_that_has_ended() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let mut spec = agent.spec(&image, 1, &["sleep", "x"]);
        spec.env = BTreeMap::from([("TOKEN".to_owned(), SecretString::from("a=b c"))]);
        let first = agent.docker.start(&spec).await.unwrap();
        let restart = async || agent.docker.restart(&spec.id, Duration::from_secs(1)).await;
        let second = restart().await.unwrap();
        assert_eq!((&second.container, &second.state), (&first.container, &RunState::Running));
        assert!(second.started_at > first.started_at && second.address.is_some(), "{second:?}");

        let client = agent.docker.client();
        client.stop_container(&first.container, None).await.unwrap();
        let third = restart().await.unwrap();
        assert_eq!((&third.container, &third.state), (&first.container, &RunState::Running));
        let seen = client.inspect_container(&first.container, None).await.unwrap();
        assert!(seen.config.unwrap().env.unwrap().contains(&"TOKEN=a=b c".to_owned()));

        agent.docker.stop(&spec.id, Duration::from_secs(1)).await.unwrap();
        let error = restart().await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Refused(text) if text.contains("there is no instance")), "{error}");
    });
}

#[test]
fn the_defaults_are_safe() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let mut spec = agent.spec(&image, 3, &["status"]);
        spec.command = Some(vec!["sleep".to_owned(), "x".to_owned()]);
        spec.memory = Some(64 << 20);
        spec.cpu_millis = Some(500);
        spec.env = BTreeMap::from([("TOKEN".to_owned(), SecretString::from("a=b c"))]);
        spec.volumes = vec![Mount {
            source: MountSource::Volume("media".to_owned()),
            target: "/media".to_owned(),
            read_only: false,
        }];
        agent.docker.start(&spec).await.unwrap();
        let seen = agent.docker.client().inspect_container(&name(&agent, &spec), None).await.unwrap();
        let (config, host) = (seen.config.unwrap(), seen.host_config.unwrap());
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert!(
            !host
                .cap_add
                .unwrap()
                .iter()
                .any(|capability| capability.contains("NET_RAW") || capability.contains("SYS"))
        );
        assert_eq!((host.pids_limit, host.init), (Some(512), Some(true)));
        assert_eq!(
            (host.memory, host.memory_swap, host.nano_cpus),
            (Some(64 << 20), Some(64 << 20), Some(500_000_000))
        );
        assert_eq!(host.restart_policy.unwrap().name.unwrap().to_string(), "always");
        let logs = host.log_config.unwrap();
        assert_eq!((logs.typ.unwrap().as_str(), logs.config.unwrap()["max-size"].as_str()), ("json-file", "10m"));
        assert!(host.port_bindings.is_none_or(|ports| ports.is_empty()), "nothing is published");
        assert_eq!((config.stop_timeout, config.hostname.as_deref()), (Some(2), Some("d12-web-3")));
        assert!(config.env.unwrap().contains(&"TOKEN=a=b c".to_owned()));

        let told = ["/app", "status"].map(str::to_owned);
        let status = agent.docker.exec(&spec.id, &told, PATIENCE).await.unwrap();
        // CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID and NET_BIND_SERVICE, by their numbers.
        let capabilities = [0, 1, 3, 5, 6, 7, 10].iter().map(|bit| 1u64 << bit).sum::<u64>();
        let has = |line: String| status.output.contains(&line);
        assert!(has(format!("CapEff:\t{capabilities:016x}")) && has("NoNewPrivs:\t1".to_owned()), "{status:?}");
        let written = ["/app", "append", "/media/seen"].map(str::to_owned);
        agent.docker.exec(&spec.id, &written, PATIENCE).await.unwrap();

        // The volume outlives its instance.
        agent.docker.stop(&spec.id, Duration::from_secs(1)).await.unwrap();
        agent.docker.start(&spec).await.unwrap();
        let again = agent.docker.exec(&spec.id, &written, PATIENCE).await.unwrap();
        assert_eq!(again.output, ["/media/seen has 10 bytes"]);
        agent.docker.stop(&spec.id, Duration::from_secs(1)).await.unwrap();
    });
}

#[test]
fn a_start_that_fails_leaves_nothing_and_says_why() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let mut spec = agent.spec(&image, 1, &["sleep", "x"]);
        spec.volumes = vec![Mount {
            source: MountSource::Host("/nonexistent/longshore".into()),
            target: "/x".to_owned(),
            read_only: true,
        }];
        let error = agent.docker.start(&spec).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/longshore") && !error.contains('\n'), "{error}");
        spec.volumes[0].source = MountSource::Host("/proc/version".into());
        spec.volumes[0].target = "/app/x".to_owned();
        let error = agent.docker.start(&spec).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Refused(text) if text.contains("not a directory")), "{error}");
        assert_eq!(agent.docker.inspect(&spec.id).await.unwrap(), None);

        let gone = agent.spec(&longshore::model::ImageId(format!("sha256:{}", "0".repeat(64))), 2, &[]);
        assert!(matches!(agent.docker.start(&gone).await, Err(RuntimeError::ImageGone(_))));
    });
}

#[test]
fn a_strangers_container_is_never_touched() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let spec = agent.spec(&image, 1, &["sleep", "x"]);
        let name = name(&agent, &spec);
        let client = agent.docker.client();
        let options =
            bollard::query_parameters::CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        let body = bollard::models::ContainerCreateBody { image: Some(image.0.clone()), ..Default::default() };
        let stranger = client.create_container(Some(options), body).await.unwrap().id;
        let error = agent.docker.start(&spec).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Refused(text) if text.contains(&name)), "{error}");
        assert_eq!(agent.docker.inspect(&spec.id).await.unwrap(), None);
        agent.docker.stop(&spec.id, Duration::from_secs(1)).await.unwrap();
        client.inspect_container(&stranger, None).await.unwrap();
        client.remove_container(&stranger, None).await.unwrap();
    });
}

/// Collects what happens until something does that `is_it` wants.
async fn until(
    events: &mut (impl StreamExt<Item = Happened> + Unpin),
    is_it: impl Fn(&Happened) -> bool,
) -> Vec<Happened> {
    let mut seen = Vec::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, events.next()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing more after {seen:?}")).unwrap();
        let done = is_it(&next);
        seen.push(next);
        if done {
            return seen;
        }
    }
}

#[test]
fn events_tell_how_an_instance_ended() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let mut events = agent.docker.watch();
        let dying = agent.spec(&image, 1, &["exit-after", "300", "7"]);
        agent.docker.start(&dying).await.unwrap();
        let ended = Happened::Exited(dying.id.clone(), Exited { code: 7, oom: false, removed: false, output: vec![] });
        let seen = until(&mut events, |event| *event == ended).await;
        // That it joined its network comes beside.
        let first = seen.iter().find(|event| !matches!(event, Happened::Rewired(_)));
        assert_eq!(first, Some(&Happened::Started(dying.id.clone())));
        // The engine starts it again, and counts.
        until(&mut events, |event| *event == Happened::Started(dying.id.clone())).await;
        eventually("a restart is counted", || async {
            agent.docker.inspect(&dying.id).await.unwrap().unwrap().restarts > 0
        })
        .await;
        agent.docker.stop(&dying.id, Duration::from_secs(1)).await.unwrap();
        until(&mut events, |event| *event == Happened::Removed(dying.id.clone())).await;

        let mut eater = agent.spec(&image, 2, &["eat"]);
        eater.memory = Some(32 << 20);
        agent.docker.start(&eater).await.unwrap();
        let is_end = |event: &Happened| matches!(event, Happened::Exited(id, _) if *id == eater.id);
        let end = until(&mut events, is_end).await.pop().unwrap();
        assert_eq!(
            end,
            Happened::Exited(eater.id.clone(), Exited { code: 137, oom: true, removed: false, output: vec![] })
        );
    });
}

#[test]
fn one_that_was_cut_off_goes_on_in_its_network_as_the_same_container() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let spec = agent.spec(&image, 1, &["sleep", "x"]);
        let before = agent.docker.start(&spec).await.unwrap();
        let mut events = agent.docker.watch();
        let client = agent.docker.client();
        let network = format!("longshore.{}.{}", agent.id(), agent.app);
        let disconnect = async || {
            let container = name(&agent, &spec);
            let request = bollard::models::NetworkDisconnectRequest { container, force: Some(true) };
            client.disconnect_network(&network, request).await.unwrap();
        };
        let cut_off = |event: &Happened| matches!(event, Happened::Rewired(now) if now.is_cut_off());
        let is_back = |event: &Happened| matches!(event, Happened::Rewired(now) if !now.is_cut_off());

        disconnect().await;
        until(&mut events, cut_off).await;
        assert!(agent.docker.inspect(&spec.id).await.unwrap().unwrap().is_cut_off());
        let (first, second) = tokio::join!(agent.docker.reconnect(&spec.id), agent.docker.reconnect(&spec.id));
        assert_eq!((first.unwrap().started_at, second.unwrap().started_at), (before.started_at, before.started_at));
        until(&mut events, is_back).await;

        // The network is gone with its last container; whoever starts what runs already puts it back as well.
        disconnect().await;
        client.remove_network(&network).await.unwrap();
        let again = agent.docker.start(&spec).await.unwrap();
        assert!(!again.is_cut_off() && again.started_at == before.started_at, "{again:?}");
        let seen = client.inspect_container(&name(&agent, &spec), None).await.unwrap();
        let endpoint = seen.network_settings.unwrap().networks.unwrap().remove(&network).unwrap();
        assert!(endpoint.aliases.unwrap().contains(&"web".to_owned()), "it answers to its service's name");
        agent.docker.stop(&spec.id, Duration::from_secs(1)).await.unwrap();
        let gone = agent.docker.reconnect(&spec.id).await.unwrap_err().to_string();
        assert!(gone.contains("d12-web-1"), "{gone}");
    });
}

/// A way to the engine that can be cut.
struct Bridge {
    path: std::path::PathBuf,
    cut: Arc<Mutex<CancellationToken>>,
    _directory: tempfile::TempDir,
}

impl Bridge {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let listener = UnixListener::bind(&path).unwrap();
        let current = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let token = current.lock().unwrap().clone();
                tokio::spawn(token.run_until_cancelled_owned(async move {
                    let mut far = UnixStream::connect(SOCKET).await.unwrap();
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }));
            }
        });
        Self { path, cut, _directory: directory }
    }

    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

#[test]
fn events_go_on_after_a_lost_connection() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let bridge = Bridge::new();
        let far = Docker::connect(&format!("unix://{}", bridge.path.display()), agent.id()).await.unwrap();
        let mut events = far.watch();
        let spec = agent.spec(&image, 1, &["sleep", "x"]);
        agent.docker.start(&spec).await.unwrap();
        until(&mut events, |event| *event == Happened::Started(spec.id.clone())).await;
        bridge.cut();
        until(&mut events, |event| *event == Happened::Reconnected).await;
        agent.docker.stop(&spec.id, Duration::from_secs(1)).await.unwrap();
        let seen = until(&mut events, |event| *event == Happened::Removed(spec.id.clone())).await;
        let ends = seen.iter().filter(|event| matches!(event, Happened::Exited(..))).count();
        assert_eq!((ends, seen.contains(&Happened::Started(spec.id.clone()))), (1, false), "nothing twice: {seen:?}");
    });
}

#[test]
fn logs_are_lines_and_exec_has_an_end() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let spec = agent.spec(&image, 1, &["sleep", "x"]);
        agent.docker.start(&spec).await.unwrap();
        let mut logs = agent.docker.logs(&spec.id, 10, true).await.unwrap();
        assert_eq!(logs.next().await.unwrap(), "sleeping x\n");
        let run = async |argv: &[&str]| {
            let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
            agent.docker.exec(&spec.id, &argv, Duration::from_secs(5)).await
        };
        let counted = run(&["/app", "count", "30"]).await.unwrap();
        assert_eq!((counted.code, counted.output.len(), counted.output[19].as_str()), (0, 20, "line 30"));
        assert_eq!(run(&["/app", "exit", "3"]).await.unwrap().code, 3);
        assert_ne!(run(&["/nope"]).await.map(|exited| exited.code).unwrap_or(-1), 0);
        let began = Instant::now();
        let slow = ["/app", "sleep", "y"].map(str::to_owned);
        let late = agent.docker.exec(&spec.id, &slow, Duration::from_millis(300)).await;
        assert!(late.is_err() && began.elapsed() < Duration::from_secs(5), "{late:?}");
        agent.docker.stop(&spec.id, Duration::from_secs(1)).await.unwrap();
        assert_eq!(logs.next().await, None);
        assert!(agent.docker.logs(&spec.id, 1, false).await.is_err());
    });
}

#[test]
fn a_release_command_runs_once_even_over_two_lives() {
    with_agent(|agent| async move {
        let image = agent.app_image().await;
        let lines = Mutex::new(Vec::new());
        let log = |line: &str| lines.lock().unwrap().push(line.to_owned());
        let counting = agent.spec(&image, 1, &["count", "25"]);
        let exited = agent.docker.run_once(&counting, PATIENCE, &log).await.unwrap();
        assert_eq!((exited.code, exited.output.len(), lines.lock().unwrap().len()), (0, 20, 25));

        // The first life stops listening; the second finds the command running.
        let mut slow = agent.spec(&image, 2, &["exit-after", "1500", "3"]);
        slow.volumes = vec![];
        let first =
            tokio::time::timeout(Duration::from_millis(900), agent.docker.run_once(&slow, PATIENCE, &log)).await;
        assert!(first.is_err(), "{first:?}");
        assert_eq!(agent.docker.list(None).await.unwrap(), [], "it is no instance");
        let started = agent.docker.inspect(&slow.id).await.unwrap().unwrap().started_at;
        assert_eq!(agent.docker.remove_orphans(None, &|observed| observed.id == slow.id).await.unwrap(), 0);
        eventually("it ends by itself", || async {
            let now = agent.docker.inspect(&slow.id).await.unwrap().unwrap();
            assert_eq!(now.started_at, started);
            now.state != RunState::Running
        })
        .await;
        let second = agent.docker.run_once(&slow, PATIENCE, &log).await.unwrap();
        assert_eq!(second, Exited { code: 3, oom: false, removed: false, output: vec!["done".to_owned()] });
        assert_eq!(agent.docker.inspect(&slow.id).await.unwrap(), None);

        let endless = agent.spec(&image, 3, &["sleep", "x"]);
        let late = agent.docker.run_once(&endless, Duration::from_secs(1), &log).await.unwrap_err();
        assert!(late.to_string().contains("did not end within 1 s"), "{late}");
        assert_eq!(agent.docker.inspect(&endless.id).await.unwrap(), None);

        let orphan = agent.spec(&image, 4, &["sleep", "x"]);
        let left =
            tokio::time::timeout(Duration::from_millis(900), agent.docker.run_once(&orphan, PATIENCE, &log)).await;
        assert!(left.is_err());
        assert_eq!(agent.docker.remove_orphans(None, &|_| false).await.unwrap(), 1);
    });
}
