-- announce: tell every sidecar what changed. Stands alone: the stream is no key of a shard.
-- KEYS[1] changes  ARGV[1] most entries kept  ARGV[2..] pairs of kind (tenant, key, catalogue) and id
-- Entries are numbered without gaps, so that a reader knows when it missed one. A stream that begins (anew) counts on
-- from the server's time in microseconds, so that no number of an earlier life can look like the next one.

local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local number
if last[1] then
  number = tonumber(last[1][2][2])
else
  local server_time = redis.call('TIME')
  number = tonumber(server_time[1]) * 1000000 + tonumber(server_time[2])
end
for position = 2, #ARGV, 2 do
  number = number + 1
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'n', string.format('%.0f', number),
    'kind', ARGV[position], 'id', ARGV[position + 1])
end
redis.call('PEXPIRE', KEYS[1], 8640000000)
return number
