#!/bin/bash
# Initialises the data directory on the first start, then serves as the
# unprivileged user.
set -e

if [ "$1" = "postgres" ] && [ "$(id -u)" = "0" ]; then
	mkdir -p "$PGDATA" /var/run/postgresql
	chown -R postgres:postgres "$PGDATA" /var/run/postgresql
	chmod 700 "$PGDATA"
	exec gosu postgres "$0" "$@"
fi

if [ "$1" = "postgres" ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
	initdb --username=postgres --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:-postgres}") --auth-host=scram-sha-256 >/dev/null
	echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
	echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
	pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
	createdb --username=postgres "${POSTGRES_DB:-app}"
	pg_ctl -D "$PGDATA" -m fast -w stop
fi

exec "$@"
