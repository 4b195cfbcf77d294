-- Times are milliseconds since the epoch. Deployments are never deleted, so that no id is used twice.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE deployments (
    id            INTEGER PRIMARY KEY,
    app           TEXT NOT NULL,
    trigger       TEXT NOT NULL,
    request       TEXT NOT NULL,
    status        TEXT NOT NULL,
    commit_sha    TEXT,
    git_ref       TEXT,
    pusher        TEXT,
    author        TEXT,
    subject       TEXT,
    release       INTEGER,
    reason        TEXT,
    superseded_by INTEGER,
    cancel_asked  INTEGER NOT NULL DEFAULT 0,
    queued_at     INTEGER NOT NULL,
    started_at    INTEGER,
    finished_at   INTEGER,
    served        INTEGER NOT NULL DEFAULT 0,
    failed        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX deployments_by_app ON deployments (app, id);
CREATE INDEX deployments_by_commit ON deployments (app, commit_sha);
-- A partial index serves queries that repeat its condition word for word.
CREATE INDEX deployments_waiting ON deployments (app, commit_sha) WHERE status = 'queued';
CREATE INDEX deployments_under_way ON deployments (app, id) WHERE started_at IS NOT NULL AND finished_at IS NULL;

-- What was decided about each delivery, and the guard against duplicates.
CREATE TABLE deliveries (
    app        TEXT NOT NULL,
    delivery   TEXT NOT NULL,
    deployment INTEGER,
    decision   TEXT NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (app, delivery)
) STRICT, WITHOUT ROWID;

CREATE TABLE phases (
    deployment  INTEGER NOT NULL,
    status      TEXT NOT NULL,
    started_at  INTEGER NOT NULL,
    finished_at INTEGER,
    PRIMARY KEY (deployment, status)
) STRICT, WITHOUT ROWID;

-- Durable steps: the row is the intent, the outcome follows.
CREATE TABLE steps (
    deployment INTEGER NOT NULL,
    name       TEXT NOT NULL,
    intent_at  INTEGER NOT NULL,
    outcome    TEXT,
    outcome_at INTEGER,
    PRIMARY KEY (deployment, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE log (
    deployment INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    line       TEXT NOT NULL,
    PRIMARY KEY (deployment, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE releases (
    app        TEXT NOT NULL,
    number     INTEGER NOT NULL,
    deployment INTEGER NOT NULL,
    commit_sha TEXT NOT NULL,
    body       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    live_at    INTEGER,
    good_at    INTEGER,
    PRIMARY KEY (app, number)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX releases_by_deployment ON releases (deployment);

CREATE TABLE apps (
    app          TEXT PRIMARY KEY,
    live_release INTEGER,
    held_commit  TEXT,
    held_reason  TEXT
) STRICT;

CREATE TABLE scales (
    app        TEXT NOT NULL,
    service    TEXT NOT NULL,
    instances  INTEGER NOT NULL,
    configured INTEGER NOT NULL,
    PRIMARY KEY (app, service)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT NOT NULL,
    hash         TEXT NOT NULL UNIQUE,
    scope        TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER,
    revoked_at   INTEGER
) STRICT;

-- The outbox: what is to be told, in order; each receiver has a cursor of its own.
CREATE TABLE notices (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    at         INTEGER NOT NULL
) STRICT;

CREATE TABLE notice_cursors (
    target    TEXT PRIMARY KEY,
    delivered INTEGER NOT NULL
) STRICT;

CREATE TABLE notice_messages (
    target     TEXT NOT NULL,
    deployment INTEGER NOT NULL,
    message    TEXT NOT NULL,
    PRIMARY KEY (target, deployment)
) STRICT, WITHOUT ROWID;
