-- announce: tell every sidecar what changed. Stands alone: the stream is no key of a shard.
-- KEYS[1] changes  ARGV[1] most entries kept  ARGV[2..] pairs of kind (tenant, key, catalogue) and id
-- Entries are numbered without gaps, so that a reader knows when it missed one. A stream that begins (anew) counts on
-- from the server's time in microseconds, so that no number of an earlier life can look like the next one.
-- Another server that has an older copy gives numbers again, and, where its clock is behind the last entry, the ids
-- that follow it. So ids have a part of the replication id in them, and a reader looks for the one it read last.

local server_time = redis.call('TIME')
local seconds, microseconds = tonumber(server_time[1]), tonumber(server_time[2])
local now_ms = seconds * 1000 + math.floor(microseconds / 1000)
local own = tonumber(string.match(redis.call('INFO', 'replication'), 'master_replid:(%x%x?%x?%x?%x?)') or '0', 16)
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local number, ms, sequence = seconds * 1000000 + microseconds, 0, 0
if last[1] then
  number = tonumber(last[1][2][2])
  ms, sequence = string.match(last[1][1], '(%d+)-(%d+)')
  ms, sequence = tonumber(ms), tonumber(sequence)
else
  redis.call('DEL', KEYS[1]) -- of a stream that was emptied Redis keeps the last id
end
if now_ms > ms then ms, sequence = now_ms, 0 end
sequence = sequence + own
for position = 2, #ARGV, 2 do
  number, sequence = number + 1, sequence + 1
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], string.format('%.0f-%.0f', ms, sequence),
    'n', string.format('%.0f', number), 'kind', ARGV[position], 'id', ARGV[position + 1])
end
redis.call('PEXPIRE', KEYS[1], 8640000000)
return number
