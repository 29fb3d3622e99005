-- What the permanent monitor has seen before, so that a look of any process can tell what has changed since.

CREATE TABLE control.monitor_note (
    migration  text NOT NULL,
    service    text NOT NULL,
    name       text NOT NULL,
    life       text NOT NULL,
    value      bigint NOT NULL,
    changed_at timestamptz,
    lost_at    timestamptz,
    PRIMARY KEY (migration, service, name)
);
COMMENT ON TABLE control.monitor_note IS
    'Counters that may only rise (a slot''s, a fence''s) as the monitor saw them last; a measurement, not audited';
COMMENT ON COLUMN control.monitor_note.life IS 'The counter is compared only while this is the same';
COMMENT ON COLUMN control.monitor_note.changed_at IS 'When the value last rose within one life';
COMMENT ON COLUMN control.monitor_note.lost_at IS 'When the thing was missing, or its counter fell, within one life';
