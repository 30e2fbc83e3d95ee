-- MessagePack as scripts use it: cmsgpack's pack and unpack. Packing in Lua spares a conversion of every nested table.

local char, byte, floor, concat, sub = string.char, string.byte, math.floor, table.concat, string.sub

local function packed_number(value)
  if value ~= floor(value) then error('a script packs a fraction: ' .. value) end
  if value >= 0 and value < 128 then return char(value) end
  if value >= 0 and value < 4294967296 then
    return char(206, floor(value / 16777216), floor(value / 65536) % 256, floor(value / 256) % 256, value % 256)
  end
  local prefix = 207
  if value < 0 then prefix = 211 end
  local high = floor(value / 4294967296)
  local low = value - high * 4294967296
  if high < 0 then high = high + 4294967296 end
  return char(prefix, floor(high / 16777216) % 256, floor(high / 65536) % 256, floor(high / 256) % 256, high % 256,
    floor(low / 16777216), floor(low / 65536) % 256, floor(low / 256) % 256, low % 256)
end

local function head(size, short, most, long)
  if size <= most then return char(short + size) end
  return char(long, floor(size / 16777216), floor(size / 65536) % 256, floor(size / 256) % 256, size % 256)
end

-- The same few numbers and words are packed again and again: what each becomes is kept.
local packed, kept = { [true] = '\195', [false] = '\194' }, 0
local out, count

local function keep(value, text)
  if kept == 4096 then packed, kept = { [true] = '\195', [false] = '\194' }, 0 end
  packed[value], kept = text, kept + 1
  return text
end

local function pack(value)
  local found = packed[value]
  if not found then
    local kind = type(value)
    if kind == 'table' then
      local size = #value
      count = count + 1
      out[count] = head(size, 144, 15, 221)
      for index = 1, size do pack(value[index]) end
      return
    elseif kind == 'number' then found = keep(value, packed_number(value))
    elseif kind == 'string' then
      found = head(#value, 160, 31, 219) .. value
      if #value <= 31 then keep(value, found) end
    else error('a script packs a ' .. kind) end
  end
  count = count + 1
  out[count] = found
end

-- A number of 1, 2, 4 or 8 bytes.
local function big(raw, at, size)
  local a, b, c, d, e, f, g, h = byte(raw, at, at + size - 1)
  if size == 1 then return a end
  if size == 2 then return a * 256 + b end
  local high = ((a * 256 + b) * 256 + c) * 256 + d
  if size == 4 then return high end
  return high * 4294967296 + ((e * 256 + f) * 256 + g) * 256 + h
end

local unpack_list

-- The value that begins at a byte, and the byte after it.
local function unpack_value(raw, at)
  local kind = byte(raw, at)
  if kind < 128 then return kind, at + 1 end
  if kind < 160 then
    if kind < 144 then error('a script unpacks a map') end
    return unpack_list(raw, at + 1, kind - 144)
  end
  if kind < 192 then
    local after = at + kind - 159
    return sub(raw, at + 1, after - 1), after
  end
  if kind >= 224 then return kind - 256, at + 1 end
  if kind == 192 then return nil, at + 1 end
  if kind == 194 then return false, at + 1 end
  if kind == 195 then return true, at + 1 end
  if kind >= 204 and kind <= 207 then
    local size = 2 ^ (kind - 204)
    return big(raw, at + 1, size), at + 1 + size
  end
  if kind >= 208 and kind <= 211 then
    local size = 2 ^ (kind - 208)
    local value = big(raw, at + 1, size)
    if value >= 2 ^ (size * 8 - 1) then value = value - 2 ^ (size * 8) end
    return value, at + 1 + size
  end
  local size
  if kind >= 217 and kind <= 219 then size = 2 ^ (kind - 217)
  elseif kind >= 196 and kind <= 198 then size = 2 ^ (kind - 196)
  end
  if size then
    local length = big(raw, at + 1, size)
    local after = at + 1 + size + length
    return sub(raw, at + 1 + size, after - 1), after
  end
  if kind == 220 then return unpack_list(raw, at + 3, big(raw, at + 1, 2)) end
  if kind == 221 then return unpack_list(raw, at + 5, big(raw, at + 1, 4)) end
  error('a script unpacks a value of kind ' .. kind)
end

unpack_list = function(raw, at, size)
  local list = {}
  for index = 1, size do list[index], at = unpack_value(raw, at) end
  return list, at
end

cmsgpack = {
  pack = function(value)
    out, count = {}, 0
    pack(value)
    return concat(out)
  end,
  unpack = function(raw) return (unpack_value(raw, 1)) end,
}
