//! `longshore plan APP`

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::client::Client;
use super::deploy::Want;
use super::error::CliError;
use super::term::Term;
use super::{Json, static_files, text};
use crate::config::Order;
use crate::deploy::plan_view::{
    CanaryPlan, FilesPlan, ImagePlan, PlanView, ServicePlan, SharesPlan, StaticPlan, StrategyPlan,
};
use crate::model::{AppName, shorten};

pub(super) const EXAMPLES: &str = "Examples:
  longshore plan shop
  longshore plan shop --ref main --json";

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The app.
    pub app: AppName,
    #[command(flatten)]
    pub want: Want,
    #[command(flatten)]
    pub json: Json,
}

pub(super) async fn run(client: &Client, term: &mut Term, args: PlanArgs) -> Result<ExitCode, CliError> {
    let mut body = args.want.body();
    body["dry_run"] = json!(true);
    let path = format!("/api/v1/apps/{}/deployments", args.app);
    let plan: PlanView = client.ask(Method::POST, &path, Some(body)).await?;
    term.print(&if args.json.json { text::json(&plan) } else { shown(&args.app, &plan) })?;
    Ok(ExitCode::SUCCESS)
}

/// The plan for people: what would be deployed over what, service by service.
fn shown(app: &AppName, plan: &PlanView) -> String {
    let (subject, author) = (text::clean(&plan.subject), text::clean(&plan.author));
    let over =
        plan.live.as_ref().map_or("nothing is live yet".to_owned(), |live| format!("{} is live", text::clean(live)));
    let commit = plan.commit.short();
    let mut out = format!("{app}: {commit} {} ({}); {over}\n\n", shorten(&subject, 60), shorten(&author, 30));
    let rows: Vec<Vec<String>> = plan.services.iter().map(row).collect();
    out.push_str(&text::table(&["SERVICE", "IMAGE", "INSTANCES", "TO START", "TO STOP", "ORDER"], &rows));
    let command = plan.release_command.as_ref().map_or("not run".to_owned(), |words| text::clean(&words.join(" ")));
    out.push_str(&format!("\nrelease command: {command}\n"));
    rollout(plan).into_iter().for_each(|line| out.push_str(&format!("{line}\n")));
    for service in &plan.services {
        service.static_files.iter().for_each(|files| out.push_str(&format!("{}\n", static_line(service, files))));
    }
    if plan.maintenance {
        out.push_str(&format!("{}, also after it\n", text::IN_MAINTENANCE));
    }
    let idle = |service: &ServicePlan| service.replaced == 0 && service.stopped == 0;
    if plan.services.iter().all(idle) {
        out.push_str("no instance would be replaced\n");
    }
    if let Some(held) = &plan.held {
        let reason = text::lines(held).swap_remove(0);
        out.push_str(&format!("held: {commit} failed before ({reason}); pushes do not deploy it again, this would\n"));
    }
    out.push_str("nothing was changed\n");
    out
}

/// How instances would be replaced, and who would be compared with whom.
fn rollout(plan: &PlanView) -> Vec<String> {
    let mut lines = match (plan.strategy, &plan.canary) {
        (_, Some(canary)) => as_a_canary(canary),
        (StrategyPlan::Rolling, None) => vec!["rollout: one instance at a time".to_owned()],
        (StrategyPlan::Canary, None) => {
            let why = "no canary, as no old and new instances would share requests";
            vec![format!("rollout: one instance at a time; {why}")]
        }
    };
    lines.extend(plan.canary_of.as_ref().map(|SharesPlan { app, share }| {
        let (app, share) = (text::clean(app), text::clean(share));
        format!("permanent canary: gets {share} of {app}'s requests, and is compared with {app} for as long")
    }));
    lines
}

fn as_a_canary(canary: &CanaryPlan) -> Vec<String> {
    let steps: Vec<String> = canary.steps.iter().map(|percent| format!("{percent} %")).collect();
    let pause = Duration::try_from_secs_f64(canary.pause_seconds).unwrap_or_default();
    let judged: Vec<String> = canary.judged.iter().map(|service| text::clean(service)).collect();
    vec![
        format!("rollout: as a canary: {} of the requests for {pause:?} each, then all", steps.join(", then ")),
        match judged.as_slice() {
            [] => "judged: nothing (analysis = false)".to_owned(),
            judged => format!("judged: {}, by errors and latency beside the stable instances", judged.join(", ")),
        },
    ]
}

/// `static files: /static from staticfiles of web's image, copied anew`
fn static_line(service: &ServicePlan, files: &StaticPlan) -> String {
    let image = format!("{}'s image", text::clean(&service.name));
    let place = static_files::place(&files.directory, files.volume.as_deref(), &image);
    let how = match files.files {
        FilesPlan::Copy => ", copied anew",
        FilesPlan::Reuse => ", copied before",
        FilesPlan::Volume => "",
    };
    format!("static files: {} from {place}{how}", text::clean(&files.prefix))
}

fn row(service: &ServicePlan) -> Vec<String> {
    let image = match service.image {
        ImagePlan::Build => "build",
        ImagePlan::Reuse => "reuse",
    };
    let order = match service.order {
        Order::StartFirst => "start first",
        Order::StopFirst => "stop first",
    };
    vec![
        service.name.clone(),
        image.into(),
        service.instances.to_string(),
        service.replaced.to_string(),
        service.stopped.to_string(),
        order.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, image: ImagePlan, replaced: u32) -> ServicePlan {
        let static_files = Vec::new();
        ServicePlan {
            name: name.into(),
            image,
            instances: 2,
            replaced,
            stopped: 0,
            order: Order::StartFirst,
            static_files,
        }
    }

    fn plan() -> PlanView {
        PlanView {
            commit: "ab".repeat(20).parse().unwrap(),
            subject: "Fix the \u{1b}[31mcart".into(),
            author: "Ada".into(),
            live: Some("v6".into()),
            services: vec![service("web", ImagePlan::Build, 2), service("worker", ImagePlan::Reuse, 0)],
            strategy: StrategyPlan::Rolling,
            canary: None,
            canary_of: None,
            maintenance: false,
            held: Some("web-1 exited with code 1\n  Traceback".into()),
            release_command: Some(vec!["/site".into(), "migrate".into()]),
        }
    }

    #[test]
    fn a_plan_is_a_table() {
        let plan = plan();
        let app = "shop".parse().unwrap();
        insta::assert_snapshot!(shown(&app, &plan), @r"
        shop: abababa Fix the cart (Ada); v6 is live

        SERVICE  IMAGE  INSTANCES  TO START  TO STOP  ORDER
        web      build  2          2         0        start first
        worker   reuse  2          0         0        start first

        release command: /site migrate
        rollout: one instance at a time
        held: abababa failed before (web-1 exited with code 1); pushes do not deploy it again, this would
        nothing was changed
        ");
        let idle = PlanView { services: vec![service("web", ImagePlan::Reuse, 0)], release_command: None, ..plan };
        let closed = PlanView { maintenance: true, ..idle.clone() };
        assert!(
            shown(&app, &closed)
                .contains("\nin maintenance: every request gets a page with 503, also after it\nno instance")
        );
        assert!(shown(&app, &idle).contains("rollout: one instance at a time\nno instance would be replaced\n"));
    }

    #[test]
    fn a_plan_tells_shares_and_static_files() {
        let files = |prefix: &str, files, volume: Option<&str>, directory: &str| StaticPlan {
            prefix: prefix.into(),
            files,
            volume: volume.map(str::to_owned),
            directory: directory.into(),
        };
        let web = ServicePlan {
            static_files: vec![
                files("/assets", FilesPlan::Reuse, None, "/app/assets"),
                files("/media", FilesPlan::Volume, Some("media"), ""),
                files("/static", FilesPlan::Copy, None, "staticfiles"),
            ],
            ..service("web", ImagePlan::Build, 2)
        };
        let canary = |judged: &[&str]| CanaryPlan {
            steps: vec![10, 50],
            pause_seconds: 60.0,
            judged: judged.iter().map(|&service| service.to_owned()).collect(),
        };
        let (strategy, services) = (StrategyPlan::Canary, vec![web]);
        let as_canary = PlanView { strategy, services, canary: Some(canary(&["api", "web"])), ..plan() };
        let said = |plan: &PlanView, from: &str| {
            let lines: Vec<String> = shown(&"shop".parse().unwrap(), plan).lines().map(str::to_owned).collect();
            let told = lines
                .into_iter()
                .skip_while(|line| !line.starts_with(from))
                .take_while(|line| !line.starts_with("held"));
            told.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(said(&as_canary, "rollout"), @r"
        rollout: as a canary: 10 %, then 50 % of the requests for 60s each, then all
        judged: api, web, by errors and latency beside the stable instances
        static files: /assets from /app/assets of web's image, copied before
        static files: /media from volume media
        static files: /static from staticfiles of web's image, copied anew
        ");
        let unjudged = PlanView { strategy, canary: Some(canary(&[])), ..plan() };
        insta::assert_snapshot!(said(&unjudged, "judged"), @"judged: nothing (analysis = false)");
        let first = PlanView { strategy, canary: None, ..plan() };
        insta::assert_snapshot!(said(&first, "rollout"), @"rollout: one instance at a time; no canary, as no old and new instances would share requests");
        let shares = SharesPlan { app: "other".into(), share: "1/3".into() };
        let permanent = PlanView { canary_of: Some(shares), ..plan() };
        insta::assert_snapshot!(said(&permanent, "rollout"), @r"
        rollout: one instance at a time
        permanent canary: gets 1/3 of other's requests, and is compared with other for as long
        ");
    }

    /// As an agent of an earlier version answers.
    #[test]
    fn a_plan_without_the_newer_parts_is_read() {
        let mut old = serde_json::to_value(plan()).unwrap();
        for key in ["strategy", "canary", "canary_of", "maintenance"] {
            old.as_object_mut().unwrap().remove(key);
        }
        old["services"][0].as_object_mut().unwrap().remove("static");
        assert_eq!(serde_json::from_value::<PlanView>(old).unwrap(), plan());
    }
}
