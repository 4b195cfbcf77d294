-- Most pushes give way before they start. Only of the others it matters whether their commit was here before: an index
-- entry in a random place costs a push more than its own row.
DROP INDEX deployments_by_commit;
CREATE INDEX deployments_of_commit ON deployments (app, commit_sha)
    WHERE started_at IS NOT NULL OR status = 'cancelled';
