-- retire: a writer has died and its windows are reported; free its leases, a bounded number a call.
-- KEYS[1] {tag}epoch  KEYS[2] {tag}writers  KEYS[3] {tag}writer:<id>  KEYS[4] {tag}held:<id>
-- ARGV[2] writer  ARGV[3] most leases freed in this call
-- ARGV[4] reclaim_after in ms when the writer is taken for lost, not reported; else 0. One that was heard since is left alone.
-- ARGV[5] the generation in which its windows were reported, '' when there were none: another one does not know them.
-- Leases of seconds and minutes stay until their period ends: what was spent of them is in no journal.
-- Returns how many leases may remain, or -1 when the generation has changed (then nothing was done).

load_generation()
if ARGV[5] ~= '' and ARGV[5] ~= generation.gen then return -1 end
local writer, most, reclaim_after = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local lost = reclaim_after > 0
local writers_key, writer_key, held_key = KEYS[2], KEYS[3], KEYS[4]
local lease_field = 'l:' .. writer

if lost and not is_silent(writers_key, writer, reclaim_after) then return 0 end

if not lost then
  redis.call('HSET', writer_key, 'gen', generation.gen, 'dead', '1')
  redis.call('PEXPIRE', writer_key, integer(WRITER_TTL_MS))
end

for _, key in ipairs(redis.call('SPOP', held_key, most)) do
  local kept = read_limit(key, lease_field, 'c:' .. writer)
  if kept[GENERATION] == generation.gen and not kept[SMALL] then
    local units = tonumber(kept[LEASE]) or 0
    if units > 0 then
      set_lease(kept, 0)
      write_limit(kept, lease_field, held_key)
      if lost then count_reclaimed(units) end
    end
  end
end

local remaining = redis.call('SCARD', held_key)
if remaining == 0 then redis.call('ZREM', writers_key, writer) end
return remaining
