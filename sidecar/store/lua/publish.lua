-- publish: tenants' snapshots, each together with what its limits have used so far, in one step (docs/protocol.md).
-- KEYS[1] {tag}epoch  KEYS[2..] {tag}tenant:<tenant>
-- ARGV[2] msgpack list of {tenant, revision, limits, generation, first direct hour, older, version, pass}  ARGV[3..] snapshots
--   older {id, start, units, end_ms, ...}: the ledger's totals of windows before the first direct hour, per limit and period
--   version: all changes up to it are in those totals; pass: the number of the ledger pass that read them
-- A limit's `spent` becomes that total + the sum of the windows here, never an absolute total alone.
-- Returns for each tenant the revision that stands now; a newer one than was given stood already, and nothing was done.
-- -1: generation or first direct hour have changed; -2: a window of the tenant that only those totals can speak for
-- changed after them, or a later pass has told what another server counted, as when this message is late. Nothing was
-- done: read the ledger again.

load_generation()

local function publish(message, tenant_key, snapshot)
  local tenant, revision, limits, older = message[1], message[2], message[3], message[6]
  if message[4] ~= generation.gen or message[5] ~= first_direct_hour() then return -1 end

  local found = redis.call('HMGET', tenant_key, 'rev', 'aged', 'lim', 'pass')
  local own_revision = tonumber(found[1]) or -1
  if (tonumber(found[2]) or 0) > message[7] or (tonumber(found[4]) or 0) > message[8] then return -2 end
  if own_revision > revision then return own_revision end
  redis.call('HSET', tenant_key, 'rev', integer(revision), 'doc', snapshot, 'lim', cmsgpack.pack(limits),
    'pass', integer(message[8]))
  redis.call('HDEL', tenant_key, 'introduced')
  redis.call('PERSIST', tenant_key)

  local place, of_key, ends, sums = escaped(tenant), {}, {}, {}
  local by_name = {}
  for _, limit in ipairs(limits) do by_name[limit[1]] = limit end
  local former = {} -- limits whose period becomes another
  for _, limit in ipairs(found[3] and cmsgpack.unpack(found[3]) or {}) do
    local following = by_name[limit[1]]
    if following and following[3] ~= limit[3] then former[#former + 1] = limit end
  end
  for position = 1, #older, 4 do
    local key = limit_key(place, older[position], older[position + 1])
    sums[key] = older[position + 2]
    ends[key] = older[position + 3]
    of_key[key] = by_name[string.match(older[position], '^[^:]*')]
  end
  local members = redis.call('ZRANGEBYSCORE', windows_key(place), integer(first_direct_hour()), '+inf')
  for _, member in ipairs(members) do
    local series, period, hour = string.match(member, '^(.*):(%-?%d+):(%-?%d+)$')
    local total = tonumber(redis.call('HGET', window_key(place, member), 't')) or 0
    each_fed(limits, series, tonumber(period), tonumber(hour), function(limit, id, start)
      local key = limit_key(place, id, start)
      sums[key] = (sums[key] or 0) + total
      of_key[key] = limit
      ends[key] = ends[key] or (longest_ttl(limit[3]) and now + longest_ttl(limit[3]) or 1e15)
    end)
    -- Two periods that begin together have one key: what only the former one counted there is none of the other's.
    each_fed(former, series, tonumber(period), tonumber(hour), function(limit, id, start)
      local key, following = limit_key(place, id, start), by_name[limit[1]]
      if not sums[key] and start > 0 and period_start(following[3], start, start / 3600) == start then
        -- Any time may begin a billing period. Most begin none, and nobody will look at what is there.
        local begun = following[3] ~= 'billing' or start == tonumber(period)
        sums[key], of_key[key] = 0, following
        ends[key] = begun and now + longest_ttl(following[3]) or now
      end
    end)
  end

  for key, units in pairs(sums) do
    local ttl = ends[key] + LIMIT_KEPT_MS - now
    local limit = of_key[key]
    if ttl > 0 then
      local kept = read_limit(key)
      open_limit(kept, limit and limit[2], nil)
      kept[SPENT], kept[COUNTS] = units, true
      if limit and limit[5] >= 0 then
        if units <= limit[5] then
          redis.call('HDEL', key, 'over')
        elseif not kept[OVER] then
          redis.call('HSET', key, 'over', integer(now))
        end
      end
      if ends[key] < 1e15 then kept[TTL_MS] = ttl end
      write_limit(kept)
    end
  end
  return revision
end

local standing = {}
for index, message in ipairs(cmsgpack.unpack(ARGV[2])) do
  standing[index] = publish(message, KEYS[index + 1], ARGV[index + 2])
end
return standing
