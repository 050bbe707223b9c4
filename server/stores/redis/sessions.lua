-- Session records. Commands that may be sent again after a lost reply carry `op`, the name of the call: what was done
-- once is not done twice.
local FIXED = {'tenant', 'model', 'tokenizer', 'block_size', 'gist_dim', 'gist_dtype', 'gist_keys', 'key_dim'}

local function prefix_key(tenant, model, hash) return tenant_key(tenant, 'prefix', model, hash) end

-- Sets of all tenants' sessions that go some time: those without a time of their own by kind and last commit, the others
-- by the time from which on they may go.
local function list_expiring(s, implicit, updated, keep, ttl)
  local member = s.tenant .. ':' .. s.id
  local place = keep ~= '1' and (ttl ~= '' and 'expiring' or implicit == '1' and 'implicit' or 'explicit')
  for _, set in ipairs({'implicit', 'explicit', 'expiring'}) do
    if implicit ~= '' and set == place then
      local score = set == 'expiring' and number_text(tonumber(updated) + tonumber(ttl)) or updated
      redis.call('ZADD', ns .. set, score, member)
    else redis.call('ZREM', ns .. set, member) end
  end
end

-- Where sessions are listed beside all: by kind and creation; implicit '': nowhere.
local function list_kind(s, implicit, created)
  local kinds = {['0'] = 'explicit', ['1'] = 'implicit'}
  for value, kind in pairs(kinds) do
    local key = tenant_key(s.tenant, 'sessions', kind)
    if value == implicit then redis.call('ZADD', key, created, s.id) else redis.call('ZREM', key, s.id) end
  end
end

local function pairs_of(s, text)
  local found = {}
  for _, pair in ipairs(text ~= '' and cjson.decode(text) or {}) do
    local member = number_text(pair[2]) .. ' ' .. s.id
    found[#found + 1] = {name = pair[1] .. ' ' .. member, hash = pair[1], member = member}
  end
  return found
end

-- Makes the index of message prefixes equal to the record's; pairs that stay keep their place. Text: JSON or ''.
local function index_prefixes(s, model, old, new)
  if old == new then return end
  local before, after = {}, {}
  for _, pair in ipairs(pairs_of(s, old)) do before[pair.name] = pair end
  for _, pair in ipairs(pairs_of(s, new)) do
    after[pair.name] = true
    if not before[pair.name] then
      redis.call('ZADD', prefix_key(s.tenant, model, pair.hash), counter('serial'), pair.member)
    end
  end
  for name, pair in pairs(before) do
    if not after[name] then redis.call('ZREM', prefix_key(s.tenant, model, pair.hash), pair.member) end
  end
end

local function indexed(key)
  local values = redis.call('HMGET', key, 'implicit', 'prefixes', 'model_key')
  return values[1] == '1' and values[2] or '', values[3]
end

local function check_fixed(s, fields)
  local stored = redis.call('HMGET', s.key, unpack(FIXED))
  for i, name in ipairs(FIXED) do
    if stored[i] ~= fields[name] then
      fail('refused', string.format("%s of session '%s' is fixed: '%s', not '%s'", name, s.id, stored[i], fields[name]))
    end
  end
end

local function fields_of(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- Stores a new session over `closed` segments that reach `base` and have gists of `gist_blocks` blocks; flat: its fields
-- as in HSET.
local function create(op, tenant, flat, closed, base, gist_blocks)
  local fields = fields_of(flat)
  local id = fields.session_id
  local s = {id = id, tenant = tenant, key = tenant_key(tenant, 'session', id), lineage = {}}
  if redis.call('HEXISTS', ns .. 'owners', id) == 1 then
    local stamped = redis.call('HMGET', s.key, 'op', 'created', 'updated')
    if stamped[1] ~= op then fail('refused', "session id '" .. id .. "' is taken") end
    return {'ok', stamped[2], stamped[3]}
  end
  local updated = number_text(now())
  local created = fields.created ~= '' and fields.created or updated
  redis.call('HSET', ns .. 'owners', id, tenant)
  redis.call('ZADD', tenant_key(tenant, 'sessions'), created, id)
  list_kind(s, fields.implicit, created)
  list_expiring(s, fields.implicit, updated, fields.keep, fields.ttl)
  redis.call('HSET', s.key, unpack(flat))
  redis.call('HSET', s.key, 'created', created, 'updated', updated, 'sequence', 0, 'fence', 0, 'lease', '', 'owner', '',
    'until', 0, 'staged', '{}', 'op', op, 'result', '',
    'gist_blocks', gist_blocks < base and number_text(gist_blocks) or '')
  index_prefixes(s, fields.model_key, '', fields.implicit == '1' and fields.prefixes or '')
  closed[#closed + 1] = {new_storage(s, base), ACTIVE}
  save_lineage(s, gist_blocks < base and with_own_gists(s, closed, gist_blocks) or closed)
  return {'ok', created, updated}
end

function commands.create(op, tenant, ...) return create(op, tenant, {...}, {}, 0, 0) end

function commands.fork(op, parent, tenant, ...)
  local flat = {...}
  local fields, s = fields_of(flat), find(parent, tenant)
  check_fixed(s, fields)
  if tonumber(fields.tokens) > s.tokens then
    fail('config', string.format("a fork's tokens must be at most %d, got %s", s.tokens, fields.tokens))
  end
  local blocks = math.floor(tonumber(fields.tokens) / s.block_size)
  local fresh = redis.call('HEXISTS', ns .. 'owners', fields.session_id) == 0
  local answer = create(op, tenant, flat, cut(s.lineage, blocks), blocks, s.gist_blocks)
  if fresh then copy_notes(s, {id = fields.session_id, tenant = tenant}, fields.tokens) end
  return answer
end

-- Who holds a session is asked for it by its name.
local function asked_key(owner) return ns .. 'asked:' .. owner end

-- wish: '1' to ask whoever holds the session for it.
function commands.open(op, id, tenant, owner, seconds, wish)
  local s = find(id, tenant)
  if s.lease ~= op then
    local left = s['until'] - now()
    if s.owner ~= '' and s.owner ~= owner and left > 0 then
      if wish == '1' then
        redis.call('HSET', s.key, 'wisher', owner, 'wished', number_text(now()))
        redis.call('SADD', asked_key(s.owner), id)
        redis.call('EXPIRE', asked_key(s.owner), 60)
      end
      fail('held', number_text(left))
    end
    redis.call('HSET', s.key, 'fence', counter('fence'), 'lease', op, 'owner', owner, 'staged', '{}')
    redis.call('HDEL', s.key, 'wisher', 'wished')
    if next(s.staged) then
      tidy(s, s.gist_blocks < s.blocks and s.lineage or {s.lineage[#s.lineage]}, s.blocks, s.gist_blocks)
    end
  end
  renew_until(s, seconds)
  return {'ok', redis.call('HGETALL', s.key)}
end

-- owner: whose the leases are from now on, or ''. Then id, fence and the newest acknowledged sequence of each.
function commands.renew(seconds, owner, ...)
  local leases, lost = {...}, {'ok'}
  for i = 1, #leases, 3 do
    local ok, s = pcall(held, leases[i], leases[i + 1], '', leases[i + 2])
    if ok then
      renew_until(s, seconds)
      if owner ~= '' then redis.call('HSET', s.key, 'owner', owner) end
    else lost[#lost + 1] = leases[i] end
  end
  return lost
end

-- A server of a name lives, as one life of it; 0 if another life of that name began since the first time.
function commands.announce(owner, life, first, seconds)
  local key = ns .. 'server:' .. owner
  local known = redis.call('GET', key)
  if first ~= '1' and known and known ~= life then return {'ok', 0} end
  redis.call('SET', key, life, 'PX', math.ceil(tonumber(seconds) * 1000))
  return {'ok', 1}
end

-- Wishes older than `wish` seconds count no more; the session is kept for the newest for `pass` seconds.
function commands.release(id, fence, wish, pass)
  local ok, s = pcall(held, id, fence, '', '')
  if not ok then return {'ok'} end
  redis.call('HSET', s.key, 'fence', counter('fence')) -- a renewal that comes late must not take it back
  if s.wisher and tonumber(s.wished) > now() - tonumber(wish) then
    redis.call('HSET', s.key, 'owner', s.wisher)
    renew_until(s, pass)
  else redis.call('HSET', s.key, 'owner', '', 'until', 0) end
  return {'ok'}
end

function commands.asked(owner)
  local found = redis.call('SMEMBERS', asked_key(owner))
  if #found > 0 then redis.call('DEL', asked_key(owner)) end
  return {'ok', unpack(found)}
end

-- gist_blocks: how many must have gists.
local function check_complete(s, fields, blocks, gist_blocks)
  for level = 0, tonumber(fields.gist_dim) > 0 and MAX_LEVEL or 0 do
    local there, needed = seen(s, level), rows_at(s, level, level > 0 and gist_blocks or blocks)
    if there < needed then
      fail('refused', string.format("session '%s': %s tokens need %d rows of level %d, only %d were written",
        s.id, fields.tokens, needed, level, there))
    end
  end
end

-- gist_blocks: blocks whose gists must be there, or '' for all; beyond, list, values: see mc_core.notes.Beyond and
-- write_notes.
function commands.commit(op, id, fence, lease, known, seconds, gist_blocks, beyond, list, values, ...)
  local fields, notes = fields_of({...}), cjson.decode(list)
  local s = held(id, fence, lease, known)
  if s.op == op then return {'ok', s.result} end
  local blocks = math.floor(tonumber(fields.tokens) / s.block_size)
  check_fixed(s, fields)
  check_complete(s, fields, blocks, math.min(blocks, tonumber(gist_blocks) or blocks))
  gist_blocks = tonumber(fields.gist_dim) > 0 and complete(s, blocks) or ''
  check_notes(s, notes)
  local old, model = indexed(s.key)
  index_prefixes(s, model, old, fields.implicit == '1' and fields.prefixes or '')
  local sequence, time = s.sequence + 1, now()
  redis.call('HSET', s.key, 'tokens', fields.tokens, 'metadata', fields.metadata, 'implicit', fields.implicit,
    'keep', fields.keep, 'ttl', fields.ttl,
    'tail', fields.tail, 'state', fields.state, 'prefixes', fields.prefixes, 'sequence', sequence, 'staged', '{}',
    'updated', number_text(time), 'until', number_text(time + tonumber(seconds)), 'op', op, 'result', sequence,
    'gist_blocks', gist_blocks)
  list_kind(s, fields.implicit, redis.call('HGET', s.key, 'created'))
  list_expiring(s, fields.implicit, number_text(time), fields.keep, fields.ttl)
  settle_beyond(s, fields.tokens, beyond)
  write_notes(s, notes, values)
  local shrank, staged_past, lineage = blocks < s.blocks, false, s.lineage
  local gists = tonumber(gist_blocks) or blocks
  for level, count in pairs(s.staged) do
    staged_past = staged_past or count > rows_at(s, tonumber(level), level == '0' and blocks or gists)
  end
  if shrank then save_lineage(s, rewound(s, blocks)) end
  if shrank or staged_past then tidy(s, lineage, blocks, gists) end
  return {'ok', tostring(sequence)}
end

-- Drops the gists; from now on they look as the fields (name, value, ...) and the rows' widths say.
function commands.reshape(op, id, fence, lease, known, seconds, ...)
  local s = held(id, fence, lease, known)
  if s.op == op then return {'ok', s.result} end
  local lineage, sequence = s.lineage, s.sequence + 1
  save_lineage(s, with_own_gists(s, lineage, 0))
  tidy(s, lineage, math.huge, 0)
  redis.call('HSET', s.key, 'sequence', sequence, 'op', op, 'result', sequence,
    'gist_blocks', s.blocks > 0 and '0' or '',
    'staged', cjson.encode({['0'] = s.staged['0']}), ...)
  renew_until(s, seconds)
  return {'ok', tostring(sequence)}
end

local function remove(s)
  local old, model = indexed(s.key)
  index_prefixes(s, model, old, '')
  remove_notes(s)
  leave(s, s.lineage)
  tidy(s, s.lineage, 0, 0)
  list_kind(s, '', '')
  list_expiring(s, '', '', '', '')
  redis.call('ZREM', tenant_key(s.tenant, 'sessions'), s.id)
  redis.call('HDEL', ns .. 'owners', s.id)
  redis.call('UNLINK', s.key)
end

-- again: '1' if the call may have been made already.
function commands.delete(id, tenant, again)
  if again == '1' and redis.call('HEXISTS', ns .. 'owners', id) == 0 then return {'ok'} end
  remove(find(id, tenant, true)) -- what others need of its rows stays in any case
  return {'ok'}
end

-- Whether a session has other plans than the set says that it is in: a server of before knows of none.
local function kept(s, set)
  local values = redis.call('HMGET', s.key, 'keep', 'ttl')
  return values[1] == '1' or (values[2] or '') ~= '' and set ~= 'expiring'
end

-- Deletes sessions of a set that were listed there for long, the longest first, without those that are leased or kept.
local function expire(set, before, limit)
  local time, found, at = now(), {}, 0
  repeat
    local members = redis.call('ZRANGEBYSCORE', ns .. set, '-inf', number_text(before), 'LIMIT', at, limit)
    for _, member in ipairs(members) do
      local tenant, id = string.match(member, '^([^:]*):(.*)$')
      local known, s = pcall(find, id, tenant, true)
      if not known then redis.call('ZREM', ns .. set, member)
      elseif #found < limit and (s.owner == '' or s['until'] <= time) and not kept(s, set) then found[#found + 1] = s end
    end
    at = at + limit
  until #found >= limit or #members < limit
  for _, s in ipairs(found) do remove(s) end
  return #found
end

-- implicit, explicit: seconds without use after which such sessions go, or ''.
function commands.expire(limit, implicit, explicit)
  local time, gone = now(), 0
  limit = tonumber(limit)
  for _, part in ipairs({{'expiring', '0'}, {'implicit', implicit}, {'explicit', explicit}}) do
    if part[2] ~= '' and gone < limit then gone = gone + expire(part[1], time - tonumber(part[2]), limit - gone) end
  end
  return {'ok', gone}
end

-- From format 1, where sessions were listed all together: lists each by its kind. Format 2 had no notes, 3 no checksums
-- of lineages, in format 4 all of a kind lived as long, and in format 5 a reshaped one had no gists before a commit.
function commands.upgrade(format)
  local owners = redis.call('HGETALL', ns .. 'owners')
  for i = 1, #owners, 2 do
    local s = {id = owners[i], tenant = owners[i + 1]}
    local key = tenant_key(s.tenant, 'session', s.id)
    local values = redis.call('HMGET', key, 'implicit', 'created', 'updated', 'lineage')
    if values[1] then
      list_kind(s, values[1], values[2])
      list_expiring(s, values[1], values[3], '', '')
      redis.call('HSET', key, 'lineage_sum', lineage_sum(s.id, values[4]))
      if redis.call('HGET', key, 'reshaped') == '1' then redis.call('HSET', key, 'gist_blocks', 0) end
      redis.call('HDEL', key, 'reshaped')
    end
  end
  redis.call('HSET', ns .. 'meta', 'format', format)
  return {'ok'}
end
