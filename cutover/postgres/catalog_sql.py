"""The catalog queries of `cutover.postgres.catalog`; constant text, every value a parameter."""

OWN_PREFIX = "cutover_"

WANTED = "SELECT * FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w(schema, name, position)"

TABLES = f"""
WITH RECURSIVE wanted AS ({WANTED}),
found AS (
    SELECT w.schema, w.name, w.position, c.oid, c.relkind::text AS kind, c.relreplident::text AS replica_identity
    FROM wanted w
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
    WHERE c.relkind IN ('r', 'p')),
tree AS (
    SELECT oid AS root, oid, 0 AS depth FROM found
    UNION
    SELECT t.root, i.inhrelid, t.depth + 1 FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid),
descendants AS (
    SELECT t.root, t.oid, min(t.depth) AS depth, n.nspname::text AS schema, c.relname::text AS name,
           CASE WHEN c.relkind = 'r' THEN greatest(c.reltuples, 0)::bigint ELSE 0 END AS rows,
           coalesce(pg_catalog.pg_table_size(t.oid), 0) AS bytes
    FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    GROUP BY 1, 2, 4, 5, 6)
SELECT f.*,
    (SELECT coalesce(sum(d.rows), 0)::bigint FROM descendants d WHERE d.root = f.oid) AS rows,
    (SELECT coalesce(sum(d.bytes), 0)::bigint FROM descendants d WHERE d.root = f.oid) AS bytes,
    ARRAY(SELECT d.schema FROM descendants d WHERE d.root = f.oid AND d.depth > 0
          ORDER BY d.depth, d.schema COLLATE "C", d.name COLLATE "C") AS child_schemas,
    ARRAY(SELECT d.name FROM descendants d WHERE d.root = f.oid AND d.depth > 0
          ORDER BY d.depth, d.schema COLLATE "C", d.name COLLATE "C") AS child_names,
    ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i
          CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
          WHERE i.indrelid = f.oid AND i.indisprimary AND k.position <= i.indnkeyatts
          ORDER BY k.position) AS primary_key
FROM found f ORDER BY f.position
"""

COLUMNS = """
SELECT a.attrelid AS oid, a.attname::text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_sql,
       a.atttypid AS type_oid, a.attnotnull AS not_null, a.attidentity::text AS identity,
       a.attgenerated <> '' AS generated, coalesce(l.collname::text, '') AS collation, a.attnum::int AS ordinal
FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

FOREIGN_KEYS = """
SELECT con.conname::text AS name, n.nspname::text AS schema, c.relname::text AS "table",
       rn.nspname::text AS referenced_schema, r.relname::text AS referenced_table,
       con.confdeltype::text AS on_delete, con.convalidated AS validated,
       pg_catalog.pg_get_constraintdef(con.oid) AS definition,
       ARRAY(SELECT a.attname::text FROM unnest(con.conkey) WITH ORDINALITY AS k(attnum, position)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.attnum
             ORDER BY k.position) AS columns,
       ARRAY(SELECT a.attname::text FROM unnest(con.confkey) WITH ORDINALITY AS k(attnum, position)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = con.confrelid AND a.attnum = k.attnum
             ORDER BY k.position) AS referenced_columns,
       ARRAY(SELECT a.attname::text FROM jsonb_array_elements_text(
                 CASE jsonb_typeof(to_jsonb(con) -> 'confdelsetcols') WHEN 'array'
                 THEN to_jsonb(con) -> 'confdelsetcols' ELSE '[]' END) AS k(attnum)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.attnum::int
             ORDER BY a.attnum) AS set_columns
FROM pg_catalog.pg_constraint con
JOIN pg_catalog.pg_class c ON c.oid = con.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class r ON r.oid = con.confrelid JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
WHERE con.contype = 'f' AND con.conparentid = 0
ORDER BY 2, 3, 1
"""

# A sequence belongs to a column by ownership (serial 'a', identity 'i'), or because its default draws from it.
SEQUENCES = """
WITH uses AS (
    SELECT d.objid AS seq, d.refobjid AS rel, d.refobjsubid AS attnum, d.deptype = 'i' AS identity, true AS owned
    FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
      AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
    UNION ALL
    SELECT d.refobjid, ad.adrelid, ad.adnum, false, false
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef ad ON ad.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass)
SELECT DISTINCT ON (s.seqrelid) s.seqrelid AS oid, sn.nspname::text AS schema, sc.relname::text AS name,
       tn.nspname::text AS table_schema, tc.relname::text AS table_name, a.attname::text AS column,
       s.seqstart AS start, s.seqincrement AS increment, s.seqmin AS min, s.seqmax AS max, s.seqcycle AS cycle,
       s.seqcache AS cache, pg_catalog.format_type(s.seqtypid, NULL) AS type,
       EXISTS (SELECT FROM uses i WHERE i.seq = u.seq AND i.identity) AS identity,
       pg_catalog.has_sequence_privilege(s.seqrelid, 'SELECT') AS readable,
       ARRAY(SELECT DISTINCT ARRAY[xn.nspname::text, xc.relname::text] FROM uses x
             JOIN pg_catalog.pg_class xc ON xc.oid = x.rel AND NOT xc.relispartition
             JOIN pg_catalog.pg_namespace xn ON xn.oid = xc.relnamespace
             WHERE x.seq = u.seq AND x.rel <> u.rel ORDER BY 1) AS shared
FROM uses u JOIN pg_catalog.pg_sequence s ON s.seqrelid = u.seq
JOIN pg_catalog.pg_class sc ON sc.oid = u.seq JOIN pg_catalog.pg_namespace sn ON sn.oid = sc.relnamespace
JOIN pg_catalog.pg_class tc ON tc.oid = u.rel JOIN pg_catalog.pg_namespace tn ON tn.oid = tc.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = u.rel AND a.attnum = u.attnum
WHERE u.rel = ANY($1::oid[])
ORDER BY s.seqrelid, tc.relispartition, u.owned DESC, u.rel, u.attnum
"""

TRIGGERS = f"""
SELECT t.tgname::text AS name, n.nspname::text AS schema, c.relname::text AS "table", t.tgenabled::text AS enabled,
       t.tgfoid::regprocedure::text AS function, pg_catalog.pg_get_triggerdef(t.oid) AS definition
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE t.tgrelid = ANY($1::oid[]) AND NOT t.tgisinternal AND t.tgparentid = 0
  AND NOT pg_catalog.starts_with(t.tgname::text, '{OWN_PREFIX}')
ORDER BY 2, 3, 1
"""

IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()) AS system_identifier, current_database()::text AS name
"""

# A control file keeps the timeline of the last checkpoint; a primary's own WAL file name has the one of now.
_TIMELINE = """CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END"""

SERVER = f"""
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS version_text,
       (SELECT system_identifier FROM pg_control_system()) AS system_identifier, pg_is_in_recovery() AS in_recovery,
       {_TIMELINE} AS timeline,
       (SELECT coalesce(array_agg(ARRAY[name, current_setting(name)]), '{{}}')
        FROM pg_settings WHERE name = ANY($1)) AS settings
"""

SERVER_IDENTITY = f"""
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier, {_TIMELINE} AS timeline
"""

RELATIONS = """
SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
"""
