-- A Redis data set in Lua: the commands that the program and its scripts use, beside the scripts and without a way
-- through Python for each of them. tests/simulation/test_redis.py compares every answer with redis-server's.
-- Called with what is told of units that a script takes back; returns the functions that lua.py calls.
--
-- A data set is {data, expires, replid}. A hash or set is {v: member -> value, o: members in their order}, a sorted set
-- {v: member -> score, s: members by score, nil when that is to be sorted anew}, a stream {e: entries}.

local heard = ...
local floor, format, sub = math.floor, string.format, string.sub

-- The data set in use, and the time.

local data, expires, replid, now
local freed_key, freed_field

local function text(value)
  if type(value) == 'number' then return format('%.17g', value) end
  return value
end

local function find(key)
  local at = expires[key]
  if at and at <= now then
    expires[key], data[key] = nil, nil
    return nil
  end
  return data[key]
end

local function drop(key)
  data[key], expires[key] = nil, nil
end

local function members(key)
  local found = find(key)
  if not found then
    found = { v = {}, o = {} }
    data[key] = found
  end
  return found
end

local function scores(key)
  local found = find(key)
  if not found then
    found = { v = {} }
    data[key] = found
  end
  return found
end

-- Removes members of anything; one that is left empty is gone.
local function remove(key, first, ...)
  local found = find(key)
  if not found then return 0 end
  local removed, order = 0, found.o
  for position = 1, select('#', first, ...) do
    local member = select(position, first, ...)
    if found.v[member] ~= nil then
      found.v[member] = nil
      found.s = nil
      removed = removed + 1
      if order then
        for index = 1, #order do
          if order[index] == member then
            table.remove(order, index)
            break
          end
        end
      end
    end
  end
  if removed > 0 and next(found.v) == nil then drop(key) end
  return removed
end

local function sorted(key)
  local found = find(key)
  if not found then return {}, {} end
  local order, score = found.s, found.v
  if not order then
    order = {}
    for member in pairs(score) do order[#order + 1] = member end
    table.sort(order, function(one, other)
      if score[one] ~= score[other] then return score[one] < score[other] end
      return one < other
    end)
    found.s = order
  end
  return order, score
end

local function bound(raw)
  if raw == '-inf' then return -math.huge, false end
  if raw == '+inf' then return math.huge, false end
  if sub(raw, 1, 1) == '(' then return tonumber(sub(raw, 2)), true end
  return tonumber(raw), false
end

local function within(key, low, high)
  local least, above = bound(low)
  local most, below = bound(high)
  local order, score = sorted(key)
  local found = {}
  for index = 1, #order do
    local one = score[order[index]]
    if (one > least or (one == least and not above)) and (one < most or (one == most and not below)) then
      found[#found + 1] = order[index]
    end
  end
  return found
end

local function size_of(key)
  local found, size = find(key), 0
  if found then
    for _ in pairs(found.v) do size = size + 1 end
  end
  return size
end

local commands = {}

-- Commands, in the order of Redis' documentation. A missing value is false, as scripts see it; a number that is kept
-- becomes its text.

function commands.DEL(...)
  local removed = 0
  for position = 1, select('#', ...) do
    local key = select(position, ...)
    if find(key) ~= nil then removed = removed + 1 end
    drop(key)
  end
  return removed
end

-- In no script of the program, but in one of mutations.py, and in what invariants.py looks at.
function commands.KEYS(pattern)
  local prefix, answer = sub(pattern, 1, -2), {}
  for key in pairs(data) do
    if sub(key, 1, #prefix) == prefix and find(key) ~= nil then answer[#answer + 1] = key end
  end
  table.sort(answer)
  return answer
end

function commands.EXISTS(key) return find(key) ~= nil and 1 or 0 end

function commands.PEXPIRE(key, ms)
  if find(key) == nil then return 0 end
  expires[key] = now + tonumber(ms)
  find(key)
  return 1
end

function commands.PERSIST(key)
  if find(key) == nil or not expires[key] then return 0 end
  expires[key] = nil
  return 1
end

function commands.GET(key) return find(key) or false end

function commands.SET(key, value)
  drop(key)
  data[key] = value
  return 'OK'
end

-- With one field the way that scripts use most; with more, one by one.
function commands.HSET(key, field, value, ...)
  local found = members(key)
  local values, added = found.v, 0
  if values[field] == nil then
    added = 1
    found.o[#found.o + 1] = field
  end
  if type(value) == 'number' then value = text(value) end
  values[field] = value
  if not ... then return added end
  local words = { ... }
  for index = 1, #words, 2 do
    field, value = words[index], words[index + 1]
    if values[field] == nil then
      added = added + 1
      found.o[#found.o + 1] = field
    end
    if type(value) == 'number' then value = text(value) end
    values[field] = value
  end
  return added
end

function commands.HSETNX(key, field, value)
  local found = find(key)
  if found and found.v[field] ~= nil then return 0 end
  return commands.HSET(key, field, value)
end

function commands.HGET(key, field)
  local found = find(key)
  return found and found.v[field] or false
end

function commands.HMGET(key, ...)
  local found, answer = find(key), { ... }
  local values = found and found.v or {}
  for index = 1, #answer do answer[index] = values[answer[index]] or false end
  return answer
end

function commands.HGETALL(key)
  local found, answer = find(key), {}
  if not found then return answer end
  for index, field in ipairs(found.o) do
    answer[index * 2 - 1], answer[index * 2] = field, found.v[field]
  end
  return answer
end

function commands.HEXISTS(key, field)
  local found = find(key)
  return found and found.v[field] ~= nil and 1 or 0
end

function commands.HINCRBY(key, field, units)
  local found = members(key)
  local known = found.v[field]
  if known == nil then found.o[#found.o + 1] = field end
  local value = (tonumber(known) or 0) + tonumber(units)
  found.v[field] = format('%.0f', value)
  if field == 'lost' then heard(freed_key, freed_field, tonumber(units)) end
  return value
end

function commands.HDEL(key, ...)
  freed_key, freed_field = key, ...
  return remove(key, ...)
end

commands.SCARD, commands.ZCARD = size_of, size_of

function commands.SADD(key, ...)
  local found, added = members(key), 0
  for position = 1, select('#', ...) do
    local member = select(position, ...)
    if found.v[member] == nil then
      found.v[member], found.o[#found.o + 1] = true, member
      added = added + 1
    end
  end
  return added
end

commands.SREM, commands.ZREM = remove, remove

function commands.SPOP(key, count)
  local found, popped = find(key), {}
  for index = 1, found and math.min(tonumber(count), #found.o) or 0 do popped[index] = found.o[index] end
  if popped[1] then remove(key, unpack(popped)) end
  return popped
end

function commands.ZADD(key, ...)
  local words, options, first = { ... }, {}, 1
  while words[first] == 'NX' or words[first] == 'XX' or words[first] == 'GT' do
    options[words[first]] = true
    first = first + 1
  end
  if options.XX and not find(key) then return 0 end
  local found, added = scores(key), 0
  for position = first, #words, 2 do
    local score, member = tonumber(words[position]), words[position + 1]
    local known = found.v[member]
    if known == nil then
      if not options.XX then
        found.v[member], found.s = score, nil
        added = added + 1
      end
    elseif not options.NX and not (options.GT and score <= known) and score ~= known then
      found.v[member], found.s = score, nil
    end
  end
  return added
end

function commands.ZSCORE(key, member)
  local found = find(key)
  return found and found.v[member] and text(found.v[member]) or false
end

function commands.ZRANGE(key, first, last, scored)
  local order, score = sorted(key)
  local from, to, answer = tonumber(first), tonumber(last), {}
  if to < 0 then to = #order + to end
  for index = from + 1, math.min(to + 1, #order) do
    answer[#answer + 1] = order[index]
    if scored then answer[#answer + 1] = text(score[order[index]]) end
  end
  return answer
end

function commands.ZRANGEBYSCORE(key, low, high, limit, first, most)
  local found = within(key, low, high)
  if not limit then return found end
  local answer = {}
  for index = tonumber(first) + 1, math.min(tonumber(first) + tonumber(most), #found) do
    answer[#answer + 1] = found[index]
  end
  return answer
end

function commands.ZREMRANGEBYSCORE(key, low, high)
  local found = within(key, low, high)
  if not found[1] then return 0 end
  return remove(key, unpack(found))
end

local function entry_id(entry) return format('%.0f-%.0f', entry.ms, entry.number) end

function commands.XADD(key, ...)
  local words, at, most = { ... }, 1, nil
  while not string.find(words[at], '^%d+%-%d+$') do
    if words[at] == 'MAXLEN' then
      most = tonumber(words[at + 2])
      at = at + 2
    end
    at = at + 1
  end
  local found = find(key)
  if not found then
    found = { e = {} }
    data[key] = found
  end
  local ms, number = string.match(words[at], '^(%d+)-(%d+)$')
  local entries, entry = found.e, { ms = tonumber(ms), number = tonumber(number), fields = { select(at + 1, ...) } }
  local last = entries[#entries]
  assert(not last or entry.ms > last.ms or (entry.ms == last.ms and entry.number > last.number))
  for index, field in ipairs(entry.fields) do entry.fields[index] = text(field) end
  entries[#entries + 1] = entry
  while #entries > most do table.remove(entries, 1) end
  return entry_id(entry)
end

function commands.XREVRANGE(key, high, low, _, count)
  assert(high == '+' and low == '-')
  local found, answer = find(key), {}
  local entries = found and found.e or {}
  for index = #entries, math.max(1, #entries - tonumber(count) + 1), -1 do
    answer[#answer + 1] = { entry_id(entries[index]), entries[index].fields }
  end
  return answer
end

function commands.XRANGE(key, low, high, _, count)
  local ms, number = string.match(low, '^(%d+)-(%d+)$')
  assert(ms and high == '+')
  ms, number = tonumber(ms), tonumber(number)
  local found, answer = find(key), {}
  for _, entry in ipairs(found and found.e or {}) do
    if (entry.ms > ms or (entry.ms == ms and entry.number >= number)) and #answer < tonumber(count) then
      answer[#answer + 1] = { entry_id(entry), entry.fields }
    end
  end
  return answer
end

function commands.TIME()
  local seconds = floor(now / 1000)
  return { format('%.0f', seconds), format('%.0f', (now - seconds * 1000) * 1000) }
end

function commands.INFO() return '# Replication\r\nrole:master\r\nmaster_replid:' .. replid .. '\r\n' end

local function call(name, ...)
  local command = commands[name]
  if not command then error('the simulated Redis has no ' .. tostring(name)) end
  return command(...)
end
redis = { call = call }

-- What Python calls.

local function copied(value)
  if type(value) ~= 'table' then return value end
  local copy = {}
  for field, inner in pairs(value) do copy[field] = copied(inner) end
  return copy
end

local functions = {}

-- Data sets since the last call of forget: a run that is over is not collected as a whole, so it lets go of them itself.
local made = {}

function functions.fresh(id)
  local state = { data = {}, expires = {}, replid = id }
  made[#made + 1] = state
  return state
end

function functions.copied(state, id)
  local copy = copied(state)
  copy.replid = id
  made[#made + 1] = copy
  return copy
end

function functions.forget()
  for index = 1, #made do made[index].data, made[index].expires = nil, nil end
  made = {}
end

-- An answer as lua.py takes it: its values one by one, as each look into a table from Python has its price.
local function given(value)
  if type(value) ~= 'table' then return -1, value end
  local size = #value
  if size > 1000 then return -2, value end
  for index = 1, size do
    if type(value[index]) == 'table' then return -2, value end
  end
  return size, unpack(value, 1, size)
end

-- Each of these sets the data set first: a script may be interrupted by what is told of it and look at the same one.

function functions.command(state, at, name, ...)
  data, expires, replid, now = state.data, state.expires, state.replid, at
  return given(call(name, ...))
end

function functions.run(state, at, script, count, ...)
  data, expires, replid, now = state.data, state.expires, state.replid, at
  KEYS, ARGV = { ... }, { select(count + 1, ...) }
  for index = #KEYS, count + 1, -1 do KEYS[index] = nil end
  return given(script())
end

-- All hashes whose keys begin so, in the order of their keys: key, how many words, fields and values; and so on.
function functions.hashes(state, at, prefix)
  data, expires, replid, now = state.data, state.expires, state.replid, at
  local answer, size = {}, 0
  for _, key in ipairs(commands.KEYS(prefix .. '*')) do
    local words = commands.HGETALL(key)
    answer[size + 1], answer[size + 2] = key, #words
    for index = 1, #words do answer[size + 2 + index] = words[index] end
    size = size + 2 + #words
  end
  return given(answer)
end

return functions.fresh, functions.copied, functions.forget, functions.command, functions.run, functions.hashes
