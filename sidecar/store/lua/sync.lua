-- sync: report a writer's windows and what is left of its leases; renew them (docs/protocol.md).
-- KEYS[1] {tag}epoch  KEYS[2] {tag}writers  KEYS[3] {tag}writer:<id>  KEYS[4] {tag}held:<id>  KEYS[5] {tag}dirty
-- KEYS[6] {tag}called
-- ARGV[2] reclaim_after in ms
-- ARGV[3] msgpack {writer, sequence, generation, acknowledged, parts}
--   part {tenant, revision, windows, leases}; window {series, period, hour, cumulative}
--   lease {name, id, start, end_ms, small, left, need, want, cumulative}: want and need are units on top of left;
--   `small` limits (seconds, minutes) carry the writer's cumulative spending of the period, others 0
-- Returns msgpack {generation, granting, watermark, version, accepted, parts, hour, called}
--   part {revision, leases, snapshot}; where the revision is newer than the writer's the part had no effect, and the
--   snapshot is the newer one. It is missing where there are too many of them, or the message is of another's windows
--   (sequence 0)
--   lease {units, spent, held, over_ms, called}: `called` asks for units nobody spends
--   called: tenants of which somebody was short within the last CALLED_TOLD_MS, for leases that are not in the message

load_generation()
local reclaim_after = tonumber(ARGV[2])
local message = cmsgpack.unpack(ARGV[3])
local writer, sequence, known_generation, acknowledged, parts =
  message[1], message[2], message[3], message[4], message[5]
local writers_key, writer_key, held_key, dirty_key, called_key = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local RECLAIM_MOST = 8
local CALLED_MS = 1000
local CALLED_TOLD_MS = 10000
local CALLED_MOST = 100
local SNAPSHOTS_MOST = 20

local stored = redis.call('HMGET', writer_key, 'gen', 'seq', 'dead')
local stored_sequence = 0
if stored[1] == generation.gen then stored_sequence = tonumber(stored[2]) or 0 end

-- The writer was answered a sequence that this data set never saw: updates were lost.
if known_generation == generation.gen and acknowledged > stored_sequence then
  start_generation(generation.replid)
  stored_sequence = 0
end

local accepted = known_generation == generation.gen and sequence > stored_sequence and not stored[3]
if accepted then
  redis.call('HSET', writer_key, 'gen', generation.gen, 'seq', integer(sequence))
  redis.call('PEXPIRE', writer_key, integer(WRITER_TTL_MS))
  redis.call('ZADD', writers_key, integer(real), writer)
end

local version
local function next_version()
  version = version or redis.call('HINCRBY', epoch_key, 'version', 1)
  return version
end

local function report_windows(tenant, tenant_key, limits, windows)
  for _, window in ipairs(windows) do
    local series, period, hour = window[1], window[2], window[3]
    local growth, key, member = merge_window(tenant, series, period, hour, writer, window[4], next_version)
    if growth > 0 then
      if redis.call('ZADD', dirty_key, 'NX', integer(next_version()), tenant .. '\0' .. member) == 1 then
        -- However long the ledger is away, what it does not have must not expire; settle sets the time again.
        redis.call('PERSIST', key)
      end
      -- An old window counts at once, too, or the room of the lease behind it could be granted before the ledger's
      -- rebuild. If its hash had expired it counts twice until that rebuild, which errs on the safe side. A rebuild
      -- from before this change would take it back: publish looks at `aged`.
      if hour < first_direct_hour() then redis.call('HSET', tenant_key, 'aged', integer(next_version())) end
      each_fed(limits, series, period, hour, function(limit, id, start)
        spend(tenant, limit, id, start, growth)
      end)
    end
  end
end

-- Seconds and minutes never reach the ledger: their windows are fields of the limit itself.
local function report_small(key, limit, cumulative)
  local known = tonumber(redis.call('HGET', key, 'c:' .. writer)) or 0
  if cumulative > known then
    redis.call('HSET', key, 'c:' .. writer, integer(cumulative))
    local spent = redis.call('HINCRBY', key, 'spent', integer(cumulative - known))
    if limit and limit[5] >= 0 and spent > limit[5] then redis.call('HSETNX', key, 'over', integer(now)) end
  end
end

local function reclaim_silent(key)
  for _, other in ipairs(silent_writers(writers_key, reclaim_after, RECLAIM_MOST)) do
    local units = tonumber(redis.call('HGET', key, 'l:' .. other)) or 0
    if units > 0 then
      set_lease(key, other, tag .. 'held:' .. other, units, 0)
      redis.call('HINCRBY', epoch_key, 'reclaimed', integer(units))
    end
  end
end

local function room_of(key, stop)
  local found = redis.call('HMGET', key, 'spent', 'held')
  return stop - (tonumber(found[1]) or 0) - (tonumber(found[2]) or 0)
end

-- At least the need if it fits, else a fair share: all that is asked when alone, half its part near the cap.
local function grant(tenant, key, stop, current, need, want)
  -- While somebody is short nobody gets more than a request waits for: what comes back must reach who needs it.
  if (tonumber(redis.call('HGET', key, 'called')) or 0) > real - CALLED_MS then want = need end
  if want < need then want = need end
  if want <= 0 then return current end
  local room = room_of(key, stop)
  if room < want then
    reclaim_silent(key)
    room = room_of(key, stop)
  end
  if room < need and need > 0 then
    redis.call('HSET', key, 'called', integer(real))
    redis.call('ZREMRANGEBYSCORE', called_key, '-inf', '(' .. integer(real - CALLED_TOLD_MS))
    redis.call('ZADD', called_key, integer(real), tenant)
    redis.call('PEXPIRE', called_key, integer(HOUR_MS))
  end
  if room <= 0 then return current end
  local sharers = tonumber(redis.call('HGET', key, 'n')) or 0
  if current <= 0 then sharers = sharers + 1 end
  local share = want
  if sharers > 1 then share = math.max(1, math.floor(room / (2 * sharers))) end
  local units = math.min(want, share, room)
  if need <= room and units < need then units = need end
  return current + units
end

-- A limit keeps its name when its period becomes another, and two periods that begin together have one hash. So a report
-- of the shorter one must not let the hash expire with it, and what is held of one long over goes back.
local SHORTEST_MS = { hour = HOUR_MS, day = DAY_MS, month = 28 * DAY_MS, billing = 28 * DAY_MS, lifetime = 1e15 }

local function give_back(key)
  local found = redis.call('HMGET', key, 'g', 'l:' .. writer)
  if accepted and found[1] == generation.gen then set_lease(key, writer, held_key, tonumber(found[2]) or 0, 0) end
end

local function report_lease(tenant, limits, lease, current_revision)
  local name, id, start, end_ms, small = lease[1], lease[2], lease[3], lease[4], lease[5]
  local left, need, want, cumulative = lease[6], lease[7], lease[8], lease[9]
  local ttl = end_ms + LIMIT_KEPT_MS - now
  if small then ttl = math.max(end_ms + 60000 - now, 60000) end -- a machine whose clock is late still gets its share
  local key = limit_key(tenant, id, start)
  local held_key = not small and held_key or nil
  if ttl <= 0 then
    give_back(key)
    return { 0, 0, 0, 0, false }
  end
  local limit
  for _, candidate in ipairs(limits) do
    if candidate[1] == name then limit = candidate end
  end
  local former = limit and end_ms - start * 1000 < (SHORTEST_MS[limit[3]] or 0)
  open_limit(key, limit and limit[2], former and longest_ttl(limit[3]) or nil)
  if end_ms < 1e15 and not former then redis.call('PEXPIRE', key, integer(ttl)) end
  if small then
    redis.call('HSET', key, 'small', '1')
    report_small(key, limit, cumulative)
  end
  local current = tonumber(redis.call('HGET', key, 'l:' .. writer)) or 0
  if accepted then
    local units = math.max(0, math.min(current, left))
    if not granting() then units = left end
    set_lease(key, writer, held_key, current, units)
    current = units
    if current_revision and limit and limit[6] >= 0 and granting() then
      units = grant(tenant, key, limit[6], current, need, want)
      set_lease(key, writer, held_key, current, units)
      current = units
    end
  end
  local found = redis.call('HMGET', key, 'spent', 'held', 'over', 'called')
  local called = (tonumber(found[4]) or 0) > real - CALLED_MS
  return { current, tonumber(found[1]) or 0, tonumber(found[2]) or 0, tonumber(found[3]) or 0, called }
end

local replies, snapshots = {}, 0
for index, part in ipairs(parts) do
  local tenant, revision = part[1], part[2]
  local tenant_key = tag .. 'tenant:' .. escaped(tenant)
  local found = redis.call('HMGET', tenant_key, 'rev', 'lim', 'introduced')
  local own_revision = tonumber(found[1]) or -1
  if own_revision > revision then
    -- Whoever waits there for this tenant need not wait for a look-up as well.
    if sequence > 0 and snapshots < SNAPSHOTS_MOST then
      snapshots = snapshots + 1
      replies[index] = { own_revision, {}, redis.call('HGET', tenant_key, 'doc') }
    else
      replies[index] = { own_revision, {} }
    end
  else
    local limits = found[2] and cmsgpack.unpack(found[2]) or {}
    if found[3] then redis.call('PEXPIRE', tenant_key, integer(DAY_MS)) end
    report_windows(tenant, tenant_key, limits, part[3])
    local leases = {}
    for position, lease in ipairs(part[4]) do
      leases[position] = report_lease(tenant, limits, lease, own_revision == revision)
    end
    replies[index] = { own_revision, leases }
  end
end

local marks = redis.call('HMGET', epoch_key, 'watermark', 'version')
local called = redis.call('ZRANGEBYSCORE', called_key, integer(real - CALLED_TOLD_MS), '+inf', 'LIMIT', 0, CALLED_MOST)
return cmsgpack.pack({ generation.gen, granting(), tonumber(marks[1]) or 0, tonumber(marks[2]) or 0, accepted, replies,
  this_hour, called })
