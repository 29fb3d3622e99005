-- What the guards compare with: the catalogs as they were taken, and the counters of the streams' work.

CREATE TABLE control.fingerprint (
    migration text NOT NULL,
    service   text NOT NULL,
    side      text NOT NULL CHECK (side IN ('monolith', 'service')),
    hash      text NOT NULL CHECK (hash ~ '^[0-9a-f]{64}$'),
    items     jsonb NOT NULL CHECK (jsonb_typeof(items) = 'object'),
    plan_hash text NOT NULL,
    taken_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    taken_by  text NOT NULL CHECK (taken_by <> ''),
    PRIMARY KEY (migration, service, side)
);
COMMENT ON TABLE control.fingerprint IS
    'The catalogs of a service''s tables as Preparation took them, or as a person accepted them since; gates compare';

CREATE TABLE control.stream_count (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration text NOT NULL,
    service   text NOT NULL,
    direction text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    stream    text NOT NULL,
    since     text NOT NULL,
    read_at   timestamptz NOT NULL,
    failures  bigint NOT NULL CHECK (failures >= 0),
    applied   bigint NOT NULL CHECK (applied >= 0)
);
CREATE INDEX stream_count_window ON control.stream_count (migration, service, direction, stream, read_at DESC);
COMMENT ON TABLE control.stream_count IS
    'A stream''s counters at each look, as its sink counts them; read_at is the sink''s clock, since names what resets them';
