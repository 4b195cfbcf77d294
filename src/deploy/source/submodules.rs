//! What `.gitmodules` says, and where a submodule's relative address leads.

use std::collections::BTreeMap;

use crate::config::{Credential, RepoUrl};

/// Submodules within submodules are followed this deep.
pub(super) const DEEPEST: usize = 3;

/// The addresses of `.gitmodules` by path. Sections without both are left out, as git does.
pub(super) fn parse(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut path, mut url) = (None, None);
    let mut inside = false;
    let mut keep = |path: &mut Option<String>, url: &mut Option<String>| {
        if let (Some(path), Some(url)) = (path.take(), url.take()) {
            found.insert(path, url);
        }
    };
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            keep(&mut path, &mut url);
            (path, url) = (None, None);
            inside = line.to_ascii_lowercase().starts_with("[submodule ");
        } else if inside && let Some((key, value)) = line.split_once('=') {
            match key.trim().to_ascii_lowercase().as_str() {
                "path" => path = Some(unquote(value)),
                "url" => url = Some(unquote(value)),
                _ => {}
            }
        }
    }
    keep(&mut path, &mut url);
    found
}

/// A value of git's configuration format: quotes removed, escapes resolved, a comment cut off.
fn unquote(value: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    // Spaces outside quotes count only between words.
    let mut kept = 0;
    let mut characters = value.trim().chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' => match characters.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('b') | None => {}
                Some(other) => out.push(other),
            },
            '#' | ';' if !quoted => break,
            other => out.push(other),
        }
        if quoted || !c.is_whitespace() {
            kept = out.len();
        }
    }
    out.truncate(kept);
    out
}

/// The address of a submodule of `parent`. Relative ones (`./`, `../`) start at the parent's, by git's own rules;
/// all pass through `parse`, the rules for repositories of apps.
pub(super) fn resolve(
    parent: &RepoUrl,
    url: &str,
    parse: impl Fn(&str, bool) -> Result<RepoUrl, String>,
) -> Result<RepoUrl, String> {
    // What may be reached without encryption is decided by the operator: by the parent's own address.
    let local = match parent {
        RepoUrl::Local(_) => true,
        RepoUrl::Http { url, .. } => url.starts_with("http://"),
        RepoUrl::Ssh { .. } => false,
    };
    if !url.starts_with("./") && !url.starts_with("../") {
        return parse(url, local);
    }
    let mut base = parent.to_string();
    while base.ends_with('/') {
        base.pop();
    }
    let mut rest = url;
    let mut separator = '/';
    loop {
        if let Some(after) = rest.strip_prefix("../") {
            let cut = base.rfind(['/', ':']).filter(|&at| at > 0 && !base[..at].ends_with('/'));
            let Some(cut) = cut else {
                return Err(format!("the submodule's address {url:?} leads above {parent}"));
            };
            separator = if base.as_bytes()[cut] == b':' { ':' } else { '/' };
            base.truncate(cut);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else {
            break;
        }
    }
    parse(&format!("{base}{separator}{}", rest.trim_end_matches('/')), local)
}

/// The credential for a submodule: the app's own on the same server, none anywhere else.
pub(super) fn credential(parent: &RepoUrl, own: &Credential, child: &RepoUrl) -> Credential {
    let same_server = match (parent, child) {
        (RepoUrl::Http { url: a, authority: one }, RepoUrl::Http { url: b, authority: other }) => {
            let scheme = |url: &str| url.split(':').next().map(str::to_ascii_lowercase);
            one.eq_ignore_ascii_case(other) && scheme(a) == scheme(b)
        }
        (RepoUrl::Ssh { host: one, port: a, user: u, .. }, RepoUrl::Ssh { host: other, port: b, user: v, .. }) => {
            one.eq_ignore_ascii_case(other) && a == b && u == v
        }
        _ => false,
    };
    if same_server { own.clone() } else { Credential::None }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Enough of the real rules to see which text arrives.
    fn plain(text: &str, local: bool) -> Result<RepoUrl, String> {
        if let Some(rest) = text.strip_prefix("https://") {
            let authority = rest.split('/').next().unwrap().to_owned();
            return Ok(RepoUrl::Http { url: text.to_owned(), authority });
        }
        if let Some((user, rest)) = text.split_once('@') {
            let (host, path) = rest.split_once(':').unwrap();
            return Ok(RepoUrl::Ssh { user: user.into(), host: host.into(), port: 22, path: path.into() });
        }
        match local && text.starts_with('/') {
            true => Ok(RepoUrl::Local(PathBuf::from(text))),
            false => Err(format!("refused: {text}")),
        }
    }

    #[test]
    fn gitmodules_are_read_as_git_reads_them() {
        let text = "[submodule \"x\"]\n\tpath = vendor/x # old\n\turl = ../x.git\n\
                    [Submodule \"y\"]\r\n  url = \"https://h/a b;c\"\r\n  path = y\\\\z\r\n  branch = main\r\n\
                    [core]\n path = no\n url = no\n[submodule \"half\"]\n path = half\n";
        let expected = [("vendor/x", "../x.git"), ("y\\z", "https://h/a b;c")];
        assert_eq!(parse(text).iter().map(|(p, u)| (p.as_str(), u.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn relative_addresses_start_at_the_parent() {
        for (parent, url, expected) in [
            ("https://h/a/shop.git", "../x.git", "https://h/a/x.git"),
            ("https://h/a/shop.git/", "../../b/x", "https://h/b/x"),
            ("https://h/a/shop", "./x", "https://h/a/shop/x"),
            ("git@h:a/shop.git", "../x.git", "git@h:a/x.git"),
            ("git@h:shop.git", "../x.git", "git@h:x.git"),
            ("/srv/git/shop.git", "../x.git", "/srv/git/x.git"),
            ("https://h/a/shop.git", "https://other/x", "https://other/x"),
        ] {
            let parent = plain(parent, true).unwrap();
            assert_eq!(resolve(&parent, url, plain).unwrap().to_string(), expected, "{url}");
        }
    }

    #[test]
    fn addresses_that_lead_out_are_refused() {
        let https = plain("https://h/a/shop.git", false).unwrap();
        for url in ["../../../../etc", "/etc", "ext::sh -c id", "file:///etc"] {
            assert!(resolve(&https, url, plain).is_err(), "{url}");
        }
    }

    #[test]
    fn the_credential_stays_with_its_server() {
        let own = Credential::Token { username: "x".into(), token: "t".to_owned().into() };
        let parent = plain("https://h:8443/a/shop.git", false).unwrap();
        let sent =
            |child: &str| matches!(credential(&parent, &own, &plain(child, true).unwrap()), Credential::Token { .. });
        assert!(sent("https://H:8443/b/x"));
        assert!(!sent("https://h/b/x") && !sent("https://evil/b/x") && !sent("git@h:b/x") && !sent("/b/x"));
    }
}
