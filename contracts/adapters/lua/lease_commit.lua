-- uses: base
-- Grant a lease: every share or nothing. The same id gets the same grant; an ended id stays ended.
-- KEYS  P
-- ARGV  term, id, deployment, models ("name@version,…"), tenant, mode, node, start limit ms,
--       then for each share: device, MiB, compute, mask, the gen that the planner saw
-- reply OK token expires | TERM | GONE (ended) | UNAVAIL | DEAD | PLACE | STALE | MODE | FULL | QUOTA, with a detail
-- keys  P:lease:<id> HASH, P:lexp ZSET exp ms, P:dev:<id> HASH counters, P:dev:<id>:leases SET, P:node:<n> HASH,
--       P:node:<n>:leases SET, P:tenant:<t> HASH used, max, P:ended:<id> STRING tombstone, P:tok STRING
local id, mode, node, tenant = ARGV[2], ARGV[6], ARGV[7], ARGV[5]
local key = P .. ':lease:' .. id
if not is_leader(ARGV[1]) then return {'TERM', ''} end
if redis.call('EXISTS', P .. ':ended:' .. id) == 1 then return {'GONE', id .. ' has ended'} end
local known = redis.call('HMGET', key, 'tok', 'state')
if known[2] == 'quarantine' then return {'GONE', id .. ' has ended'} end
if known[1] then return {'OK', known[1], redis.call('ZSCORE', P .. ':lexp', id)} end

local state = redis.call('HGET', P .. ':node:' .. node, 'state')
if state == 'dead' then return {'DEAD', node} end
if state ~= 'ready' then return {'UNAVAIL', node .. ' is ' .. (state or 'unknown')} end

local function admit(device, memory, compute, mask, gen)
  local d = redis.call('HMGET', P .. ':dev:' .. device, 'node', 'gen', 'health', 'kind', 'mode', 'mem_cap', 'mem_used',
    'compute_cap', 'compute_used', 'lease_slots', 'nlease', 'mask')
  if not d[1] then return 'UNAVAIL', device .. ' is unknown' end
  if d[1] ~= node then return 'PLACE', device .. ' is on ' .. d[1] end
  if d[2] ~= gen then return 'STALE', device .. ' has changed' end
  if d[3] ~= 'ok' and d[3] ~= 'degraded' then return 'UNAVAIL', device .. ' is ' .. d[3] end
  if mode == 'free' or mode == 'none' or (mode == 'cpu') ~= (d[4] == 'cpu') then
    return 'PLACE', device .. ' is a ' .. d[4]
  end
  local count = tonumber(d[11])
  if d[5] ~= 'free' and d[5] ~= mode then return 'MODE', device .. ' is in mode ' .. d[5] end
  if count > 0 and mode == 'whole' then return 'MODE', device .. ' is taken whole' end
  if bit.band(tonumber(d[12]), tonumber(mask)) ~= 0 then
    return 'PLACE', device .. ' has these memory slices taken'
  end
  if count >= tonumber(d[10]) then return 'FULL', device .. ' has no lease slot left' end
  if mode == 'whole' then memory, compute = d[6], d[8] end
  if tonumber(d[7]) + tonumber(memory) > tonumber(d[6]) then return 'FULL', device .. ' has too little memory left' end
  if tonumber(d[9]) + tonumber(compute) > tonumber(d[8]) then
    return 'FULL', device .. ' has too little compute left'
  end
  return nil, {device, memory, compute, mask, tonumber(d[12])}
end

local shares, seen, total = {}, {}, 0
for i = 9, #ARGV, 5 do
  if seen[ARGV[i]] then return {'PLACE', ARGV[i] .. ' is named twice'} end
  seen[ARGV[i]] = true
  local code, share = admit(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  if code then return {code, share} end
  shares[#shares + 1] = share
  total = total + tonumber(share[3])
end
if tenant ~= '' then
  local quota = redis.call('HMGET', P .. ':tenant:' .. tenant, 'max', 'used')
  if quota[1] and tonumber(quota[2] or '0') + total > tonumber(quota[1]) then return {'QUOTA', tenant} end
  redis.call('HINCRBY', P .. ':tenant:' .. tenant, 'used', fmt(total))
end

local now = now_ms()
local token, expires, devs = next_token(now), fmt(now + tonumber(ARGV[8])), ''
for _, share in ipairs(shares) do
  local dev = P .. ':dev:' .. share[1]
  redis.call('HINCRBY', dev, 'mem_used', share[2])
  redis.call('HINCRBY', dev, 'compute_used', share[3])
  redis.call('HINCRBY', dev, 'nlease', 1)
  redis.call('HSET', dev, 'mode', mode, 'mask', fmt(bit.bor(share[5], tonumber(share[4]))))
  redis.call('SADD', dev .. ':leases', id)
  devs = devs .. table.concat({share[1], share[2], share[3], share[4]}, ',') .. ';'
end
redis.call('HSET', key, 'tok', token, 'deployment', ARGV[3], 'models', ARGV[4], 'tenant', tenant, 'mode', mode,
  'node', node, 'devs', devs, 'state', 'reserved', 't0', fmt(now))
redis.call('ZADD', P .. ':lexp', expires, id)
redis.call('SADD', P .. ':node:' .. node .. ':leases', id)
event('commit', 'lease', id, 'node', node, 'detail', ARGV[3])
return {'OK', token, expires}
