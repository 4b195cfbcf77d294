-- What happened to live instances outside of deployments, and what was done about it.
CREATE TABLE drift (
    id       INTEGER PRIMARY KEY,
    app      TEXT NOT NULL,
    instance TEXT,
    what     TEXT NOT NULL,
    at       INTEGER NOT NULL
) STRICT;
CREATE INDEX drift_by_app ON drift (app, id);

-- In which places the live release is meant to run: how many instances of each service, by which deployment.
ALTER TABLE apps ADD COLUMN live_deployment INTEGER;
ALTER TABLE apps ADD COLUMN live_instances TEXT;
