//! `credential`: how the agent proves itself to the git server.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::absent::Absent;
use super::field::Field;
use super::problem::Fault;
use super::reader::Section;
use super::{Credential, RepoUrl};
use crate::model::shorten;

const TOKEN_FORM: &str = "write credential = { token = { env = \"NAME\" } }";
const KEY_FORM: &str = "write credential = { ssh_key = \"PATH\", known_hosts = \"PATH\" }";

/// The user name that GitHub takes with any token.
const DEFAULT_USERNAME: &str = "x-access-token";

/// The credential, checked against the address it is for where that is valid.
pub(super) fn read(app: &Section<'_>, repo: Option<(&RepoUrl, &Field<'_>)>) -> Credential {
    let field = app.take("credential");
    let Some(section) = field.as_ref().and_then(|field| field.section(TOKEN_FORM)) else {
        if let (None, Some((RepoUrl::Ssh { .. }, repo))) = (&field, repo) {
            repo.problem(" is an ssh address and needs a key and the server's host keys", KEY_FORM);
        }
        return Credential::None;
    };
    let (token, username) = (section.take("token"), section.take("username"));
    let (ssh_key, known_hosts) = (section.take("ssh_key"), section.take("known_hosts"));
    let at = section.span.clone();
    let problem = |what: &str, hint: &str| section.reader.problem(&at, format!("{}{what}", section.path), hint);
    match (&token, &ssh_key, repo.map(|(url, _)| url)) {
        (Some(_), Some(_), _) => problem(" has both a token and an ssh key", "keep the one that fits repo"),
        (None, None, _) => problem(" has neither a token nor an ssh key", &format!("{TOKEN_FORM}, or {KEY_FORM}")),
        (Some(_), None, Some(RepoUrl::Ssh { .. })) => problem(": a token works only with an https address", KEY_FORM),
        (None, Some(_), Some(RepoUrl::Http { .. })) => {
            problem(": an ssh key works only with an ssh address", TOKEN_FORM);
        }
        (_, _, Some(RepoUrl::Local(_))) => problem(" has no use with a path on this machine", "remove it"),
        _ => {}
    }
    let credential = match (token, ssh_key) {
        (Some(token), _) => with_token(&token, username.as_ref()),
        (None, ssh_key) => {
            if let Some(username) = username {
                username.problem(" goes with a token", "write an ssh address's user in repo, as in git@HOST:PATH");
            }
            ssh_key.and_then(|key| with_key(&key, known_hosts.as_ref()))
        }
    };
    section.finish();
    credential.unwrap_or(Credential::None)
}

fn with_token(token: &Field<'_>, username: Option<&Field<'_>>) -> Option<Credential> {
    let secret = token.secret(|token| match goes_into_a_header(token) {
        true => Ok(()),
        false => {
            Err(Fault::new("holds a space or a control character", "a token is one line of letters, digits and signs"))
        }
    });
    let username = username.and_then(|field| field.parsed(user_name)).unwrap_or_else(|| DEFAULT_USERNAME.to_owned());
    Some(match secret? {
        Ok(token) => Credential::Token { username, token },
        Err(absent) => Credential::Absent(absent),
    })
}

fn goes_into_a_header(token: &str) -> bool {
    token.bytes().all(|b| b.is_ascii_graphic())
}

fn user_name(text: &str) -> Result<String, Fault> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
        return Ok(text.to_owned());
    }
    Err(Fault::new(format!(": {:?} is no user name", shorten(text, 40)), "leave it out for \"x-access-token\""))
}

fn with_key(key: &Field<'_>, known_hosts: Option<&Field<'_>>) -> Option<Credential> {
    let Some(known_hosts) = known_hosts else {
        key.problem(
            " needs known_hosts beside it: without the server's keys anybody could pose as it",
            "write known_hosts = \"PATH\"; ssh-keyscan HOST prints the keys, compare them with the server's own list",
        );
        return None;
    };
    let (key, known_hosts) = (existing_file(key, 0o077), existing_file(known_hosts, 0o002));
    Some(match (key?, known_hosts?) {
        (Ok(key), Ok(known_hosts)) => Credential::SshKey { key, known_hosts },
        (Err(absent), _) | (_, Err(absent)) => Credential::Absent(absent),
    })
}

/// A file that is there, with none of the `forbidden` permissions.
fn existing_file(field: &Field<'_>, forbidden: u32) -> Option<Result<PathBuf, Absent>> {
    let path = field.file_path()?;
    let shown = path.display();
    Some(match std::fs::metadata(&path) {
        Err(error) => Err(field.absent(format!(": {shown} cannot be read: {error}"), "name a file that is there")),
        Ok(found) if !found.is_file() => Err(field.absent(format!(": {shown} is not a regular file"), "name a file")),
        Ok(found) if found.mode() & forbidden != 0 => {
            let what = format!(": {shown} has mode {:04o}: others on this machine can use it", found.mode() & 0o777);
            Err(field.absent(what, format!("chmod 600 {shown}")))
        }
        Ok(_) => Ok(path),
    })
}
