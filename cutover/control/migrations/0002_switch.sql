-- The truth of a switch: one row per service. fenced -> journaled and fenced -> undoing exclude each other here.
CREATE TABLE control.switch (
    migration text NOT NULL,
    service text NOT NULL,
    switch_id text NOT NULL DEFAULT '',
    token bigint NOT NULL DEFAULT 0,
    state text NOT NULL DEFAULT 'idle'
        CHECK (state IN ('idle', 'fencing', 'fenced', 'undoing', 'undone', 'journaled', 'done')),
    from_side text NOT NULL DEFAULT 'monolith' CHECK (from_side IN ('monolith', 'service')),
    to_side text NOT NULL DEFAULT 'service' CHECK (to_side IN ('monolith', 'service')),
    from_epoch bigint NOT NULL DEFAULT 0,
    to_epoch bigint NOT NULL DEFAULT 0,
    plan_hash text NOT NULL DEFAULT '',
    detail jsonb NOT NULL DEFAULT '{}',
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service)
);
COMMENT ON TABLE control.switch IS 'The switch under way, or the last one, of each service; the token fences off older attempts';

CREATE TABLE control.switch_outcome (
    switch_id text PRIMARY KEY,
    migration text NOT NULL,
    service text NOT NULL,
    outcome jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE control.switch_outcome IS 'How each switch ended, with its pauses and the duration of its steps';

CREATE TABLE control.server_identity (
    migration text NOT NULL,
    database text NOT NULL,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, database)
);
COMMENT ON TABLE control.server_identity IS 'Which server and timeline the evidence was taken from; another one voids it';

CREATE TABLE control.crossing_key (
    migration text NOT NULL,
    name text NOT NULL,
    table_name text NOT NULL,
    rule text NOT NULL CHECK (rule IN ('drop', 'loose')),
    definition jsonb NOT NULL,
    holder text NOT NULL,
    parent text NOT NULL,
    detached boolean NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, table_name, name)
);
COMMENT ON TABLE control.crossing_key IS
    'Foreign keys of the monolith between tables of two services (holder refers to parent), kept to be put back';
