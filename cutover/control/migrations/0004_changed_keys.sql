-- Reconciliation at work: passes that can be resumed, their candidates, and the keys that changed since.

CREATE SEQUENCE control.change_number;
COMMENT ON SEQUENCE control.change_number IS 'Orders changed keys and the starts of passes: what is below a pass''s number was changed before it began';

CREATE TABLE control.pass (
    id           text PRIMARY KEY CHECK (id <> ''),
    migration    text NOT NULL,
    service      text NOT NULL,
    table_name   text NOT NULL,
    direction    text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    plan_hash    text NOT NULL,
    attempt      bigint NOT NULL DEFAULT 1,
    change_mark  bigint NOT NULL DEFAULT nextval('control.change_number'),
    seed         bigint NOT NULL,
    position     text NOT NULL DEFAULT '',
    after_key    text,
    walked       boolean NOT NULL DEFAULT false,
    rows_source  bigint NOT NULL DEFAULT 0,
    rows_target  bigint NOT NULL DEFAULT 0,
    chunks       bigint NOT NULL DEFAULT 0,
    round        integer NOT NULL DEFAULT 0,
    report_id    bigint,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX pass_table ON control.pass (migration, service, table_name, updated_at);
COMMENT ON TABLE control.pass IS 'A pass over one table: where it stands, so that it goes on there after a kill; attempt fences an older run';

CREATE TABLE control.pass_candidate (
    pass_id     text NOT NULL REFERENCES control.pass (id) ON DELETE CASCADE,
    key_id      text NOT NULL,
    key_json    text NOT NULL,
    source_hash bigint,
    source_xmin bigint,
    target_hash bigint,
    target_xmin bigint,
    confirmed   boolean NOT NULL DEFAULT false,
    round       integer NOT NULL DEFAULT 0,
    PRIMARY KEY (pass_id, key_id)
);
COMMENT ON TABLE control.pass_candidate IS 'Keys that differed at the last look; no row values. xmin tells a row that went and came back; round = the last look';

CREATE TABLE control.changed_table (
    migration    text NOT NULL,
    service      text NOT NULL,
    direction    text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    table_name   text NOT NULL,
    whole_number bigint,
    verified_at  timestamptz,
    PRIMARY KEY (migration, service, direction, table_name)
);
COMMENT ON TABLE control.changed_table IS
    'Which tables have had a verified pass since the changes are followed; whole_number set = the whole table is to be compared';

CREATE TABLE control.changed_key (
    migration  text NOT NULL,
    service    text NOT NULL,
    direction  text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    table_name text NOT NULL,
    key_id     text NOT NULL,
    key_json   text NOT NULL,
    number     bigint NOT NULL DEFAULT nextval('control.change_number'),
    PRIMARY KEY (migration, service, direction, table_name, key_id)
);
COMMENT ON TABLE control.changed_key IS 'Primary keys changed at the source since the start of the last verified pass; no other values';
