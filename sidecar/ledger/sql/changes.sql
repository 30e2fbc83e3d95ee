-- name: begin_billing_change
-- Takes a tenant for one change of its billing, unless another one is under way, and says whether it did.
insert into billing_changes as c (tenant, ends) values ($1, now() + make_interval(secs => $2::int))
on conflict (tenant) do update set ends = excluded.ends where c.ends <= now()
returning true;

-- name: end_billing_change
-- Frees a tenant for the next change; what is still to be finished stays noted.
with freed as (
    delete from billing_changes where tenant = $1 and work is null
)
update billing_changes set ends = now() where tenant = $1 and work is not null;

-- name: write_intention
-- Notes what a change is about to do.
update billing_changes set work = $2::text::jsonb, begun = now(), tries = 0, next_try = now(), problem = ''
where tenant = $1 and work is null
returning true;

-- name: intention_of
-- What is still to be finished of a tenant's last change, since when, how often it was tried and what was wrong last.
select work::text, extract(epoch from begun)::bigint, extract(epoch from now() - begun)::bigint, tries, problem
from billing_changes where tenant = $1 and work is not null;

-- name: finish_intention
-- Notes that a change is done.
update billing_changes set work = null where tenant = $1 and work ->> 'id' = $2;

-- name: intention_failed
-- Notes why a change could not be finished yet, and when it is tried again.
update billing_changes set tries = tries + 1, problem = $3, next_try = now() + make_interval(secs => $4::int)
where tenant = $1 and work ->> 'id' = $2;

-- name: unfinished_changes
-- Tenants whose last change is to be finished by whoever is free.
select tenant from billing_changes where work is not null and ends <= now() and next_try <= now()
order by next_try limit $1;

-- name: unfinished_count
-- How many changes are still to be finished.
select count(*) from billing_changes where work is not null and ends <= now();

-- name: ask_for_flush
-- Asks whoever sends usage to send a tenant's now; forgets what nobody asks for any more.
with old as (
    delete from flush_requests where asked < now() - interval '10 minutes'
)
insert into flush_requests (tenant) values ($1) returning id;

-- name: take_flush
-- Takes the request that waits longest; whoever does not answer in time loses it to the next. Nobody waits for older ones.
update flush_requests set taken = now()
where id = (
    select id from flush_requests
    where remaining is null and (taken is null or taken < now() - make_interval(secs => $1::int))
        and asked > now() - make_interval(secs => $2::int)
    order by asked limit 1
    for update skip locked
)
returning id, tenant;

-- name: answer_flush
-- Answers a request.
update flush_requests set remaining = $2 where id = $1::uuid;

-- name: flush_answered
-- Whether a request was taken, and what was left when it was answered.
select taken is not null, remaining from flush_requests where id = $1::uuid;

-- name: forget_flush
-- Forgets a request.
delete from flush_requests where id = $1::uuid;
