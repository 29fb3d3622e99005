-- When the monolith's renamed tables were last seen to be used: the counters of the last change, and its time.
CREATE TABLE control.retired_table (
    migration text NOT NULL,
    service text NOT NULL,
    table_name text NOT NULL,
    retired_name text NOT NULL,
    reads bigint NOT NULL,
    writes bigint NOT NULL,
    used_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service, table_name)
);
COMMENT ON TABLE control.retired_table IS 'Renamed tables of the monolith; used_at moves whenever their counters do';
