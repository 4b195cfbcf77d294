-- When the engine did not answer for so long that people were told. At most one has no end.
CREATE TABLE engine_outages (
    id       INTEGER PRIMARY KEY,
    address  TEXT NOT NULL,
    why      TEXT NOT NULL,
    since    INTEGER NOT NULL,
    ended_at INTEGER
) STRICT;

-- A notice is about a deployment or about an outage. Ids go on where they were: the receivers' cursors hold them.
CREATE TABLE notices_of_all (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment INTEGER,
    outage     INTEGER,
    kind       TEXT NOT NULL,
    at         INTEGER NOT NULL,
    CHECK ((deployment IS NULL) <> (outage IS NULL))
) STRICT;
INSERT INTO notices_of_all (id, deployment, kind, at) SELECT id, deployment, kind, at FROM notices;
DROP TABLE notices;
ALTER TABLE notices_of_all RENAME TO notices;
