# Build with the shipped profile, run as nobody on a small base.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY settings settings
RUN cargo build --locked --profile dist --bin stagedoor

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/dist/stagedoor /usr/local/bin/stagedoor
COPY settings/stagedoor.yaml /etc/stagedoor/stagedoor.yaml
USER nobody
# Beyond loopback the gateway starts only with client keys: mount a configuration with auth.keys over the default one.
ENV STAGEDOOR_CONFIG=/etc/stagedoor/stagedoor.yaml \
    STAGEDOOR__SERVER__HOST=0.0.0.0 \
    STAGEDOOR__SERVER__PORT=8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD curl -fsS http://127.0.0.1:8080/health || exit 1
ENTRYPOINT ["stagedoor"]
