-- Of two rows of one minute and amount Stripe counted one, and its sum does not tell which. When one of them was sent again
-- because the sum was explained with the other, that one must not be sent again as well because a report names it.
alter table stripe_outbox add column summed boolean not null default false;
comment on column stripe_outbox.summed is
    'Whether another row was sent again because a sum of Stripe''s was explained with this one: then only sums tell more of it.';
grant update (summed) on stripe_outbox to sidecar_control;
