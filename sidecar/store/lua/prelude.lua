-- prelude: what every script of a shard shares; the loader puts it in front of each of them.
--
-- KEYS[1] is always {tag}epoch, a hash:
--   gen, replid, state (held | open), since, open_at (ms), base (hour): the generation (docs/protocol.md)
--   version: counts window changes     watermark: all changes up to it are in the ledger
--   epoch, intent: ledger passes done / announced     lost: lease units taken back from silent writers;
--   {tag}reclaimed has them by generation
--   direct: the first hour whose windows move `spent` as they arrive
--   seen: the server's time at the last call; skew: how far its jumps have taken it from steady time
-- ARGV[1] is always msgpack {tag, clock offset in ms, call id}; the offset is 0 outside `sidecar dev`.
-- A generation is named after the call that found its state lost, and the microsecond: of a call that is repeated the
-- second copy may come after the state was lost once more.
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
local tag, offset, call_id = context[1], context[2], context[3]
local epoch_key = KEYS[1]

local server_time = redis.call('TIME')
local server_ms = tonumber(server_time[1]) * 1000 + math.floor(tonumber(server_time[2]) / 1000)
local real = server_ms -- less the skew, once it is known
local now = server_ms + offset
local JUMP_MS = 10000
local this_hour = math.floor(now / HOUR_MS)

local texts = {} -- many limits of a message have the same start, end and units

local function integer(value)
  local text = texts[value]
  if not text then
    text = string.format('%.0f', value)
    texts[value] = text
  end
  return text
end

local generation = {}

local function start_generation(replid)
  local fresh = string.format('%s-%s%06.0f', call_id, server_time[1], tonumber(server_time[2]))
  generation = { gen = fresh, state = 'held', since = real, open_at = 0, base = this_hour - HOURS_RESTORED }
  generation.direct = generation.base
  redis.call('HSET', epoch_key, 'gen', fresh, 'replid', replid, 'state', 'held', 'since', integer(real),
    'open_at', '0', 'base', integer(generation.base), 'seen', integer(server_ms), 'direct', integer(generation.base))
end

-- The generation of this data set; a new one when there is none or the replication id says that another server serves it.
-- Returns watermark and version, which are read on the way.
local function load_generation()
  local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or 'none'
  local found = redis.call('HMGET', epoch_key, 'gen', 'replid', 'state', 'since', 'open_at', 'base', 'seen', 'skew', 'direct',
    'watermark', 'version')
  local seen, skew = tonumber(found[7]), tonumber(found[8]) or 0
  if seen then
    local elapsed = server_ms - seen
    if elapsed > JUMP_MS or elapsed < -1000 then
      skew = skew + elapsed
      redis.call('HSET', epoch_key, 'skew', skew)
    end
    if elapsed ~= 0 then redis.call('HSET', epoch_key, 'seen', server_ms) end
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
  return tonumber(found[10]) or 0, tonumber(found[11]) or 0
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

-- Units that a silent writer still held are lent again. By generation, which no two servers share: who reads both sides of
-- a split brain, or an older copy, knows each unit from every other.
local function count_reclaimed(units)
  redis.call('HINCRBY', epoch_key, 'lost', integer(units))
  redis.call('HINCRBY', tag .. 'reclaimed', generation.gen, integer(units))
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

local months = {} -- the start of the month by hour: most windows of a message are of one hour

local function period_start(kind, period, hour)
  local second = hour * 3600
  if kind == 'hour' then return second end
  if kind == 'day' then return second - second % 86400 end
  if kind == 'month' then
    months[hour] = months[hour] or month_start(second)
    return months[hour]
  end
  if kind == 'billing' then return period end
  return 0
end

-- Calls visit(limit, id, start, units) for every limit of a snapshot whose period contains the window.
-- A limit is {name, metric, kind, scoped, included, stop}; included and stop are -1 when there is none.
local function each_fed(limits, series, period, hour, visit, units)
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
        visit(limit, scope, period_start(kind, period, hour), units)
      elseif not scope and not limit[4] then
        visit(limit, limit[1], period_start(kind, period, hour), units)
      end
    end
  end
end

-- A tenant as part of a key: with its colons escaped, or tenant "a:b" could name a key of tenant "a" (store/keys.py).
local function escaped(tenant)
  if not string.find(tenant, '[%%:]') then return tenant end
  return (string.gsub(tenant, '[%%:]', { ['%'] = '%25', [':'] = '%3A' }))
end

-- Of the following `place` is the tenant escaped.

local function limit_key(place, id, start)
  return tag .. 'limit:' .. place .. ':' .. id .. ':' .. integer(start)
end

local function window_key(place, member)
  return tag .. 'window:' .. place .. ':' .. member
end

local function windows_key(place)
  return tag .. 'windows:' .. place
end

-- A limit's hash while a script works on it: read by one command and written by one, since commands are what costs.
-- It is the answer of HMGET; beyond that, what is to be written.
local GENERATION = 1
local METRIC = 2
local SPENT = 3
local HELD = 4
local HOLDERS = 5
local OVER = 6
local CALLED = 7
local LEASE = 8 -- the writer's
local COUNTED = 9 -- the writer's spending of a limit of a second or a minute
local SMALL = 10
local KEY = 11
local ANEW = 12 -- whether it begins in this script
local COUNTS = 13 -- whether SPENT changed, and with it COUNTED
local LENDS = 14 -- whether HELD and LEASE changed
local JOINS = 15 -- whether the writer became a holder, false when it is none any more
local TTL_MS = 16

-- The names of the writer's own fields may be left out by who does not touch them.
local function read_limit(key, lease_field, counted_field)
  local kept
  if counted_field then
    kept = redis.call('HMGET', key, 'g', 'm', 'spent', 'held', 'n', 'over', 'called', lease_field, counted_field, 'small')
  elseif lease_field then
    kept = redis.call('HMGET', key, 'g', 'm', 'spent', 'held', 'n', 'over', 'called', lease_field)
  else
    kept = redis.call('HMGET', key, 'g', 'm', 'spent', 'held', 'n', 'over', 'called')
  end
  kept[KEY] = key
  return kept
end

local words = {} -- of the command that writes a limit

-- held_key nil: the lease is of a limit of a second or a minute, which nothing but its period ends.
local function write_limit(kept, lease_field, held_key, counted_field)
  local key, size, lease = kept[KEY], 0, kept[LEASE]
  if kept[ANEW] then
    words[1], words[2], size = 'g', generation.gen, 2
    if kept[METRIC] then words[3], words[4], size = 'm', kept[METRIC], 4 end
  end
  if kept[COUNTS] then
    words[size + 1], words[size + 2] = 'spent', integer(kept[SPENT])
    size = size + 2
    if counted_field then
      words[size + 1], words[size + 2] = counted_field, integer(kept[COUNTED])
      size = size + 2
    end
  end
  if kept[LENDS] then
    words[size + 1], words[size + 2] = 'held', integer(kept[HELD])
    size = size + 2
    if lease > 0 then
      words[size + 1], words[size + 2] = lease_field, integer(lease)
      size = size + 2
    end
    if kept[JOINS] ~= nil then
      words[size + 1], words[size + 2] = 'n', integer(kept[HOLDERS])
      size = size + 2
    end
  end
  if counted_field and not kept[SMALL] then
    words[size + 1], words[size + 2] = 'small', '1'
    size = size + 2
  end
  if size > 0 then redis.call('HSET', key, unpack(words, 1, size)) end
  if kept[LENDS] and lease == 0 then redis.call('HDEL', key, lease_field) end
  if held_key and kept[JOINS] ~= nil then
    if kept[JOINS] then
      redis.call('SADD', held_key, key) -- never expires before its leases: retire empties it
    else
      redis.call('SREM', held_key, key)
    end
  end
  if kept[TTL_MS] then redis.call('PEXPIRE', key, integer(kept[TTL_MS])) end
end

-- Opens a limit's hash in this generation: what an earlier one left is dropped, its leases are reported anew. So is
-- what was spent of another metric before the limit changed; metric nil: the caller does not know it.
-- ttl_ms nil leaves the expiry to a caller that knows the period's end.
local function open_limit(kept, metric, ttl_ms)
  if kept[GENERATION] ~= generation.gen or (metric and kept[METRIC] and kept[METRIC] ~= metric) then
    if kept[GENERATION] then redis.call('DEL', kept[KEY]) end
    for position = METRIC, SMALL do kept[position] = false end
    kept[GENERATION], kept[ANEW], kept[TTL_MS] = generation.gen, true, ttl_ms
  end
  if metric and not kept[METRIC] then
    kept[METRIC] = metric
    if not kept[ANEW] then redis.call('HSET', kept[KEY], 'm', metric) end
  end
end

-- How long a limit's hash lives that is first seen through a window, when its period's end is not at hand.
local function longest_ttl(kind)
  if kind == 'hour' then return 2 * DAY_MS end
  if kind == 'day' then return 3 * DAY_MS end
  if kind == 'lifetime' then return nil end
  return 400 * DAY_MS
end

local function count(kept, limit, units)
  local spent = (tonumber(kept[SPENT]) or 0) + units
  kept[SPENT], kept[COUNTS] = spent, true
  if limit and limit[5] >= 0 and spent > limit[5] and not kept[OVER] then
    kept[OVER] = now
    redis.call('HSET', kept[KEY], 'over', integer(now))
  end
end

local function spend(kept, limit, units)
  open_limit(kept, limit[2], longest_ttl(limit[3]))
  count(kept, limit, units)
end

local function set_lease(kept, units)
  local former = tonumber(kept[LEASE]) or 0
  if units == former then return end
  kept[HELD], kept[LENDS] = (tonumber(kept[HELD]) or 0) + units - former, true
  if units > 0 then
    kept[LEASE] = units
    if former <= 0 then kept[HOLDERS], kept[JOINS] = (tonumber(kept[HOLDERS]) or 0) + 1, true end
  else
    kept[LEASE] = 0
    kept[HOLDERS], kept[JOINS] = (tonumber(kept[HOLDERS]) or 0) - 1, false
  end
end

-- Merges one writer's cumulative value into a window with max; returns the growth, the window's key, its member, and
-- whether it is new and without an expiry.
-- version gives the one to note for a change; nil where a merge is no news to the ledger.
local function merge_window(place, series, period, hour, writer, value, version)
  local member = series .. ':' .. integer(period) .. ':' .. integer(hour)
  local key = window_key(place, member)
  local known = redis.call('HMGET', key, writer, 't')
  local growth = value - (tonumber(known[1]) or 0)
  if growth <= 0 then return 0, key, member, false end
  local total = (tonumber(known[2]) or 0) + growth
  if version then
    redis.call('HSET', key, writer, integer(value), 't', integer(total), 'v', version())
  else
    redis.call('HSET', key, writer, integer(value), 't', integer(total))
  end
  if not known[2] then
    local index = windows_key(place)
    redis.call('ZADD', index, hour, member)
    redis.call('PEXPIRE', index, WINDOW_TTL_MS)
    -- What only the ledger answers for is looked up there; a new window is as good a time to drop it as any.
    redis.call('ZREMRANGEBYSCORE', index, '-inf', '(' .. integer(math.min(hour, first_direct_hour())))
  end
  return growth, key, member, not known[2]
end
