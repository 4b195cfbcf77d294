//! `longshore check`: says whether the configuration is valid, and everything that is wrong with it; and with the files that
//! it names, as a warning: they may be on another machine.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;

use crate::acme;
use crate::config::{Config, Problems, load};
use crate::named_files;

pub(super) const EXAMPLES: &str = "\
Certificates with their keys, and what else [proxy] names, are opened. What is wrong with them is a warning, with exit code 0:
they may be on another machine.

Examples:
  longshore check
  longshore check --config /etc/longshore/deploy.toml";

/// Prints a summary and the warnings, or every problem to stderr. Exit code 0, or 2 for a bad configuration.
pub fn run(path: &Path) -> ExitCode {
    let file = path.display().to_string();
    // A reader that went away is no reason to fail.
    match load(path) {
        Ok(config) => {
            let _ = write!(std::io::stdout().lock(), "{}", accepted(&file, &config));
            ExitCode::SUCCESS
        }
        Err(problems) => {
            let _ = write!(std::io::stderr().lock(), "{}", refused(&problems));
            ExitCode::from(2)
        }
    }
}

fn accepted(file: &str, config: &Config) -> String {
    let services = config.apps.values().map(|app| app.services.len()).sum();
    let mut text = format!("{file}: ok ({}, {})\n", count(config.apps.len(), "app"), count(services, "service"));
    let mut warnings = config.warnings.clone();
    warnings.extend(named_files::warnings(config, Timestamp::now()));
    // In the order of the file, and last what belongs to none of its lines.
    warnings.sort_by_key(|warning| (warning.line == 0, warning.line, warning.column));
    for warning in &warnings {
        text.push_str(&warning.render(file, "warning: "));
        text.push('\n');
    }
    if config.proxy.acme.is_some() {
        for (host, why) in acme::names(config).skipped {
            text.push_str(&format!("{file}: warning: no certificate is ordered for {host}: {why}\n"));
        }
    }
    text
}

fn refused(problems: &Problems) -> String {
    format!("{problems}\n{}: {}\n", problems.file, count(problems.problems.len(), "problem"))
}

fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_in;

    fn check(text: &str) -> String {
        match parse_in(text, "deploy.toml", Path::new("/srv"), &|_: &str| None) {
            Ok(config) => accepted("deploy.toml", &config),
            Err(problems) => refused(&problems),
        }
    }

    #[test]
    fn a_good_file_is_counted_and_its_warnings_shown() {
        assert_eq!(check("[agent]"), "deploy.toml: ok (0 apps, 0 services)\n");
        insta::assert_snapshot!(check("[apps.shop]\nrepo = \"https://git.example/shop.git\"\n"), @r#"
        deploy.toml: ok (1 app, 1 service)
        deploy.toml:1:7: warning: apps.shop has no webhook: a push is noticed only by the check every 5m
            write webhook = { provider = "github", secret = { env = "NAME" } }
        "#);
    }

    #[test]
    fn what_is_wrong_with_files_stands_where_they_are_named() {
        insta::assert_snapshot!(check(
            "[apps.shop]\nrepo = \"https://h/x\"\n\n\n\
             [proxy]\nhttps = \"0.0.0.0:443\"\ncertificates = [{ cert = \"none.pem\", key = \"none.key\" }]\n\
             [apps.blog]\nrepo = \"https://h/y\"\n"
        ), @r#"
        deploy.toml: ok (2 apps, 2 services)
        deploy.toml:1:7: warning: apps.shop has no webhook: a push is noticed only by the check every 5m
            write webhook = { provider = "github", secret = { env = "NAME" } }
        deploy.toml:7:26: warning: proxy.certificates[0].cert: cannot read /srv/none.pem: No such file or directory (os error 2)
            name a file that is there; paths are relative to the directory of the configuration
        deploy.toml:7:44: warning: proxy.certificates[0].key: cannot read /srv/none.key: No such file or directory (os error 2)
            name a file that is there; paths are relative to the directory of the configuration
        deploy.toml:8:7: warning: apps.blog has no webhook: a push is noticed only by the check every 5m
            write webhook = { provider = "github", secret = { env = "NAME" } }
        "#);
    }

    #[test]
    fn it_is_said_for_which_hosts_no_certificate_can_be_ordered() {
        let proxy = "[proxy]\nhttps = \"0.0.0.0:443\"\n";
        let app = "[apps.shop]\nrepo = \"https://h/x\"\nport = 8000\nhealth = { path = \"/\" }\n\
                   domains = [\"shop.test\", \"*.shop.test\", \"localhost\"]\n";
        let with_acme = check(&format!("{proxy}acme = {{ email = \"ops@example.com\" }}\n{app}"));
        insta::assert_snapshot!(with_acme, @r#"
    deploy.toml: ok (1 app, 1 service)
    deploy.toml:4:7: warning: apps.shop has no webhook: a push is noticed only by the check every 5m
        write webhook = { provider = "github", secret = { env = "NAME" } }
    deploy.toml: warning: no certificate is ordered for *.shop.test: a wildcard takes the challenge dns-01, which longshore does not know; name its files in proxy.certificates, or write every host by its whole name
    deploy.toml: warning: no certificate is ordered for localhost: a name without a dot is known on this network alone
    "#);
    }

    #[test]
    fn a_bad_file_is_refused_with_exit_code_2() {
        insta::assert_snapshot!(check("[agent]\nlisten = 9000\nlisten_on = 1\n"), @r#"
        deploy.toml:2:10: agent.listen must be IP:PORT in quotes
            write an IP address and a port in quotes, such as "127.0.0.1:9000" or "[::]:80"
        deploy.toml:3:1: unknown key "listen_on", did you mean "listen"?
            agent takes: listen, data_dir, public_url, reconcile, min_free
        deploy.toml: 2 problems
        "#);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deploy.toml");
        assert_eq!(run(&path), ExitCode::from(2));
        // A certificate may be on the machine that it is for.
        let files = "[proxy]\nhttps = \"0.0.0.0:443\"\ncertificates = [{ cert = \"none.pem\", key = \"none.key\" }]\n";
        std::fs::write(&path, files).unwrap();
        assert_eq!(run(&path), ExitCode::SUCCESS);
    }
}
