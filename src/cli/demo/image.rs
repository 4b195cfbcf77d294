//! The demo's image, made without a registry: `FROM scratch` with this binary and the libraries that it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

fn dockerfile() -> String {
    format!(
        "FROM scratch\nCOPY root /\nCOPY site.conf /site.conf\nEXPOSE 8000\nENTRYPOINT [\"/longshore\", \"{}\"]\n",
        super::SITE
    )
}

/// Writes the Dockerfile and `root/` into the working tree.
pub(super) fn write_files(exe: &Path, work: &Path) -> Result<()> {
    let root = work.join("root");
    copy(exe, &root.join("longshore"))?;
    for library in libraries(exe)? {
        let inside = library.strip_prefix("/").unwrap_or(&library);
        copy(&library, &root.join(inside))?;
    }
    fs::write(work.join("Dockerfile"), dockerfile()).context("cannot write the Dockerfile")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// The loader and the libraries that a binary names, by ldd(1); none for a static one.
fn libraries(exe: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(exe).output().context("cannot run ldd")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if said.contains("statically linked") || complaint.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    ensure!(output.status.success(), "ldd failed: {}", complaint.trim());
    // `libc.so.6 => /lib/…/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(said.lines().filter_map(path).collect())
}
