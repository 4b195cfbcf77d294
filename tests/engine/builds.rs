//! What a user gets from a build, with either builder.

use std::collections::BTreeMap;
use std::time::Instant;

use bollard::query_parameters::{
    CommitContainerOptionsBuilder, ListContainersOptions, RemoveContainerOptions, RemoveImageOptions,
};
use longshore::config::{Build, BuilderKind, SecretRef};
use longshore::deploy::build::BuildError;
use longshore::model::ImageId;
use tokio_util::sync::CancellationToken;

use crate::support::{Agent, Commit, build, eventually, is_running, log, with_agent};

const BOTH: [BuilderKind; 2] = [BuilderKind::Classic, BuilderKind::Buildkit];

async fn config(agent: &Agent, image: &ImageId) -> bollard::models::ImageConfig {
    agent.docker.client().inspect_image(&image.0).await.unwrap().config.unwrap()
}

fn failed(result: Result<longshore::deploy::build::Artifact, BuildError>) -> String {
    match result {
        Err(BuildError::Failed(text)) => text,
        other => panic!("not a failed build: {other:?}"),
    }
}

#[test]
fn the_same_content_is_built_once() {
    with_agent(|agent| async move {
        // With the agent's id, because BuildKit's cache outlives a test.
        let hello = format!("hello from the build of {}", agent.id());
        let dockerfile = format!("FROM scratch\nCOPY app /app\nRUN [\"/app\", \"say\", \"{hello}\"]\n");
        let commit = Commit::new(&[("Dockerfile", &dockerfile)]);
        for kind in BOTH {
            let key = agent.builder.key(agent.request(&commit, &build(kind))).await.unwrap();
            let (first, log) = agent.build(&commit, &build(kind)).await;
            let first = first.unwrap();
            assert!(first.built && first.key == key && first.base.is_none(), "{first:?}");
            assert!(log.iter().any(|line| line.ends_with(&hello)), "{log:#?}");
            assert!(log.iter().any(|line| line.contains("RUN")), "{log:#?}");

            let labels = config(&agent, &first.image).await.labels.unwrap();
            assert_eq!(labels["longshore.agent"], agent.id());
            assert_eq!(labels["longshore.commit"], commit.source.commit.as_str());

            // Another commit with the same files.
            let again = Commit::new(&[("Dockerfile", &dockerfile)]);
            let began = Instant::now();
            let (second, _) = agent.build(&again, &build(kind)).await;
            let second = second.unwrap();
            assert!(!second.built && second.image == first.image && second.key == first.key, "{second:?}");
            assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
            assert!(agent.builder.exists(&first.image).await.unwrap());
        }
        assert!(!agent.builder.exists(&ImageId(format!("sha256:{}", "0".repeat(64)))).await.unwrap());
    });
}

#[test]
fn arguments_and_the_target_stage_are_honoured() {
    with_agent(|agent| async move {
        let dockerfile = "FROM scratch AS first\nARG WORD=none\nCOPY app /app\nENV WORD=$WORD\n\
                          RUN [\"/app\", \"env\", \"WORD\"]\nFROM first\nENV LAST=1\n";
        let commit = Commit::new(&[
            ("Dockerfile", dockerfile),
            ("sub/deploy/Dockerfile", "FROM scratch\nCOPY x /x\n"),
            ("sub/x", ""),
        ]);
        for kind in BOTH {
            let word = format!("WORD=a b & $(id) \"ü\" {}", agent.id());
            let args = BTreeMap::from([("WORD".to_owned(), format!("a b & $(id) \"ü\" {}", agent.id()))]);
            let wanted = Build { target: Some("first".to_owned()), args, ..build(kind) };
            let (artifact, log) = agent.build(&commit, &wanted).await;
            let env = config(&agent, &artifact.unwrap().image).await.env.unwrap();
            assert!(env.contains(&word), "{env:?}");
            assert!(!env.iter().any(|entry| entry.starts_with("LAST")), "{env:?}");
            assert!(log.iter().any(|line| line.ends_with(&word)), "{log:#?}");
            let elsewhere =
                Build { context: "sub".to_owned(), dockerfile: "deploy/Dockerfile".to_owned(), ..build(kind) };
            agent.build(&commit, &elsewhere).await.0.unwrap();
        }
    });
}

#[test]
fn what_dockerignore_names_stays_out() {
    with_agent(|agent| async move {
        let id = agent.id();
        let dockerfile = format!("FROM scratch\nCOPY . /{id}/\nRUN [\"/{id}/app\", \"ls\", \"/{id}\"]\n");
        let commit = Commit::new(&[
            ("Dockerfile", dockerfile.as_str()),
            (".dockerignore", "*.env\n!keep.env\n"),
            ("secret.env", "x"),
            ("keep.env", "x"),
        ]);
        for kind in BOTH {
            let (artifact, log) = agent.build(&commit, &build(kind)).await;
            artifact.unwrap();
            let listing = log.iter().find(|line| line.contains("\"keep.env\"")).unwrap_or_else(|| panic!("{log:#?}"));
            assert!(!listing.contains("secret.env"), "{listing}");
        }
    });
}

#[test]
fn a_failing_build_says_why_in_one_line() {
    with_agent(|agent| async move {
        let cases = [
            ("FROM scratch\nCOPY app /app\nRUN [\"/app\", \"exit\", \"7\"]\n", &["RUN [", "exited with 7"][..]),
            ("FROM scratch\nCOPY nope /nope\n", &["`COPY nope /nope`", "not in the build context", ".dockerignore"]),
            ("FRM scratch\n", &["Dockerfile: line 1: unknown instruction: FRM"]),
            ("FROM localhost:1/none:1\n", &["base image localhost:1/none:1 cannot be pulled", "refused"]),
            ("# syntax=example.com/evil:1\nFROM scratch\n", &["frontend not allowed: example.com/evil:1"]),
        ];
        for kind in BOTH {
            for (dockerfile, expected) in &cases {
                let commit = Commit::new(&[("Dockerfile", dockerfile)]);
                let (result, log) = agent.build(&commit, &build(kind)).await;
                let text = failed(result);
                let complete = expected.iter().all(|part| text.contains(part));
                assert!(complete && !text.contains('\n'), "{kind:?} {dockerfile}\n{text}\n{log:#?}");
            }
        }
        let mounts = Commit::new(&[(
            "Dockerfile",
            "FROM scratch\nCOPY app /app\nRUN --mount=type=tmpfs,target=/t [\"/app\"]\n",
        )]);
        let text = failed(agent.build(&mounts, &build(BuilderKind::Classic)).await.0);
        assert!(text.contains("RUN --mount") && text.contains("needs BuildKit"), "{text}");
        let nothing = Commit::new(&[]);
        let text = failed(agent.build(&nothing, &build(BuilderKind::Auto)).await.0);
        assert!(text.contains("Dockerfile"), "{text}");
    });
}

#[test]
fn cancelling_stops_the_engines_build() {
    with_agent(|agent| async move {
        for kind in BOTH {
            for dropped in [false, true] {
                let word = format!("{}-{kind:?}-{dropped}", agent.id());
                let dockerfile = format!("FROM scratch\nCOPY app /app\nRUN [\"/app\", \"sleep\", \"{word}\"]\n");
                let commit = Commit::new(&[("Dockerfile", &dockerfile)]);
                let cancel = CancellationToken::new();
                let (log, lines) = log();
                let wanted = build(kind);
                let mut building = Box::pin(agent.builder.build(agent.request(&commit, &wanted), &log, &cancel));
                let sleeping = format!("sleeping {word}");
                tokio::select! {
                    ended = &mut building => panic!("{ended:?} {:#?}", lines.lock().unwrap()),
                    () = eventually("the step runs", || async {
                        lines.lock().unwrap().iter().any(|line| line.ends_with(&sleeping)) && is_running(&word)
                    }) => {}
                }
                if dropped {
                    drop(building);
                } else {
                    cancel.cancel();
                    assert!(matches!(building.await, Err(BuildError::Cancelled)));
                }
                eventually("the step's process ends", || async { !is_running(&word) }).await;
            }
        }
        eventually("no container is left", || async { containers_with(&agent, agent.id()).await == 0 }).await;
    });
}

/// Containers, ended ones too, whose command has `word` in it.
async fn containers_with(agent: &Agent, word: &str) -> usize {
    let all = ListContainersOptions { all: true, ..Default::default() };
    let found = agent.docker.client().list_containers(Some(all)).await.unwrap();
    found.iter().filter(|container| container.command.as_deref().unwrap_or_default().contains(word)).count()
}

#[test]
fn secrets_reach_the_step_and_nothing_else() {
    with_agent(|agent| async move {
        let canary = format!("canary-{}", agent.id());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, &canary).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let dockerfile = format!(
            "FROM scratch\nENV ID={}\nCOPY app /app\n\
                          RUN --mount=type=secret,id=token [\"/app\", \"cat\", \"/run/secrets/token\"]\n\
                          RUN --mount=type=secret,id=token [\"/app\", \"length\", \"/run/secrets/token\"]\n",
            agent.id()
        );
        let commit = Commit::new(&[("Dockerfile", &dockerfile)]);
        let secrets = BTreeMap::from([("token".to_owned(), SecretRef::File(file))]);
        let wanted = Build { secrets: secrets.clone(), ..build(BuilderKind::Auto) };
        let (artifact, log) = agent.build(&commit, &wanted).await;
        let artifact = artifact.unwrap_or_else(|error| panic!("{error} {log:#?}"));
        assert!(log.iter().any(|line| line.ends_with(&format!("length {}", canary.len()))), "{log:#?}");
        assert!(log.iter().any(|line| line.ends_with("[secret]")), "{log:#?}");

        let client = agent.docker.client();
        let history = client.image_history(&artifact.image.0).await.unwrap();
        let inspected = client.inspect_image(&artifact.image.0).await.unwrap();
        let everything = format!("{log:?} {history:?} {inspected:?} {artifact:?}");
        assert!(!everything.contains(&canary), "{everything}");

        let classic = Build { secrets, ..build(BuilderKind::Classic) };
        let plain = Commit::new(&[("Dockerfile", "FROM scratch\nCOPY app /app\n")]);
        let text = failed(agent.build(&plain, &classic).await.0);
        assert!(text.contains("build secrets") && text.contains("needs BuildKit"), "{text}");
    });
}

#[test]
fn buildkits_cache_mounts_outlive_a_build() {
    with_agent(|agent| async move {
        let dockerfile = format!(
            "FROM scratch\nARG N\nCOPY app /app\nRUN --mount=type=cache,id={},target=/cache [\"/app\", \"append\", \"/cache/seen\"]\n",
            agent.id()
        );
        let commit = Commit::new(&[("Dockerfile", &dockerfile)]);
        for (n, bytes) in [("1", 5), ("2", 10)] {
            let args = BTreeMap::from([("N".to_owned(), n.to_owned())]);
            let (artifact, log) = agent.build(&commit, &Build { args, ..build(BuilderKind::Auto) }).await;
            artifact.unwrap();
            let expected = format!("/cache/seen has {bytes} bytes");
            assert!(log.iter().any(|line| line.ends_with(&expected)), "{log:#?}");
        }
    });
}

#[test]
fn pruning_keeps_what_is_wanted_and_what_is_not_ours() {
    with_agent(|agent| async move {
        let client = agent.docker.client();
        let dockerfile = |word: &str| {
            format!(
                "FROM scratch AS early\nCOPY app /app\nRUN [\"/app\", \"say\", \"{}-{word}\"]\n\
                 RUN [\"/app\", \"write\", \"/out\", \"{word}\"]\nFROM scratch\nCOPY --from=early /out /out\nCOPY app /app\n",
                agent.id()
            )
        };
        let mut made = Vec::new();
        for (kind, word) in [
            (BuilderKind::Classic, "a"),
            (BuilderKind::Classic, "b"),
            (BuilderKind::Buildkit, "c"),
            (BuilderKind::Classic, "used"),
        ] {
            let commit = Commit::new(&[("Dockerfile", &dockerfile(word))]);
            made.push(agent.build(&commit, &build(kind)).await.0.unwrap().image);
        }
        let broken = Commit::new(&[(
            "Dockerfile",
            &format!(
                "FROM scratch\nCOPY app /app\nRUN [\"/app\", \"write\", \"/{}\", \"x\"]\nRUN [\"/app\", \"exit\", \"1\"]\n",
                agent.id()
            ),
        )]);
        failed(agent.build(&broken, &build(BuilderKind::Classic)).await.0);

        // An image in use, another app's image, a stranger's name for one of ours, and what a killed build leaves.
        use longshore::runtime::Runtime;
        agent.docker.start(&agent.spec(&made[3], 1, &["/app", "sleep", "x"])).await.unwrap();
        let other = Agent::connect(&format!("unix://{}", crate::support::SOCKET)).await;
        let theirs = other.app_image().await;
        let own_name = format!("strangers-{}", agent.id());
        let tag =
            bollard::query_parameters::TagImageOptions { repo: Some(own_name.clone()), tag: Some("1".to_owned()) };
        client.tag_image(&made[1].0, Some(tag)).await.unwrap();
        let left = leave_containers(&agent, &made[0]).await;
        // What people made of an instance and of a container of their own, and what lost its name as it was removed.
        let instance = agent.docker.client().list_containers(Some(of_instance(&agent))).await.unwrap().swap_remove(0);
        let commits = [commit(&agent, &instance.id.unwrap()).await, commit(&agent, &left.1).await];
        let nameless = leave_nameless(&agent, &dockerfile("nameless")).await;

        let gone = agent.builder.prune(&agent.app, &made[..1]).await.unwrap();
        assert!(gone >= 4, "{gone}");
        let exists = async |image: &ImageId| agent.builder.exists(image).await.unwrap();
        assert!(exists(&made[0]).await && !exists(&made[2]).await && exists(&made[3]).await && exists(&theirs).await);
        assert!(exists(&made[1]).await, "a stranger's name keeps it");
        assert!(exists(&commits[0]).await && exists(&commits[1]).await, "nobody but who made them removes them");
        assert!(!exists(&nameless).await);
        for commit in &commits {
            client.remove_image(&commit.0, None::<RemoveImageOptions>, None).await.unwrap();
        }
        assert!(client.inspect_container(&left.0, None).await.is_err(), "ours is gone");
        client.inspect_container(&left.1, None).await.unwrap();

        let names = our_names(&agent).await;
        let stages = names.iter().filter(|name| name.contains("-stage")).count();
        assert_eq!(stages, 1, "the kept image's own stage stays as its cache: {names:?}");
        let commit = Commit::new(&[("Dockerfile", &dockerfile("a")), ("unrelated", "")]);
        let (_, log) = agent.build(&commit, &build(BuilderKind::Classic)).await;
        assert!(log.iter().any(|line| line.contains("Using cache")), "{log:#?}");

        let options = RemoveContainerOptions { force: true, ..Default::default() };
        client.remove_container(&left.1, Some(options)).await.unwrap();
        let _ = client.remove_image(&format!("{own_name}:1"), None::<RemoveImageOptions>, None).await;
    });
}

/// The agent's instances.
fn of_instance(agent: &Agent) -> ListContainersOptions {
    let labels = vec![format!("longshore.agent={}", agent.id()), "longshore.kind=instance".to_owned()];
    ListContainersOptions { filters: Some([("label".to_owned(), labels)].into()), ..Default::default() }
}

/// `docker commit` of a container, without a name for the image.
async fn commit(agent: &Agent, container: &str) -> ImageId {
    let options = CommitContainerOptionsBuilder::new().container(container).build();
    let made = agent.docker.client().commit_container(options, bollard::models::ContainerConfig::default()).await;
    ImageId(made.unwrap().id)
}

/// An image of ours that a removal has left without its name.
async fn leave_nameless(agent: &Agent, dockerfile: &str) -> ImageId {
    let commit = Commit::new(&[("Dockerfile", dockerfile)]);
    let image = agent.build(&commit, &build(BuilderKind::Buildkit)).await.0.unwrap().image;
    let client = agent.docker.client();
    let names = client.inspect_image(&image.0).await.unwrap().repo_tags.unwrap();
    // An image that a container is made of does not go with its name.
    let (_, holding) = leave_containers(agent, &image).await;
    for name in names {
        let options = RemoveImageOptions { force: true, ..Default::default() };
        client.remove_image(&name, Some(options), None).await.unwrap();
    }
    let options = RemoveContainerOptions { force: true, ..Default::default() };
    client.remove_container(&holding, Some(options)).await.unwrap();
    image
}

async fn our_names(agent: &Agent) -> Vec<String> {
    let filters = Some([("reference".to_owned(), vec![format!("longshore-{}/*", agent.id())])].into());
    let options = bollard::query_parameters::ListImagesOptions { filters, ..Default::default() };
    let found = agent.docker.client().list_images(Some(options)).await.unwrap();
    found.into_iter().flat_map(|image| image.repo_tags).collect()
}

/// Two ended containers without labels: one as the classic builder of this agent starts them, and a stranger's.
async fn leave_containers(agent: &Agent, image: &ImageId) -> (String, String) {
    let create = async |hosts: Vec<String>| {
        let host_config = bollard::models::HostConfig { extra_hosts: Some(hosts), ..Default::default() };
        let body = bollard::models::ContainerCreateBody {
            image: Some(image.0.clone()),
            cmd: Some(vec!["/app".to_owned()]),
            host_config: Some(host_config),
            ..Default::default()
        };
        agent.docker.client().create_container(None, body).await.unwrap().id
    };
    let ours = create(vec![format!("longshore-build.{}.{}:127.0.0.1", agent.id(), agent.app)]).await;
    (ours, create(vec!["longshore-build.another.shop:127.0.0.1".to_owned()]).await)
}
