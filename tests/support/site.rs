//! The application under deployment: `tests/site/site.rs`, compiled once to a static binary.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The Dockerfile of an image of the site: nothing is pulled, nothing is compiled.
pub const DOCKERFILE: &str = "FROM scratch\nCOPY site /site\nCOPY behaviour /behaviour\nENTRYPOINT [\"/site\"]\n";

/// The compiled program. Built when the source is newer; tests that ask at the same time wait for one build.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(build)
}

fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/site");
    // CARGO_TARGET_TMPDIR is `tmp` in the target directory.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-site");
    fs::create_dir_all(&directory).expect("target/test-site can be created");
    let lock = File::create(directory.join("lock")).expect("target/test-site is writable");
    lock.lock().expect("a lock on target/test-site/lock");

    let binary = directory.join("site");
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let newest = fs::read_dir(&source).expect("tests/site").flatten().map(|entry| modified(&entry.path())).max();
    if binary.exists() && newest.is_some_and(|newest| newest <= modified(&binary)) {
        return binary;
    }
    let unfinished = directory.join("site.new");
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .arg(&unfinished)
        .arg(source.join("site.rs"))
        .output()
        .expect("rustc can be run");
    assert!(output.status.success(), "tests/site does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&unfinished, &binary).expect("rename within target/test-site");
    binary
}

/// How one version of the site behaves: the content of `/behaviour`.
///
/// Every key can be overridden for one container by the environment variable `SITE_<KEY>` (upper case).
#[derive(Debug, Clone)]
pub struct Behaviour(Vec<(&'static str, String)>);

impl Behaviour {
    /// Healthy at once, on port 8000, stops gracefully on SIGTERM.
    pub fn version(version: &str) -> Self {
        Self(vec![("version", version.to_owned())])
    }

    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.0.push((key, value.to_string()));
        self
    }

    /// Listens here; otherwise `$PORT`, otherwise 8000.
    pub fn port(self, port: u16) -> Self {
        self.with("port", port)
    }

    /// Opens the port only after this long.
    pub fn listen_after_ms(self, ms: u64) -> Self {
        self.with("listen_after_ms", ms)
    }

    /// `/healthz` answers 503 for this long.
    pub fn ready_after_ms(self, ms: u64) -> Self {
        self.with("ready_after_ms", ms)
    }

    /// `/healthz` answers 503 for ever.
    pub fn never_ready(self) -> Self {
        self.with("never_ready", 1)
    }

    /// Ends with this code before it opens the port.
    pub fn exit_at_once(self, code: u8) -> Self {
        self.with("exit_at_once", code)
    }

    /// Ends with `code` this long after it became ready.
    pub fn crash_after_ready_ms(self, ms: u64, code: u8) -> Self {
        self.with("crash_after_ready_ms", ms).with("crash_code", code)
    }

    /// Every answer is a 500, `/healthz` too.
    pub fn answer_500(self) -> Self {
        self.with("answer_500", "all")
    }

    /// Every answer but `/healthz` is a 500: passes its gate and is broken.
    pub fn answer_500_but_healthy(self) -> Self {
        self.with("answer_500", "pages")
    }

    /// So many of a hundred pages are a 500 that names the version; `/healthz` is well.
    pub fn fail_percent(self, percent: u8) -> Self {
        self.with("fail_percent", percent)
    }

    /// Every page takes so much longer; `/healthz` does not.
    #[allow(dead_code, reason = "not for the benchmarks")]
    pub fn delay_ms(self, ms: u64) -> Self {
        self.with("delay_ms", ms)
    }

    /// `/healthz` never answers.
    pub fn hang_health(self) -> Self {
        self.with("hang_health", 1)
    }

    /// Only SIGKILL ends it.
    pub fn ignore_sigterm(self) -> Self {
        self.with("ignore_sigterm", 1)
    }

    /// SIGTERM ends it in the middle of its requests. (Otherwise it finishes them, then exits with 0.)
    pub fn abrupt_sigterm(self) -> Self {
        self.with("abrupt_sigterm", 1)
    }

    /// Everything but version and port applies only to instances whose hostname ends like this. Instances are named
    /// `d12-web-3`, so `-3` is the third of each service.
    pub fn only_on(self, suffix: &str) -> Self {
        self.with("only_on", suffix)
    }

    /// `site migrate` ends with this code after `ms`, having printed a line that contains `says`.
    pub fn migrate(self, exit: u8, ms: u64, says: &str) -> Self {
        self.with("migrate_exit", exit).with("migrate_ms", ms).with("migrate_says", says)
    }

    /// What comes with an `X-Load-Id` is noted in this directory, a line for each: the number, how many bytes came, and the
    /// instance. In `posts` each POST as it is seen, in `streams` each upgraded connection as it ends.
    #[allow(dead_code, reason = "not for the benchmarks")]
    pub fn notes_what_it_sees_in(self, directory: &str) -> Self {
        self.with("seen", directory)
    }

    /// The lines of `/behaviour`.
    pub fn to_file(&self) -> String {
        self.0.iter().fold(String::new(), |mut file, (key, value)| {
            let _ = writeln!(file, "{key}={value}");
            file
        })
    }
}
