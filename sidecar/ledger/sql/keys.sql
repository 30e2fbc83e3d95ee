-- name: write_key
-- Keeps a new API key, if its tenant exists.
insert into api_keys (sha256, tenant, name, prefix, shard)
select $1, id, $3, $4, $5 from tenants where id = $2
returning sha256;

-- name: keys_by_hash
-- API keys by their hashes.
select sha256, tenant, name, prefix, extract(epoch from created)::bigint,
    coalesce(extract(epoch from revoked_at)::bigint, 0), rev, projected_rev
from api_keys where sha256 = any($1::text[]) order by rev;

-- name: key_hashes_like
-- Hashes of keys that start with what is given, two at most.
select sha256 from api_keys where sha256 >= $1 and sha256 < $1 || 'g' limit 2;

-- name: key_hashes_of_tenant
-- Hashes of a tenant's keys.
select sha256 from api_keys where tenant = $1;

-- name: keys_pending
-- Hashes of a shard's keys that changed since they were projected.
select sha256 from api_keys where shard = $1 and rev > projected_rev order by rev limit $2;

-- name: revoke_key
-- Revokes a key that is not revoked yet.
update api_keys set revoked_at = ledger_now(), rev = nextval('revisions')
where sha256 = $1 and revoked_at is null
returning sha256;

-- name: mark_keys_projected
-- Records the revisions of keys that Redis has.
update api_keys as k set projected_rev = p.rev
from unnest($1::text[], $2::bigint[]) as p (sha256, rev)
where k.sha256 = p.sha256 collate "C" and k.projected_rev < p.rev;

-- name: forget_keys_projected
-- Makes every API key of a shard pending: Redis lost what was projected.
update api_keys set projected_rev = 0 where shard = $1;
