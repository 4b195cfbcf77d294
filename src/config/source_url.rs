//! Where a repository is: https, ssh, scp form, or a local path where that is allowed.

use std::fmt;
use std::path::{Path, PathBuf};

use super::problem::Fault;
use crate::model::shorten;

/// A repository's address, parsed and safe to hand to a transport: no credentials, no leading hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RepoUrl {
    /// `https://host[:port]/path`; plain `http` only to a loopback address with `allow_local = true`.
    Http {
        /// The whole address.
        url: String,
        /// Its host in lower case with the port where one is written, for comparing redirects.
        authority: String,
    },
    /// `ssh://[user@]host[:port]/path` or `user@host:path`.
    Ssh {
        /// Default `git`.
        user: String,
        /// Host name or address; an IPv6 address without its brackets.
        host: String,
        /// Default 22.
        port: u16,
        /// As the server sees it: absolute, or relative to the user's home there.
        path: String,
    },
    /// An absolute path on this machine.
    Local(PathBuf),
}

impl fmt::Display for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match self {
            Self::Http { url, .. } => f.write_str(url),
            Self::Ssh { user, host, port: 22, path } => write!(f, "{user}@{}:{path}", bracketed(host)),
            Self::Ssh { user, host, port, path } => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                write!(f, "ssh://{user}@{}:{port}{slash}{path}", bracketed(host))
            }
            Self::Local(path) => write!(f, "{}", path.display()),
        }
    }
}

const FORMS: &str = "write https://HOST/PATH, ssh://git@HOST/PATH or git@HOST:PATH";

impl RepoUrl {
    /// Parses what an operator wrote; the error is a whole sentence.
    pub fn parse(text: &str, allow_local: bool) -> Result<Self, String> {
        Self::read(text, allow_local).map_err(|fault| match fault.hint {
            Some(hint) => format!("{}; {hint}", fault.what),
            None => fault.what,
        })
    }

    pub(super) fn read(text: &str, allow_local: bool) -> Result<Self, Fault> {
        if text.is_empty() {
            return Err(Fault::new("the repository's address is empty", FORMS));
        }
        if text.starts_with('-') {
            return Err(refuse(text, "begins with a hyphen and would be taken for an option", FORMS));
        }
        // git's `helper::address`, which runs a program of that name.
        if text.contains("::") && !text.contains('[') {
            return Err(refuse(text, "has a scheme that is not allowed; use https or ssh", FORMS));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(refuse(text, "holds a space or a control character", FORMS));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return match scheme.to_ascii_lowercase().as_str() {
                "https" => http(text, "https", rest),
                "http" => plain_http(text, rest, allow_local),
                "ssh" => ssh(text, rest),
                "file" => Err(refuse(
                    text,
                    "has a scheme that is not allowed (file)",
                    "write the absolute path itself, with allow_local = true",
                )),
                "git" => Err(refuse(text, "has a scheme that is not allowed (git is not encrypted)", FORMS)),
                _ => Err(refuse(text, "has a scheme that is not allowed; use https or ssh", FORMS)),
            };
        }
        if text.starts_with('/') {
            return local(text, allow_local);
        }
        match text.split_once('@') {
            // Credentials without a scheme, `user:token@host/path`, are no scp form.
            Some((user, rest)) if !user.contains([':', '/']) => scp(text, user, rest),
            _ => Err(no_form(text)),
        }
    }
}

/// The address as messages show it: without anything that may be a credential.
fn redacted(text: &str) -> String {
    let without_query = |text: &str| match text.split_once('?') {
        Some((before, _)) => format!("{before}?…"),
        None => text.to_owned(),
    };
    let Some((before, after)) = text.rsplit_once('@') else { return shorten(&without_query(text), 120) };
    let word = |scheme: &str| scheme.bytes().all(|b| b.is_ascii_alphabetic());
    let (scheme, user) = match before.split_once("://").filter(|(scheme, _)| word(scheme)) {
        Some((scheme, user)) => (format!("{scheme}://"), user),
        None => (String::new(), before),
    };
    // The user of an ssh address is no secret, unless a password follows it.
    let is_user = (scheme.is_empty() || scheme == "ssh://") && !user.contains([':', '@', '/', '?']);
    let user = if is_user { user } else { "…" };
    shorten(&format!("{scheme}{user}@{}", without_query(after)), 120)
}

fn refuse(text: &str, why: &str, hint: &str) -> Fault {
    Fault::new(format!("the repository's address {:?} {why}", redacted(text)), hint)
}

/// Neither a URL nor the scp form; a guess at what was meant.
fn no_form(text: &str) -> Fault {
    let parts: Vec<&str> = text.split('/').collect();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    let hint = match parts.as_slice() {
        [".", ..] | ["..", ..] | ["~", ..] => {
            "a path on this machine must be absolute, with allow_local = true".to_owned()
        }
        [host, _, ..] if plain && parts.len() > 2 && host.contains('.') => format!("write https://{text}"),
        [owner, name] if plain => format!("write https://github.com/{owner}/{}.git", name.trim_end_matches(".git")),
        _ => FORMS.to_owned(),
    };
    refuse(text, "is no https, ssh or scp form address", &hint)
}

fn local(text: &str, allow_local: bool) -> Result<RepoUrl, Fault> {
    if !allow_local {
        return Err(refuse(
            text,
            "is a path on this machine",
            "set allow_local = true for the app if that is meant, or write https://HOST/PATH",
        ));
    }
    Ok(RepoUrl::Local(Path::new(text).to_owned()))
}

fn plain_http(text: &str, rest: &str, allow_local: bool) -> Result<RepoUrl, Fault> {
    let url = http(text, "http", rest)?;
    let RepoUrl::Http { authority, .. } = &url else { return Ok(url) };
    let (host, _) = split_port(authority).unwrap_or((authority, None));
    if !is_loopback(host) {
        return Err(refuse(text, "is not encrypted", "write https:// in place of http://"));
    }
    if !allow_local {
        return Err(refuse(
            text,
            "is plain http to this machine",
            "set allow_local = true for the app if that is meant",
        ));
    }
    Ok(url)
}

fn http(text: &str, scheme: &str, rest: &str) -> Result<RepoUrl, Fault> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err(refuse(
            text,
            "holds credentials, which are refused in an address",
            "write credential = { token = { env = \"NAME\" } } in the app",
        ));
    }
    if rest.contains(['?', '#']) {
        return Err(refuse(text, "has a query or a fragment", "write only https://HOST/PATH"));
    }
    let Some((host, _)) = split_port(authority).filter(|(host, _)| is_host(host)) else {
        return Err(refuse(text, "has no valid host", FORMS));
    };
    if path.trim_matches('/').is_empty() {
        return Err(refuse(text, "names no repository on its host", FORMS));
    }
    // With a leading hyphen in any part no server path is meant; `..` would name another one than it seems.
    if path.split('/').any(|part| part.starts_with('-') || part == "..") {
        return Err(refuse(text, "has a path with a part that is \"..\" or begins with a hyphen", FORMS));
    }
    let authority = authority.replacen(host, &host.to_ascii_lowercase(), 1);
    Ok(RepoUrl::Http { url: format!("{scheme}://{authority}/{path}"), authority })
}

fn ssh(text: &str, rest: &str) -> Result<RepoUrl, Fault> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, place) = authority.rsplit_once('@').unwrap_or(("git", authority));
    let Some((host, port)) = split_port(place).filter(|(host, _)| is_host(host)) else {
        return Err(refuse(text, "has no valid host", FORMS));
    };
    let path = path.trim_start_matches('/');
    // `/~/x` and `/~user/x` are relative to a home directory, as in git.
    let path = if path.starts_with('~') { path.to_owned() } else { format!("/{path}") };
    ssh_parts(text, user, host, port.unwrap_or(22), path)
}

fn scp(text: &str, user: &str, rest: &str) -> Result<RepoUrl, Fault> {
    let after_address = rest.find(']').unwrap_or(0);
    let Some(colon) = rest[after_address..].find(':').map(|at| at + after_address) else {
        return Err(refuse(text, "has no path after its host", FORMS));
    };
    let (host, path) = (&rest[..colon], &rest[colon + 1..]);
    if !is_host(host) {
        return Err(refuse(text, "has no valid host", FORMS));
    }
    ssh_parts(text, user, host, 22, path.to_owned())
}

fn ssh_parts(text: &str, user: &str, host: &str, port: u16, path: String) -> Result<RepoUrl, Fault> {
    if user.contains(':') {
        return Err(refuse(
            text,
            "holds a password, which is refused in an address",
            "write credential = { ssh_key = \"PATH\", known_hosts = \"PATH\" } in the app",
        ));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if user.is_empty() || user.starts_with(['-', '.']) || !user.bytes().all(plain) {
        return Err(refuse(text, "has no valid user name", FORMS));
    }
    if path.trim_matches('/').is_empty() {
        return Err(refuse(text, "names no repository on its host", FORMS));
    }
    // Shown in scp form, two slashes after the colon would read as a scheme.
    let path = if path.starts_with('/') { format!("/{}", path.trim_start_matches('/')) } else { path };
    // The path reaches a command line on the server.
    let odd = |c: char| "'\"`$\\;&|<>!*?(){}".contains(c);
    if path.contains(odd) || path.contains("://") || path.split('/').any(|part| part.starts_with('-') || part == "..") {
        return Err(refuse(
            text,
            "has a path with a quote, a shell character, a part that is \"..\" or begins with a hyphen",
            FORMS,
        ));
    }
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    Ok(RepoUrl::Ssh { user: user.to_owned(), host, port, path })
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; `None` when the port is no port.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let after_address = authority.find(']').unwrap_or(0);
    let Some(colon) = authority[after_address..].find(':').map(|at| at + after_address) else {
        return Some((authority, None));
    };
    let digits = &authority[colon + 1..];
    let port = digits.parse().ok().filter(|port| *port > 0 && digits.bytes().all(|b| b.is_ascii_digit()))?;
    Some((&authority[..colon], Some(port)))
}

/// A host name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Whether a host is certainly this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ssh_url(user: &str, host: &str, port: u16, path: &str) -> RepoUrl {
        RepoUrl::Ssh { user: user.into(), host: host.into(), port, path: path.into() }
    }

    #[test]
    fn the_forms_are_read() {
        let http = |url: &str, authority: &str| RepoUrl::Http { url: url.into(), authority: authority.into() };
        for (text, expected) in [
            ("https://github.com/example/shop.git", http("https://github.com/example/shop.git", "github.com")),
            ("https://Git.Example:8443/a/b", http("https://git.example:8443/a/b", "git.example:8443")),
            ("http://127.0.0.1:3000/a.git", http("http://127.0.0.1:3000/a.git", "127.0.0.1:3000")),
            ("http://[::1]:3000/a.git", http("http://[::1]:3000/a.git", "[::1]:3000")),
            ("git@github.com:example/shop.git", ssh_url("git", "github.com", 22, "example/shop.git")),
            ("me@host:/srv/a.git", ssh_url("me", "host", 22, "/srv/a.git")),
            ("git@[::1]:a.git", ssh_url("git", "::1", 22, "a.git")),
            ("ssh://host/srv/a.git", ssh_url("git", "host", 22, "/srv/a.git")),
            ("ssh://host//srv/a.git", ssh_url("git", "host", 22, "/srv/a.git")),
            ("ssh://me@host:2222/~/a.git", ssh_url("me", "host", 2222, "~/a.git")),
            ("/srv/git/a.git", RepoUrl::Local("/srv/git/a.git".into())),
        ] {
            assert_eq!(RepoUrl::parse(text, true), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_why() {
        for (text, expected) in [
            ("--upload-pack=x", "begins with a hyphen"),
            ("ext::sh", "scheme that is not allowed"),
            ("ext::sh -c id", "scheme that is not allowed"),
            ("https://host/a b", "holds a space"),
            ("file:///etc", "scheme that is not allowed (file)"),
            ("git://host/x", "not encrypted"),
            ("ftp://host/x", "scheme that is not allowed"),
            ("http://example.com/x", "is not encrypted"),
            ("https://user:tok@host/x", "holds credentials"),
            ("https://host/x?token=1", "has a query"),
            ("https:///x", "no valid host"),
            ("https://-host/x", "no valid host"),
            ("https://host:0/x", "no valid host"),
            ("https://host", "names no repository"),
            ("ssh://-oProxyCommand=x/y", "no valid host"),
            ("ssh://git@-oProxyCommand=x/y", "no valid host"),
            ("ssh://-x@host/y", "no valid user name"),
            ("ssh://git:pw@host/x", "holds a password"),
            ("git@host:-x", "begins with a hyphen"),
            ("git@host:a';id;'", "shell character"),
            ("git@host", "no path after its host"),
            ("example/shop", "write https://github.com/example/shop.git"),
            ("github.com/example/shop", "write https://github.com/example/shop"),
            ("./shop", "must be absolute"),
            ("", "is empty"),
        ] {
            let error = RepoUrl::parse(text, true).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for text in ["/srv/a.git", "http://localhost/a"] {
            let error = RepoUrl::parse(text, false).unwrap_err();
            assert!(error.contains("allow_local = true"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_shown_as_something_that_reads_the_same(
            text in "(https|ssh|http)://(git@)?[a-z.\\[\\]:1-]{1,12}(:[0-9]{1,5})?/[a-z~/.-]{0,12}|[a-z]{1,4}@[a-z.-]{1,8}:[a-z~/.-]{1,9}"
        ) {
            if let Ok(url) = RepoUrl::parse(&text, true) {
                prop_assert_eq!(RepoUrl::parse(&url.to_string(), true), Ok(url));
            }
        }

        #[test]
        fn no_text_panics_and_no_credential_is_shown(
            before in "\\PC{0,12}", scheme in "(https://|http://|ssh://|ext::)?", user in "[a-z]{0,5}", after in "\\PC{0,12}"
        ) {
            let text = format!("{scheme}{user}:tOkEnVaLuE@{after}");
            if let Err(error) = RepoUrl::parse(&text, false) {
                prop_assert!(!error.contains("tOkEnVaLuE"), "{}", error);
            }
            let _ = RepoUrl::parse(&before, true);
        }
    }
}
