//! `.dockerignore` by Docker's own rules, which are not those of `.gitignore`: every pattern starts at the context's
//! root, the last one that matches decides, and `!` takes back even below an excluded directory.
//!
//! Followed are moby's `ignorefile` (how lines become patterns) and `patternmatcher` (what patterns match), the code
//! behind both of Docker's builders. The engine itself applies none of this to an uploaded context.

/// The patterns of one file, in its order.
#[derive(Debug, Clone, Default)]
pub struct Dockerignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    /// Written with `!`: takes back what an earlier pattern excluded.
    exception: bool,
    glob: Glob,
}

/// What is decided about a path, and which patterns decided it: the paths below start from there.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    excluded: bool,
    matched: Vec<bool>,
}

impl Verdict {
    /// Whether the path itself is left out.
    pub fn excluded(&self) -> bool {
        self.excluded
    }
}

impl Dockerignore {
    /// Reads the text of a file. The error names the line and says what is wrong with its pattern.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        let text = String::from_utf8_lossy(text);
        let mut patterns = Vec::new();
        for (index, line) in text.lines().enumerate() {
            // A comment starts in the first column; anywhere else `#` is a character of a name.
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let pattern = Pattern::parse(line.trim()).map_err(|why| {
                format!("line {}: pattern {:?} {why}", index + 1, crate::model::shorten(line.trim(), 80))
            })?;
            patterns.push(pattern);
        }
        Ok(Self { patterns })
    }

    /// Whether any pattern takes back. Without one nothing below an excluded directory needs a look.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }

    /// Decides about `path` (relative to the context, separated by `/`), given what was decided about its parent.
    pub fn verdict(&self, parent: &Verdict, path: &str) -> Verdict {
        let mut verdict = Verdict { excluded: false, matched: vec![false; self.patterns.len()] };
        for (index, pattern) in self.patterns.iter().enumerate() {
            let by_parent = parent.matched.get(index).copied().unwrap_or(false);
            // A pattern that could change nothing is not looked at. That is visible below: such a pattern does
            // not count as having matched the parent.
            let matched = by_parent || (pattern.exception == verdict.excluded && pattern.glob.matches(path));
            verdict.matched[index] = matched;
            if matched {
                verdict.excluded = !pattern.exception;
            }
        }
        verdict
    }

    /// Decides about one path alone, by way of each of its parents.
    pub fn excludes(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        ends.fold(Verdict::default(), |parent, end| self.verdict(&parent, &path[..end])).excluded
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (exception, text) = match text.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, text),
        };
        if text.is_empty() {
            return Err("takes nothing back: a path is missing after !");
        }
        let cleaned = clean(text);
        // Rooted at the context whether it is written with a slash or not.
        let rooted = if cleaned.len() > 1 { cleaned.strip_prefix('/').unwrap_or(&cleaned) } else { &cleaned };
        Ok(Self { exception, glob: Glob::parse(rooted)? })
    }
}

/// The shortest path of the same meaning, by text alone: Go's `filepath.Clean`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// A pattern ready to match. Most need no more than a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Glob {
    /// No wildcard.
    Exact(String),
    /// `foo/**`
    Prefix(String),
    /// `**/foo`; with its slash, which the start of the path stands for as well.
    Suffix(String),
    Tokens(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`: one character, no slash.
    One,
    /// `*`: any characters but slashes.
    Within,
    /// `**/`: nothing, or any directories.
    Directories,
    /// `**` at the end: anything.
    Rest,
    /// `[a-z]`, `[^a-z]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    fn parse(pattern: &str) -> Result<Self, &'static str> {
        let mut tokens = Vec::new();
        let mut characters = pattern.chars().peekable();
        // The simplest form that the tokens so far allow.
        let mut form = Form::Exact;
        while let Some(c) = characters.next() {
            match c {
                '*' if characters.next_if_eq(&'*').is_some() => {
                    let first = tokens.is_empty();
                    characters.next_if_eq(&'/');
                    let last = characters.peek().is_none();
                    form = match (first, last, form) {
                        (true, _, _) => Form::Suffix,
                        (false, true, Form::Exact) => Form::Prefix,
                        _ => Form::Tokens,
                    };
                    tokens.push(if last { Token::Rest } else { Token::Directories });
                    continue;
                }
                '*' => tokens.push(Token::Within),
                '?' => tokens.push(Token::One),
                '[' => tokens.push(class(&mut characters)?),
                '\\' => tokens.push(Token::Char(characters.next().ok_or("ends in a backslash")?)),
                literal => {
                    tokens.push(Token::Char(literal));
                    continue;
                }
            }
            form = Form::Tokens;
        }
        Ok(match form {
            Form::Exact => Self::Exact(pattern.to_owned()),
            Form::Prefix => Self::Prefix(pattern[..pattern.len() - 2].to_owned()),
            Form::Suffix => Self::Suffix(pattern[2..].to_owned()),
            Form::Tokens => Self::Tokens(tokens),
        })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(start) => path.starts_with(start),
            Self::Suffix(end) => path.ends_with(end) || end.strip_prefix('/') == Some(path),
            Self::Tokens(tokens) => match_tokens(tokens, path),
        }
    }
}

#[derive(Clone, Copy)]
enum Form {
    Exact,
    Prefix,
    Suffix,
    Tokens,
}

/// The rest of a character class, after its `[`, by the rules of Go's `filepath.Match`: `^` negates, `!` does not.
fn class(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, &'static str> {
    const UNCLOSED: &str = "has a character class that is not closed with ]";
    let negated = characters.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && characters.next_if_eq(&']').is_some() {
            return Ok(Token::Class { negated, ranges });
        }
        let mut one = || match characters.next() {
            None => Err(UNCLOSED),
            Some(']') => Err("has an empty or unfinished character class"),
            Some('-') => Err("has a range without a beginning or an end (write \\- for a hyphen)"),
            Some('\\') => characters.next().ok_or(UNCLOSED),
            Some(c) => Ok(c),
        };
        let from = one()?;
        let to = if characters.next_if_eq(&'-').is_some() {
            match characters.next() {
                None => return Err(UNCLOSED),
                Some(']' | '-') => return Err("has a range without a beginning or an end (write \\- for a hyphen)"),
                Some('\\') => characters.next().ok_or(UNCLOSED)?,
                Some(c) => c,
            }
        } else {
            from
        };
        ranges.push((from, to));
    }
}

/// Follows all ways to match at once, so that no pattern takes more time than its length times the path's.
fn match_tokens(tokens: &[Token], path: &str) -> bool {
    // `here[n]`: the first n tokens match what was read so far.
    let mut here = vec![false; tokens.len() + 1];
    let mut next = here.clone();
    enter(tokens, &mut here, 0);
    for c in path.chars() {
        next.fill(false);
        for (n, token) in tokens.iter().enumerate().filter(|(n, _)| here[*n]) {
            match token {
                Token::Char(wanted) if *wanted == c => enter(tokens, &mut next, n + 1),
                Token::One if c != '/' => enter(tokens, &mut next, n + 1),
                Token::Class { negated, ranges } => {
                    if ranges.iter().any(|&(from, to)| from <= c && c <= to) != *negated {
                        enter(tokens, &mut next, n + 1);
                    }
                }
                Token::Within if c != '/' => enter(tokens, &mut next, n),
                Token::Rest => enter(tokens, &mut next, n),
                // Once begun, directories end only at a slash.
                Token::Directories => {
                    next[n] = true;
                    if c == '/' {
                        enter(tokens, &mut next, n + 1);
                    }
                }
                Token::Char(_) | Token::One | Token::Within => {}
            }
        }
        std::mem::swap(&mut here, &mut next);
        if !here.contains(&true) {
            return false;
        }
    }
    here[tokens.len()]
}

/// Reaches the token at `at`, and those behind it that may match nothing.
fn enter(tokens: &[Token], reached: &mut [bool], at: usize) {
    reached[at] = true;
    if let Some(Token::Within | Token::Rest | Token::Directories) = tokens.get(at) {
        enter(tokens, reached, at + 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ignore(text: &str) -> Dockerignore {
        Dockerignore::parse(text.as_bytes()).unwrap()
    }

    /// What `docker build` with each `.dockerignore` was seen to put into an image of these files.
    #[test]
    fn decides_as_docker_does() {
        const KEEPS: bool = true;
        const DROPS: bool = false;
        let files = ".env a.log a/b/c.log a/foo a/x b-1 b.d/y d/e/keep d/keep d/x e/x.log foo foobar x#y [z] ä/ö";
        for (text, keeps, listed) in [
            ("", DROPS, ""),
            ("foo", DROPS, "foo"),
            ("/foo", DROPS, "foo"),
            ("foo/", DROPS, "foo"),
            ("./foo", DROPS, "foo"),
            ("a/../foo", DROPS, "foo"),
            ("//foo//", DROPS, "foo"),
            ("d", DROPS, "d/e/keep d/keep d/x"),
            ("d\n!d/keep", DROPS, "d/e/keep d/x"),
            ("d\n!d/e", DROPS, "d/keep d/x"),
            ("*\n!d", KEEPS, "d/e/keep d/keep d/x"),
            ("*\n!d/keep", KEEPS, "d/keep"),
            ("*\n!d/e/keep", KEEPS, "d/e/keep"),
            ("*.log", DROPS, "a.log"),
            ("**/*.log", DROPS, "a.log a/b/c.log e/x.log"),
            ("*/*.log", DROPS, "e/x.log"),
            ("*/*/*.log", DROPS, "a/b/c.log"),
            ("**", KEEPS, ""),
            ("**\n!foo", KEEPS, "foo"),
            ("**/foo", DROPS, "a/foo foo"),
            ("**foo", DROPS, "a/foo foo"),
            ("foo**", DROPS, "foo foobar"),
            ("d/**", DROPS, "d/e/keep d/keep d/x"),
            ("d/**\n!d/keep", DROPS, "d/e/keep d/x"),
            ("a/**/c.log", DROPS, "a/b/c.log"),
            ("a/**", DROPS, "a/b/c.log a/foo a/x"),
            ("**/b/**", DROPS, "a/b/c.log"),
            ("?oo", DROPS, "foo"),
            ("fo?", DROPS, "foo"),
            ("[a-f]oo", DROPS, "foo"),
            ("[^a]oo", DROPS, "foo"),
            ("[!a]oo", DROPS, ""),
            ("# foo\nfoo", DROPS, "foo"),
            (" # foo\nfoo", DROPS, "foo"),
            (" foo ", DROPS, "foo"),
            ("x#y", DROPS, "x#y"),
            ("\\[z]", DROPS, "[z]"),
            ("[[]z]", DROPS, "[z]"),
            ("b.d", DROPS, "b.d/y"),
            ("b*", DROPS, "b-1 b.d/y"),
            ("b-?", DROPS, "b-1"),
            ("\u{feff}foo", DROPS, "foo"),
            ("foo\r\nd\r\n", DROPS, "d/e/keep d/keep d/x foo"),
            ("foo\n!foo\nfoo", DROPS, "foo"),
            ("!foo\nfoo", DROPS, "foo"),
            ("d/x\n!d", DROPS, "d/x"),
            ("d\n!d/x\nd/*", DROPS, "d/e/keep d/keep d/x"),
            ("!/foo\n*", KEEPS, ""),
            ("*\n! foo", KEEPS, "foo"),
            ("..", DROPS, ""),
            ("../foo", DROPS, ""),
            ("/", DROPS, ""),
            (".", DROPS, ""),
            (" ", DROPS, ""),
            ("ä", DROPS, "ä/ö"),
            ("*/ö", DROPS, "ä/ö"),
            ("**/**/x", DROPS, "a/x d/x"),
            ("a*b", DROPS, ""),
            ("a**c.log", DROPS, "a/b/c.log"),
            ("d/*/keep", DROPS, "d/e/keep"),
            (".*", DROPS, ".env"),
            ("*.*", DROPS, ".env a.log b.d/y"),
            ("foo\\*", DROPS, ""),
            ("D", DROPS, ""),
            ("e/x.log\n!e", DROPS, "e/x.log"),
            ("*\n!a/b", KEEPS, "a/b/c.log"),
            ("d/*\n!d/k*", DROPS, "d/e/keep d/x"),
            ("*/\n", KEEPS, ""),
            ("!*\nfoo", DROPS, "foo"),
        ] {
            let rules = ignore(text);
            let found: Vec<&str> = files.split(' ').filter(|file| rules.excludes(file) != keeps).collect();
            assert_eq!(found.join(" "), listed, "{text:?}");
        }
    }

    /// BuildKit's reading: the classic client does not look for these below a directory that it left out.
    #[test]
    fn exceptions_with_wildcards_reach_below_excluded_directories() {
        for (text, kept) in [("*\n!**/*.log", "a/b/c.log"), ("*\n!*/keep", "d/keep"), ("**/*\n!**/keep", "d/e/keep")] {
            assert!(!ignore(text).excludes(kept) && ignore(text).excludes("d/x"), "{text:?}");
        }
    }

    #[test]
    fn bad_patterns_are_named_with_their_line() {
        for (text, line, word) in [
            ("ok\n\n[a", 3, "not closed"),
            ("# x\n!", 2, "path is missing"),
            ("[]", 1, "unfinished"),
            ("a\\", 1, "backslash"),
            ("[a-]", 1, "range"),
            ("[-a]", 1, "range"),
        ] {
            let error = Dockerignore::parse(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(&format!("line {line}:")) && error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let rules = ignore(&format!("{}b", "**/*".repeat(40)));
        assert!(!rules.excludes(&"a/".repeat(500)));
    }

    /// The same semantics as plainly as possible: patterns as text, every way tried one after another.
    fn naive_excludes(patterns: &[(bool, String)], path: &str) -> bool {
        let mut parent = vec![false; patterns.len()];
        let mut excluded = false;
        let parts: Vec<&str> = path.split('/').collect();
        for end in 1..=parts.len() {
            let here = parts[..end].join("/");
            excluded = false;
            let mut matched = vec![false; patterns.len()];
            for (n, (exception, pattern)) in patterns.iter().enumerate() {
                let pattern: Vec<char> = pattern.chars().collect();
                let here: Vec<char> = here.chars().collect();
                matched[n] = parent[n] || (*exception == excluded && naive_match(&pattern, &here));
                if matched[n] {
                    excluded = !exception;
                }
            }
            parent = matched;
        }
        excluded
    }

    fn naive_match(pattern: &[char], path: &[char]) -> bool {
        match pattern {
            [] => path.is_empty(),
            ['*', '*'] | ['*', '*', '/'] => true,
            ['*', '*', rest @ ..] => {
                let rest = rest.strip_prefix(&['/']).unwrap_or(rest);
                naive_match(rest, path)
                    || (0..path.len()).any(|at| path[at] == '/' && naive_match(rest, &path[at + 1..]))
            }
            ['*', rest @ ..] => (0..=path.len())
                .take_while(|&end| !path[..end].contains(&'/'))
                .any(|end| naive_match(rest, &path[end..])),
            ['?', rest @ ..] => path.first().is_some_and(|c| *c != '/') && naive_match(rest, &path[1..]),
            ['[', '^', c, ']', rest @ ..] => path.first().is_some_and(|p| p != c) && naive_match(rest, &path[1..]),
            [c, rest @ ..] => path.first() == Some(c) && naive_match(rest, &path[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_reading(
            // `**` only as whole components: glued to a name it means something odd of its own, tested above.
            patterns in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(prop_oneof![
                    3 => "[ab?*]{1,2}".prop_filter("**", |part| part != "**"),
                    1 => Just("**".to_owned()),
                    1 => Just("[^a]b".to_owned()),
                ], 1..4).prop_map(|parts| parts.join("/"))),
                0..5,
            ),
            path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
        ) {
            let text: String = patterns.iter().map(|(not, p)| format!("{}{p}\n", if *not { "!" } else { "" })).collect();
            prop_assert_eq!(ignore(&text).excludes(&path), naive_excludes(&patterns, &path), "{:?}", text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}", path in "[a-c/.]{1,12}") {
            if let Ok(rules) = Dockerignore::parse(text.as_bytes()) {
                rules.excludes(&path);
            }
        }
    }
}
