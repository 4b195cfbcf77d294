-- GitHub's ids, UUIDs of version 1, are kept in the order of their time (delivery_key.rs); any other as its text.
CREATE TABLE deliveries_by_time (
    app        TEXT NOT NULL,
    delivery   ANY NOT NULL,
    deployment INTEGER,
    decision   TEXT NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (app, delivery)
) STRICT, WITHOUT ROWID;
INSERT INTO deliveries_by_time (app, delivery, deployment, decision, at)
SELECT app,
       CASE WHEN delivery GLOB '????????-????-1???-????-????????????' AND delivery NOT GLOB '*[^0-9a-f-]*'
            THEN coalesce(unhex(substr(delivery, 15, 4) || substr(delivery, 10, 4) || substr(delivery, 1, 8)
                                || substr(delivery, 20, 4) || substr(delivery, 25)), delivery)
            ELSE delivery END,
       deployment, decision, at
FROM deliveries;
DROP TABLE deliveries;
ALTER TABLE deliveries_by_time RENAME TO deliveries;
