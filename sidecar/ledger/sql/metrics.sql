-- name: metrics_known
-- The newest catalogue revision whose metrics are known, and the newest there is.
select i.metrics_known, (select coalesce(max(revision), 0) from plan_versions) from installation as i;

-- name: catalogues_since
-- Catalogue versions after a revision, the oldest first.
select revision, document from plan_versions where revision > $1 order by revision;

-- name: know_metrics
-- Keeps the metrics of catalogue revisions; what a newer revision said of one stays.
insert into metrics as m (metric, kind, scale, revision)
select n.metric, n.kind, n.scale, n.revision from unnest($1::text[], $2::text[], $3::int[], $4::bigint[])
    as n (metric, kind, scale, revision)
order by n.metric
on conflict (metric) do update set kind = excluded.kind, scale = excluded.scale, revision = excluded.revision
    where m.revision < excluded.revision;

-- name: metrics_known_until
-- Records up to which catalogue revision metrics are known.
update installation set metrics_known = $1 where metrics_known < $1;

-- name: metrics
-- Every metric that a catalogue ever had, as the newest of them had it.
select metric, kind, scale, revision from metrics order by metric;

-- name: metrics_left_behind
-- Metrics that are in no catalogue any more, of which nothing is open: what was counted while they were is decided and delivered.
select m.metric from metrics as m join plan_versions as v on v.revision = m.revision + 1
where m.metric = any($1::text[]) and ledger_now() > v.created + interval '1 hour'
    and not exists (select from shards as s where s.touched_from <= v.created)
    and not exists (
        select from stripe_outbox as o where o.metric = m.metric and o.state in ('waiting', 'sending', 'in_doubt', 'parked'));
