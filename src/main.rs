//! The `longshore` command.
fn main() -> std::process::ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args: Vec<String> = std::env::args().collect();
    let path = std::path::PathBuf::from(
        args.iter().position(|a| a == "--config").and_then(|i| args.get(i + 1)).cloned().unwrap_or_default(),
    );
    match args[1].as_str() {
        "serve" => longshore::cli::serve::run(&path),
        "proxy" => longshore::cli::proxy::run(&path),
        _ => longshore::cli::check::run(&path),
    }
}
