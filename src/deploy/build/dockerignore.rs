//! `.dockerignore` by Docker's own rules.
