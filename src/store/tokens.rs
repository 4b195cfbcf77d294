//! API tokens: only a digest is kept; the token itself is shown once, when it is made.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Store, StoreError, now_ms, timestamp, unreadable};
use crate::model::ParseError;

/// What a token may do; each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Look.
    Read,
    /// Deploy, roll back, scale, restart, cancel.
    Deploy,
    /// Manage tokens.
    Admin,
}

impl Scope {
    /// The word on the wire and on disk.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "read" => Ok(Self::Read),
            "deploy" => Ok(Self::Deploy),
            "admin" => Ok(Self::Admin),
            other => Err(ParseError(format!("{other:?} is not one of read, deploy, admin"))),
        }
    }
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Token {
    /// Its number, for revoking.
    pub id: i64,
    /// Whose or what for.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it is valid; `None` = no end.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
}

/// What presenting a token led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenCheck {
    /// Valid.
    Valid(Token),
    /// It was, until then.
    Expired(Timestamp),
    /// Not one of ours, or revoked.
    Unknown,
}

fn digest(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

impl Store {
    /// Makes a token of 256 random bits. It is shown now and never again.
    pub async fn create_token(
        &self,
        name: &str,
        scope: Scope,
        expires_at: Option<Timestamp>,
    ) -> Result<(Token, SecretString), StoreError> {
        let mut random = [0u8; 32];
        getrandom::fill(&mut random).map_err(|err| StoreError::Sqlite(format!("no randomness: {err}")))?;
        let secret = format!("lsh_{}", hex::encode(random));
        let (hash, name, now) = (digest(&secret), name.to_owned(), now_ms());
        let token = self
            .call(move |c| {
                c.execute(
                    "INSERT INTO tokens (name, hash, scope, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
                    params![name, hash, scope.as_str(), now, expires_at.map(|at| at.as_millisecond())],
                )?;
                let id = c.last_insert_rowid();
                Ok(Token { id, name, scope, created_at: timestamp(now), expires_at, last_used_at: None })
            })
            .await?;
        Ok((token, secret.into()))
    }

    /// Looks a presented token up by its digest, so that the comparison tells nothing about stored ones.
    pub async fn check_token(&self, presented: &SecretString) -> Result<TokenCheck, StoreError> {
        let (hash, now) = (digest(presented.expose_secret()), now_ms());
        let found = self.read(move |c| {
            let sql = "SELECT id, name, scope, created_at, expires_at, last_used_at FROM tokens
                       WHERE hash = ? AND revoked_at IS NULL";
            let Some(token) = c.prepare_cached(sql)?.query_row(params![hash], read).optional()? else {
                return Ok(TokenCheck::Unknown);
            };
            if let Some(expires) = token.expires_at
                && expires.as_millisecond() <= now
            {
                return Ok(TokenCheck::Expired(expires));
            }
            Ok(TokenCheck::Valid(token))
        });
        let found = found.await?;
        if let TokenCheck::Valid(token) = &found {
            self.note_use(token, now);
        }
        Ok(found)
    }

    /// To the minute, so that reading the API does not write to the disk at every request. Nobody waits for it, so that
    /// whoever only reads has an answer when the disk is full.
    fn note_use(&self, token: &Token, now: i64) {
        let is_old = token.last_used_at.is_none_or(|used| now - used.as_millisecond() > 60_000);
        if !is_old || self.is_scarce() {
            return;
        }
        let id = token.id;
        self.post(move |c| c.execute("UPDATE tokens SET last_used_at = ? WHERE id = ?", params![now, id]).map(drop));
    }

    /// All tokens that are not revoked.
    pub async fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        self.read(|c| {
            let sql = "SELECT id, name, scope, created_at, expires_at, last_used_at FROM tokens
                       WHERE revoked_at IS NULL ORDER BY id";
            c.prepare_cached(sql)?.query_map([], read)?.collect()
        })
        .await
    }

    /// Revokes a token; false when there is none of that number.
    pub async fn revoke_token(&self, id: i64) -> Result<bool, StoreError> {
        self.call(move |c| {
            let sql = "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL";
            Ok(c.execute(sql, params![now_ms(), id])? == 1)
        })
        .await
    }

    /// A random value that this journal keeps under `key`, made on first use: the agent's id, the key of settings'
    /// digests.
    pub async fn kept_random(&self, key: &'static str, bytes: usize) -> Result<String, StoreError> {
        let mut random = vec![0u8; bytes];
        getrandom::fill(&mut random).map_err(|err| StoreError::Sqlite(format!("no randomness: {err}")))?;
        let fresh = hex::encode(random);
        self.call(move |c| {
            c.execute("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING", params![key, fresh])?;
            c.query_row("SELECT value FROM meta WHERE key = ?", params![key], |row| row.get(0))
        })
        .await
    }
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Token> {
    Ok(Token {
        id: row.get(0)?,
        name: row.get(1)?,
        scope: row.get::<_, String>(2)?.parse().map_err(unreadable)?,
        created_at: timestamp(row.get(3)?),
        expires_at: row.get::<_, Option<i64>>(4)?.map(timestamp),
        last_used_at: row.get::<_, Option<i64>>(5)?.map(timestamp),
    })
}
