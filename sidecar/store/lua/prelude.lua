-- prelude: what every script of a shard shares; the loader puts it in front of each of them.
--
-- KEYS[1] is always {tag}epoch, a hash:
--   gen, replid, state (held | open), since, open_at (ms), base (hour): the generation (docs/protocol.md)
--   version: counts window changes     watermark: all changes up to it are in the ledger
--   epoch, intent: ledger passes done / announced     reclaimed: lease units taken back from silent writers
--   direct: the first hour whose windows move `spent` as they arrive
--   seen: the server's time at the last call; skew: how far its jumps have taken it from steady time
-- ARGV[1] is always msgpack {tag, clock offset in ms, fresh generation id}; the offset is 0 outside `sidecar dev`.
-- Periods, hours and expiries follow `now`, which that offset moves; silence and holds follow `real`, a steady time that
-- stands still while the server's clock jumps: a jump neither makes a writer look silent nor ends a hold.
--
-- Windows of the last HOURS_DIRECT hours move `spent` as they arrive. Older ones do so provisionally and are set right
-- through the ledger and a rebuild, because their hash may have expired and what was known of them with it.

local HOURS_DIRECT = 47
local HOURS_RESTORED = 2
local HOUR_MS = 3600000
local DAY_MS = 86400000
local WINDOW_TTL_MS = 40 * DAY_MS
local WRITER_TTL_MS = 40 * DAY_MS
local LIMIT_KEPT_MS = DAY_MS

local context = cmsgpack.unpack(ARGV[1])
local tag, offset, fresh = context[1], context[2], context[3]
local epoch_key = KEYS[1]

local server_time = redis.call('TIME')
local server_ms = tonumber(server_time[1]) * 1000 + math.floor(tonumber(server_time[2]) / 1000)
local real = server_ms -- less the skew, once it is known
local now = server_ms + offset
local JUMP_MS = 10000
local this_hour = math.floor(now / HOUR_MS)

local function integer(value)
  return string.format('%.0f', value)
end

local generation = {}

local function start_generation(replid)
  generation = { gen = fresh, state = 'held', since = real, open_at = 0, base = this_hour - HOURS_RESTORED }
  generation.direct = generation.base
  redis.call('HSET', epoch_key, 'gen', fresh, 'replid', replid, 'state', 'held', 'since', integer(real),
    'open_at', '0', 'base', integer(generation.base), 'seen', integer(server_ms), 'direct', integer(generation.base))
end

-- The generation of this data set; a new one when there is none or the replication id says that another server serves it.
local function load_generation()
  local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or 'none'
  local found = redis.call('HMGET', epoch_key, 'gen', 'replid', 'state', 'since', 'open_at', 'base', 'seen', 'skew', 'direct')
  local seen, skew = tonumber(found[7]), tonumber(found[8]) or 0
  if seen then
    local elapsed = server_ms - seen
    if elapsed > JUMP_MS or elapsed < -1000 then
      skew = skew + elapsed
      redis.call('HSET', epoch_key, 'skew', integer(skew))
    end
    if elapsed ~= 0 then redis.call('HSET', epoch_key, 'seen', integer(server_ms)) end
    real = server_ms - skew
  end
  if not found[1] or found[2] ~= replid then
    start_generation(replid)
  else
    generation = { gen = found[1], state = found[3], since = tonumber(found[4]), open_at = tonumber(found[5]),
      base = tonumber(found[6]), direct = tonumber(found[9]) }
    if this_hour - HOURS_DIRECT > generation.direct then
      generation.direct = this_hour - HOURS_DIRECT
      redis.call('HSET', epoch_key, 'direct', integer(generation.direct))
    end
  end
  generation.replid = replid
end

local function granting()
  return generation.state == 'open' and real >= generation.open_at
end

-- Writers that have been silent for longer than reclaim_after, a bounded number.
local function silent_writers(writers_key, reclaim_after, most)
  return redis.call('ZRANGEBYSCORE', writers_key, '-inf', integer(real - reclaim_after), 'LIMIT', 0, most)
end

local function is_silent(writers_key, writer, reclaim_after)
  return (tonumber(redis.call('ZSCORE', writers_key, writer)) or 0) <= real - reclaim_after
end

-- Never lower than it was in this generation: what lay below may have been trimmed, even if the clock was wrong then.
local function first_direct_hour()
  return generation.direct
end

-- First second of the UTC month that contains the given second (days_from_civil, proleptic Gregorian).
local function month_start(second)
  local days = math.floor(second / 86400) + 719468
  local era = math.floor(days / 146097)
  local doe = days - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day_of_month = doy - math.floor((153 * mp + 2) / 5)
  return (math.floor(second / 86400) - day_of_month) * 86400
end

local function period_start(kind, period, hour)
  local second = hour * 3600
  if kind == 'hour' then return second end
  if kind == 'day' then return second - second % 86400 end
  if kind == 'month' then return month_start(second) end
  if kind == 'billing' then return period end
  return 0
end

-- Calls visit(limit, id, start) for every limit of a snapshot whose period contains the window.
-- A limit is {name, metric, kind, scoped, included, stop}; included and stop are -1 when there is none.
local function each_fed(limits, series, period, hour, visit)
  local metric, scope = series, nil
  local at = string.find(series, '@', 1, true)
  if at then
    metric = string.sub(series, 1, at - 1)
    scope = string.sub(series, at + 1)
  end
  for _, limit in ipairs(limits) do
    local kind = limit[3]
    if limit[2] == metric and kind ~= 'second' and kind ~= 'minute' then
      if scope and limit[4] and string.sub(scope, 1, #limit[1] + 1) == limit[1] .. ':' then
        visit(limit, scope, period_start(kind, period, hour))
      elseif not scope and not limit[4] then
        visit(limit, limit[1], period_start(kind, period, hour))
      end
    end
  end
end

-- A tenant as part of a key: with its colons escaped, or tenant "a:b" could name a key of tenant "a" (store/keys.py).
local function escaped(tenant)
  if not string.find(tenant, '[%%:]') then return tenant end
  return (string.gsub(tenant, '[%%:]', { ['%'] = '%25', [':'] = '%3A' }))
end

local function limit_key(tenant, id, start)
  return tag .. 'limit:' .. escaped(tenant) .. ':' .. id .. ':' .. integer(start)
end

local function window_key(tenant, member)
  return tag .. 'window:' .. escaped(tenant) .. ':' .. member
end

local function windows_key(tenant)
  return tag .. 'windows:' .. escaped(tenant)
end

-- Opens a limit's hash in this generation: what an earlier one left is dropped, its leases are reported anew. So is
-- what was spent of another metric before the limit changed; metric nil: the caller does not know it.
-- ttl_ms nil leaves the expiry to a caller that knows the period's end.
local function open_limit(key, metric, ttl_ms)
  local found = redis.call('HMGET', key, 'g', 'm')
  if found[1] ~= generation.gen or (metric and found[2] and found[2] ~= metric) then
    redis.call('DEL', key)
    redis.call('HSET', key, 'g', generation.gen)
    found[2] = nil
    if ttl_ms then redis.call('PEXPIRE', key, integer(ttl_ms)) end
  end
  if metric and not found[2] then redis.call('HSET', key, 'm', metric) end
end

-- How long a limit's hash lives that is first seen through a window, when its period's end is not at hand.
local function longest_ttl(kind)
  if kind == 'hour' then return 2 * DAY_MS end
  if kind == 'day' then return 3 * DAY_MS end
  if kind == 'lifetime' then return nil end
  return 400 * DAY_MS
end

local function spend(tenant, limit, id, start, units)
  local key = limit_key(tenant, id, start)
  open_limit(key, limit[2], longest_ttl(limit[3]))
  local spent = redis.call('HINCRBY', key, 'spent', integer(units))
  if limit[5] >= 0 and spent > limit[5] then redis.call('HSETNX', key, 'over', integer(now)) end
end

-- Merges one writer's cumulative value into a window with max; returns the growth, the window's key and its member.
-- next_version gives the version to note for a change; nil where a merge is no news to the ledger.
local function merge_window(tenant, series, period, hour, writer, value, next_version)
  local member = series .. ':' .. integer(period) .. ':' .. integer(hour)
  local key = window_key(tenant, member)
  local known = redis.call('HMGET', key, writer, 't')
  local growth = value - (tonumber(known[1]) or 0)
  if growth <= 0 then return 0, key, member end
  local total = integer((tonumber(known[2]) or 0) + growth)
  if next_version then
    redis.call('HSET', key, writer, integer(value), 't', total, 'v', integer(next_version()))
  else
    redis.call('HSET', key, writer, integer(value), 't', total)
  end
  if not known[2] then
    local index = windows_key(tenant)
    redis.call('PEXPIRE', key, integer(WINDOW_TTL_MS))
    redis.call('ZADD', index, integer(hour), member)
    redis.call('PEXPIRE', index, integer(WINDOW_TTL_MS))
    -- What only the ledger answers for is looked up there; a new window is as good a time to drop it as any.
    redis.call('ZREMRANGEBYSCORE', index, '-inf', '(' .. integer(math.min(hour, first_direct_hour())))
  end
  return growth, key, member
end

-- held_key nil: the lease is of a limit of a second or a minute, which nothing but its period ends.
local function set_lease(key, writer, held_key, from, to)
  if to == from then return end
  redis.call('HINCRBY', key, 'held', integer(to - from))
  if to > 0 then
    redis.call('HSET', key, 'l:' .. writer, integer(to))
    if from <= 0 then
      redis.call('HINCRBY', key, 'n', 1)
      if held_key then redis.call('SADD', held_key, key) end -- never expires before its leases: retire empties it
    end
  else
    redis.call('HDEL', key, 'l:' .. writer)
    redis.call('HINCRBY', key, 'n', -1)
    if held_key then redis.call('SREM', held_key, key) end
  end
end
