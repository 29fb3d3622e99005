"""The queries of `cutover.postgres.fingerprint`: each gives rows of (item, description), names qualified.

`$1` are the oids of the tables and their descendants. Left out on purpose: what is ours (prefix `cutover_`),
foreign keys that cross services, NOT NULL as a constraint (a catalog row of its own only from 18 on; columns say
it already), owners, comments, statistics, storage and autovacuum parameters.
"""

from cutover.postgres.catalog_sql import OWN_PREFIX

_RELATION = "pg_catalog.format('%s.%s', n.nspname, c.relname)"
_FROM_CLASS = "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"

TABLES = f"""
SELECT 'table ' || {_RELATION} AS item,
       pg_catalog.concat_ws(', ',
           CASE c.relkind WHEN 'p' THEN 'partitioned ' || pg_get_partkeydef(c.oid) ELSE 'table' END,
           CASE c.relpersistence WHEN 'u' THEN 'unlogged' END,
           'replica identity ' || CASE c.relreplident WHEN 'd' THEN 'default' WHEN 'n' THEN 'nothing'
                                  WHEN 'f' THEN 'full' ELSE 'index' END,
           CASE WHEN c.relrowsecurity THEN 'row security' END,
           CASE WHEN c.relforcerowsecurity THEN 'forced row security' END,
           (SELECT pg_catalog.string_agg('part of ' || i.inhparent::regclass::text || ' '
                       || coalesce(pg_get_expr(c.relpartbound, c.oid), ''), ', ' ORDER BY i.inhseqno)
            FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid)) AS description
FROM {_FROM_CLASS} WHERE c.oid = ANY($1::oid[])
"""

# Positions are ranks: a dropped column leaves a hole in attnum that a dump does not carry over.
COLUMNS = f"""
SELECT 'column ' || {_RELATION} || '.' || a.attname AS item,
       pg_catalog.concat_ws(', ', 'position ' || rank() OVER (PARTITION BY c.oid ORDER BY a.attnum),
           pg_catalog.format_type(a.atttypid, a.atttypmod),
           CASE WHEN a.attcollation <> t.typcollation THEN 'collation ' || a.attcollation::regcollation::text END,
           CASE WHEN a.attnotnull THEN 'not null' END,
           CASE a.attidentity WHEN 'a' THEN 'identity (always)' WHEN 'd' THEN 'identity (by default)' END,
           CASE a.attgenerated WHEN 's' THEN 'stored' WHEN 'v' THEN 'virtual' END,
           CASE WHEN d.oid IS NOT NULL THEN 'default ' || pg_get_expr(d.adbin, d.adrelid) END) AS description
FROM {_FROM_CLASS} JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.oid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
"""

CONSTRAINTS = f"""
SELECT 'constraint ' || {_RELATION} || '.' || con.conname AS item, pg_get_constraintdef(con.oid) AS description
FROM pg_catalog.pg_constraint con JOIN pg_catalog.pg_class c ON c.oid = con.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE con.conrelid = ANY($1::oid[]) AND con.contype IN ('c', 'p', 'u', 'x', 'f')
  AND (con.contype <> 'f' OR (con.confrelid = ANY($1::oid[]) AND con.conparentid = 0))
"""

INDEXES = f"""
SELECT 'index ' || {_RELATION} || '.' || ic.relname AS item,
       pg_catalog.concat_ws(', ', pg_get_indexdef(i.indexrelid), CASE WHEN NOT i.indisvalid THEN 'INVALID' END,
           CASE WHEN i.indisreplident THEN 'replica identity' END) AS description
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = ANY($1::oid[])
"""

TRIGGERS = f"""
SELECT 'trigger ' || {_RELATION} || '.' || t.tgname AS item,
       pg_get_triggerdef(t.oid) || CASE t.tgenabled WHEN 'D' THEN ', disabled' WHEN 'A' THEN ', always'
                                   WHEN 'R' THEN ', replica' ELSE '' END AS description
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE t.tgrelid = ANY($1::oid[]) AND NOT t.tgisinternal AND t.tgparentid = 0
  AND NOT pg_catalog.starts_with(t.tgname::text, '{OWN_PREFIX}')
"""

POLICIES_AND_RULES = f"""
SELECT 'policy ' || {_RELATION} || '.' || p.polname AS item,
       pg_catalog.concat_ws(', ', p.polcmd::text, CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END,
           'using ' || pg_get_expr(p.polqual, p.polrelid),
           'check ' || pg_get_expr(p.polwithcheck, p.polrelid)) AS description
FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.polrelid = ANY($1::oid[])
UNION ALL
SELECT 'rule ' || {_RELATION} || '.' || r.rulename, pg_get_ruledef(r.oid)
FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE r.ev_class = ANY($1::oid[])
"""

# Everything a column's type is made of: elements of arrays, bases of domains, fields of composites, ranges.
TYPES = """
WITH RECURSIVE parts AS (
    SELECT a.atttypid AS oid FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT inner_type.oid FROM parts p JOIN pg_catalog.pg_type t ON t.oid = p.oid
    CROSS JOIN LATERAL (
        SELECT t.typelem AS oid WHERE t.typelem <> 0
        UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped) inner_type)
SELECT 'type ' || pg_catalog.format('%s.%s', n.nspname, t.typname) AS item,
       CASE t.typtype
       WHEN 'e' THEN 'enum ' || (SELECT pg_catalog.string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
                                 FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid)
       WHEN 'd' THEN pg_catalog.concat_ws(', ', 'domain ' || format_type(t.typbasetype, t.typtypmod),
                CASE WHEN t.typnotnull THEN 'not null' END, 'default ' || t.typdefault,
                (SELECT pg_catalog.string_agg(pg_get_constraintdef(con.oid), ', ' ORDER BY con.conname)
                 FROM pg_catalog.pg_constraint con WHERE con.contypid = t.oid AND con.contype = 'c'))
       WHEN 'c' THEN 'composite ' || (SELECT pg_catalog.string_agg(quote_ident(a.attname) || ' '
                     || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
                FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
       ELSE 'type ' || t.typtype::text END AS description
FROM parts p JOIN pg_catalog.pg_type t ON t.oid = p.oid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND t.typcategory <> 'A'
"""

# Functions behind triggers, defaults, checks, generated columns and index expressions; not those of extensions.
FUNCTIONS = f"""
WITH used AS (
    SELECT t.tgfoid AS oid FROM pg_catalog.pg_trigger t
    WHERE t.tgrelid = ANY($1::oid[]) AND NOT t.tgisinternal
      AND NOT pg_catalog.starts_with(t.tgname::text, '{OWN_PREFIX}')
    UNION
    SELECT d.refobjid FROM pg_catalog.pg_depend d
    WHERE d.refclassid = 'pg_catalog.pg_proc'::regclass AND (
        (d.classid = 'pg_catalog.pg_attrdef'::regclass
            AND d.objid IN (SELECT a.oid FROM pg_catalog.pg_attrdef a WHERE a.adrelid = ANY($1::oid[])))
        OR (d.classid = 'pg_catalog.pg_constraint'::regclass
            AND d.objid IN (SELECT k.oid FROM pg_catalog.pg_constraint k WHERE k.conrelid = ANY($1::oid[])))
        OR (d.classid = 'pg_catalog.pg_class'::regclass
            AND (d.objid = ANY($1::oid[])
                 OR d.objid IN (SELECT i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid = ANY($1::oid[]))))))
SELECT 'function ' || p.oid::regprocedure::text AS item, pg_catalog.md5(pg_get_functiondef(p.oid)) AS description
FROM used u JOIN pg_catalog.pg_proc p ON p.oid = u.oid JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND p.prokind <> 'a'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e
                  WHERE e.classid = 'pg_catalog.pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')
"""

ALL = (TABLES, COLUMNS, CONSTRAINTS, INDEXES, TRIGGERS, POLICIES_AND_RULES, TYPES, FUNCTIONS)
