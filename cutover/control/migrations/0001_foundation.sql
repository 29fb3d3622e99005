-- The control database: what was decided, seen, approved and done. No row of the user's data but the
-- keys of rows that differ; never a DSN. A missing service (a fact of the whole migration) is ''.
-- Every clock here is clock_timestamp(): ages are differences of this server's clock alone.

-- ---------------------------------------------------------------- audit: append-only and hash-chained

CREATE TABLE control.audit (
    seq       bigint PRIMARY KEY CHECK (seq > 0),
    at        timestamptz NOT NULL,
    actor     text NOT NULL CHECK (actor <> ''),
    action    text NOT NULL CHECK (action <> ''),
    migration text NOT NULL,
    service   text NOT NULL DEFAULT '',
    detail    jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(detail) = 'object'),
    trace_id  text NOT NULL DEFAULT '',
    prev_hash bytea NOT NULL CHECK (octet_length(prev_hash) = 32),
    hash      bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32)
);
CREATE INDEX audit_migration ON control.audit (migration, seq DESC);
COMMENT ON TABLE control.audit IS
    'Append-only log; hash = sha256(prev_hash || canonical JSON of the row), written in the transaction of the state it records';

CREATE TABLE control.audit_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seq      bigint NOT NULL,
    hash     bytea NOT NULL
);
COMMENT ON TABLE control.audit_head IS 'Number and hash of the newest audit row: a removed tail is found by it';
INSERT INTO control.audit_head (seq, hash) VALUES (0, decode(repeat('00', 32), 'hex'));

CREATE FUNCTION control.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'cutover: %.% is append-only, % is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON control.audit
    FOR EACH STATEMENT EXECUTE FUNCTION control.refuse_change();
ALTER TABLE control.audit ENABLE ALWAYS TRIGGER audit_append_only;
CREATE TRIGGER audit_head_stays BEFORE DELETE OR TRUNCATE ON control.audit_head
    FOR EACH STATEMENT EXECUTE FUNCTION control.refuse_change();
ALTER TABLE control.audit_head ENABLE ALWAYS TRIGGER audit_head_stays;

-- jsonb's own text is the canonical form: keys unique and sorted, numbers exact as stored, UTF-8 as is.
CREATE FUNCTION control.audit_body(
    seq bigint, at timestamptz, actor text, action text, migration text, service text, detail jsonb, trace_id text
) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'seq', seq, 'at', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), 'actor', actor, 'action', action,
        'migration', migration, 'service', service, 'detail', detail, 'trace_id', trace_id)::text
$$;

-- The lock is held from here to the commit, so callers append last. Each statement of a plpgsql function has a
-- snapshot of its own under READ COMMITTED: the head is read after the lock was waited for, in one round trip.
CREATE FUNCTION control.append_audit(
    p_actor text, p_action text, p_migration text, p_service text, p_detail jsonb, p_trace_id text
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    head   control.audit_head;
    moment timestamptz;
    next_seq bigint;
    next_hash bytea;
BEGIN
    PERFORM pg_advisory_xact_lock(7239100011);
    SELECT * INTO STRICT head FROM control.audit_head;
    moment := clock_timestamp();
    next_seq := head.seq + 1;
    next_hash := sha256(head.hash || convert_to(control.audit_body(
        next_seq, moment, p_actor, p_action, p_migration, p_service, p_detail, p_trace_id), 'UTF8'));
    INSERT INTO control.audit (seq, at, actor, action, migration, service, detail, trace_id, prev_hash, hash)
        VALUES (next_seq, moment, p_actor, p_action, p_migration, p_service, p_detail, p_trace_id, head.hash, next_hash);
    UPDATE control.audit_head SET seq = next_seq, hash = next_hash;
    RETURN next_seq;
END $$;

-- ---------------------------------------------------------------- plans, stages, claims

CREATE TABLE control.plan (
    migration     text NOT NULL CHECK (migration <> ''),
    hash          text NOT NULL CHECK (hash ~ '^[0-9a-f]{64}$'),
    body          json NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    registered_by text NOT NULL CHECK (registered_by <> ''),
    PRIMARY KEY (migration, hash)
);
COMMENT ON TABLE control.plan IS 'Every plan that was registered, filled in; json, not jsonb: the order of services is the order of the file';

CREATE TABLE control.migration (
    migration   text PRIMARY KEY,
    latest_hash text NOT NULL,
    bound_hash  text,
    bound_at    timestamptz,
    bound_by    text,
    FOREIGN KEY (migration, latest_hash) REFERENCES control.plan (migration, hash),
    FOREIGN KEY (migration, bound_hash) REFERENCES control.plan (migration, hash)
);
COMMENT ON TABLE control.migration IS 'Which plan hash was registered last, and which one the running migration is bound to';

CREATE TABLE control.claim (
    monolith   text NOT NULL CHECK (monolith <> ''),
    table_name text NOT NULL CHECK (table_name <> ''),
    migration  text NOT NULL,
    service    text NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (monolith, table_name)
);
CREATE INDEX claim_migration ON control.claim (migration);
COMMENT ON TABLE control.claim IS 'Tables of a monolith (system identifier and database) that a migration has taken; one migration a table';

CREATE TABLE control.stage (
    migration  text NOT NULL,
    service    text NOT NULL DEFAULT '',
    stage      text NOT NULL,
    detail     jsonb NOT NULL DEFAULT '{}',
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service),
    CHECK (CASE WHEN service = '' THEN stage IN ('registered', 'prepared', 'cleaned')
           ELSE stage IN ('replicating', 'ready', 'switched', 'deprecated', 'rolled-back', 'released', 'archived') END)
);
COMMENT ON TABLE control.stage IS 'How far a migration (service '''') and each of its services are; history is in the audit log';

-- ---------------------------------------------------------------- evidence and approvals

CREATE TABLE control.evidence (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration text NOT NULL,
    service   text NOT NULL DEFAULT '',
    gate      text NOT NULL CHECK (gate <> ''),
    plan_hash text NOT NULL,
    digest    text NOT NULL,
    code      text NOT NULL CHECK (code ~ '^[a-z2-7]{4,}$'),
    facts     jsonb NOT NULL,
    ok        boolean NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX evidence_latest ON control.evidence (migration, service, gate, id DESC);
CREATE INDEX evidence_code ON control.evidence (migration, code, id DESC);
CREATE INDEX evidence_digest ON control.evidence (migration, digest);
COMMENT ON TABLE control.evidence IS 'What a gate measured; equal facts under one plan have one code, one row a measurement';

CREATE TABLE control.approval (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration   text NOT NULL,
    service     text NOT NULL DEFAULT '',
    gate        text NOT NULL CHECK (gate <> ''),
    plan_hash   text NOT NULL,
    decision    text NOT NULL CHECK (decision IN ('approve', 'reject')),
    by          text NOT NULL CHECK (by <> ''),
    person      text NOT NULL CHECK (person <> ''),
    evidence_id bigint REFERENCES control.evidence (id),
    note        text NOT NULL DEFAULT '',
    run_id      text NOT NULL CHECK (run_id <> ''),
    message_id  text NOT NULL CHECK (message_id <> ''),
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    voided_at   timestamptz,
    void_reason text,
    UNIQUE (run_id, message_id),
    CHECK ((voided_at IS NULL) = (void_reason IS NULL))
);
CREATE INDEX approval_gate ON control.approval (migration, service, gate, id DESC);
COMMENT ON TABLE control.approval IS 'Who approved or rejected a gate, on which plan and evidence; person is the folded name that counts once';

-- ---------------------------------------------------------------- reconciliation

CREATE TABLE control.report (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration   text NOT NULL,
    service     text NOT NULL,
    table_name  text NOT NULL,
    direction   text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    rows_source bigint NOT NULL CHECK (rows_source >= 0),
    rows_target bigint NOT NULL CHECK (rows_target >= 0),
    missing     bigint NOT NULL CHECK (missing >= 0),
    extra       bigint NOT NULL CHECK (extra >= 0),
    mismatched  bigint NOT NULL CHECK (mismatched >= 0),
    unsettled   bigint NOT NULL CHECK (unsettled >= 0),
    orphans     bigint NOT NULL CHECK (orphans >= 0),
    rate        double precision NOT NULL CHECK (rate >= 0),
    seed_rate   double precision NOT NULL CHECK (seed_rate >= 0),
    duration_ms double precision NOT NULL CHECK (duration_ms >= 0),
    position    text NOT NULL DEFAULT '',
    plan_hash   text NOT NULL,
    complete    boolean NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX report_latest ON control.report (migration, service, table_name, id DESC);
COMMENT ON TABLE control.report IS 'One pass of reconciliation over one table; its age counts from recorded_at, by this server''s clock';

CREATE TABLE control.difference (
    report_id   bigint NOT NULL REFERENCES control.report (id) ON DELETE CASCADE,
    table_name  text NOT NULL,
    key_json    text NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('missing', 'extra', 'mismatched')),
    source_hash bigint,
    target_hash bigint,
    confirmed   boolean NOT NULL,
    PRIMARY KEY (report_id, table_name, key_json)
);
COMMENT ON TABLE control.difference IS 'All keys that differed in a pass, with row hashes; no row values';

CREATE TABLE control.conflict (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration  text NOT NULL,
    service    text NOT NULL,
    table_name text NOT NULL,
    key_json   text NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('missing', 'extra', 'mismatched')),
    rule       text NOT NULL,
    detail     jsonb NOT NULL DEFAULT '{}',
    seen       bigint NOT NULL DEFAULT 1,
    opened_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolved_at timestamptz,
    resolved_by text,
    resolution text,
    CHECK ((resolved_at IS NULL) = (resolved_by IS NULL) AND (resolved_at IS NULL) = (resolution IS NULL))
);
CREATE UNIQUE INDEX conflict_open ON control.conflict (migration, service, table_name, key_json) WHERE resolved_at IS NULL;
COMMENT ON TABLE control.conflict IS 'Differences that no rule may repair by itself: cases for a person';

-- ---------------------------------------------------------------- people's tasks, summaries, alerts

CREATE TABLE control.task (
    migration   text NOT NULL,
    name        text NOT NULL,
    phase       text NOT NULL CHECK (phase IN ('preparation', 'dual_write', 'switchover', 'cleanup')),
    owner       text NOT NULL,
    duration    interval NOT NULL,
    description text NOT NULL DEFAULT '',
    service     text NOT NULL DEFAULT '',
    current     boolean NOT NULL DEFAULT true,
    done_at     timestamptz,
    done_by     text,
    evidence    text,
    PRIMARY KEY (migration, name),
    CHECK ((done_at IS NULL) = (done_by IS NULL))
);
COMMENT ON TABLE control.task IS 'The task list of the plan: what people do, who owns it, when it was done; current: still in the plan';

CREATE TABLE control.summary (
    migration    text NOT NULL,
    service      text NOT NULL,
    bucket_start timestamptz NOT NULL,
    facts        jsonb NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service, bucket_start)
);
COMMENT ON TABLE control.summary IS 'One row per service and hour (or shorter bucket of a compressed rehearsal) while a switch is open';

CREATE TABLE control.alert (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration     text NOT NULL,
    service       text NOT NULL DEFAULT '',
    kind          text NOT NULL CHECK (kind <> ''),
    severity      text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    text          text NOT NULL,
    link          text NOT NULL DEFAULT '',
    count         bigint NOT NULL DEFAULT 1,
    first_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    webhook       text NOT NULL DEFAULT 'none' CHECK (webhook IN ('none', 'pending', 'sent', 'failed')),
    webhook_error text NOT NULL DEFAULT '',
    webhook_at    timestamptz
);
CREATE INDEX alert_dedupe ON control.alert (migration, service, kind, id DESC);
COMMENT ON TABLE control.alert IS 'Alerts, counted where they repeat within a window, with the fate of their webhook';

-- ---------------------------------------------------------------- flags and instances

CREATE TABLE control.route (
    migration            text NOT NULL,
    service              text NOT NULL,
    epoch                bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    primary_side         text NOT NULL DEFAULT 'monolith' CHECK (primary_side IN ('monolith', 'service')),
    read_from_new        boolean NOT NULL DEFAULT false,
    write_to_new_primary boolean NOT NULL DEFAULT false,
    pause_id             text,
    pause_started_at     timestamptz,
    pause_limit_ms       bigint CHECK (pause_limit_ms > 0),
    revision             bigint NOT NULL DEFAULT 1,
    changed_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service),
    CHECK (write_to_new_primary = (primary_side = 'service')),
    CHECK ((pause_id IS NULL) = (pause_started_at IS NULL) AND (pause_id IS NULL) = (pause_limit_ms IS NULL))
);
COMMENT ON TABLE control.route IS 'Where a service reads and writes: one row, changed in one update, is one atomic snapshot';

CREATE FUNCTION control.route_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('cutover_route', OLD.migration || '/' || OLD.service);
        RETURN OLD;
    ELSIF TG_OP = 'UPDATE' THEN
        NEW.revision := OLD.revision + 1;
        NEW.changed_at := clock_timestamp();
    END IF;
    PERFORM pg_notify('cutover_route', NEW.migration || '/' || NEW.service);
    RETURN NEW;
END $$;
CREATE TRIGGER route_changes BEFORE INSERT OR UPDATE OR DELETE ON control.route
    FOR EACH ROW EXECUTE FUNCTION control.route_changes();

CREATE VIEW control.flag AS
    SELECT migration, service, service || '_read_from_new' AS name, read_from_new AS value, epoch, changed_at FROM control.route
    UNION ALL
    SELECT migration, service, service || '_write_to_new_primary', write_to_new_primary, epoch, changed_at FROM control.route;
COMMENT ON VIEW control.flag IS 'The two flags of each service under the names that the migration strategy gives them';

-- The flip stands inside the write pause: update, notification and audit row in one round trip.
CREATE FUNCTION control.flip_route(
    p_migration text, p_service text, p_side text, p_epoch bigint, p_actor text, p_pause_id text, p_trace_id text
) RETURNS TABLE (outcome text, current_epoch bigint, current_side text) LANGUAGE plpgsql AS $$
DECLARE
    route control.route;
BEGIN
    SELECT * INTO route FROM control.route r WHERE r.migration = p_migration AND r.service = p_service FOR UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'missing', 0::bigint, ''::text;
    ELSIF p_epoch < route.epoch THEN
        RETURN QUERY SELECT 'lower', route.epoch, route.primary_side;
    ELSIF p_epoch = route.epoch THEN
        IF route.primary_side = p_side AND route.pause_id = p_pause_id THEN
            UPDATE control.route r SET pause_id = NULL, pause_started_at = NULL, pause_limit_ms = NULL
                WHERE r.migration = p_migration AND r.service = p_service;
            PERFORM control.append_audit(p_actor, 'route.pause_lifted', p_migration, p_service,
                jsonb_build_object('pause_id', p_pause_id, 'epoch', p_epoch), p_trace_id);
        END IF;
        RETURN QUERY SELECT CASE WHEN route.primary_side = p_side THEN 'already' ELSE 'other-side' END, route.epoch, route.primary_side;
    ELSE
        UPDATE control.route r SET epoch = p_epoch, primary_side = p_side, write_to_new_primary = (p_side = 'service'),
                read_from_new = (p_side = 'service'), pause_id = NULL, pause_started_at = NULL, pause_limit_ms = NULL
            WHERE r.migration = p_migration AND r.service = p_service;
        PERFORM control.append_audit(p_actor, 'route.flipped', p_migration, p_service,
            jsonb_build_object('from_epoch', route.epoch, 'to_epoch', p_epoch, 'from_side', route.primary_side, 'to_side', p_side,
                'pause_id', p_pause_id, 'pause_lifted', route.pause_id), p_trace_id);
        RETURN QUERY SELECT 'flipped', p_epoch, p_side;
    END IF;
END $$;

CREATE TABLE control.instance (
    migration      text NOT NULL,
    service        text NOT NULL,
    id             text NOT NULL CHECK (id <> ''),
    lease_until    timestamptz NOT NULL,
    revision_acked bigint NOT NULL DEFAULT 0,
    pause_acked    text,
    host           text NOT NULL DEFAULT '',
    pid            bigint NOT NULL DEFAULT 0,
    application    text NOT NULL DEFAULT '',
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, service, id)
);
COMMENT ON TABLE control.instance IS 'Running instances of the applications, their leases and what they have acknowledged';

CREATE FUNCTION control.instance_acks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.revision_acked IS DISTINCT FROM OLD.revision_acked
            OR NEW.pause_acked IS DISTINCT FROM OLD.pause_acked THEN
        PERFORM pg_notify('cutover_ack', NEW.migration || '/' || NEW.service);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER instance_acks AFTER INSERT OR UPDATE ON control.instance
    FOR EACH ROW EXECUTE FUNCTION control.instance_acks();
