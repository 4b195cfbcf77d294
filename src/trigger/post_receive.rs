//! What a git server's post-receive hook reads from git: `OLD NEW REF` lines (githooks(5)).

use super::github::{branch_deleted, not_ours};
use super::{Push, Refusal};
use crate::model::{CommitSha, GitRef, shorten};

/// Reasons kept of refs that lead to nothing; a push may carry thousands.
const REASONS: usize = 10;

/// What one push says for one app.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// The app's branch moved.
    pub push: Option<Push>,
    /// Why the other refs lead to nothing, one line each; never empty without a push.
    pub ignored: Vec<String>,
}

/// Reads the hook's lines for the app that deploys `branch`.
///
/// Whether the branch was rewound is not in the lines: git decides that from the old commit.
pub fn hear(branch: &str, body: &[u8]) -> Result<Received, Refusal> {
    let text = std::str::from_utf8(body)
        .map_err(|err| Refusal::Unreadable(format!("the ref lines are not UTF-8 at byte {}", err.valid_up_to())))?;
    if text.trim().is_empty() {
        return Err(Refusal::Unreadable(
            "there are no ref lines: git gives them to the hook on its standard input".into(),
        ));
    }
    let mut received = Received::default();
    let mut more = 0_usize;
    for (index, line) in text.lines().enumerate() {
        let update = Update::read(line).map_err(|why| Refusal::Unreadable(format!("line {}: {why}", index + 1)))?;
        match update.for_branch(branch) {
            Ok(push) if received.push.is_some() => {
                return Err(Refusal::Unreadable(format!("line {}: {} is there twice", index + 1, push.git_ref)));
            }
            Ok(push) => received.push = Some(push),
            Err(why) if received.ignored.len() < REASONS => received.ignored.push(why),
            Err(_) => more += 1,
        }
    }
    if more > 0 {
        received.ignored.push(format!("{more} more refs that are not branch {branch}"));
    }
    Ok(received)
}

struct Update {
    old: CommitSha,
    new: CommitSha,
    git_ref: GitRef,
}

impl Update {
    fn read(line: &str) -> Result<Self, String> {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        let [old, new, git_ref] = fields[..] else {
            return Err(format!("expected `OLD NEW REF`, got {} fields: {:?}", fields.len(), shorten(line, 80)));
        };
        let commit = |text: &str| text.parse::<CommitSha>().map_err(|err| err.to_string());
        let (old, new) = (commit(old)?, commit(new)?);
        if old.as_str().len() != new.as_str().len() {
            return Err(format!("{} and {} are ids of different kinds", old.short(), new.short()));
        }
        let git_ref = git_ref.parse().map_err(|err: crate::model::ParseError| err.to_string())?;
        Ok(Self { old, new, git_ref })
    }

    /// The push, or why it is none.
    fn for_branch(self, branch: &str) -> Result<Push, String> {
        if let Some(why) = not_ours(branch, &self.git_ref) {
            return Err(why);
        }
        if self.new.is_zero() {
            return Err(branch_deleted(branch));
        }
        Ok(Push {
            git_ref: self.git_ref,
            before: Some(self.old).filter(|old| !old.is_zero()),
            after: self.new,
            forced: false,
            pusher: None,
            author: None,
            subject: None,
            delivery: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    fn refused(body: impl AsRef<[u8]>) -> String {
        match hear("main", body.as_ref()) {
            Err(Refusal::Unreadable(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_apps_branch_is_found_among_several_refs() {
        let body = format!("{A} {B} refs/heads/next\n{A} {B} refs/tags/v1\n{A} {B} refs/heads/main\n");
        let received = hear("main", body.as_bytes()).unwrap();
        let push = received.push.unwrap();
        assert_eq!((push.before.unwrap().as_str(), push.after.as_str(), push.forced), (A, B, false));
        assert_eq!(
            received.ignored,
            ["branch next: only branch main is deployed", "tag v1: only branch main is deployed"]
        );
    }

    #[test]
    fn creation_and_deletion_are_told_apart_in_both_id_lengths() {
        for digits in [40, 64] {
            let (zero, new) = ("0".repeat(digits), "b".repeat(digits));
            let created = hear("main", format!("{zero} {new} refs/heads/main\r\n").as_bytes()).unwrap().push.unwrap();
            assert_eq!((created.before, created.after.as_str()), (None, new.as_str()));
            let deleted = hear("main", format!("{new} {zero} refs/heads/main").as_bytes()).unwrap();
            assert_eq!(deleted.push, None);
            assert!(deleted.ignored[0].starts_with("branch main was deleted"));
        }
    }

    #[test]
    fn each_bad_input_has_one_clear_line() {
        let rows = [
            (String::new(), "no ref lines"),
            ("\n".into(), "no ref lines"),
            (format!("{A} {B}\n"), "line 1: expected `OLD NEW REF`, got 2 fields"),
            (
                format!("{A} {B} refs/heads/main\n{A}\t{B}\trefs/heads/x\n"),
                "line 2: expected `OLD NEW REF`, got 1 fields",
            ),
            (format!("{A} {B} refs/heads/a b\n"), "got 4 fields"),
            (format!("{A} {} refs/heads/main\n", &B[1..]), "not a full commit id"),
            (format!("{} {B} refs/heads/main\n", A.replace('a', "x")), "not a full commit id"),
            (format!("{A} {B}{} refs/heads/main\n", &B[..24]), "ids of different kinds"),
            (format!("{A} {B} refs/heads/\u{1b}[2J\n"), "not a valid git ref"),
            (format!("{A} {B} main\n"), "not a valid git ref"),
            (format!("{A} {B} refs/heads/main\n{A} {ZERO} refs/heads/x\n\n"), "line 3"),
            (format!("{A} {B} refs/heads/main\n{A} {B} refs/heads/main\n"), "line 2: refs/heads/main is there twice"),
        ];
        for (body, expected) in rows {
            let why = refused(&body);
            assert!(why.contains(expected), "{body:?}: {why}");
            assert!(!why.chars().any(char::is_control), "{why:?}");
        }
        assert!(refused(b"\xff").contains("not UTF-8 at byte 0"));
    }

    #[test]
    fn thousands_of_refs_are_answered_briefly() {
        let body: String = (0..5000).map(|n| format!("{A} {B} refs/heads/b{n}\n")).collect();
        let received = hear("main", body.as_bytes()).unwrap();
        assert_eq!(received.ignored.len(), REASONS + 1);
        assert_eq!(received.ignored[REASONS], "4990 more refs that are not branch main");
    }

    proptest! {
        #[test]
        fn never_silent(body in "([a-f0-9]{0,41} ?|refs/heads/main|[ \\r\\n]|.){0,12}") {
            if let Ok(received) = hear("main", body.as_bytes()) {
                prop_assert!(received.push.is_some() || !received.ignored.is_empty());
            }
        }
    }
}
