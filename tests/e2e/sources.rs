//! A private repository over the network, from the credential in the configuration to the containers.

use crate::git_server::{Behaviour as Server, GitServer};
use crate::shop::{HOST, LIMIT, Options, SECRET, Shop};
use crate::sshd::{self, Sshd};
use crate::support::agent::Setup;
use crate::support::discord::Discord;
use crate::support::engine::{self, Engine};
use crate::support::github::{Delivery, Push};
use crate::support::repo::Repo;
use crate::support::site::Behaviour;

const TOKEN: &str = "ghp_a-token-of-the-git-server";

/// The token, as a credential of the configuration.
pub const GIT_TOKEN: &str = "{ token = { env = \"GIT_TOKEN\" } }";

/// A shop whose source is at `url`, in place of the repository's path.
pub async fn start(engine: &Engine, repo: Repo, url: &str, credential: &str) -> Shop {
    let discord = Discord::start().await;
    let options = Options::quick().keys(&format!("credential = {credential}\n"));
    let config = Shop::config(&repo, &options).replace(&format!("{:?}", repo.url()), &format!("{url:?}"));
    let agent = Setup::new(&config)
        .agent_line("reconcile = \"0s\"")
        .env("SHOP_SECRET", SECRET)
        .env("GIT_TOKEN", TOKEN)
        .env("DISCORD_URL", discord.url())
        .start(engine)
        .await;
    Shop { repo, agent, discord, engine: engine.clone() }
}

/// What the repository would be called on GitHub, by the end of its path.
fn full_name(repo: &Repo) -> String {
    let url = repo.url();
    let segments: Vec<&str> = url.trim_end_matches(".git").rsplitn(3, '/').collect();
    format!("{}/{}", segments[1], segments[0])
}

/// The tip, then a delivered push while the branch has moved on.
async fn deploys_exactly(shop: &Shop) {
    shop.deploy_first().await;
    shop.repo.write_site(&Behaviour::version("v2"));
    shop.repo.commit("v2");
    let second = shop.repo.push("main");
    shop.repo.push_site(&Behaviour::version("v3"));
    let mut payload = Push::of("main", &second).payload();
    payload["repository"]["full_name"] = full_name(&shop.repo).into();
    let delivery = Delivery::new("push", &payload);
    let answer = delivery.send(shop.agent.listen, "shop", SECRET).await.expect(202).json();
    let ended = shop.agent.deployment_ended(answer["deployment"].as_u64().unwrap(), LIMIT).await;
    assert_eq!((&ended["status"], &ended["commit"]), (&"succeeded".into(), &second.after.as_str().into()), "{ended:#}");
    assert_eq!(shop.agent.visit(HOST, "/").await.unwrap().expect(200).text(), "v2\n");
}

#[tokio::test]
async fn a_token_opens_a_repository_over_http() {
    let Some(engine) = engine::or_skip("a_token_opens").await else { return };
    let (repo, _) = Repo::with_site(&Behaviour::version("v1"));
    let root = repo.origin().parent().unwrap().to_owned();
    let server = GitServer::start(&root, Server::Honest, Some(&format!("x-access-token:{TOKEN}")));
    let shop = start(&engine, repo, &server.url("origin.git"), GIT_TOKEN).await;
    deploys_exactly(&shop).await;
    assert!(server.arrived().iter().all(|request| request.authorization.is_some()), "{:#?}", server.arrived());
    for id in 1..=2 {
        let log = shop.agent.api("GET", &format!("/api/v1/deployments/{id}/log"), None).await.expect(200).text();
        assert!(!log.contains(TOKEN), "{log}");
    }
    assert!(!shop.agent.log().contains(TOKEN));
    shop.finish().await;
}

#[tokio::test]
async fn a_deploy_key_opens_a_repository_over_ssh() {
    let Some(engine) = engine::or_skip("a_deploy_key_opens").await else { return };
    let keys = tempfile::tempdir().unwrap();
    let Some(server) = sshd::start(keys.path(), true) else { return };
    let (repo, _) = Repo::with_site(&Behaviour::version("v1"));
    let url = format!("ssh://{}@127.0.0.1:{}{}", Sshd::user(), server.port, repo.url());
    let (key, known) = (server.dir.join("client key"), server.dir.join("known hosts"));
    let credential = format!("{{ ssh_key = {key:?}, known_hosts = {known:?} }}");
    let shop = start(&engine, repo, &url, &credential).await;
    deploys_exactly(&shop).await;
    shop.finish().await;
}
