-- A pass is cut into spans, which several workers may walk at the same time; a killed one goes on within its spans.

CREATE TABLE control.pass_span (
    pass_id     text NOT NULL REFERENCES control.pass (id) ON DELETE CASCADE,
    number      integer NOT NULL,
    span        jsonb NOT NULL,
    attempt     bigint NOT NULL DEFAULT 0,
    after_key   text,
    done        boolean NOT NULL DEFAULT false,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pass_id, number)
);
COMMENT ON TABLE control.pass_span IS
    'A part of a pass: a range of the key or a share of its hashes. attempt fences an older walk of it; a resumed one goes on after after_key';

-- passes that stand open begin anew: they were not cut
DELETE FROM control.pass WHERE report_id IS NULL;
ALTER TABLE control.pass
    DROP COLUMN after_key,
    DROP COLUMN walked,
    ADD COLUMN spans integer,
    ADD COLUMN rows_estimated bigint NOT NULL DEFAULT 0,
    ADD COLUMN sink_position text NOT NULL DEFAULT '';
COMMENT ON COLUMN control.pass.spans IS 'Into how many spans it was cut; NULL: not yet';
COMMENT ON COLUMN control.pass.position IS 'Of the source''s write-ahead log, when the pass began';
COMMENT ON COLUMN control.pass.sink_position IS 'Of the sink''s write-ahead log, when the pass began';

ALTER TABLE control.report ADD COLUMN replica boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN control.report.replica IS 'The rows were read from a replica; no switch is decided by such a report';
