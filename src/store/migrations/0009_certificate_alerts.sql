-- When a certificate could not be had, as people were told. Of a host, and of the authority, at most one has no end.
CREATE TABLE certificate_alerts (
    id           INTEGER PRIMARY KEY,
    -- NULL: the authority could not be used at all.
    host         TEXT,
    directory    TEXT NOT NULL,
    why          TEXT NOT NULL,
    times        INTEGER NOT NULL,
    since        INTEGER NOT NULL,
    -- When the certificate ends, or the first of them, that is served meanwhile; NULL: none is.
    good_until   INTEGER,
    ended_at     INTEGER,
    -- When the one that was issued then ends.
    issued_until INTEGER
) STRICT;
CREATE UNIQUE INDEX certificate_alerts_open ON certificate_alerts (coalesce(host, '')) WHERE ended_at IS NULL;

-- A notice may be about one of these. Ids go on where they were: the receivers' cursors hold them.
CREATE TABLE notices_of_all (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment        INTEGER,
    outage            INTEGER,
    canary_alert      INTEGER,
    certificate_alert INTEGER,
    kind              TEXT NOT NULL,
    at                INTEGER NOT NULL,
    CHECK ((deployment IS NOT NULL) + (outage IS NOT NULL) + (canary_alert IS NOT NULL)
           + (certificate_alert IS NOT NULL) = 1)
) STRICT;
INSERT INTO notices_of_all (id, deployment, outage, canary_alert, kind, at)
    SELECT id, deployment, outage, canary_alert, kind, at FROM notices;
DROP TABLE notices;
ALTER TABLE notices_of_all RENAME TO notices;
