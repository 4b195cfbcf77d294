//! The rule for an app's domains: plain host names, or all with one more label.

use super::problem::Fault;
use crate::model::shorten;

/// A host name in lower case; `*.example.com` as it is.
pub(super) fn read(text: &str) -> Result<String, Fault> {
    match text.strip_prefix("*.") {
        // As in certificates (RFC 9525, section 6.3), and never all of a top-level domain.
        Some(parent) if parent.contains('.') => plain(parent, text).map(|parent| format!("*.{parent}")),
        _ => plain(text, text),
    }
}

/// A host name that is all, or the end, of what is `written`.
fn plain(text: &str, written: &str) -> Result<String, Fault> {
    let bad = |why: &str, hint: String| Err(Fault::new(format!(": {:?} {why}", shorten(written, 80)), hint));
    let only_name = |name: &str| format!("write only the host name, such as {:?}", shorten(name, 80));
    // Not shown: what stands before the @ may be a password.
    if text.contains('@') {
        return Err(Fault::new(" is no host name", only_name("shop.example.com")));
    }
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split(['/', ':']).next().unwrap_or(rest);
        return bad("has a scheme", only_name(host));
    }
    if let Some((host, _)) = text.split_once('/') {
        return bad("has a path", only_name(host));
    }
    if text.contains('*') {
        let hint = "write \"*.example.com\" for every name with one more label, or the whole name".to_owned();
        return bad("is no wildcard that can be served", hint);
    }
    if let Some((host, _)) = text.split_once(':') {
        return bad("has a port", only_name(host));
    }
    if !text.is_ascii() {
        return bad("is not ASCII", "write it in its ASCII form, which begins with \"xn--\"".to_owned());
    }
    if let Some(name) = text.strip_suffix('.') {
        return bad("ends with a dot", only_name(name));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        let hint = "letters, digits and hyphens make the parts between the dots, each at most 63 long".to_owned();
        return bad("is no host name", hint);
    }
    Ok(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_pass_in_lower_case() {
        for (text, expected) in [
            ("Shop.Example.com", "shop.example.com"),
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("xn--grn-1na.example", "xn--grn-1na.example"),
            ("*.Example.com", "*.example.com"),
        ] {
            assert_eq!(read(text), Ok(expected.to_owned()));
        }
    }

    #[test]
    fn everything_else_says_what_is_in_the_way() {
        for (text, expected) in [
            ("https://shop.example.com/x", r#"has a scheme | write only the host name, such as "shop.example.com""#),
            ("shop.example.com:80", r#"has a port | write only the host name, such as "shop.example.com""#),
            ("shop.example.com/x", r#"has a path | write only the host name, such as "shop.example.com""#),
            ("shop.example.com.", r#"ends with a dot | write only the host name, such as "shop.example.com""#),
            ("*.com", "is no wildcard that can be served"),
            ("*", "is no wildcard that can be served"),
            ("a.*.example.com", "is no wildcard that can be served"),
            ("*.*.example.com", r#""*.*.example.com" is no wildcard that can be served"#),
            ("*.shop.example.com:80", r#"has a port | write only the host name, such as "shop.example.com""#),
            ("grün.example", "is not ASCII"),
            ("a_b.example", "is no host name"),
            ("-a.example", "is no host name"),
            ("a..example", "is no host name"),
            ("", "is no host name"),
        ] {
            let fault = read(text).unwrap_err();
            let shown = format!("{} | {}", fault.what, fault.hint.unwrap());
            assert!(shown.contains(expected), "{shown}");
        }
        assert!(read(&"a".repeat(64)).is_err());
        assert!(read(&"a.".repeat(127)).is_err());
    }
}
