-- Of the requests served during the rollout: those that the app itself answered with 5xx. Not known of earlier ones.
ALTER TABLE deployments ADD COLUMN server_errors INTEGER NOT NULL DEFAULT 0;
