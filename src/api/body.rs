//! Reading a body: a JSON object with a few known fields. Whatever is wrong is answered with the field's name.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::model::shorten;

/// A small body that takes longer is no honest client.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON object; no body at all counts as `{}`.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let headers = request.headers().clone();
        let read = tokio::time::timeout(READ_TIMEOUT, Bytes::from_request(request, state)).await;
        let slow = || Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive within 30 s").into_response();
        let bytes = read.map_err(|_| slow())?.map_err(IntoResponse::into_response)?;
        Self::read(&headers, &bytes).map_err(IntoResponse::into_response)
    }
}

impl Fields {
    fn read(headers: &HeaderMap, bytes: &[u8]) -> Result<Self, Problem> {
        let plain = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default().to_ascii_lowercase());
        if plain(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            let detail = "compressed bodies are not accepted";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).field("Content-Encoding"));
        }
        let content_type = plain(header::CONTENT_TYPE);
        let media_type = content_type.as_deref().map(|text| text.split(';').next().unwrap_or_default().trim());
        match media_type {
            Some("application/json") => {}
            None if bytes.is_empty() => {}
            _ => {
                let detail = "the body must be JSON, with the header Content-Type: application/json";
                return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).field("Content-Type"));
            }
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(Map::new()));
        }
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|err| Problem::new(StatusCode::BAD_REQUEST, format!("the body is no JSON: {err}")))?;
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "the body must be a JSON object")),
        }
    }

    /// Refuses fields other than `known`, with a suggestion.
    pub fn only(self, known: &[&str]) -> Result<Self, Problem> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(self),
            Some(stranger) => Err(unknown("field", stranger, known)),
        }
    }

    /// A field's value where it is given and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// A string read as `T`.
    pub fn text<T: FromStr<Err: Display>>(&self, field: &str) -> Result<Option<T>, Problem> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| wrong(field, "must be a string"))?;
        text.parse().map(Some).map_err(|err| wrong(field, err))
    }

    /// A boolean; absent = false.
    pub fn flag(&self, field: &str) -> Result<bool, Problem> {
        let Some(value) = self.get(field) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong(field, "must be true or false"))
    }
}

/// A field whose value cannot be taken.
pub(super) fn wrong(field: &str, why: impl Display) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{field}: {why}")).field(field)
}

/// A field or parameter that is not among `known`.
pub(super) fn unknown(what: &str, name: &str, known: &[&str]) -> Problem {
    let hint = match (closest(name, known.iter().copied()), known) {
        (Some(close), _) => format!("did you mean {close:?}?"),
        (None, []) => format!("no {what}s are known here"),
        (None, _) => format!("known: {}", known.join(", ")),
    };
    let name = shorten(name, 80);
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("unknown {what} {name:?}; {hint}")).field(name)
}

/// Which of `known` may have been meant.
pub(super) fn closest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|word| (strsim::damerau_levenshtein(text, word), word)).min()?;
    // A third of the letters wrong (at least two of them) is still a slip of the fingers.
    (near.0 <= (near.1.chars().count() / 3).max(2) && near.0 < near.1.chars().count()).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: Option<&str>, body: &str) -> Result<Fields, Problem> {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
        }
        Fields::read(&headers, body.as_bytes())?.only(&["commit", "ref", "dry_run"])
    }

    fn refused(content_type: Option<&str>, body: &str) -> (u16, Option<String>, String) {
        let problem = read(content_type, body).unwrap_err();
        (problem.status.as_u16(), problem.field, problem.detail)
    }

    #[test]
    fn bodies_that_cannot_be_taken_are_told_why() {
        let json = Some("application/json; charset=utf-8");
        assert!(read(None, "").is_ok() && read(json, "{}").is_ok() && read(json, " \n").is_ok());
        assert_eq!(refused(Some("text/plain"), "{}").0, 415);
        assert_eq!(refused(None, "{}").0, 415);
        assert_eq!(refused(json, "{").0, 400);
        assert_eq!(refused(json, &"[".repeat(60_000)).0, 400);
        assert_eq!(refused(json, "[]").0, 422);
        let (status, field, detail) = refused(json, r#"{"comit": "x"}"#);
        assert_eq!((status, field.as_deref()), (422, Some("comit")));
        assert_eq!(detail, r#"unknown field "comit"; did you mean "commit"?"#);
    }

    #[test]
    fn values_of_the_wrong_kind_name_their_field() {
        let fields = read(Some("application/json"), r#"{"commit": 7, "ref": null, "dry_run": "yes"}"#).unwrap();
        assert_eq!(fields.text::<String>("commit").unwrap_err().field.as_deref(), Some("commit"));
        assert_eq!(fields.text::<String>("ref").unwrap(), None);
        assert_eq!(fields.flag("dry_run").unwrap_err().status, 422);
    }
}
