-- find_key: the tenant of an API key.
-- KEYS[1] {tag}epoch  KEYS[2] {tag}key:<sha256>
-- Returns {state, tenant}; in a held data set an absent key is merely not back yet.

load_generation()
return { generation.state, redis.call('GET', KEYS[2]) or '' }
