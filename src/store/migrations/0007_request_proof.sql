-- What became of the app's requests during a rollout, as JSON; null where that is not known. Earlier rows knew three numbers.
ALTER TABLE deployments ADD COLUMN requests TEXT;
UPDATE deployments
SET requests = json_object('served', served, 'server_errors', server_errors, 'failed', failed)
WHERE id IN (SELECT deployment FROM phases WHERE status = 'rolling_out') AND finished_at IS NOT NULL;
ALTER TABLE deployments DROP COLUMN served;
ALTER TABLE deployments DROP COLUMN failed;
ALTER TABLE deployments DROP COLUMN server_errors;

-- How the instances that a deployment took out of service finished what they had. The cuts are null when nobody could say.
CREATE TABLE drains (
    deployment   INTEGER NOT NULL,
    instance     TEXT NOT NULL,
    cut_requests INTEGER,
    cut_streams  INTEGER,
    took_ms      INTEGER NOT NULL,
    PRIMARY KEY (deployment, instance)
) STRICT, WITHOUT ROWID;
