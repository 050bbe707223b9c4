-- What only reads, and the dispatch.
local INFO = {
  'session_id', 'tenant', 'model', 'tokenizer', 'block_size', 'gist_dim', 'gist_dtype', 'gist_keys', 'key_dim', 'tokens',
  'metadata', 'implicit', 'keep', 'ttl', 'gist_blocks', 'sequence', 'created', 'updated',
}

function commands.record(id, tenant) return {'ok', redis.call('HGETALL', find(id, tenant).key)} end

-- What a writer must know of its lease: the record's small part, its sequence is acknowledged.
function commands.describe(id, fence)
  local s = held(id, fence, '', '')
  return {'ok', s.lease, redis.call('HMGET', s.key, unpack(INFO))}
end

-- Rows of a level in runs (first, count, first, count, ...): the version of what was seen, the session's small part,
-- how many rows there are, and the rows of all runs below that as one string. Who holds the lease sees staged rows too.
function commands.rows(id, lease, level, ...)
  local s, runs, parts = find(id, ''), {...}, {}
  level = tonumber(level)
  local limit = lease ~= '' and lease == s.lease and seen(s, level) or committed(s, level)
  if not s.widths[level + 1] then limit = 0 end -- a session without gists
  for i = 1, #runs, 2 do
    local first = tonumber(runs[i])
    parts[#parts + 1] = read_rows(s, level, first, math.min(first + tonumber(runs[i + 1]), limit))
  end
  local version = string.format('%d.%d.%d', s.fence, s.sequence, limit)
  return {'ok', version, redis.call('HMGET', s.key, unpack(INFO)), tostring(limit), table.concat(parts)}
end

-- Newest first; kind: implicit, explicit or '' for all; (created, id) is where the page before ended, '' for the first.
function commands.list(tenant, kind, limit, created, id)
  local key = kind == '' and tenant_key(tenant, 'sessions') or tenant_key(tenant, 'sessions', kind)
  local found, start = {}, '+inf'
  limit = tonumber(limit)
  if created ~= '' then
    start = '(' .. created
    for _, member in ipairs(redis.call('ZREVRANGEBYSCORE', key, created, created)) do
      if member < id and #found < limit then found[#found + 1] = member end
    end
  end
  for _, member in ipairs(redis.call('ZREVRANGEBYSCORE', key, start, '-inf', 'LIMIT', 0, limit - #found)) do
    found[#found + 1] = member
  end
  local page, stale = {'ok'}, false
  for _, member in ipairs(found) do
    local values = redis.call('HMGET', tenant_key(tenant, 'session', member), unpack(INFO))
    page[#page + 1] = values[1] and values
    if not values[1] then -- deleted by a server of an older format
      redis.call('ZREM', key, member)
      stale = true
    end
  end
  return stale and commands.list(tenant, kind, limit, created, id) or page
end

function commands.find_prefix(tenant, model, ...)
  for i, hash in ipairs({...}) do
    local newest = redis.call('ZREVRANGE', prefix_key(tenant, model, hash), 0, 0)[1]
    if newest then return {'ok', i - 1, newest} end
  end
  return {'ok'}
end

function commands.everything() return {'ok', redis.call('HGETALL', ns .. 'owners')} end

-- The next cursor, and how many of a thousand sessions or so from this one on are of another tokenizer.
function commands.foreign(tokenizer, cursor)
  local found = redis.call('HSCAN', ns .. 'owners', cursor, 'COUNT', 1000)
  local owners, others = found[2], 0
  for i = 1, #owners, 2 do
    local values = redis.call('HMGET', tenant_key(owners[i + 1], 'session', owners[i]), 'tokenizer', 'gist_dim')
    if values[1] and values[1] ~= tokenizer and values[2] ~= '0' then others = others + 1 end
  end
  return {'ok', found[1], others}
end

function commands.probe() return {'ok', counter('probe')} end

-- A batch that its writer gave up may still lie in a socket of Redis: once a later one began, it must not run.
function commands.begin()
  local key = ns .. 'writer:' .. writer
  if tonumber(redis.call('GET', key) or 0) < tonumber(batch) then redis.call('SET', key, batch, 'EX', 86400) end
  return {'ok'}
end

if batch ~= '' and command ~= 'begin' and redis.call('GET', ns .. 'writer:' .. writer) ~= batch then return {'stale'} end
local done, result = pcall(commands[command], unpack(ARGV, 5))
if done then return result end
if type(result) == 'table' and result.kind then return {result.kind, result.text} end
return redis.error_reply(type(result) == 'table' and result.err or tostring(result))
