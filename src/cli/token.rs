//! `longshore token create|list|revoke`

use std::process::ExitCode;

use clap::Subcommand;
use hyper::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::term::Term;
use super::{Json, text};
use crate::api::views::TokenView;
use crate::model::{ParseError, shorten};
use crate::store::Scope;

pub(super) const EXAMPLES: &str = "Examples:
  longshore token create ci --scope deploy --expires-in-days 90
  longshore token list
  longshore token revoke 3

A token is used with LONGSHORE_URL and LONGSHORE_TOKEN, or as Authorization: Bearer.";

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token. It is printed now and never again.
    Create {
        /// Whose or what for.
        name: String,
        /// What it may do: read; deploy (also roll back, scale, restart, cancel); admin (also tokens).
        #[arg(long)]
        scope: Scope,
        /// Until when it is valid. Default: no end.
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
        expires_in_days: Option<u32>,
        #[command(flatten)]
        json: Json,
    },
    /// List the tokens, without their values.
    List {
        #[command(flatten)]
        json: Json,
    },
    /// Make a token invalid at once.
    Revoke {
        /// Its number in the list.
        #[arg(value_parser = number)]
        id: u32,
    },
}

fn number(text: &str) -> Result<u32, ParseError> {
    let why =
        || ParseError(format!("{:?} is not a token's number; longshore token list shows them", shorten(text, 40)));
    text.parse().map_err(|_| why())
}

pub(super) async fn run(client: &Client, term: &mut Term, command: TokenCommand) -> Result<ExitCode, CliError> {
    let shown = match command {
        TokenCommand::Create { name, scope, expires_in_days, json } => {
            let mut body = json!({ "name": name, "scope": scope });
            if let Some(days) = expires_in_days {
                body["expires_in_days"] = json!(days);
            }
            let made: TokenView = client.ask(Method::POST, "/api/v1/tokens", Some(body)).await?;
            match json.json {
                true => text::json(&made),
                // Alone on its line, for $(longshore token create …).
                false => text::clean(made.token.as_deref().unwrap_or_default()),
            }
        }
        TokenCommand::List { json } => {
            let tokens: Vec<TokenView> = client.get("/api/v1/tokens").await?;
            match (json.json, tokens.is_empty()) {
                (true, _) => text::json(&tokens),
                (false, true) => "there are no tokens; make one with: longshore token create NAME --scope read".into(),
                (false, false) => table(&tokens, Timestamp::now()),
            }
        }
        TokenCommand::Revoke { id } => {
            let _: Value = client.ask(Method::DELETE, &format!("/api/v1/tokens/{id}"), None).await?;
            format!("token {id} is revoked")
        }
    };
    term.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

fn table(tokens: &[TokenView], now: Timestamp) -> String {
    let row = |token: &TokenView| {
        let expires = match token.expires_at {
            None => "never".into(),
            Some(at) if at <= now => "expired".into(),
            Some(at) => format!("in {}", text::span(at.as_second() - now.as_second())),
        };
        vec![
            token.id.to_string(),
            token.name.clone(),
            token.scope.to_string(),
            text::ago(token.created_at, now),
            expires,
            token.last_used_at.map_or("never".into(), |at| text::ago(at, now)),
        ]
    };
    let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
    text::table(&["ID", "NAME", "SCOPE", "MADE", "EXPIRES", "USED"], &rows)
}
