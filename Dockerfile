# The longshore image for machines that can pull: compiles a static binary, then starts from nothing.
#
#   docker build -t longshore .                      FROM scratch: https git URLs
#   docker build -t longshore --target with-ssh .    with an OpenSSH client: git over ssh too
#
# Running it needs the engine's socket, a data directory and a configuration:
#
#   docker run -d --name longshore --network host \
#     -v /var/run/docker.sock:/var/run/docker.sock \
#     -v /var/lib/longshore:/var/lib/longshore \
#     -v /etc/longshore:/etc/longshore:ro \
#     longshore serve --config /etc/longshore/deploy.toml
#
# The host's network lets the proxy listen on the host's ports and reach instances on the engine's bridges.

FROM rust:1-bookworm AS builder
WORKDIR /longshore
COPY . .
# With --target given, RUSTFLAGS reach the binary only, not build scripts and proc macros, which cannot be static.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
 && LIBZ_SYS_STATIC=1 RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --release --bin longshore --target "$target" \
 && cp "target/$target/release/longshore" /usr/local/bin/longshore

FROM debian:bookworm-slim AS with-ssh
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates openssh-client \
 && rm -rf /var/lib/apt/lists/*
COPY --from=builder /usr/local/bin/longshore /usr/local/bin/longshore
COPY NOTICE LICENSE-APACHE LICENSE-MIT /usr/share/doc/longshore/
ENTRYPOINT ["/usr/local/bin/longshore"]

FROM scratch
# TLS trusts the system's certificates; without this file every https call fails.
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=builder /usr/local/bin/longshore /longshore
COPY NOTICE LICENSE-APACHE LICENSE-MIT /
ENTRYPOINT ["/longshore"]
