-- The share of the stale_ok reads that go to the new side, and what `cutover fleet` shows of an instance.

ALTER TABLE control.route
    ADD COLUMN percentage smallint NOT NULL DEFAULT 0 CHECK (percentage BETWEEN 0 AND 100);
UPDATE control.route SET percentage = 100 WHERE read_from_new;
ALTER TABLE control.route
    ADD CONSTRAINT route_reads CHECK (read_from_new = (percentage = 100)),
    ADD CONSTRAINT route_reads_with_writes CHECK (read_from_new OR NOT write_to_new_primary);
COMMENT ON COLUMN control.route.percentage IS
    'Share of the stale_ok reads at the service database; read_from_new says that it is all of them';

CREATE OR REPLACE VIEW control.standing_route AS
    SELECT migration, service, epoch, primary_side, read_from_new, write_to_new_primary, pause_id, pause_started_at,
           pause_limit_ms, revision, changed_at, percentage FROM control.route
    UNION ALL
    SELECT migration, service, epoch, primary_side, primary_side = 'service', primary_side = 'service', NULL, NULL,
           NULL, revision, removed_at, CASE primary_side WHEN 'service' THEN 100 ELSE 0 END::smallint
        FROM control.final_route;

DROP VIEW control.flag;
CREATE VIEW control.flag AS
    SELECT migration, service, service || '_read_from_new' AS name, to_jsonb(read_from_new) AS value, epoch, changed_at
        FROM control.route
    UNION ALL
    SELECT migration, service, service || '_write_to_new_primary', to_jsonb(write_to_new_primary), epoch, changed_at
        FROM control.route
    UNION ALL
    SELECT migration, service, service || '_percentage', to_jsonb(percentage), epoch, changed_at FROM control.route;
COMMENT ON VIEW control.flag IS 'The flags of each service under the names that the migration strategy gives them';

-- As in 0001, and the share of the reads with it: all of them go where the writes go.
CREATE OR REPLACE FUNCTION control.flip_route(
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
                read_from_new = (p_side = 'service'), percentage = CASE p_side WHEN 'service' THEN 100 ELSE 0 END,
                pause_id = NULL, pause_started_at = NULL, pause_limit_ms = NULL
            WHERE r.migration = p_migration AND r.service = p_service;
        PERFORM control.append_audit(p_actor, 'route.flipped', p_migration, p_service,
            jsonb_build_object('from_epoch', route.epoch, 'to_epoch', p_epoch, 'from_side', route.primary_side, 'to_side', p_side,
                'pause_id', p_pause_id, 'pause_lifted', route.pause_id, 'from_percentage', route.percentage), p_trace_id);
        RETURN QUERY SELECT 'flipped', p_epoch, p_side;
    END IF;
END $$;

ALTER TABLE control.instance
    ADD COLUMN version text NOT NULL DEFAULT '',
    ADD COLUMN epoch_acked bigint NOT NULL DEFAULT 0,
    ADD COLUMN seen_at timestamptz NOT NULL DEFAULT clock_timestamp();
COMMENT ON COLUMN control.instance.version IS 'Of the application, as it says of itself';
COMMENT ON COLUMN control.instance.seen_at IS 'When the lease was renewed last';
