-- name: store_event
-- Keeps a received event, unless it was received before, and says whether it is new.
insert into webhook_events (id, kind, object, customer, thin, made, state, handled)
values ($1, $2, $3, $4, $5, to_timestamp($6::bigint), $7, case when $7 = 'handled' then ledger_now() end)
on conflict (id) do nothing
returning true;

-- name: lock_event_claims
-- Lets one claim happen at a time, so that two processes never take events of one object.
select pg_advisory_xact_lock(hashtext('webhook_events.claim'));

-- name: claim_events
-- Takes every due event of the objects whose events wait longest; whoever does not finish in time loses them to the next.
with due as (
    select object, min(next_try) as first from webhook_events
    where state = 'waiting' and next_try <= now()
    group by object order by first limit $1
), taken as (
    select e.id from webhook_events as e join due on due.object = e.object
    where e.state = 'waiting' and e.next_try <= now()
    order by e.id
    limit $2
    for update of e skip locked
)
update webhook_events as e
set tries = e.tries + 1, next_try = now() + make_interval(secs => $3::int)
from taken
where e.id = taken.id
returning e.id, e.kind, e.object, e.customer, e.thin, extract(epoch from e.made)::bigint, e.tries;

-- name: finish_events
-- Notes that events are dealt with; a word says what became of them when that was not the usual.
update webhook_events set state = 'handled', handled = ledger_now(), problem = $2
where id = any($1::text[]) and state = 'waiting';

-- name: fail_events
-- Puts events back for a later try, or among the dead letters; a failure that was nobody's fault does not count as a try.
update webhook_events
set problem = $2, tries = tries - case when $3::boolean then 1 else 0 end,
    next_try = now() + make_interval(secs => $4::int),
    state = case when not $3::boolean and tries >= $5::int then 'dead' else 'waiting' end
where id = any($1::text[]) and state = 'waiting'
returning id, state;

-- name: replay_event
-- Puts an event in line again, whatever became of it, and says whether there is one.
update webhook_events set state = 'waiting', tries = 0, next_try = now(), handled = null, problem = ''
where id = $1
returning id;

-- name: replay_dead_events
-- Puts all dead letters in line again.
update webhook_events set state = 'waiting', tries = 0, next_try = now(), problem = '' where state = 'dead' returning id;

-- name: webhook_events
-- Received events, the newest first; only those in one state when given.
select id, kind, object, extract(epoch from made)::bigint, extract(epoch from received)::bigint,
    coalesce(extract(epoch from handled)::bigint, 0), state, tries, problem
from webhook_events
where $1 = '' or state = $1
order by received desc, id
limit $2;

-- name: webhook_backlog
-- How many events wait, how long the oldest has (s), and how many dead letters there are.
select (select count(*) from webhook_events where state = 'waiting'),
    (select coalesce(greatest(0, extract(epoch from ledger_now() - min(received)))::bigint, 0)
     from webhook_events where state = 'waiting'),
    (select count(*) from webhook_events where state = 'dead');

-- name: drop_old_events
-- Forgets what was dealt with long ago: Stripe repeats an event for three days.
delete from webhook_events where state = 'handled' and handled < ledger_now() - interval '30 days';

-- name: event_told
-- Whether an event of the same occurrence was dealt with before.
select true from webhook_events where object = $1 and kind = $2 and made = to_timestamp($3::bigint) and state = 'handled' limit 1;
