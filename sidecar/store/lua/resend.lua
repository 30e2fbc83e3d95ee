-- resend: the ledger was restored from a backup; mark windows that it may lack as dirty, whatever it had of them.
-- KEYS[1] {tag}epoch  KEYS[2] {tag}dirty
-- ARGV[2] msgpack list of {tenant, member}, some windows of the shard
-- Returns how many of them are still there.

load_generation()
local version -- raised only when something is marked with it, or the watermark would never reach it
local marked = 0
for _, window in ipairs(cmsgpack.unpack(ARGV[2])) do
  local tenant, member = window[1], window[2]
  local key = window_key(escaped(tenant), member)
  if redis.call('EXISTS', key) == 1 then
    version = version or integer(redis.call('HINCRBY', epoch_key, 'version', 1))
    redis.call('HSET', key, 'v', version)
    -- A mark that stands keeps its version: the watermark must not pass what the ledger does not have.
    redis.call('ZADD', KEYS[2], 'NX', version, tenant .. '\0' .. member)
    redis.call('PERSIST', key)
    marked = marked + 1
  end
end
return marked
