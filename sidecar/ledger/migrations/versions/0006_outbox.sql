-- The outbox grows lanes, fates and the means to settle what is in doubt.
select;
