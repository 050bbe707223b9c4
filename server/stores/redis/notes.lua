-- Notes. T:notes:ID (hash) has of each note v<key>, its value, and p<key>, its place: 1 if indexed else 0, then the
-- position and the number of its writing, 16 digits each. T:order:ID (zset, all scores 0) has position, number, key in
-- the order of pages; one that is kept, unseen, has a ~ before that. T:indexed (hash): session by indexed key.
local HIDDEN, ORDER = '~', 32

local function notes_key(s) return tenant_key(s.tenant, 'notes', s.id) end
local function order_key(s) return tenant_key(s.tenant, 'order', s.id) end
local function indexed_key(tenant) return tenant_key(tenant, 'indexed') end
local function digits(number) return string.format('%016d', tonumber(number)) end

-- Members of the order, from one bound to another as in ZRANGEBYLEX.
local function members(s, from, to) return redis.call('ZRANGEBYLEX', order_key(s), from, to) end
local function members_past(s, tokens) return members(s, '[' .. digits(tonumber(tokens) + 1), '(' .. HIDDEN) end
local function members_hidden(s) return members(s, '[' .. HIDDEN, '+') end

-- Key, position and number of a member that is seen.
local function parts_of(member)
  return string.sub(member, ORDER + 1), string.sub(member, 1, 16), string.sub(member, 17, ORDER)
end

local function drop_note(s, key)
  local place = redis.call('HGET', notes_key(s), 'p' .. key)
  if not place then return 0 end
  local member = string.sub(place, 2) .. key
  if string.sub(place, 1, 1) == '1' then redis.call('HDEL', indexed_key(s.tenant), key) end
  redis.call('HDEL', notes_key(s), 'p' .. key, 'v' .. key)
  redis.call('ZREM', order_key(s), member, HIDDEN .. member)
  return 1
end

-- list: {{key, position, 1 if indexed else 0, bytes}, ..}; refused before anything is changed.
local function check_notes(s, list)
  for _, note in ipairs(list) do
    local owner = note[3] == 1 and redis.call('HGET', indexed_key(s.tenant), note[1])
    if owner and owner ~= s.id then
      fail('taken', s.id)
    end
  end
end

-- blob: the values of the list, one after the other.
local function write_notes(s, list, blob)
  local at = 0
  for _, note in ipairs(list) do
    local key, flag = note[1], tostring(note[3])
    local before = redis.call('HGET', notes_key(s), 'p' .. key)
    local number = before and string.sub(before, 18) or digits(counter('note'))
    if before then drop_note(s, key) end
    local order = digits(note[2]) .. number
    redis.call('HSET', notes_key(s), 'p' .. key, flag .. order, 'v' .. key, string.sub(blob, at + 1, at + note[4]))
    redis.call('ZADD', order_key(s), 0, order .. key)
    if flag == '1' then redis.call('HSET', indexed_key(s.tenant), key, s.id) end
    at = at + note[4]
  end
end

-- See mc_core.notes.Beyond.
local function settle_beyond(s, tokens, beyond)
  if beyond == 'keep' then
    for _, member in ipairs(members_past(s, tokens)) do
      redis.call('ZREM', order_key(s), member)
      redis.call('ZADD', order_key(s), 0, HIDDEN .. member)
    end
    return
  end
  for _, member in ipairs(members_hidden(s)) do
    local seen_as = string.sub(member, 2)
    if beyond == 'restore' then
      redis.call('ZREM', order_key(s), member)
      redis.call('ZADD', order_key(s), 0, seen_as)
    else drop_note(s, (parts_of(seen_as))) end
  end
  for _, member in ipairs(members_past(s, tokens)) do drop_note(s, (parts_of(member))) end
end

local function copy_notes(parent, child, tokens)
  for _, member in ipairs(members(parent, '-', '(' .. digits(tonumber(tokens) + 1))) do
    local key, position = parts_of(member)
    local found = redis.call('HMGET', notes_key(parent), 'p' .. key, 'v' .. key)
    if found[1] and found[2] and string.sub(found[1], 1, 1) == '0' then
      write_notes(child, {{key, position, 0, #found[2]}}, found[2])
    end
  end
end

local function remove_notes(s)
  for _, member in ipairs(members(s, '-', '+')) do
    local seen_as = string.sub(member, 1, 1) == HIDDEN and string.sub(member, 2) or member
    local key = parts_of(seen_as)
    if string.sub(redis.call('HGET', notes_key(s), 'p' .. key) or '', 1, 1) == '1' then
      redis.call('HDEL', indexed_key(s.tenant), key)
    end
  end
  redis.call('UNLINK', notes_key(s), order_key(s))
end

-- A note as {key, position, number, flag, value}, or nil if there is none or it is not seen.
local function read_note(s, key)
  local found = redis.call('HMGET', notes_key(s), 'p' .. key, 'v' .. key)
  if not found[1] then return nil end
  local order = string.sub(found[1], 2)
  if not redis.call('ZSCORE', order_key(s), order .. key) then return nil end
  return {key, string.sub(order, 1, 16), string.sub(order, 17), string.sub(found[1], 1, 1), found[2] or ''}
end

function commands.note(id, tenant, key) return {'ok', read_note(find(id, tenant), key)} end

function commands.find_note(tenant, key)
  local id = redis.call('HGET', indexed_key(tenant), key)
  return {'ok', id and {id, read_note(find(id, tenant), key)}}
end

-- again: '1' if the call may have been made already.
function commands.delete_note(id, tenant, key, again)
  local dropped = drop_note(find(id, tenant), key)
  return {'ok', again == '1' and 1 or dropped}
end

-- after: position and number of the last note before, '' for the first page. One more than a page holds tells that
-- there are more; it comes without its value if the page has too many bytes.
function commands.notes(id, tenant, prefix, position, number, limit, newest, bytes)
  local s, page, size, at = find(id, tenant), {'ok'}, 0, 0
  limit, bytes = tonumber(limit), tonumber(bytes)
  local after = position ~= '' and digits(position) .. digits(number)
  while true do
    local some
    if newest == '1' then
      some = redis.call('ZREVRANGEBYLEX', order_key(s), '(' .. (after or HIDDEN), '-', 'LIMIT', at, 256)
    else
      some = redis.call('ZRANGEBYLEX', order_key(s), after and '(' .. after .. '\255' or '-', '(' .. HIDDEN,
        'LIMIT', at, 256)
    end
    for _, member in ipairs(some) do
      local key, place, written = parts_of(member)
      if string.sub(key, 1, #prefix) == prefix then
        local note = read_note(s, key) or {key, place, written, '0', ''} -- lost
        size = size + #note[5]
        page[#page + 1] = note
        if #page - 1 > limit or (size > bytes and #page > 2) then
          note[5] = ''
          return page
        end
      end
    end
    if #some < 256 then return page end
    at = at + #some
  end
end
