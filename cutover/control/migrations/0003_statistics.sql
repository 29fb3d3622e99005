-- What the applications' instances measured (one row an instance, second and key), and the baselines taken
-- before a stream starts. Written by RoutedPool, read by the thresholds.

CREATE TABLE control.client_stat (
    migration    text NOT NULL,
    service      text NOT NULL,
    side         text NOT NULL CHECK (side IN ('monolith', 'service')),
    table_name   text NOT NULL,
    operation    text NOT NULL CHECK (operation IN ('read', 'stale_read', 'write')),
    instance     text NOT NULL,
    bucket_start timestamptz NOT NULL,
    attempts     bigint NOT NULL CHECK (attempts >= 0),
    failures     bigint NOT NULL CHECK (failures >= 0),
    retried      bigint NOT NULL CHECK (retried >= 0),
    seconds      double precision NOT NULL CHECK (seconds >= 0),
    buckets      integer[] NOT NULL,
    held_ms      double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (migration, service, bucket_start, side, table_name, operation, instance)
);
COMMENT ON TABLE control.client_stat IS 'Attempts, failures and durations (cutover.monitor.histogram.BOUNDS) that RoutedPool saw, by the second';
CREATE INDEX client_stat_age ON control.client_stat USING brin (bucket_start);

CREATE TABLE control.baseline (
    migration   text NOT NULL,
    service     text NOT NULL,
    table_name  text NOT NULL,
    operation   text NOT NULL CHECK (operation IN ('read', 'stale_read', 'write')),
    attempts    bigint NOT NULL,
    failures    bigint NOT NULL,
    p95_s       double precision,
    mean_s      double precision,
    window_s    double precision NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service, table_name, operation)
);
COMMENT ON TABLE control.baseline IS 'What a service''s operations took before its stream started; thresholds are measured on it';
