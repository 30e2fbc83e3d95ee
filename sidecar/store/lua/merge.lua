-- merge: bring the ledger's recent windows back with max, after a loss or when another server was counted from (docs/protocol.md).
-- KEYS[1] {tag}epoch
-- ARGV[2] generation  ARGV[3] msgpack list of {tenant, series, period, hour, writer, cumulative}
-- What is new counts at once, or a data set that grants would give it away until the publish that follows; the writer's
-- own report finds its value known and adds nothing. Of hours that only the ledger answers for nothing is added: its
-- total has them, and a message that comes so late would count them twice.
-- Returns 1, or -1 when the generation has changed (then nothing was done).

load_generation()
if ARGV[2] ~= generation.gen then return -1 end

local known = {}
local function limits_of(place)
  if not known[place] then
    local packed = redis.call('HGET', tag .. 'tenant:' .. place, 'lim')
    known[place] = packed and cmsgpack.unpack(packed) or {}
  end
  return known[place]
end

for _, row in ipairs(cmsgpack.unpack(ARGV[3])) do
  local place, series, period, hour = escaped(row[1]), row[2], row[3], row[4]
  local growth, window, _, new = merge_window(place, series, period, hour, row[5], row[6])
  if new then redis.call('PEXPIRE', window, integer(WINDOW_TTL_MS)) end
  if growth > 0 and hour >= first_direct_hour() then
    each_fed(limits_of(place), series, period, hour, function(limit, id, start)
      local kept = read_limit(limit_key(place, id, start))
      spend(kept, limit, growth)
      write_limit(kept)
    end)
  end
end
return 1
