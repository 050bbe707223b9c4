-- Session store: what every command needs. The files base, rows, notes, sessions, queries are one script, in this order.
-- ARGV: namespace, command, writer, batch, then the command's own arguments. The keys are listed in store.py.
local ns, command, writer, batch = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local PAGE, MAX_LEVEL, ACTIVE = 1024, 15, -1
local commands = {}

local function fail(kind, text) error({kind = kind, text = text}, 0) end

local function number_text(value) return string.format('%.17g', value) end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function counter(name) return redis.call('HINCRBY', ns .. 'meta', name, 1) end

local function tenant_key(tenant, kind, ...) return table.concat({ns .. tenant, kind, ...}, ':') end

local function storage_key(s, storage) return tenant_key(s.tenant, 'storage', number_text(storage)) end

local function page_key(s, storage, level, page)
  return tenant_key(s.tenant, 'rows', number_text(storage), level, page)
end

local FIELDS = {
  'fence', 'lease', 'tokens', 'block_size', 'sequence', 'widths', 'lineage', 'staged', 'owner', 'until', 'op', 'result',
  'gist_blocks', 'lineage_sum', 'wisher', 'wished',
}

-- Of where the rows of a session lie: those of another one would look sound.
local function lineage_sum(id, lineage) return string.sub(redis.sha1hex(id .. ' ' .. lineage), 1, 16) end

-- The session, without its big fields. tenant '': any. damaged: though where its rows lie is not as it was written.
local function find(id, tenant, damaged)
  local owner = redis.call('HGET', ns .. 'owners', id)
  if not owner or (tenant ~= '' and owner ~= tenant) then fail('unknown', id) end
  local key = tenant_key(owner, 'session', id)
  local values = redis.call('HMGET', key, unpack(FIELDS))
  local s = {id = id, tenant = owner, key = key}
  for i, name in ipairs(FIELDS) do s[name] = values[i] end
  if not damaged and s.lineage_sum and s.lineage_sum ~= lineage_sum(id, s.lineage) then
    fail('damaged', string.format("where the rows of session '%s' lie is not as it was written", id))
  end
  for _, name in ipairs({'fence', 'tokens', 'block_size', 'sequence', 'until'}) do s[name] = tonumber(s[name]) end
  for _, name in ipairs({'widths', 'lineage', 'staged'}) do s[name] = cjson.decode(s[name]) end
  s.blocks = math.floor(s.tokens / s.block_size)
  s.gist_blocks = math.min(s.blocks, tonumber(s.gist_blocks or '') or math.huge) -- '': all
  return s
end

-- The session if (fence, lease) is its lease. known: the newest sequence that was acknowledged under it, or ''.
local function held(id, fence, lease, known)
  if redis.call('HEXISTS', ns .. 'owners', id) == 0 then fail('fenced', "session '" .. id .. "' was deleted") end
  local s = find(id, '')
  if known ~= '' and s.sequence < tonumber(known) then
    fail('lost', string.format("Redis lost acknowledged commits of session '%s': it has %d of %s",
      id, s.sequence, known))
  end
  if s.fence == 0 or s.fence ~= tonumber(fence) or (lease ~= '' and lease ~= s.lease) then
    fail('fenced', string.format("session '%s' was opened by another owner (lease %d, not %s)", id, s.fence, fence))
  end
  return s
end

-- Complete rows that `blocks` blocks have at a level; see mc_core.store.rows_at.
local function rows_at(s, level, blocks)
  if level == 0 then return blocks end
  return math.floor(blocks / s.block_size ^ (level - 1))
end

-- Rows at a level that are committed.
local function committed(s, level)
  return rows_at(s, level, level > 0 and s.gist_blocks or s.blocks)
end

-- Rows at a level that are committed or staged.
local function seen(s, level)
  return s.staged[tostring(level)] or committed(s, level)
end

-- What is stored as gist_blocks: how many of `blocks` blocks have gists, and all nodes that they complete; '': all.
local function complete(s, blocks)
  local there = math.huge
  for level = 1, MAX_LEVEL do
    there = math.min(there, (seen(s, level) + 1) * s.block_size ^ (level - 1) - 1)
  end
  return there < blocks and number_text(there) or ''
end

local function renew_until(s, seconds)
  redis.call('HSET', s.key, 'until', number_text(now() + tonumber(seconds)))
end
