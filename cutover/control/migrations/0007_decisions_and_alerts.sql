-- What a person decided about a case, until the next pass has applied it; what tells two alerts of one kind apart.

ALTER TABLE control.conflict
    ADD COLUMN decision   text CHECK (decision IN ('primary', 'mended')),
    ADD COLUMN decided_by text,
    ADD COLUMN decided_at timestamptz,
    ADD COLUMN reason     text NOT NULL DEFAULT '',
    ADD CONSTRAINT conflict_decided CHECK (
        (decision IS NULL) = (decided_by IS NULL) AND (decision IS NULL) = (decided_at IS NULL));
COMMENT ON COLUMN control.conflict.decision IS
    'primary: its row is written over the other side; mended: a person has made both sides alike; cleared where it no longer fits';

ALTER TABLE control.alert ADD COLUMN subject text NOT NULL DEFAULT '';
COMMENT ON COLUMN control.alert.subject IS 'What the alert is about: a step, a table, one event; alerts of other subjects are no repetition';
DROP INDEX control.alert_dedupe;
CREATE INDEX alert_dedupe ON control.alert (migration, service, kind, subject, id DESC);
