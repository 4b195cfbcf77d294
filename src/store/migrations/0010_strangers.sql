-- Containers with our labels that no deployment on record has started, as they were told of: each once, and as long as it
-- is there.
CREATE TABLE strangers (
    app       TEXT NOT NULL,
    container TEXT NOT NULL,
    PRIMARY KEY (app, container)
) STRICT, WITHOUT ROWID;
