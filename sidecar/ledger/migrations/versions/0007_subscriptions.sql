-- Customers, subscriptions, invoices and received events as Stripe has them.
select;
