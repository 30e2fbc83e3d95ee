-- A ledger that was restored from a backup has forgotten revisions, of which some may still be on their way to Redis. The
-- flusher, which finds that out, gives every tenant one beyond all of them.
grant update on sequence revisions to sidecar_flusher, sidecar_admin;
