-- A case has a time by which a person should have decided it. Cases that are open already have a whole day from now.

ALTER TABLE control.conflict
    ADD COLUMN due_at timestamptz NOT NULL DEFAULT clock_timestamp() + interval '24 hours';
COMMENT ON COLUMN control.conflict.due_at IS
    'Opening plus what the plan allows (decide_within), by this server''s clock; undecided after it, the case is escalated';
