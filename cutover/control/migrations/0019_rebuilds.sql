-- Streams that are being built anew, so that a rebuild which was cut off anywhere is seen.

CREATE TABLE control.rebuild (
    migration text NOT NULL,
    service   text NOT NULL,
    direction text NOT NULL,
    begun_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service, direction)
);
COMMENT ON TABLE control.rebuild IS
    'A row from before a stream is dropped until every row has been compared with the new one; changes may be missing';
