-- Rows lie in pages of PAGE rows of fixed width, one string a page. They belong to storages; a session's lineage lists
-- {storage, end block}: a fork shares its parent's storages up to the fork. A storage begins at block `base`, which is
-- the end of the segment before it, so its pages hold no room for rows that lie elsewhere.
local HEADER, RESIDUE = 20, 0x2144DF1C -- see codec.py: bytes before the payload; CRC-32 of a sound row

-- Calls visit(page key, offset in the page, rows, distance from first) for each part of rows [first, stop).
local function each_part(s, level, first, stop, visit)
  local at, base = first, 0
  for _, segment in ipairs(s.lineage) do
    local storage, last = segment[1], segment[2]
    local bound = last == ACTIVE and math.huge or rows_at(s, level, last)
    local start = rows_at(s, level, base)
    while at < stop and at < bound do
      local page, inside = math.floor((at - start) / PAGE), (at - start) % PAGE
      local count = math.min(stop - at, bound - at, PAGE - inside)
      visit(storage, page, inside, count, at - first)
      at = at + count
    end
    base = last
  end
end

local function read_part(s, level, storage, page, inside, count)
  local width = s.widths[level + 1]
  local want = count * width
  local data = redis.call('GETRANGE', page_key(s, storage, level, page), inside * width, inside * width + want - 1)
  return #data == want and data or data .. string.rep('\0', want - #data)
end

-- Rows [first, stop) as one string; what is not there reads as zeros.
local function read_rows(s, level, first, stop)
  local parts = {}
  each_part(s, level, first, stop, function(storage, page, inside, count)
    parts[#parts + 1] = read_part(s, level, storage, page, inside, count)
  end)
  return table.concat(parts)
end

local crc_table

local function crc32(data)
  if not crc_table then
    crc_table = {}
    for i = 0, 255 do
      local value = i
      for _ = 1, 8 do
        value = bit.bxor(bit.rshift(value, 1), bit.band(value, 1) == 1 and 0xEDB88320 or 0)
      end
      crc_table[i] = value
    end
  end
  local crc = -1
  for i = 1, #data do
    crc = bit.bxor(bit.rshift(crc, 8), crc_table[bit.band(bit.bxor(crc, string.byte(data, i)), 255)])
  end
  return bit.bnot(crc)
end

-- Sound committed rows must equal the fresh ones; a missing or corrupt one may be written again.
local function check_committed(s, level, first, stop, blob)
  if stop <= first then return end
  local width = s.widths[level + 1]
  local stored = read_rows(s, level, first, stop)
  if stored == string.sub(blob, 1, #stored) then return end
  for i = 0, stop - first - 1 do
    local old = string.sub(stored, i * width + 1, (i + 1) * width)
    local new = string.sub(blob, i * width + 1, (i + 1) * width)
    if old ~= new and string.sub(old, 1, HEADER) == string.sub(new, 1, HEADER) and crc32(old) == RESIDUE then
      fail('refused', string.format('row %d of level %d is committed with other content: commit the rewind first',
        first + i, level))
    end
  end
end

local function write_rows(s, level, first, stop, blob)
  local width = s.widths[level + 1]
  each_part(s, level, first, stop, function(storage, page, inside, count, from)
    local data = string.sub(blob, from * width + 1, (from + count) * width)
    redis.call('SETRANGE', page_key(s, storage, level, page), inside * width, data)
    local key, field = storage_key(s, storage), 'pages:' .. level
    if tonumber(redis.call('HGET', key, field) or 0) <= page then redis.call('HSET', key, field, page + 1) end
  end)
end

function commands.stage(id, fence, lease, known, level, first, width, seconds, blob)
  local s = held(id, fence, lease, known)
  level, first, width = tonumber(level), tonumber(first), tonumber(width)
  if width ~= s.widths[level + 1] then fail('refused', 'rows of level ' .. level .. ' have another width') end
  local there, committed, stop = seen(s, level), rows_at(s, level, s.blocks), first + #blob / width
  if first > there then
    fail('refused', string.format('rows of level %d must be written without gaps: next is %d, got %d',
      level, there, first))
  end
  check_committed(s, level, first, math.min(stop, committed), blob)
  write_rows(s, level, first, stop, blob)
  s.staged[tostring(level)] = math.max(committed, stop)
  redis.call('HSET', s.key, 'staged', cjson.encode(s.staged))
  renew_until(s, seconds)
  return {'ok'}
end

-- A new storage that the session writes to from block `base` on.
local function new_storage(s, base)
  local storage = counter('storage')
  redis.call('HSET', storage_key(s, storage), 'base', base, 'user:' .. s.id, ACTIVE)
  return storage
end

local function save_lineage(s, lineage)
  for _, segment in ipairs(s.lineage) do redis.call('HDEL', storage_key(s, segment[1]), 'user:' .. s.id) end
  for _, segment in ipairs(lineage) do
    redis.call('HSET', storage_key(s, segment[1]), 'user:' .. s.id, segment[2])
  end
  redis.call('HSET', s.key, 'lineage', cjson.encode(lineage))
end

-- The segments of the first `blocks` blocks, all closed; empty ones are left out.
local function cut(lineage, blocks)
  local parts, start = {}, 0
  for _, segment in ipairs(lineage) do
    local last = segment[2] == ACTIVE and blocks or math.min(segment[2], blocks)
    if last > start then parts[#parts + 1] = {segment[1], last} end
    start = math.max(start, last)
  end
  return parts
end

-- Blocks of a storage that other sessions need: all if one of them still writes there. Second: whether there are any.
local function shared_blocks(s, storage)
  local most, others = 0, false
  local flat = redis.call('HGETALL', storage_key(s, storage))
  for i = 1, #flat, 2 do
    if string.sub(flat[i], 1, 5) == 'user:' and flat[i] ~= 'user:' .. s.id then
      local last = tonumber(flat[i + 1])
      most, others = math.max(most, last == ACTIVE and math.huge or last), true
    end
  end
  return most, others
end

-- The lineage after a rewind to `blocks`: a new storage if a fork needs rows that would be written anew, or if the
-- active storage begins later.
local function rewound(s, blocks)
  local closed, active = cut(s.lineage, blocks), s.lineage[#s.lineage]
  local base = tonumber(redis.call('HGET', storage_key(s, active[1]), 'base'))
  if blocks < base or shared_blocks(s, active[1]) > blocks then
    closed[#closed + 1] = {new_storage(s, blocks), ACTIVE}
  elseif #closed > 0 and closed[#closed][1] == active[1] then
    closed[#closed][2] = ACTIVE
  else
    closed[#closed + 1] = {active[1], ACTIVE}
  end
  return closed
end

-- Drops the rows of a storage beyond `blocks` blocks, at all levels; the storage itself if nobody uses it.
local function drop_rows(s, storage, blocks, used)
  local key = storage_key(s, storage)
  local base = tonumber(redis.call('HGET', key, 'base'))
  for level = 0, MAX_LEVEL do
    local pages = tonumber(redis.call('HGET', key, 'pages:' .. level) or 0)
    local keep = used and math.max(0, rows_at(s, level, blocks) - rows_at(s, level, base)) or 0
    local kept_pages, rest = math.ceil(keep / PAGE), keep % PAGE
    for page = kept_pages, pages - 1 do redis.call('UNLINK', page_key(s, storage, level, page)) end
    if rest > 0 and kept_pages <= pages then
      local last, size = page_key(s, storage, level, kept_pages - 1), rest * s.widths[level + 1]
      if redis.call('STRLEN', last) > size then redis.call('SET', last, redis.call('GETRANGE', last, 0, size - 1)) end
    end
    if kept_pages == 0 then redis.call('HDEL', key, 'pages:' .. level)
    elseif kept_pages < pages then redis.call('HSET', key, 'pages:' .. level, kept_pages) end
  end
  if not used then redis.call('DEL', key) end
end

-- Drops the rows of these segments that neither the session, which has `blocks` now, nor a fork needs.
local function tidy(s, lineage, blocks)
  for _, segment in ipairs(lineage) do
    local shared, others = shared_blocks(s, segment[1])
    local own = redis.call('HEXISTS', storage_key(s, segment[1]), 'user:' .. s.id) == 1
    local needed = own and math.max(blocks, shared) or shared
    if needed < math.huge then drop_rows(s, segment[1], needed, own or others) end
  end
end
