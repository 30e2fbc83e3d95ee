-- open: the restore is done; let the generation grant again once the hold has passed (docs/protocol.md).
-- KEYS[1] {tag}epoch  KEYS[2] {tag}writers
-- ARGV[2] generation  ARGV[3] first ('1': no generation was ever opened)  ARGV[4] reclaim_after in ms
-- ARGV[5] hold: 'full' or 'reported'  ARGV[6] msgpack list of writers the ledger saw lately
-- 'reported' ends the hold as soon as every writer seen within reclaim_after has reported or is dead; its price is
-- in docs/reliability.md.
-- Returns the time from which grants are given (ms), or -1 when the generation has changed.

load_generation()
if ARGV[2] ~= generation.gen then return -1 end
local reclaim_after = tonumber(ARGV[4])
local open_at = generation.since + reclaim_after

local function all_reported()
  local seen = redis.call('ZRANGEBYSCORE', KEYS[2], integer(generation.since - reclaim_after), '+inf')
  for _, writer in ipairs(cmsgpack.unpack(ARGV[6])) do seen[#seen + 1] = writer end
  for _, writer in ipairs(seen) do
    local record = redis.call('HMGET', tag .. 'writer:' .. writer, 'gen', 'dead')
    if record[1] ~= generation.gen and not record[2] then return false end
  end
  return true
end

if ARGV[3] == '1' then
  open_at = real
elseif ARGV[5] == 'reported' and real < open_at and all_reported() then
  open_at = real
end
redis.call('HSET', epoch_key, 'state', 'open', 'open_at', integer(open_at))
return open_at
