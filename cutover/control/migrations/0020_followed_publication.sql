-- Which publication the record of changed keys reads: one of the same name that was made anew tells nothing of before.

ALTER TABLE control.changed_table ADD COLUMN publication bigint;
COMMENT ON COLUMN control.changed_table.publication IS
    'The oid of the publication at the source when the slot was made; NULL in rows from before it was noted';
