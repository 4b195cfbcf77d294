//! Reading what stands behind the `?`: a few known parameters. Whatever is wrong is answered with the parameter's name
//! and what it may be.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::extract::Query;
use axum::http::{StatusCode, Uri};

use super::body::{unknown, wrong};
use super::problem::Problem;
use crate::model::shorten;

/// A request's query parameters.
#[derive(Debug)]
pub(super) struct Params(BTreeMap<String, String>);

impl Params {
    /// Refuses parameters other than `known`, and one that is given twice.
    pub fn of(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "what follows the ? in the URL cannot be read"))?;
        let mut params = BTreeMap::new();
        for (name, value) in pairs {
            if !known.contains(&name.as_str()) {
                return Err(unknown("parameter", &name, known));
            }
            if params.insert(name.clone(), value).is_some() {
                return Err(wrong(&name, "is given more than once"));
            }
        }
        Ok(Self(params))
    }

    /// Its text, where it is given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A whole number of `allowed`; `None` where it is not given.
    pub fn number(&self, name: &str, allowed: RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let (least, most) = (allowed.start(), allowed.end());
        let range = match *most {
            u64::MAX => format!("{least} or more"),
            most => format!("from {least} to {most}"),
        };
        let number = text.parse().ok().filter(|number| allowed.contains(number));
        let problem = || wrong(name, format!("must be a whole number, {range}, not {:?}", shorten(text, 40)));
        number.map(Some).ok_or_else(problem)
    }

    /// `?follow=1`, also `true` and the bare name; absent = false.
    pub fn switch(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            Some("1" | "true" | "") => Ok(true),
            None | Some("0" | "false") => Ok(false),
            Some(other) => Err(wrong(name, format!("must be 1 or 0, not {:?}", shorten(other, 40)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Params, Problem> {
        Params::of(&format!("/x?{query}").parse().unwrap(), &["follow", "tail"])
    }

    fn refused(problem: Problem) -> (u16, String, String) {
        (problem.status.as_u16(), problem.field.unwrap_or_default(), problem.detail)
    }

    #[test]
    fn parameters_that_are_known_are_read() {
        let params = read("follow&tail=%320").unwrap();
        assert_eq!((params.switch("follow").unwrap(), params.number("tail", 0..=100).unwrap()), (true, Some(20)));
        let none = Params::of(&"/x".parse().unwrap(), &["tail"]).unwrap();
        assert_eq!((none.switch("follow").unwrap(), none.number("tail", 0..=100).unwrap()), (false, None));
        for (text, on) in [("1", true), ("true", true), ("0", false), ("false", false)] {
            assert_eq!(read(&format!("follow={text}")).unwrap().switch("follow").unwrap(), on, "{text}");
        }
    }

    #[test]
    fn others_are_told_what_is_allowed() {
        for (query, field, detail) in [
            ("folow=1", "folow", "unknown parameter \"folow\"; did you mean \"follow\"?"),
            ("page=2", "page", "unknown parameter \"page\"; known: follow, tail"),
            ("tail=1&tail=2", "tail", "tail: is given more than once"),
        ] {
            assert_eq!(refused(read(query).unwrap_err()), (422, field.into(), detail.into()));
        }
        for text in ["-1", "0", "201", "x", "", "1e2", "99999999999999999999"] {
            let problem = read(&format!("tail={text}")).unwrap().number("tail", 1..=200).unwrap_err();
            let detail = format!("tail: must be a whole number, from 1 to 200, not {text:?}");
            assert_eq!(refused(problem), (422, "tail".into(), detail));
        }
        let problem = read("tail=-1").unwrap().number("tail", 0..=u64::MAX).unwrap_err();
        assert_eq!(problem.detail, "tail: must be a whole number, 0 or more, not \"-1\"");
        let problem = read("follow=yes").unwrap().switch("follow").unwrap_err();
        assert_eq!(refused(problem), (422, "follow".into(), "follow: must be 1 or 0, not \"yes\"".into()));
    }
}
