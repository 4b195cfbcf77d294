-- When a permanent canary failed or was down, as people were told. Of an app at most one has no end.
CREATE TABLE canary_alerts (
    id         INTEGER PRIMARY KEY,
    app        TEXT NOT NULL,
    production TEXT NOT NULL,
    share      TEXT NOT NULL,
    -- How often in a row it compared badly; 0: it was down.
    times      INTEGER NOT NULL,
    why        TEXT NOT NULL,
    deployment INTEGER,
    since      INTEGER NOT NULL,
    last_at    INTEGER NOT NULL,
    ended_at   INTEGER
) STRICT;
CREATE UNIQUE INDEX canary_alerts_open ON canary_alerts (app) WHERE ended_at IS NULL;

-- A notice may be about one of these. Ids go on where they were: the receivers' cursors hold them.
CREATE TABLE notices_of_all (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment   INTEGER,
    outage       INTEGER,
    canary_alert INTEGER,
    kind         TEXT NOT NULL,
    at           INTEGER NOT NULL,
    CHECK ((deployment IS NOT NULL) + (outage IS NOT NULL) + (canary_alert IS NOT NULL) = 1)
) STRICT;
INSERT INTO notices_of_all (id, deployment, outage, kind, at) SELECT id, deployment, outage, kind, at FROM notices;
DROP TABLE notices;
ALTER TABLE notices_of_all RENAME TO notices;
