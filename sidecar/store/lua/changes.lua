-- changes: what was announced since the reader's last look. Stands alone: the stream is no key of a shard.
-- KEYS[1] changes  ARGV[1] id of the last entry read ('' at first)  ARGV[2] its number  ARGV[3] most entries
-- ARGV[4] in a cluster: the replication id that came with ARGV[1]. It follows each returned id after a blank, and another
-- one is a gap: the last entries may have been lost with the old server, and no shard need notice.
-- Returns {last id, its number, gap, kind, id, kind, id, ...}; gap 1: something was missed, drop what is cached.

local replid = ''
if ARGV[4] then replid = ' ' .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local another = ARGV[4] and ARGV[4] ~= '' and replid ~= ' ' .. ARGV[4]
if not last[1] then
  return { '0-0' .. replid, 0, (another or (ARGV[1] ~= '' and ARGV[1] ~= '0-0')) and 1 or 0 }
end
local last_id, last_number = last[1][1] .. replid, tonumber(last[1][2][2])
local seen = tonumber(ARGV[2])
if another then return { last_id, last_number, 1 } end
if ARGV[1] == '' then return { last_id, last_number, 0 } end
if last_number == seen then return { last_id, last_number, last[1][1] ~= ARGV[1] and 1 or 0 } end
-- What was read last has to be there: what another server says follows it need not be all that does.
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[3] + 1)
if not entries[2] or entries[1][1] ~= ARGV[1] or tonumber(entries[2][2][2]) ~= seen + 1 then
  return { last_id, last_number, 1 }
end
local reply = { entries[#entries][1] .. replid, tonumber(entries[#entries][2][2]), 0 }
for index = 2, #entries do
  reply[#reply + 1] = entries[index][2][4]
  reply[#reply + 1] = entries[index][2][6]
end
return reply
