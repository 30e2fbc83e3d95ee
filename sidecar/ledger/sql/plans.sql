-- name: lock_tenants
-- Keeps every other change of tenants and catalogue out until the transaction ends; reading goes on.
lock table tenants in share row exclusive mode;

-- name: write_plan_version
-- Puts a catalogue in force.
insert into plan_versions (revision, document, summary, actor)
select coalesce(max(revision), 0) + 1, $1, $2::text::jsonb, $3 from plan_versions;

-- name: touch_all_tenants
-- Raises every tenant's revision.
update tenants set rev = nextval('revisions');

-- name: plan_versions
-- Catalogue versions, the newest first; one of them when its revision is given, else those before a revision when that is.
select revision, document, summary::text, actor, extract(epoch from created)::bigint, projected
from plan_versions
where ($1::bigint = 0 or revision = $1) and ($2::bigint = 0 or revision < $2)
order by revision desc
limit $3;

-- name: current_revision
-- The catalogue revision in force; null before the first.
select max(revision) from plan_versions;

-- name: catalogue_in_force
-- The catalogue revision in force, and when it was written (us); none before the first.
select revision, (extract(epoch from created) * 1000000)::bigint from plan_versions order by revision desc limit 1;

-- name: mark_plan_version_projected
-- Records that Redis has a catalogue revision, or a newer one.
update plan_versions set projected = true where revision <= $1 and not projected;
