-- lookup: a tenant's snapshot; a tenant nobody knows is given the default plan's for a day, if there is one.
-- KEYS[1] {tag}epoch  KEYS[2] {tag}tenant:<tenant>
-- ARGV[2] catalogue revision of the default snapshot  ARGV[3] default snapshot ('' for none)  ARGV[4] its limits as msgpack
-- An introduced tenant has revision 0, below every one the ledger gives. Only a restored data set introduces: in a held one an absent tenant is merely not back yet.
-- Returns {state, revision, snapshot}; revision -1 when there is none.

load_generation()
local found = redis.call('HMGET', KEYS[2], 'rev', 'doc', 'introduced')
local revision = tonumber(found[1]) or -1
local absent = revision < 0 or (found[3] and tonumber(found[3]) < tonumber(ARGV[2]))
if absent and ARGV[3] ~= '' and generation.state == 'open' then
  redis.call('HSET', KEYS[2], 'rev', '0', 'doc', ARGV[3], 'lim', ARGV[4], 'introduced', ARGV[2])
  redis.call('PEXPIRE', KEYS[2], integer(DAY_MS))
  return { generation.state, 0, ARGV[3] }
end
return { generation.state, revision, found[2] }
