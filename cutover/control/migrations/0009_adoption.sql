-- A person puts another plan in the place of the one that a running migration goes by.

CREATE TABLE control.adoption (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration text NOT NULL,
    from_hash text NOT NULL,
    to_hash   text NOT NULL,
    by        text NOT NULL CHECK (by <> ''),
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (migration, from_hash) REFERENCES control.plan (migration, hash),
    FOREIGN KEY (migration, to_hash) REFERENCES control.plan (migration, hash)
);
CREATE INDEX adoption_from ON control.adoption (migration, from_hash);
COMMENT ON TABLE control.adoption IS 'Which plan was adopted in place of which, by whom: a run under from_hash takes the plan in force over';

ALTER TABLE control.claim ADD COLUMN begun_at timestamptz;
COMMENT ON COLUMN control.claim.begun_at IS 'Since when the service is built: its databases, tables and stream cannot be changed by another plan any more';
-- what runs already has been built, or may have been
UPDATE control.claim SET begun_at = claimed_at;
