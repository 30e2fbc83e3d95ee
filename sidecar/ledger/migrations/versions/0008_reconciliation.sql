-- What the comparison of ledger and Stripe found.
select;
