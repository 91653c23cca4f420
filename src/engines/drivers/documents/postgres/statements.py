"""What the PostgreSQL driver says to the server: the table, the statements, the function of a batch.

Owns all SQL. `{schema}` is filled in by the driver once; nothing else is ever formatted into a statement. The
function is versioned by its name, so that two releases can share a database while one replaces the other.
"""

# ruff: noqa: S608 (what is put together here are constants of this module)

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from engines.ports.documents import PAGE_BYTES, Absent, Always, Delete, Match, Put

# Raised by the function when a condition turned false after it was first read. DETAIL has the keys.
CONFLICT_SQLSTATE: Final = "YE409"
# Any number that nothing else in the database locks: provisioning runs one at a time.
_PROVISION_LOCK: Final = int.from_bytes(b"engines!", signed=True)


class Kind(NamedTuple):
    """One kind of op: its statement when it is alone, its letter when it is in a batch."""

    statement: str
    letter: str


KINDS: Final[Mapping[tuple[type, type], Kind]] = {
    (Put, Always): Kind("put", "p"),
    (Put, Absent): Kind("create", "c"),
    (Put, Match): Kind("replace", "r"),
    (Delete, Always): Kind("delete", "d"),
    (Delete, Match): Kind("delete_match", "m"),
}

# Every statement has exactly one good plan, a walk along an index. It is made once for each connection and
# does not depend on statistics, which are wrong when a partition has just been filled.
SESSION_SETTINGS: Final[Mapping[str, str]] = {
    "application_name": "engines",
    "search_path": "pg_catalog",
    "default_transaction_isolation": "read committed",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_sort": "off",
    "jit": "off",
}
# A stricter setting than `on` stays; with `off` an acknowledged write could be lost.
MAKE_DURABLE: Final = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)

_TABLE: Final = '"{schema}".documents'
_REPLACE_ROW: Final = (
    "ON CONFLICT (partition, key) DO UPDATE"
    " SET body = excluded.body, version = excluded.version, expires_at = excluded.expires_at"
)
_INSERT: Final = (
    f"INSERT INTO {_TABLE} AS d (partition, key, body, version, expires_at)"
    f" VALUES ($1, $2, $3, $4, $5) {_REPLACE_ROW}"
)
_COLUMNS: Final = "key, body, version, expires_at"


def _live(now: str) -> str:
    return f"(expires_at IS NULL OR expires_at > {now})"


def _scan(order: str) -> str:
    """Sizes are summed without reading the bodies, so that a page of large ones is cut on the server."""
    return f"""
SELECT {_COLUMNS}, reached FROM (
    SELECT {_COLUMNS}, octet_length(body) AS size,
        sum(octet_length(body)) OVER (ORDER BY key {order} ROWS UNBOUNDED PRECEDING) AS reached
    FROM (
        SELECT {_COLUMNS} FROM {_TABLE}
        WHERE partition = $1 AND key > $2 AND key < $3 AND {_live("$4")}
        ORDER BY key {order} LIMIT $5
    ) AS candidates
) AS page WHERE reached - size < {PAGE_BYTES}"""


STATEMENTS: Final[Mapping[str, str]] = {
    "get_one": f"SELECT {_COLUMNS} FROM {_TABLE} WHERE partition = $1 AND key = $2 AND {_live('$3')}",
    "get": f"SELECT {_COLUMNS} FROM {_TABLE} WHERE partition = $1 AND key = ANY($2) AND {_live('$3')}",
    "scan_up": _scan("ASC"),
    "scan_down": _scan("DESC"),
    "put": _INSERT,
    "create": f"{_INSERT} WHERE d.expires_at <= $6",
    "replace": f"UPDATE {_TABLE} SET body = $3, version = $4, expires_at = $5"
    f" WHERE partition = $1 AND key = $2 AND {_live('$6')} AND version = $7",
    "delete": f"DELETE FROM {_TABLE} WHERE partition = $1 AND key = $2",
    "delete_match": f"DELETE FROM {_TABLE}"
    f" WHERE partition = $1 AND key = $2 AND {_live('$3')} AND version = $4",
    "write": 'SELECT "{schema}".write_documents_1($1, $2, $3, $4, $5, $6, $7, $8)',
    "reclaim": f"DELETE FROM {_TABLE} WHERE expires_at <= $1 AND (partition, key) IN ("
    f"SELECT partition, key FROM {_TABLE} WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2"
    " FOR UPDATE SKIP LOCKED)",
}

# What is there: 'complete', 'missing' (some of it; the table, where there is one, is ours), 'unordered': a
# table whose keys sort by another order, or 'foreign': something of one of our names that is not ours. A
# column that somebody added to our table does no harm, as long as a row needs no value for it.
INSPECT: Final = """
WITH there AS (
    SELECT to_regclass(format('%I.documents', $1::text)) AS documents,
        to_regclass(format('%I.documents_expiry', $1::text)) AS expiry
), columns AS (
    SELECT attname, format_type(atttypid, atttypmod) AS type, attnotnull, collname,
        attnotnull AND NOT atthasdef AND attidentity = '' AS is_needed
    FROM there JOIN pg_attribute ON attrelid = documents AND attnum > 0 AND NOT attisdropped
        LEFT JOIN pg_collation ON pg_collation.oid = attcollation
), ours (attname, type, attnotnull) AS (
    VALUES ('partition', 'text', true), ('key', 'text', true), ('body', 'text', true),
        ('version', 'text', true), ('expires_at', 'bigint', false)
)
SELECT CASE
    WHEN documents IS NOT NULL AND (
        (SELECT relkind FROM pg_class WHERE oid = documents) NOT IN ('r', 'p')
        OR 5 <> (SELECT count(*) FROM columns JOIN ours USING (attname, type, attnotnull))
        OR EXISTS (SELECT FROM columns WHERE is_needed AND attname NOT IN (SELECT attname FROM ours))
        OR ARRAY['partition', 'key'] IS DISTINCT FROM (
            SELECT array_agg(attname::text ORDER BY place)
            FROM pg_constraint, unnest(conkey) WITH ORDINALITY AS part (number, place), pg_attribute
            WHERE conrelid = documents AND contype = 'p' AND attrelid = documents AND attnum = number)
    ) THEN 'foreign'
    WHEN expiry IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_index WHERE indexrelid = expiry AND indrelid = documents) THEN 'foreign'
    WHEN EXISTS (SELECT FROM columns
            WHERE attname IN ('partition', 'key') AND collname IS DISTINCT FROM 'C') THEN 'unordered'
    WHEN documents IS NULL OR expiry IS NULL
        OR NOT EXISTS (SELECT FROM pg_proc WHERE proname = 'write_documents_1'
            AND pronamespace = to_regnamespace(quote_ident($1::text))) THEN 'missing'
    ELSE 'complete'
END FROM there"""

# One transaction, one at a time. The function is given a batch in key order and takes its locks in that
# order. `kinds` has a letter for each op: p put, c create (absent), r replace (match), d delete, m delete
# (match); `matches` the version that r and m ask for. It answers NULL, or the keys whose condition was false
# when it looked, before anything was written. A condition that turns false between that look and the lock on
# its row raises, which undoes everything.
PROVISION: Final = f"""
SELECT pg_advisory_xact_lock({_PROVISION_LOCK});
CREATE SCHEMA IF NOT EXISTS "{{schema}}";
CREATE TABLE IF NOT EXISTS {_TABLE} (
    partition text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    body text NOT NULL,
    version text NOT NULL,
    expires_at bigint,
    PRIMARY KEY (partition, key)
);
CREATE INDEX IF NOT EXISTS documents_expiry ON {_TABLE} (expires_at) WHERE expires_at IS NOT NULL;
CREATE OR REPLACE FUNCTION "{{schema}}".write_documents_1(
    in_partition text, now_s bigint, kinds text, keys text[], matches text[], bodies text[], versions text[],
    expiries text[]
) RETURNS text[] LANGUAGE plpgsql AS $function$
DECLARE
    count_all CONSTANT integer := length(kinds);
    head integer := 1;
    tail integer;
    kind text;
    changed integer;
    culprits text[];
BEGIN
    IF kinds ~ '[crm]' THEN
        SELECT array_agg(o.key) INTO culprits
        FROM unnest(keys, matches, string_to_array(kinds, NULL)) AS o (key, match, kind)
        LEFT JOIN {_TABLE} AS d
            ON d.partition = in_partition AND d.key = o.key AND (d.expires_at IS NULL OR d.expires_at > now_s)
        WHERE (o.kind = 'c' AND d.key IS NOT NULL)
            OR (o.kind IN ('r', 'm') AND d.version IS DISTINCT FROM o.match);
        IF culprits IS NOT NULL THEN
            RETURN culprits;
        END IF;
    END IF;
    WHILE head <= count_all LOOP
        kind := substr(kinds, head, 1);
        tail := head;
        IF kind IN ('p', 'c') THEN
            tail := head - 1 + length(substring(substr(kinds, head) FROM '^' || kind || '+'));
            INSERT INTO {_TABLE} AS d (partition, key, body, version, expires_at)
            SELECT in_partition, o.key, o.body, o.version, o.expiry::bigint
            FROM unnest(keys[head:tail], bodies[head:tail], versions[head:tail], expiries[head:tail])
                WITH ORDINALITY AS o (key, body, version, expiry, place)
            ORDER BY o.place
            {_REPLACE_ROW} WHERE kind = 'p' OR d.expires_at <= now_s;
        ELSIF kind = 'r' THEN
            UPDATE {_TABLE} AS d
            SET body = bodies[head], version = versions[head], expires_at = expiries[head]::bigint
            WHERE d.partition = in_partition AND d.key = keys[head] AND d.version = matches[head]
                AND (d.expires_at IS NULL OR d.expires_at > now_s);
        ELSE
            DELETE FROM {_TABLE} AS d
            WHERE d.partition = in_partition AND d.key = keys[head] AND (kind = 'd'
                OR (d.version = matches[head] AND (d.expires_at IS NULL OR d.expires_at > now_s)));
        END IF;
        GET DIAGNOSTICS changed = ROW_COUNT;
        IF kind <> 'd' AND changed <> tail - head + 1 THEN
            culprits := keys[head:tail];
            IF tail > head THEN -- a run of puts: the culprits are those of its rows that are not ours
                SELECT array_agg(d.key) INTO culprits FROM {_TABLE} AS d
                WHERE d.partition = in_partition AND d.key = ANY (keys[head:tail])
                    AND d.xmin <> pg_current_xact_id()::xid;
            END IF;
            IF culprits IS NULL THEN -- gone again already: nobody is to blame any more
                RAISE EXCEPTION USING ERRCODE = 'serialization_failure';
            END IF;
            RAISE EXCEPTION USING ERRCODE = '{CONFLICT_SQLSTATE}', MESSAGE = 'a condition did not hold',
                DETAIL = array_to_string(culprits, ' ');
        END IF;
        head := tail + 1;
    END LOOP;
    RETURN NULL;
END
$function$;
"""
