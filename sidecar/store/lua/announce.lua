-- announce: tell every sidecar what changed. Stands alone: the stream is no key of a shard.
-- KEYS[1] changes  ARGV[1] most entries kept  ARGV[2..] pairs of kind (tenant, key, catalogue) and id
-- Entries are numbered without gaps, so that a reader knows when it missed one.

local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local number = 0
if last[1] then number = tonumber(last[1][2][2]) end
for position = 2, #ARGV, 2 do
  number = number + 1
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'n', string.format('%.0f', number),
    'kind', ARGV[position], 'id', ARGV[position + 1])
end
redis.call('PEXPIRE', KEYS[1], 8640000000)
return number
