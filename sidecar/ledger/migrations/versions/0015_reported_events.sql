-- Stripe answers with success before it looks at an event. Whoever records that answer after the report that the event did
-- not count (its process stood still, or the answer to its first commit was lost) must not take it for the last word.
alter table stripe_outbox add column reported timestamptz;
comment on column stripe_outbox.reported is 'When an error report told of this identifier, or may have: an answer of before says nothing any more.';
grant update (reported) on stripe_outbox to sidecar_control;
