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

local watermark, version_before = load_generation()
local reclaim_after = tonumber(ARGV[2])
local message = cmsgpack.unpack(ARGV[3])
local writer, sequence, known_generation, acknowledged, parts =
  message[1], message[2], message[3], message[4], message[5]
local writers_key, writer_key, held_key, dirty_key, called_key = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local lease_field, counted_field = 'l:' .. writer, 'c:' .. writer
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
  if stored[1] == generation.gen then
    redis.call('HSET', writer_key, 'seq', integer(sequence))
  else
    redis.call('HSET', writer_key, 'gen', generation.gen, 'seq', integer(sequence))
  end
  redis.call('PEXPIRE', writer_key, integer(WRITER_TTL_MS))
  redis.call('ZADD', writers_key, integer(real), writer)
end
local grants = granting()

local version
local function next_version()
  version = version or integer(redis.call('HINCRBY', epoch_key, 'version', 1))
  return version
end

-- The tenant of the part in hand, escaped; its limits that were spent of by key, to be written together with what is said
-- of their leases.
local place, spending
local hour_begins -- whether the part brings the first window of an hour

local function feed(limit, id, start, units)
  local key = limit_key(place, id, start)
  local kept = spending[key] or read_limit(key, lease_field)
  spend(kept, limit, units)
  spending[key] = kept
end

local function report_windows(tenant, tenant_key, limits, windows)
  for _, window in ipairs(windows) do
    local series, period, hour = window[1], window[2], window[3]
    local growth, key, member, new = merge_window(place, series, period, hour, writer, window[4], next_version)
    hour_begins = hour_begins or new
    if growth > 0 then
      local marked = redis.call('ZADD', dirty_key, 'NX', next_version(), tenant .. '\0' .. member) == 1
      -- However long the ledger is away, what it does not have must not expire; settle sets the time again.
      if new and not marked then
        redis.call('PEXPIRE', key, integer(WINDOW_TTL_MS))
      elseif marked and not new then
        redis.call('PERSIST', key)
      end
      -- An old window counts at once, too, or the room of the lease behind it could be granted before the ledger's
      -- rebuild. If its hash had expired it counts twice until that rebuild, which errs on the safe side. A rebuild
      -- from before this change would take it back: publish looks at `aged`.
      if hour < first_direct_hour() then redis.call('HSET', tenant_key, 'aged', next_version()) end
      each_fed(limits, series, period, hour, feed, growth)
    end
  end
end

-- Seconds and minutes never reach the ledger: their windows are fields of the limit itself.
local function report_small(kept, limit, cumulative)
  local known = tonumber(kept[COUNTED]) or 0
  if cumulative > known then
    kept[COUNTED] = cumulative
    count(kept, limit, cumulative - known)
  end
end

local silent
local function reclaim_silent(kept)
  silent = silent or silent_writers(writers_key, reclaim_after, RECLAIM_MOST)
  for _, other in ipairs(silent) do
    local units = tonumber(redis.call('HGET', kept[KEY], 'l:' .. other)) or 0
    if units > 0 then
      kept[HELD], kept[HOLDERS] = (tonumber(kept[HELD]) or 0) - units, (tonumber(kept[HOLDERS]) or 0) - 1
      redis.call('HINCRBY', kept[KEY], 'held', integer(-units))
      redis.call('HINCRBY', kept[KEY], 'n', -1)
      redis.call('HDEL', kept[KEY], 'l:' .. other)
      redis.call('SREM', tag .. 'held:' .. other, kept[KEY])
      count_reclaimed(units)
    end
  end
end

local function room_of(kept, stop)
  return stop - (tonumber(kept[SPENT]) or 0) - (tonumber(kept[HELD]) or 0)
end

-- At least the need if it fits, else a fair share: all that is asked when alone, half its part near the cap.
local function grant(tenant, kept, stop, current, need, want)
  -- While somebody is short nobody gets more than a request waits for: what comes back must reach who needs it.
  if (tonumber(kept[CALLED]) or 0) > real - CALLED_MS then want = need end
  if want < need then want = need end
  if want <= 0 then return current end
  local room = room_of(kept, stop)
  if room < want then
    reclaim_silent(kept)
    room = room_of(kept, stop)
  end
  if room < need and need > 0 then
    kept[CALLED] = real
    redis.call('HSET', kept[KEY], 'called', integer(real))
    redis.call('ZREMRANGEBYSCORE', called_key, '-inf', '(' .. integer(real - CALLED_TOLD_MS))
    redis.call('ZADD', called_key, integer(real), tenant)
    redis.call('PEXPIRE', called_key, integer(HOUR_MS))
  end
  if room <= 0 then return current end
  local sharers = tonumber(kept[HOLDERS]) or 0
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

local function report_lease(tenant, limits, lease, current_revision)
  local name, id, start, end_ms, small = lease[1], lease[2], lease[3], lease[4], lease[5]
  local left, need, want = lease[6], lease[7], lease[8]
  local key, ttl = limit_key(place, id, start), end_ms + LIMIT_KEPT_MS - now
  local listed_in, counted = held_key, nil
  local kept = spending[key]
  spending[key] = nil
  if small then
    listed_in, counted = nil, counted_field
    ttl = math.max(end_ms + 60000 - now, 60000) -- a machine whose clock is late still gets its share
    if kept then
      write_limit(kept)
      kept = nil
    end
  end
  kept = kept or read_limit(key, lease_field, counted)
  if ttl <= 0 then
    if accepted and kept[GENERATION] == generation.gen then set_lease(kept, 0) end
    write_limit(kept, lease_field, listed_in)
    return { 0, 0, 0, 0, false }
  end
  local limit = limits[name]
  -- Nothing is lent of a limit that nobody knows here, and nothing was: made-up tenants leave no hash behind.
  if not limit and not small and left <= 0 and not kept[GENERATION] then return { 0, 0, 0, 0, false } end
  local former = limit and end_ms - start * 1000 < (SHORTEST_MS[limit[3]] or 0)
  open_limit(kept, limit and limit[2], former and longest_ttl(limit[3]) or nil)
  if small then report_small(kept, limit, lease[9]) end
  local current = tonumber(kept[LEASE]) or 0
  -- The hash of a lease that goes on has its expiry already. Where the period's end became another meanwhile, or a publish
  -- did not know it, it is set with the next hour or when the lease goes back; until then at least a day is left.
  local timed = current > 0 and left > 0 and now <= end_ms and not hour_begins
  if end_ms < 1e15 and not former and not timed then kept[TTL_MS] = ttl end
  -- Of a period that ended before the first direct hour nobody can say here what was used: no publish tells it. It takes a
  -- loss while the server's clock was hours ahead of the writer's, which may spend what it has.
  local known = small or end_ms > first_direct_hour() * HOUR_MS
  if accepted then
    if not grants then
      current = left
    elseif left < current then
      current = math.max(0, left)
    end
    set_lease(kept, current)
    if (want > 0 or need > 0) and current_revision and limit and limit[6] >= 0 and grants and known then
      current = grant(tenant, kept, limit[6], current, need, want)
      set_lease(kept, current)
    end
  end
  write_limit(kept, lease_field, listed_in, counted)
  local called = (tonumber(kept[CALLED]) or 0) > real - CALLED_MS
  return { current, tonumber(kept[SPENT]) or 0, tonumber(kept[HELD]) or 0, tonumber(kept[OVER]) or 0, called }
end

-- A tenant's limits, in their order and by name. Those of a plan have the same.
local unpacked = {}
local function limits_of(packed)
  if not packed then return {} end
  local limits = unpacked[packed]
  if not limits then
    limits = cmsgpack.unpack(packed)
    for position = 1, #limits do limits[limits[position][1]] = limits[position] end
    unpacked[packed] = limits
  end
  return limits
end

local replies, snapshots = {}, 0
for index, part in ipairs(parts) do
  local tenant, revision = part[1], part[2]
  place, spending, hour_begins = escaped(tenant), {}, false
  local tenant_key = tag .. 'tenant:' .. place
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
    local limits = limits_of(found[2])
    if found[3] then redis.call('PEXPIRE', tenant_key, integer(DAY_MS)) end
    report_windows(tenant, tenant_key, limits, part[3])
    local leases = {}
    for position = 1, #part[4] do
      leases[position] = report_lease(tenant, limits, part[4][position], own_revision == revision)
    end
    for _, kept in pairs(spending) do write_limit(kept) end
    replies[index] = { own_revision, leases }
  end
end

local called = redis.call('ZRANGEBYSCORE', called_key, real - CALLED_TOLD_MS, '+inf', 'LIMIT', 0, CALLED_MOST)
return cmsgpack.pack({ generation.gen, grants, watermark, tonumber(version) or version_before, accepted, replies, this_hour, called })
