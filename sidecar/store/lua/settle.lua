-- settle: windows are durably in the ledger; clear the marks that did not change meanwhile and move the watermark.
-- KEYS[1] {tag}epoch  KEYS[2] {tag}dirty
-- ARGV[2] generation of the pass  ARGV[3] the ledger's epoch after it
-- ARGV[4] msgpack list of {tenant, series, period, hour, version}
-- Returns the watermark, or -1 when the generation has changed (then nothing was done).

load_generation()
if ARGV[2] ~= generation.gen then return -1 end

local ENTRIES_AT_ONCE = 1000 -- what a call can take has an end
local done, lives = {}, {}
local function clear()
  if done[1] then redis.call('ZREM', KEYS[2], unpack(done)) end
  done = {}
end

for _, window in ipairs(cmsgpack.unpack(ARGV[4])) do
  local tenant, hour, version = window[1], window[4], window[5]
  local member = window[2] .. ':' .. integer(window[3]) .. ':' .. integer(hour)
  local key = window_key(escaped(tenant), member)
  local entry = tenant .. '\0' .. member
  local current = tonumber(redis.call('HGET', key, 'v')) or version
  if current <= version then
    -- A clean window is needed until no sync can touch it directly; from then on the ledger answers for it. One that
    -- grows again is dirty and does not expire.
    lives[hour] = lives[hour] or integer((math.max(hour, this_hour) + HOURS_DIRECT + 2) * HOUR_MS - now)
    redis.call('PEXPIRE', key, lives[hour])
    done[#done + 1] = entry
    if #done == ENTRIES_AT_ONCE then clear() end
  else
    redis.call('ZADD', KEYS[2], 'XX', 'GT', integer(version + 1), entry)
  end
end
clear()

local epoch = tonumber(redis.call('HGET', epoch_key, 'epoch')) or 0
if tonumber(ARGV[3]) > epoch then redis.call('HSET', epoch_key, 'epoch', ARGV[3]) end
local lowest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local watermark = lowest[2] and tonumber(lowest[2]) - 1 or tonumber(redis.call('HGET', epoch_key, 'version')) or 0
redis.call('HSET', epoch_key, 'watermark', integer(watermark))
return watermark
