//! `canary_of` and `share`: an app that answers a fixed share of another app's requests.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::app::Read;
use super::field::Field;
use super::reader::Section;
use super::route;
use super::suggest::did_you_mean;
use super::{App, Service, routed_service};
use crate::model::{AppName, shorten};

/// Larger numbers in a share make a round of requests longer than anybody could follow.
const LARGEST: u32 = 100;
const FORM: &str = "write share = \"1/3\" for one of three requests";
const DEFAULT_SHARE: Fraction = Fraction { part: 1, of: 3 };

/// Whose requests an app gets a share of, for as long as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryOf {
    /// The app that is production.
    pub app: AppName,
    /// Of its requests. Default 1/3.
    pub share: Fraction,
}

/// A part of a whole, as it is written: more than nothing and less than all, in whole numbers up to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fraction {
    /// So many …
    pub part: u32,
    /// … of so many.
    pub of: u32,
}

impl Fraction {
    fn read(text: &str) -> Result<Self, String> {
        let bad = |what: &str| Err(format!(" must be {what}, got {:?}", shorten(text, 40)));
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let Some((part, of)) = text.split_once('/').and_then(|(part, of)| Some((number(part)?, number(of)?))) else {
            return bad("a fraction of two whole numbers");
        };
        match part > 0 && part < of && of <= LARGEST {
            true => Ok(Self { part, of }),
            false => bad("between 1/100 and 99/100, in whole numbers up to 100"),
        }
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.part, self.of)
    }
}

/// What is written of it, and where.
pub(super) struct Written<'s> {
    parent: Option<Field<'s>>,
    pub of: Option<CanaryOf>,
}

impl<'s> Written<'s> {
    pub(super) fn is_canary(&self) -> bool {
        self.parent.is_some()
    }

    /// What the app that it is a canary of decides for both.
    pub(super) fn refuse_ways_of_its_own(&self, keys: [Option<&Field<'_>>; 2], routes: &[route::Read]) {
        let Some(parent) = &self.parent else { return };
        for field in keys.into_iter().flatten() {
            field.problem(" is of no use in a canary: it answers where the other app does", "remove it");
        }
        for read in routes.iter().filter(|read| read.route.domains.is_some()) {
            let span = read.domains.first().map_or(&read.span, |(_, span)| span);
            let what = format!("{}: a canary has no domains of its own, in its routes neither", parent.path);
            parent.reader.problem(span, what, "remove domains from the route");
        }
    }
}

pub(super) fn read<'s>(section: &Section<'s>) -> Written<'s> {
    let parent = section.take("canary_of");
    let share = section.take("share");
    if let (None, Some(share)) = (&parent, &share) {
        share.problem(" does nothing without canary_of", "add canary_of = \"APP\", or remove it");
    }
    let share = share.and_then(|field| fraction(&field)).unwrap_or(DEFAULT_SHARE);
    let app = parent.as_ref().and_then(Field::text).and_then(|text| text.parse().ok());
    Written { parent, of: app.map(|app| CanaryOf { app, share }) }
}

fn fraction(field: &Field<'_>) -> Option<Fraction> {
    if field.as_text().is_none() {
        field.problem(" must be a fraction in quotes", FORM);
    }
    Fraction::read(field.as_text()?).map_err(|what| field.problem(what, FORM)).ok()
}

/// What is wrong with the canaries among all apps, in the order of the file.
pub(super) fn check(apps: &[Read<'_>]) {
    for (place, read) in apps.iter().enumerate() {
        let Some((field, parent)) = read.canary.parent.as_ref().and_then(|field| Some((field, field.as_text()?)))
        else {
            continue;
        };
        let shown = shorten(parent, 60);
        if parent == read.name {
            field.problem(" is the app itself", "name the app that is production");
            continue;
        }
        let Some(production) = apps.iter().find(|other| other.name == parent) else {
            let others: Vec<&str> =
                apps.iter().map(|app| app.name.as_str()).filter(|name| *name != read.name).collect();
            let hint = match did_you_mean(parent, others.iter().copied()) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None if others.is_empty() => "this is the only app".to_owned(),
                None => format!("the other apps: {}", others.join(", ")),
            };
            field.problem(format!(": there is no app {shown:?}"), hint);
            continue;
        };
        if production.canary.is_canary() {
            field.problem(format!(": {shown} is a canary itself"), "name the app that is production");
            continue;
        }
        let same = |other: &&Read<'_>| other.canary.parent.as_ref().and_then(Field::as_text) == Some(parent);
        if let Some(first) = apps[..place].iter().find(same) {
            field.problem(format!(": {shown} has a canary already, {}", first.name), "an app has one canary at most");
            continue;
        }
        if let (Some(canary), Some(production)) = (&read.app, &production.app) {
            check_services(field, canary, production);
        }
    }
}

fn check_services(field: &Field<'_>, canary: &App, production: &App) {
    let name = &production.name;
    if production.hosts().is_empty() || !production.services.values().any(|service| production.leads_to(service)) {
        let what = format!(": no domain of {name} leads to a service with a port, so there is nothing to share");
        return field.problem(what, format!("set domains and port in [apps.{name}]"));
    }
    let routed = || canary.services.values().filter(|service| canary.leads_to(service));
    if routed().next().is_none() {
        let what = format!(": no service of {} has a port to answer {name}'s requests at", canary.name);
        return field.problem(what, "set port, or name the service that answers them \"web\"");
    }
    for service in routed().filter(|service| canary.counterpart(service, production).is_none()) {
        let what = format!(": {name} has no service {} whose requests {} could share", service.name, canary.name);
        field.problem(what, format!("give it the name of one of {name}'s, or remove its route"));
    }
}

impl App {
    /// Whether requests from outside are meant for a service of this app.
    pub fn leads_to(&self, service: &Service) -> bool {
        service.route.is_some() || self.is_default(service)
    }

    fn is_default(&self, service: &Service) -> bool {
        routed_service(self.services.values()).is_some_and(|default| default.name == service.name)
    }

    /// The service of `production` whose requests a service of this app, its canary, gets a share of: the one of the same
    /// name, and for the one that needs no route the one that needs none.
    pub fn counterpart<'p>(&self, service: &Service, production: &'p App) -> Option<&'p Service> {
        if !self.leads_to(service) {
            return None;
        }
        let same_name = production.services.get(&service.name).filter(|other| production.leads_to(other));
        same_name.or_else(|| routed_service(production.services.values()).filter(|_| self.is_default(service)))
    }
}
