//! One order, from the account to the certificate (RFC 8555, section 7.1): the effects.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order, OrderStatus, Problem,
    RetryPolicy,
};
use tokio::time::timeout;

use super::plan::{Held, Trouble};
use super::shelf::{self, Shelf};
use super::transport::Transport;
use crate::config::{AcmeConfig, Challenge};
use crate::fail_point::reach;
use crate::model::shorten;
use crate::proxy::client::ProxyClient;
use crate::proxy::control::ChallengeAnswer;
use crate::text::{one_line, with_causes};

/// For one request.
const REQUEST: Duration = Duration::from_secs(30);
/// For the whole.
const LIMIT: Duration = Duration::from_secs(5 * 60);
/// For the validation of the host, and for the issuance: each is asked about at growing intervals.
const POLLING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(120));
/// Characters of what went wrong.
const WHY: usize = 600;
/// RFC 8555, section 6.7.
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Where things are.
pub struct Tools<'a> {
    pub config: &'a AcmeConfig,
    pub shelf: &'a Shelf,
    pub proxy: &'a ProxyClient,
}

impl Tools<'_> {
    /// Orders a certificate for a host and puts it where the proxy finds it.
    pub async fn order(&self, host: &str) -> Result<Held, Trouble> {
        let ordered = timeout(LIMIT, self.try_order(host)).await;
        // What an agent that is killed leaves behind is harmless, and replaced by the next order.
        self.proxy.answer(Vec::new()).await;
        ordered.unwrap_or_else(|_| Err(Trouble::Host(format!("the order was not done within {} s", LIMIT.as_secs()))))
    }

    async fn try_order(&self, host: &str) -> Result<Held, Trouble> {
        let account = self.account().await?;
        let identifiers = [Identifier::Dns(host.to_owned())];
        let wanted = NewOrder::new(&identifiers);
        let mut order = match account.new_order(&wanted).await {
            Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {
                tracing::warn!("the certificate authority does not know our account any more; making another one");
                self.register().await?.new_order(&wanted).await.map_err(trouble)?
            }
            order => order.map_err(trouble)?,
        };
        step()?;
        self.prove(&mut order, host).await?;
        let key = order.finalize().await.map_err(trouble)?;
        step()?;
        let chain = order.poll_certificate(&POLLING).await.map_err(trouble)?;
        self.shelf.put(host, &self.config.directory_url, &chain, &key).map_err(Trouble::Host)
    }

    /// The account that is kept, or a new one.
    async fn account(&self) -> Result<Account, Trouble> {
        let Some(kept) = self.shelf.account(&self.config.directory_url) else { return self.register().await };
        let builder = Account::builder_with_http(Box::new(self.transport()?));
        let same = kept.email == self.config.email;
        let account = builder.from_credentials(kept.credentials).await.map_err(unusable)?;
        if !same {
            self.tell_address(&account).await;
        }
        Ok(account)
    }

    /// A new account. Its key is on disk before anything is ordered with it.
    async fn register(&self) -> Result<Account, Trouble> {
        let directory = &self.config.directory_url;
        let contact = format!("mailto:{}", self.config.email);
        // Who has written `acme` in the configuration agrees; the documentation says so.
        let new = NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(Box::new(self.transport()?));
        let (account, credentials) = builder.create(&new, directory.clone(), None).await.map_err(unusable)?;
        let kept = shelf::Account { directory: directory.clone(), email: self.config.email.clone(), credentials };
        let cannot = |error| Trouble::Authority(format!("the account cannot be kept on disk: {error}"));
        self.shelf.keep_account(&kept).map_err(cannot)?;
        tracing::info!(directory, account = account.id(), "made an account with the certificate authority");
        Ok(account)
    }

    /// The address in the configuration is another one than the account was made with. That it cannot be told is no reason
    /// not to order: it is tried again with the next one.
    async fn tell_address(&self, account: &Account) {
        let contact = format!("mailto:{}", self.config.email);
        if let Err(error) = account.update_contacts(&[&contact]).await {
            tracing::warn!(why = words(&error), "the certificate authority did not take the account's new address");
        } else if let Some(mut kept) = self.shelf.account(&self.config.directory_url) {
            kept.email.clone_from(&self.config.email);
            if let Err(error) = self.shelf.keep_account(&kept) {
                tracing::warn!(%error, "the account's new address cannot be kept on disk");
            }
        }
    }

    fn transport(&self) -> Result<Transport, Trouble> {
        Transport::new(self.config.ca_file.as_deref(), REQUEST).map_err(Trouble::Authority)
    }

    /// Has the authority see that the host is served here.
    async fn prove(&self, order: &mut Order, host: &str) -> Result<(), Trouble> {
        let mut all = order.authorizations();
        while let Some(authorization) = all.next().await {
            let mut authorization = authorization.map_err(trouble)?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                other => return Err(Trouble::Host(format!("the authorization is {other:?} from the beginning"))),
            }
            let challenge = self.config.challenge;
            let Some(mut asked) = authorization.challenge(kind(challenge)) else {
                let why = format!("the certificate authority does not offer the challenge {}", challenge.as_str());
                return Err(Trouble::Host(why));
            };
            let key_authorization = asked.key_authorization().as_str().to_owned();
            let answer =
                ChallengeAnswer { challenge, host: host.to_owned(), token: asked.token.clone(), key_authorization };
            if !self.proxy.answer(vec![answer]).await {
                let why = match self.proxy.status() {
                    status if status.connected && !status.answers => {
                        "the running proxy is of a version that answers no certificate authority; restart it"
                    }
                    _ => "the proxy does not answer",
                };
                return Err(Trouble::Host(why.to_owned()));
            }
            asked.set_ready().await.map_err(trouble)?;
            step()?;
        }
        if order.state().status == OrderStatus::Ready {
            return Ok(());
        }
        match order.poll_ready(&POLLING).await {
            Ok(OrderStatus::Ready) => Ok(()),
            Ok(other) => {
                Err(Trouble::Host(self.objection(order).await.unwrap_or_else(|| format!("the order is {other:?}"))))
            }
            Err(error @ (Error::Api(_) | Error::Timeout(_))) => {
                Err(self.objection(order).await.map_or_else(|| trouble(error), Trouble::Host))
            }
            Err(error) => Err(trouble(error)),
        }
    }

    /// What the authority has against the host, in its own words.
    async fn objection(&self, order: &mut Order) -> Option<String> {
        let mut all = order.authorizations();
        while let Some(Ok(mut authorization)) = all.next().await {
            let state = authorization.refresh().await.ok()?;
            if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
                return Some(of_problem(problem));
            }
        }
        None
    }
}

/// Between two steps: here a test may have it fail.
fn step() -> Result<(), Trouble> {
    reach("order").map_err(|struck| Trouble::Host(struck.to_string()))
}

fn kind(challenge: Challenge) -> ChallengeType {
    match challenge {
        Challenge::Http01 => ChallengeType::Http01,
        Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

fn unusable(error: Error) -> Trouble {
    Trouble::Authority(words(&error))
}

/// A refusal is about the host, unless it is the authority's own trouble.
fn trouble(error: Error) -> Trouble {
    let about_host = match &error {
        Error::Api(problem) => problem.status.is_none_or(|status| status < 500),
        Error::Timeout(_) => true,
        _ => false,
    };
    match about_host {
        true => Trouble::Host(words(&error)),
        false => unusable(error),
    }
}

fn words(error: &Error) -> String {
    match error {
        Error::Api(problem) => of_problem(problem),
        Error::Timeout(_) => "the certificate authority did not come to an end within 2 minutes".to_owned(),
        Error::Other(other) => shorten(&one_line(&with_causes(other.as_ref())), WHY),
        other => shorten(&one_line(&with_causes(other)), WHY),
    }
}

/// The authority's words, made fit to show.
fn of_problem(problem: &Problem) -> String {
    let mut said = problem.detail.clone().unwrap_or_else(|| "no reason was given".to_owned());
    for more in &problem.subproblems {
        said.push_str(&format!("; {}", more.detail.as_deref().unwrap_or_default()));
    }
    if let Some(kind) = &problem.r#type {
        said.push_str(&format!(" ({})", kind.trim_start_matches("urn:ietf:params:acme:error:")));
    }
    shorten(&one_line(&said), WHY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: serde_json::Value) -> Error {
        Error::Api(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_refusal_is_the_hosts_and_a_failure_the_authoritys_and_both_are_told_on_one_harmless_line() {
        let refused = problem(serde_json::json!({
            "type": "urn:ietf:params:acme:error:rejectedIdentifier", "status": 400, "detail": "not\u{1b}[31m\nthis one",
            "subproblems": [{ "detail": "nor that" }],
        }));
        assert_eq!(trouble(refused), Trouble::Host("not this one; nor that (rejectedIdentifier)".to_owned()));
        let failed = problem(serde_json::json!({ "status": 503, "detail": "down for maintenance" }));
        assert_eq!(trouble(failed), Trouble::Authority("down for maintenance".to_owned()));
        let lost = Error::Other(Box::new(std::io::Error::other("connection refused")));
        assert_eq!(trouble(lost), Trouble::Authority("connection refused".to_owned()));
    }
}
