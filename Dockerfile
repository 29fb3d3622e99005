# syntax=docker/dockerfile:1
# The worker and the command line: `docker run … worker`, `docker run … setup`, or any other command of `cutover`.
FROM python:3.12-slim-trixie AS packages
COPY requirements/runtime.txt /tmp/runtime.txt
RUN python -m venv /opt/cutover \
 && /opt/cutover/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/runtime.txt

FROM python:3.12-slim-trixie
# pg_dump and pg_restore must not be older than the newest server, and Debian's own may be: from PostgreSQL's archive.
ARG POSTGRES_MAJOR=18
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates postgresql-common \
 && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y \
 && apt-get install -y --no-install-recommends "postgresql-client-${POSTGRES_MAJOR}" \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/cutover --shell /usr/sbin/nologin cutover \
 && install -d -o cutover -g cutover /var/lib/cutover /var/lib/cutover/archive

COPY --from=packages /opt/cutover /opt/cutover
COPY cutover /opt/cutover/app/cutover
COPY activities /opt/cutover/app/activities
COPY workflows /opt/cutover/app/workflows
COPY workers /opt/cutover/app/workers
RUN printf '#!/opt/cutover/bin/python\nimport sys\n\nfrom cutover.cli.main import main\n\nsys.exit(main())\n' \
      > /opt/cutover/bin/cutover \
 && chmod 0755 /opt/cutover/bin/cutover

ENV PATH=/opt/cutover/bin:$PATH \
    PYTHONPATH=/opt/cutover/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/cutover
USER 10001:10001
ENTRYPOINT ["cutover"]
CMD ["worker"]
