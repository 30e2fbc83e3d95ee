-- collect: read windows that are not yet in the ledger, oldest change first, and announce the ledger pass.
-- KEYS[1] {tag}epoch  KEYS[2] {tag}dirty  KEYS[3] {tag}writers
-- ARGV[2] the ledger's epoch  ARGV[3] most windows, 0 for none  ARGV[4] reclaim_after in ms
-- ARGV[5] most counters: no further window is read once there are so many, since a hot one has one of every writer
-- A data set whose announced pass is behind the ledger's epoch lost updates: a new generation.
-- Passes over a shard follow each other (the ledger's lock), and each has a higher number than those before it, by which
-- `publish` knows what is late. It is a time, so that it goes on though the epoch's hash alone was lost; 0 for a look.
-- Returns msgpack {generation, state, base, first direct hour, real_ms, epoch, reclaimed, version, silent writers, windows, dirty,
--   number}
--   reclaimed {generation, units, ...}
--   window {tenant, series, period, hour, version, {writer, cumulative, ...}}

local RECLAIMED_KEPT_MS = 40 * DAY_MS

load_generation()
local ledger_epoch, most, reclaim_after = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local marks = redis.call('HMGET', epoch_key, 'intent', 'epoch', 'version', 'pass')
local intent, epoch = tonumber(marks[1]) or 0, tonumber(marks[2]) or 0

if ledger_epoch > intent then
  if generation.state == 'open' then start_generation(generation.replid) end
  redis.call('HSET', epoch_key, 'epoch', integer(ledger_epoch))
end
-- The pass raises the ledger's epoch beyond Redis' own, which is ahead when the ledger was restored from a backup.
local announced = math.max(ledger_epoch, epoch) + 1
local number = 0
if most > 0 then
  number = math.max((tonumber(marks[4]) or 0) + 1, real)
  redis.call('HSET', epoch_key, 'intent', integer(math.max(announced, intent)), 'pass', integer(number))
end

local windows, counters, counters_most = {}, 0, tonumber(ARGV[5])
local entries = most > 0 and redis.call('ZRANGE', KEYS[2], 0, most - 1) or {}
for index, entry in ipairs(entries) do
  if counters >= counters_most then break end
  local cut = string.find(entry, '\0', 1, true)
  local tenant, member = string.sub(entry, 1, cut - 1), string.sub(entry, cut + 1)
  local series, period, hour = string.match(member, '^(.*):(%-?%d+):(%-?%d+)$')
  local fields = redis.call('HGETALL', window_key(escaped(tenant), member))
  local version, values = 0, {}
  for position = 1, #fields, 2 do
    if fields[position] == 'v' then
      version = tonumber(fields[position + 1])
    elseif fields[position] ~= 't' then
      values[#values + 1] = fields[position]
      values[#values + 1] = tonumber(fields[position + 1])
    end
  end
  counters = counters + #values / 2
  windows[index] = { tenant, series, tonumber(period), tonumber(hour), version, values }
end

-- A generation ended at the latest when the next one here began; the ledger has what was told of for so long since then.
-- The name of one ends with when it began.
local reclaimed = redis.call('HGETALL', tag .. 'reclaimed')
local kept_us, begun_us, last_us = (server_ms - RECLAIMED_KEPT_MS) * 1000, {}, 0
for position = 1, #reclaimed, 2 do
  local us = tonumber(string.match(reclaimed[position], '%d+$')) or 0
  reclaimed[position + 1] = tonumber(reclaimed[position + 1])
  begun_us[reclaimed[position]] = us
  if us < kept_us and us > last_us then last_us = us end
end
for name, us in pairs(begun_us) do
  if us < last_us then redis.call('HDEL', tag .. 'reclaimed', name) end
end

local silent = silent_writers(KEYS[3], reclaim_after, 16)
return cmsgpack.pack({ generation.gen, generation.state, generation.base, first_direct_hour(), real, epoch,
  reclaimed, tonumber(marks[3]) or 0, silent, windows, redis.call('ZCARD', KEYS[2]),
  number })
