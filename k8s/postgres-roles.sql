-- Roles of Postgres for this program. An administrator runs this once, connected to the still empty database, before the
-- first `sidecar migrate`. Then each login gets its password, in psql with `\password quota_flusher`, which sends a hash.
-- docs/ledger.md says what each group may do.

-- Groups: they own nothing and cannot log in. What they may do comes with `sidecar migrate`.
create role sidecar_admin nologin;
create role sidecar_flusher nologin;
create role sidecar_control nologin;
create role sidecar_tenant nologin;

-- Owns the schema. Nothing but `sidecar migrate` logs in as it.
create role quota_migrator login in role sidecar_admin;
grant create on schema public to quota_migrator;

-- One login for each part, in SIDECAR_POSTGRES_DSN of its deployment. The role authz has none.
create role quota_flusher login in role sidecar_flusher;
create role quota_control login in role sidecar_control;

-- For people who run `sidecar verify`, `sidecar flush` and `sidecar stripe reconcile`.
create role quota_operator login in role sidecar_admin;
