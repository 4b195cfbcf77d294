//! The shape of `deploy.toml`, with spans and without logic.
