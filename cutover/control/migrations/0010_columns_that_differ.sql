-- What a pass says besides its counts: which columns differ, what it moved, what it left out, and what to know of it.

ALTER TABLE control.pass ADD COLUMN moved bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN control.pass.after_key IS
    'Where a resumed pass goes on: a JSON array (the key of the last finished range) or object (the last finished share)';

ALTER TABLE control.pass_candidate ADD COLUMN columns jsonb NOT NULL DEFAULT '[]';
ALTER TABLE control.difference ADD COLUMN columns jsonb NOT NULL DEFAULT '[]';
COMMENT ON COLUMN control.difference.columns IS 'Names of the columns that differ, where both sides have the row';

ALTER TABLE control.report
    ADD COLUMN bytes_moved bigint NOT NULL DEFAULT 0 CHECK (bytes_moved >= 0),
    ADD COLUMN seed bigint NOT NULL DEFAULT 0,
    ADD COLUMN left_out text[] NOT NULL DEFAULT '{}',
    ADD COLUMN warnings text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN control.report.seed IS 'From which every seed of the pass''s hashes was drawn';
