-- Rows lie in pages of PAGE rows of fixed width, one string a page. They belong to storages; a session's lineage lists
-- {storage, end block, storage of the gists}: a fork shares its parent's storages up to the fork. Gists lie in the
-- storage of their spans (then the third is left out) until the session is reshaped; those that a fork has to make itself
-- lie elsewhere too. A storage begins at block `base`, where the first segment that uses it begins, so its pages hold no room for rows that lie elsewhere.
local HEADER, RESIDUE = 20, 0x2144DF1C -- see codec.py: bytes before the payload; CRC-32 of a sound row

local function gists_of(segment) return segment[3] or segment[1] end

-- Calls visit(page key, offset in the page, rows, distance from first) for each part of rows [first, stop).
local function each_part(s, level, first, stop, visit)
  local at, begins, base, before = first, 0, 0, nil
  for _, segment in ipairs(s.lineage) do
    local storage, last = level == 0 and segment[1] or gists_of(segment), segment[2]
    if storage ~= before then base, before = begins, storage end
    local bound = last == ACTIVE and math.huge or rows_at(s, level, last)
    local start = rows_at(s, level, base)
    while at < stop and at < bound do
      local page, inside = math.floor((at - start) / PAGE), (at - start) % PAGE
      local count = math.min(stop - at, bound - at, PAGE - inside)
      visit(storage, page, inside, count, at - first)
      at = at + count
    end
    begins = last
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
    local name = page_key(s, storage, level, page)
    redis.call('SETRANGE', name, inside * width, data)
    -- Redis leaves a string that grows room for as much again; a page that is full grows no more.
    if inside + count == PAGE then redis.call('SET', name, redis.call('GET', name)) end
    local key, field = storage_key(s, storage), 'pages:' .. level
    if tonumber(redis.call('HGET', key, field) or 0) <= page then redis.call('HSET', key, field, page + 1) end
  end)
end

function commands.stage(id, fence, lease, known, level, first, width, seconds, blob)
  local s = held(id, fence, lease, known)
  level, first, width = tonumber(level), tonumber(first), tonumber(width)
  if width ~= s.widths[level + 1] then fail('refused', 'rows of level ' .. level .. ' have another width') end
  local there, known_rows, stop = seen(s, level), committed(s, level), first + #blob / width
  if first > there then
    fail('refused', string.format('rows of level %d must be written without gaps: next is %d, got %d',
      level, there, first))
  end
  check_committed(s, level, first, math.min(stop, known_rows), blob)
  write_rows(s, level, first, stop, blob)
  s.staged[tostring(level)] = math.max(known_rows, stop)
  redis.call('HSET', s.key, 'staged', cjson.encode(s.staged))
  if level > 0 and s.gist_blocks < s.blocks then redis.call('HSET', s.key, 'gist_blocks', complete(s, s.blocks)) end
  renew_until(s, seconds)
  return {'ok'}
end

-- A new storage that begins at block `base`.
local function new_storage(s, base)
  local storage = counter('storage')
  redis.call('HSET', storage_key(s, storage), 'base', base)
  return storage
end

-- Who uses a storage, and up to which block: field user:ID for spans and gists, spans:ID and gists:ID for one of them.
local function leave(s, lineage)
  for _, segment in ipairs(lineage) do
    redis.call('HDEL', storage_key(s, segment[1]), 'user:' .. s.id, 'spans:' .. s.id)
    redis.call('HDEL', storage_key(s, gists_of(segment)), 'gists:' .. s.id)
  end
end

local function save_lineage(s, lineage)
  leave(s, s.lineage)
  for _, segment in ipairs(lineage) do
    if segment[3] then
      redis.call('HSET', storage_key(s, segment[1]), 'spans:' .. s.id, segment[2])
      redis.call('HSET', storage_key(s, segment[3]), 'gists:' .. s.id, segment[2])
    else
      redis.call('HSET', storage_key(s, segment[1]), 'user:' .. s.id, segment[2])
    end
  end
  local text = cjson.encode(lineage)
  redis.call('HSET', s.key, 'lineage', text, 'lineage_sum', lineage_sum(s.id, text))
end

-- The segments of the first `blocks` blocks, all closed; empty ones are left out.
local function cut(lineage, blocks)
  local parts, start = {}, 0
  for _, segment in ipairs(lineage) do
    local last = segment[2] == ACTIVE and blocks or math.min(segment[2], blocks)
    if last > start then parts[#parts + 1] = {segment[1], last, segment[3]} end
    start = math.max(start, last)
  end
  return parts
end

-- The lineage with all gists but those of the first `blocks` blocks in a fresh storage.
local function with_own_gists(s, lineage, blocks)
  local parts, gists = cut(lineage, blocks), new_storage(s, blocks)
  for _, segment in ipairs(lineage) do
    if segment[2] == ACTIVE or segment[2] > blocks then parts[#parts + 1] = {segment[1], segment[2], gists} end
  end
  return parts
end

-- Blocks of a storage whose `kind` (spans, gists) other sessions need: all if one of them still writes there.
-- Second: whether this session uses it; third: whether anyone does, for any kind.
local function shared_blocks(s, storage, kind)
  local most, own, any = 0, false, false
  local flat = redis.call('HGETALL', storage_key(s, storage))
  for i = 1, #flat, 2 do
    local use, id = string.match(flat[i], '^(%l+):(.*)$')
    if use and use ~= 'pages' then
      any = true
      if use == 'user' or use == kind then
        local last = tonumber(flat[i + 1])
        if id == s.id then own = true else most = math.max(most, last == ACTIVE and math.huge or last) end
      end
    end
  end
  return most, own, any
end

-- The lineage after a rewind to `blocks`: a new storage if a fork needs rows that would be written anew, or if the
-- active storage begins later.
local function rewound(s, blocks)
  local closed, active = cut(s.lineage, blocks), s.lineage[#s.lineage]
  local base = tonumber(redis.call('HGET', storage_key(s, active[1]), 'base'))
  local shared = math.max((shared_blocks(s, active[1], 'spans')), (shared_blocks(s, gists_of(active), 'gists')))
  if blocks < base or shared > blocks then
    closed[#closed + 1] = {new_storage(s, blocks), ACTIVE}
  elseif #closed > 0 and closed[#closed][1] == active[1] then
    closed[#closed] = active
  else
    closed[#closed + 1] = active
  end
  return closed
end

-- Drops the rows of a storage beyond `blocks` blocks, at levels low to high.
local function drop_rows(s, storage, low, high, blocks)
  local key = storage_key(s, storage)
  local base = tonumber(redis.call('HGET', key, 'base') or nil)
  if not base then return end -- gone with an earlier segment
  for level = low, high do
    local pages = tonumber(redis.call('HGET', key, 'pages:' .. level) or 0)
    local keep = math.max(0, rows_at(s, level, blocks) - rows_at(s, level, base))
    local kept_pages, rest = math.ceil(keep / PAGE), keep % PAGE
    for page = kept_pages, pages - 1 do redis.call('UNLINK', page_key(s, storage, level, page)) end
    if rest > 0 and kept_pages <= pages then
      local last, size = page_key(s, storage, level, kept_pages - 1), rest * s.widths[level + 1]
      if redis.call('STRLEN', last) > size then redis.call('SET', last, redis.call('GETRANGE', last, 0, size - 1)) end
    end
    if kept_pages == 0 then redis.call('HDEL', key, 'pages:' .. level)
    elseif kept_pages < pages then redis.call('HSET', key, 'pages:' .. level, kept_pages) end
  end
end

-- Drops the rows of one kind that neither the session, which has `blocks` of them now, nor a fork needs.
-- Whether anybody uses the storage, for any kind.
local function trim(s, storage, kind, low, high, blocks)
  local shared, own, any = shared_blocks(s, storage, kind)
  local needed = own and math.max(blocks, shared) or shared
  if needed < math.huge then drop_rows(s, storage, low, high, needed) end
  return any
end

-- Drops what nobody needs of these segments; the session has spans of `spans` blocks now, and gists of `gists` blocks.
local function tidy(s, lineage, spans, gists)
  for _, segment in ipairs(lineage) do
    local span_use = trim(s, segment[1], 'spans', 0, 0, spans)
    local gist_use = trim(s, gists_of(segment), 'gists', 1, MAX_LEVEL, gists)
    if not span_use then redis.call('DEL', storage_key(s, segment[1])) end
    if not gist_use then redis.call('DEL', storage_key(s, gists_of(segment))) end
  end
end
