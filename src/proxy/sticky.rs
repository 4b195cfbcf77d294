//! The cookie by which a client stays with one instance.

use hyper::header::{COOKIE, HeaderValue};

use super::fields::{Fields, is};
use super::path_prefix::PathPrefix;
use crate::model::{InstanceId, ServiceName};

/// Of one route. The value is the instance's id: it says nothing that could not be seen otherwise.
#[derive(Debug)]
pub struct StickyCookie {
    name: String,
    path: PathPrefix,
}

impl StickyCookie {
    /// Services that share a host have cookies of their own.
    pub fn of(service: &ServiceName, path: &PathPrefix) -> Self {
        Self { name: format!("longshore-{service}"), path: path.clone() }
    }

    /// The instance that the client was answered by, as it says.
    pub fn read<'a>(&self, fields: &'a Fields) -> Option<&'a str> {
        let lines = fields.iter().filter(|(name, _)| is(name, &COOKIE));
        let lines = lines.filter_map(|(_, line)| std::str::from_utf8(line).ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == self.name).map(|(_, value)| value)
    }

    /// The `Set-Cookie` that ties a client to an instance until it closes its browser (RFC 6265, section 4.1).
    pub fn tie_to(&self, instance: &InstanceId, secure: bool) -> Option<HeaderValue> {
        let Self { name, path } = self;
        let path = if path.is_root() { "/" } else { path.as_str() };
        let secure = if secure { "; Secure" } else { "" };
        HeaderValue::from_str(&format!("{name}={instance}; Path={path}; HttpOnly; SameSite=Lax{secure}")).ok()
    }
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;

    #[test]
    fn a_client_says_who_answered_it() {
        let path = PathPrefix::parse("/app").unwrap();
        let cookie = StickyCookie::of(&"web".parse().unwrap(), &path);
        let id = InstanceId::parse("d12-web-3").unwrap();
        let set = cookie.tie_to(&id, true).unwrap();
        assert_eq!(set, "longshore-web=d12-web-3; Path=/app; HttpOnly; SameSite=Lax; Secure");
        let mut fields = Fields::Map(HeaderMap::new());
        assert_eq!(cookie.read(&fields), None);
        fields.append(COOKIE, HeaderValue::from_static("a=1; longshore-webx=d1-web-1"));
        fields.append(COOKIE, HeaderValue::from_static("b=2;longshore-web=d12-web-3; c"));
        assert_eq!(cookie.read(&fields), Some("d12-web-3"));
    }
}
