use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::notify::fixtures::facts;
use crate::notify::message::{Facts, News, compose};

fn json(kind: News) -> String {
    serde_json::to_string_pretty(&Payload::new(&compose(&facts(kind)))).unwrap()
}

#[test]
fn started() {
    assert_snapshot!(json(News::Started), @r##"
    {
      "content": "shop: deploying aaaaaaa by Ada: Fix cart",
      "username": "longshore",
      "embeds": [
        {
          "title": "shop: deployment started",
          "url": "https://deploy.example.com",
          "color": 3900150,
          "fields": [
            {
              "name": "Commit",
              "value": "[aaaaaaa](https://github.com/example/shop/commit/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa)",
              "inline": true
            },
            {
              "name": "Author",
              "value": "Ada",
              "inline": true
            },
            {
              "name": "Branch",
              "value": "main",
              "inline": true
            },
            {
              "name": "Subject",
              "value": "Fix cart",
              "inline": false
            },
            {
              "name": "Trigger",
              "value": "push by ada",
              "inline": true
            },
            {
              "name": "Instances",
              "value": "web 5 · worker 2",
              "inline": true
            }
          ],
          "footer": {
            "text": "deployment 12"
          },
          "timestamp": "2026-09-21T14:13:20Z"
        }
      ],
      "allowed_mentions": {
        "parse": []
      }
    }
    "##);
}

#[test]
fn succeeded() {
    assert_snapshot!(json(News::Succeeded), @r##"
    {
      "content": "shop: v7 is live, aaaaaaa by Ada: Fix cart",
      "username": "longshore",
      "embeds": [
        {
          "title": "shop: v7 is live",
          "url": "https://deploy.example.com",
          "color": 2278750,
          "fields": [
            {
              "name": "Commit",
              "value": "[aaaaaaa](https://github.com/example/shop/commit/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa)",
              "inline": true
            },
            {
              "name": "Author",
              "value": "Ada",
              "inline": true
            },
            {
              "name": "Branch",
              "value": "main",
              "inline": true
            },
            {
              "name": "Subject",
              "value": "Fix cart",
              "inline": false
            },
            {
              "name": "Release",
              "value": "v7",
              "inline": true
            },
            {
              "name": "Trigger",
              "value": "push by ada",
              "inline": true
            },
            {
              "name": "Instances",
              "value": "web 5 · worker 2",
              "inline": true
            },
            {
              "name": "Requests during the rollout",
              "value": "1,204 served, 0 failed",
              "inline": true
            },
            {
              "name": "Took",
              "value": "source 2 s · build 1 m 12 s · rollout 40 s · watch 1 m 0 s · total 2 m 54 s",
              "inline": false
            }
          ],
          "footer": {
            "text": "deployment 12"
          },
          "timestamp": "2026-09-21T14:16:14Z"
        }
      ],
      "allowed_mentions": {
        "parse": []
      }
    }
    "##);
}

#[test]
fn failed() {
    assert_snapshot!(json(News::Failed), @r##"
    {
      "content": "shop: aaaaaaa by Ada failed: the image could not be built: step 4 of 9 exited with code 1; v6 keeps serving",
      "username": "longshore",
      "embeds": [
        {
          "title": "shop: failed",
          "url": "https://deploy.example.com",
          "description": "the image could not be built: step 4 of 9 exited with code 1\n```\nerror: no `cart`\nˋˋˋ\n```",
          "color": 15680580,
          "fields": [
            {
              "name": "Commit",
              "value": "[aaaaaaa](https://github.com/example/shop/commit/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa)",
              "inline": true
            },
            {
              "name": "Author",
              "value": "Ada",
              "inline": true
            },
            {
              "name": "Branch",
              "value": "main",
              "inline": true
            },
            {
              "name": "Subject",
              "value": "Fix cart",
              "inline": false
            },
            {
              "name": "Release",
              "value": "v6 keeps serving",
              "inline": true
            },
            {
              "name": "Trigger",
              "value": "push by ada",
              "inline": true
            },
            {
              "name": "Instances",
              "value": "web 5 · worker 2",
              "inline": true
            },
            {
              "name": "Took",
              "value": "source 2 s · build 1 m 12 s · total 2 m 54 s",
              "inline": false
            },
            {
              "name": "Held",
              "value": "aaaaaaa is not deployed again by itself: push a newer commit, or deploy it explicitly",
              "inline": false
            }
          ],
          "footer": {
            "text": "deployment 12"
          },
          "timestamp": "2026-09-21T14:16:14Z"
        }
      ],
      "allowed_mentions": {
        "parse": []
      }
    }
    "##);
}

#[test]
fn rolled_back() {
    assert_snapshot!(json(News::RolledBack), @r##"
    {
      "content": "shop: aaaaaaa by Ada was rolled back: web-2 exited with code 1 after 3 s; v6 keeps serving",
      "username": "longshore",
      "embeds": [
        {
          "title": "shop: rolled back",
          "url": "https://deploy.example.com",
          "description": "web-2 exited with code 1 after 3 s\n```\npanic: no such table\n  at main.rs:3\n```",
          "color": 16347926,
          "fields": [
            {
              "name": "Commit",
              "value": "[aaaaaaa](https://github.com/example/shop/commit/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa)",
              "inline": true
            },
            {
              "name": "Author",
              "value": "Ada",
              "inline": true
            },
            {
              "name": "Branch",
              "value": "main",
              "inline": true
            },
            {
              "name": "Subject",
              "value": "Fix cart",
              "inline": false
            },
            {
              "name": "Release",
              "value": "v7 is not live, v6 keeps serving",
              "inline": true
            },
            {
              "name": "Trigger",
              "value": "push by ada",
              "inline": true
            },
            {
              "name": "Instances",
              "value": "web 5 · worker 2",
              "inline": true
            },
            {
              "name": "Requests during the rollout",
              "value": "1,204 served, 3 failed",
              "inline": true
            },
            {
              "name": "Took",
              "value": "source 2 s · build 1 m 12 s · rollout 40 s · watch 1 m 0 s · total 2 m 54 s",
              "inline": false
            },
            {
              "name": "Held",
              "value": "aaaaaaa is not deployed again by itself: push a newer commit, or deploy it explicitly",
              "inline": false
            }
          ],
          "footer": {
            "text": "deployment 12"
          },
          "timestamp": "2026-09-21T14:16:14Z"
        }
      ],
      "allowed_mentions": {
        "parse": []
      }
    }
    "##);
}

#[test]
fn superseded() {
    assert_snapshot!(json(News::Superseded), @r##"
    {
      "content": "shop: aaaaaaa by Ada was superseded by \\#13, bbbbbbb",
      "username": "longshore",
      "embeds": [
        {
          "title": "shop: superseded",
          "url": "https://deploy.example.com",
          "color": 7041664,
          "fields": [
            {
              "name": "Commit",
              "value": "[aaaaaaa](https://github.com/example/shop/commit/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa)",
              "inline": true
            },
            {
              "name": "Author",
              "value": "Ada",
              "inline": true
            },
            {
              "name": "Branch",
              "value": "main",
              "inline": true
            },
            {
              "name": "Subject",
              "value": "Fix cart",
              "inline": false
            },
            {
              "name": "Trigger",
              "value": "push by ada",
              "inline": true
            },
            {
              "name": "Superseded by",
              "value": "\\#13, bbbbbbb",
              "inline": true
            },
            {
              "name": "Took",
              "value": "queue 20 s · total 20 s",
              "inline": false
            }
          ],
          "footer": {
            "text": "deployment 12"
          },
          "timestamp": "2026-09-21T14:13:40Z"
        }
      ],
      "allowed_mentions": {
        "parse": []
      }
    }
    "##);
}

#[test]
fn cancelled() {
    assert_snapshot!(json(News::Cancelled), @r##"
    {
      "content": "shop: aaaaaaa by Ada was cancelled by Grace while it waited; v6 is live",
      "username": "longshore",
      "embeds": [
        {
          "title": "shop: cancelled",
          "url": "https://deploy.example.com",
          "color": 7041664,
          "fields": [
            {
              "name": "Commit",
              "value": "[aaaaaaa](https://github.com/example/shop/commit/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa)",
              "inline": true
            },
            {
              "name": "Author",
              "value": "Ada",
              "inline": true
            },
            {
              "name": "Branch",
              "value": "main",
              "inline": true
            },
            {
              "name": "Subject",
              "value": "Fix cart",
              "inline": false
            },
            {
              "name": "Release",
              "value": "v6 is live",
              "inline": true
            },
            {
              "name": "Trigger",
              "value": "push by ada",
              "inline": true
            },
            {
              "name": "Instances",
              "value": "web 5 · worker 2",
              "inline": true
            },
            {
              "name": "Took",
              "value": "queue 20 s · total 20 s",
              "inline": false
            }
          ],
          "footer": {
            "text": "deployment 12"
          },
          "timestamp": "2026-09-21T14:13:40Z"
        }
      ],
      "allowed_mentions": {
        "parse": []
      }
    }
    "##);
}

#[test]
fn a_hostile_commit_is_only_text() {
    let mut facts = facts(News::Succeeded);
    facts.deployment.subject = Some("@everyone <@&1> [x](javascript:1)\n# https://evil.test `rm`\u{202e}".into());
    facts.deployment.author = Some("\u{200b}".into());
    let payload = Payload::new(&compose(&facts));
    assert_snapshot!(payload.content, @r##"shop: v7 is live, aaaaaaa: \@everyone \<\@&1\> \[x\]\(javascript:1\) \# https\://evil.test \`rm\`"##);
    assert!(payload.embeds[0].fields.iter().all(|field| field.name != "Author"));
}

#[test]
fn an_edit_mentions_nobody_either() {
    let edit = serde_json::to_value(Payload::new(&compose(&facts(News::Succeeded))).for_edit()).unwrap();
    assert_eq!(edit["allowed_mentions"], serde_json::json!({"parse": []}));
    assert!(edit.get("username").is_none());
}

#[test]
fn a_long_log_keeps_its_end() {
    let mut facts = facts(News::Failed);
    facts.log = (0..500).map(|n| format!("line {n} of the output of a build that went wrong")).collect();
    let description = Payload::new(&compose(&facts)).embeds.remove(0).description.unwrap();
    assert!(description.ends_with("line 499 of the output of a build that went wrong\n```"), "{description}");
    assert!(description.contains("```\n…\nline 4"), "{description}");
    assert!(length(&description) > 3000);

    facts.log = vec!["x".repeat(9000)];
    let description = Payload::new(&compose(&facts)).embeds.remove(0).description.unwrap();
    assert!(description.ends_with("xxx…\n```"), "{description}");
}

/// Whether a mention, a link or a heading could come alive: any special character without an escape.
fn has_live_markdown(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next().map(String::from)),
            '`' | '*' | '_' | '~' | '|' | '>' | '[' | ']' | '(' | ')' | '<' | '@' | '#' => return true,
            _ => {}
        }
    }
    false
}

fn check(payload: &Payload) -> Result<(), TestCaseError> {
    prop_assert!(!payload.content.is_empty() && length(&payload.content) <= CONTENT);
    prop_assert!(!has_live_markdown(&payload.content), "{}", payload.content);
    let embed = &payload.embeds[0];
    let mut total = length(&embed.title) + length(&embed.footer.text);
    prop_assert!(length(&embed.title) <= TITLE && length(&embed.footer.text) <= FOOTER);
    prop_assert!(!has_live_markdown(&embed.title));
    prop_assert!(embed.fields.len() <= FIELDS);
    for field in &embed.fields {
        prop_assert!((1..=FIELD_NAME).contains(&length(&field.name)));
        prop_assert!((1..=FIELD_VALUE).contains(&length(&field.value)), "{field:?}");
        prop_assert!(!field.value.trim().is_empty());
        // Our own link is the only markdown there is.
        let own_link = field.name == "Commit" && field.value.starts_with("[aaaaaaa](https://github.com/");
        prop_assert!(own_link || !has_live_markdown(&field.value), "{field:?}");
        total += length(&field.name) + length(&field.value);
    }
    if let Some(description) = &embed.description {
        prop_assert!((1..=DESCRIPTION).contains(&length(description)));
        total += length(description);
        // The reason, then at most one code block that nothing in it ends.
        let (reason, block) = description.split_once("```\n").unwrap_or((description, "\n```"));
        prop_assert!(!has_live_markdown(reason), "{description}");
        prop_assert_eq!(block.find("```"), Some(block.len() - 3));
        prop_assert!(!block.contains("@everyone") && !block.contains("@here") && !block.contains("<@"));
    }
    prop_assert!(total <= EMBED_TOTAL, "{total}");
    Ok(())
}

/// Text as strangers write it: anything, and plenty of what Discord gives a meaning to.
fn any_text(max: usize) -> impl Strategy<Value = String> {
    let special = proptest::sample::select(vec![
        "@everyone",
        "<@&1>",
        "```",
        "`",
        "\\",
        "[x](javascript:1)",
        "# ",
        "- ",
        "> ",
        "||",
        "**",
        "://",
        "\n",
        "\r",
        "\u{202e}",
        "\u{200b}",
        "\u{1b}[31m",
        "\u{1b}]8;;x\u{7}",
        "🙂",
        "<https://x>",
        "é",
        "\t",
        "@here",
        "-# ",
        " ",
    ]);
    prop_oneof![
        proptest::collection::vec(special, 0..max / 4).prop_map(|parts| parts.concat()),
        proptest::collection::vec(any::<char>(), 0..max).prop_map(String::from_iter),
        (0..max * 8).prop_map(|n| "@".repeat(n)),
    ]
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let kind = proptest::sample::select(News::ALL.to_vec());
    let texts = (any_text(400), any_text(800), any_text(400), any_text(2000), any_text(200));
    (kind, texts, proptest::collection::vec(any_text(300), 0..40), 0..80_u32).prop_map(
        |(kind, texts, log, services)| {
            let mut facts = facts(kind);
            let record = &mut facts.deployment;
            record.author = Some(texts.0);
            record.subject = Some(texts.1);
            record.pusher = Some(texts.2);
            record.reason = Some(texts.3);
            record.git_ref = format!("refs/heads/{}", texts.4).parse().ok();
            facts.log = log;
            facts.instances = (0..services).map(|n| (format!("service-{n}").parse().unwrap(), n)).collect();
            facts
        },
    )
}

proptest! {
    #[test]
    fn any_text_stays_within_discords_limits_and_mentions_nobody(facts in any_facts()) {
        check(&Payload::new(&compose(&facts)))?;
    }

    #[test]
    fn escaping_loses_nothing_that_fits(text in any_text(300), max in 0..2000_usize) {
        let escaped = escape(&text, max);
        prop_assert!(length(&escaped) <= max);
        prop_assert!(!has_live_markdown(&escaped));
        let mut plain = String::new();
        let mut chars = escaped.chars();
        while let Some(c) = chars.next() {
            plain.extend(if c == '\\' { chars.next() } else { Some(c) });
        }
        match plain.strip_suffix('…').filter(|_| plain != text) {
            Some(start) => prop_assert!(text.starts_with(start)),
            None => prop_assert!(plain == text || max == 0),
        }
    }
}
