#!/bin/sh
# Temporal's two databases and their schemas, made or brought up to date; connection by SQL_* of the environment.
set -eu

prepare() {
  database=$1 schema=$2
  # It may be there already; whether all is well is told by the steps that follow, each of which may be repeated.
  temporal-sql-tool --db "$database" create || echo "$database: not made now"
  temporal-sql-tool --db "$database" setup-schema -v 0.0
  temporal-sql-tool --db "$database" update-schema --schema-name "$schema"
}

prepare temporal postgresql/v12/temporal
prepare temporal_visibility postgresql/v12/visibility
