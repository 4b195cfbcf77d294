//! `longshore plan APP`

use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::client::Client;
use super::deploy::Want;
use super::error::CliError;
use super::term::Term;
use super::{Json, text};
use crate::config::Order;
use crate::deploy::plan_view::{ImagePlan, PlanView, ServicePlan};
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
        ServicePlan { name: name.into(), image, instances: 2, replaced, stopped: 0, order: Order::StartFirst }
    }

    #[test]
    fn a_plan_is_a_table() {
        let plan = PlanView {
            commit: "ab".repeat(20).parse().unwrap(),
            subject: "Fix the \u{1b}[31mcart".into(),
            author: "Ada".into(),
            live: Some("v6".into()),
            services: vec![service("web", ImagePlan::Build, 2), service("worker", ImagePlan::Reuse, 0)],
            held: Some("web-1 exited with code 1\n  Traceback".into()),
            release_command: Some(vec!["/site".into(), "migrate".into()]),
        };
        let app = "shop".parse().unwrap();
        insta::assert_snapshot!(shown(&app, &plan), @r"
        shop: abababa Fix the cart (Ada); v6 is live

        SERVICE  IMAGE  INSTANCES  TO START  TO STOP  ORDER
        web      build  2          2         0        start first
        worker   reuse  2          0         0        start first

        release command: /site migrate
        held: abababa failed before (web-1 exited with code 1); pushes do not deploy it again, this would
        nothing was changed
        ");
        let idle = PlanView { services: vec![service("web", ImagePlan::Reuse, 0)], release_command: None, ..plan };
        assert!(shown(&app, &idle).contains("release command: not run\nno instance would be replaced\n"));
    }
}
