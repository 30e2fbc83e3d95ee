-- name: write_audit
-- Adds to the audit log.
insert into audit_log (actor, action, tenant, detail) values ($1, $2, nullif($3, ''), $4::text::jsonb);

-- name: read_audit
-- The newest entries of the audit log, of one tenant or before one entry when given.
select id, extract(epoch from at)::bigint, actor, action, coalesce(tenant, ''), detail::text
from audit_log
where ($1 = '' or tenant = $1) and ($2::bigint = 0 or id < $2)
order by id desc
limit $3;
