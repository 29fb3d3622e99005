-- Where a service reads and writes for good, once cleanup has removed its flags: an instance that starts later
-- must not take a service without flags for one that has not been moved yet.

CREATE TABLE control.final_route (
    migration    text NOT NULL,
    service      text NOT NULL,
    epoch        bigint NOT NULL,
    primary_side text NOT NULL CHECK (primary_side IN ('monolith', 'service')),
    revision     bigint NOT NULL,
    removed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service)
);
COMMENT ON TABLE control.final_route IS 'The last route of services whose flags were removed: reads and writes stay at primary_side';

CREATE VIEW control.standing_route AS
    SELECT migration, service, epoch, primary_side, read_from_new, write_to_new_primary, pause_id, pause_started_at,
           pause_limit_ms, revision, changed_at FROM control.route
    UNION ALL
    SELECT migration, service, epoch, primary_side, primary_side = 'service', primary_side = 'service', NULL, NULL,
           NULL, revision, removed_at FROM control.final_route;
COMMENT ON VIEW control.standing_route IS 'What instances follow: the flags, or the last route of a service that has none any more';

-- ---------------------------------------------------------------- one list of people's items and of automatic ones

ALTER TABLE control.task
    ADD COLUMN kind text NOT NULL DEFAULT 'human' CHECK (kind IN ('human', 'automatic')),
    ADD COLUMN problem text NOT NULL DEFAULT '',
    ADD COLUMN checked_at timestamptz;
COMMENT ON TABLE control.task IS
    'The checklist: items that people confirm (the plan''s tasks) and automatic ones, which a check answers with evidence; current: still in the plan';
COMMENT ON COLUMN control.task.problem IS 'What the last check of an automatic item found wrong; such an item is open';

-- ---------------------------------------------------------------- that thresholds were watched without a hole

CREATE TABLE control.threshold_sample (
    migration text NOT NULL,
    service   text NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    soak      boolean NOT NULL,
    breached  text[] NOT NULL
);
CREATE INDEX threshold_sample_service ON control.threshold_sample (migration, service, at);
COMMENT ON TABLE control.threshold_sample IS 'When each service''s thresholds were sampled and which were breached; soak: after the read switch, with its two readings';
