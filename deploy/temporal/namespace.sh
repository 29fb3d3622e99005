#!/bin/sh
# The namespace `default`, if it is not there. `cutover setup` sets its retention and search attributes.
set -eu
if temporal operator namespace describe --namespace default >/dev/null 2>&1; then
  echo "namespace default exists"
else
  temporal operator namespace create --namespace default --retention 90d
fi
